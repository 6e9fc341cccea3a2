"""The forms of a report that wherry brings."""

from __future__ import annotations

import json
from collections.abc import Iterable

from wherry.reports import Report, RunRecord


def reports() -> Iterable[Report]:
    """The descriptors; what makes a form is imported when it is asked for."""
    yield Report("json", "the report's contract, for programs", render_json, ".json")


def render_json(record: RunRecord) -> str:
    """The values as they are; NaN and infinity cannot stand in them."""
    return json.dumps(record.values, indent=2, allow_nan=False) + "\n"
