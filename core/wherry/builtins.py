"""The core's own plugin: the sources of data, the metrics and the reports that come with wherry.

It is named by an entry point and loaded by the call that loads everyone's.
"""

from __future__ import annotations

from collections.abc import Iterable

from wherry.dataset import DatasetSource
from wherry.hookspecs import hookimpl
from wherry.metrics import MetricKind
from wherry.reports import Report


@hookimpl
def wherry_datasets() -> Iterable[DatasetSource]:
    """Yield the sources of `wherry.data`."""
    from wherry.data import sources

    yield from sources()


@hookimpl
def wherry_metrics() -> Iterable[MetricKind]:
    """Yield the metrics of `wherry.scoring`."""
    from wherry.scoring import metrics

    yield from metrics()


@hookimpl
def wherry_reports() -> Iterable[Report]:
    """Yield the reports of `wherry.reports.builtin`."""
    from wherry.reports.builtin import reports

    yield from reports()
