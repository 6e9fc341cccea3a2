"""Reports: what people and machines read of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
"""Of the report's JSON, a contract: ``schema.json`` beside this file, ``docs/report-json.md``."""


@dataclass(frozen=True)
class RunRecord:
    """A run as reports see it.

    Attributes:
        values: the report's JSON (a contract: see ``docs/report-json.md``).
        samples: per result, in order: ``infer_ns`` and ``total_ns`` as uint64 [samples]; empty
            mappings for results that failed.
        manifest: the manifest's text as it was run.
        blame: what ``wherry debug layers --json`` found of targets of the run; not kept with it.
    """

    values: Mapping[str, Any]
    samples: tuple[Mapping[str, np.ndarray], ...] = ()
    manifest: str = field(default="", repr=False)
    blame: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Report:
    """Descriptor of a form of a report, yielded by ``wherry_reports``.

    Attributes:
        name: ``run --NAME FILE`` and ``report --format NAME``.
        description: one line.
        render: makes the file: text, which is written as UTF-8, or bytes.
        suffix: of a file, e.g. ``.html``.
    """

    name: str
    description: str
    render: Callable[[RunRecord], str | bytes]
    suffix: str
