"""The core's own plugin: the sources of data, the metrics and the reports that come with wherry.

An entry point names it, and it is loaded by the call that loads everyone's.
"""

from __future__ import annotations

from collections.abc import Iterable

from wherry.data import sources
from wherry.dataset import DatasetSource
from wherry.hookspecs import hookimpl
from wherry.metrics import MetricKind
from wherry.reports import Report
from wherry.reports.builtin import reports
from wherry.scoring import metrics


@hookimpl
def wherry_datasets() -> Iterable[DatasetSource]:
    """Yield the sources of `wherry.data`."""
    return sources()


@hookimpl
def wherry_metrics() -> Iterable[MetricKind]:
    """Yield the metrics of `wherry.scoring`."""
    return metrics()


@hookimpl
def wherry_reports() -> Iterable[Report]:
    """Yield the reports of `wherry.reports.builtin`."""
    return reports()
