"""The forms of a report that wherry brings."""

from __future__ import annotations

import json
from collections.abc import Iterable

from wherry.reports import Report, RunRecord


def reports() -> Iterable[Report]:
    """The descriptors; what makes a form is imported when it is asked for."""
    yield Report("json", "the report's contract, for programs", _json, ".json")
    yield Report("html", "one page that opens offline", _html, ".html")
    yield Report("markdown", "for a pull request", _markdown, ".md")
    yield Report("csv", "a line per result, for spreadsheets", _csv, ".csv")
    yield Report("baseline", "a small file for git, to compare with", _baseline, ".baseline.json")
    yield Report("parquet", "a typed row per result, for data tools", _parquet, ".parquet")
    yield Report(
        "parquet-samples", "the same with all raw samples", _parquet_samples, ".samples.parquet"
    )
    yield Report("junit", "JUnit XML, for CI systems", _junit, ".xml")


def _json(record: RunRecord) -> str:
    # NaN and infinity cannot stand in JSON, and must not in a report
    return json.dumps(record.values, indent=2, allow_nan=False) + "\n"


def _html(record: RunRecord) -> str:
    from wherry.reports.html import render

    return render(record)


def _markdown(record: RunRecord) -> str:
    from wherry.reports.markdown import render

    return render(record)


def _csv(record: RunRecord) -> str:
    from wherry.reports.table import render

    return render(record)


def _parquet(record: RunRecord) -> bytes:
    from wherry.reports.parquet import render

    return render(record)


def _parquet_samples(record: RunRecord) -> bytes:
    from wherry.reports.parquet import render

    return render(record, samples=True)


def _baseline(record: RunRecord) -> str:
    from wherry.records.snapshot import render

    return render(record)


def _junit(record: RunRecord) -> str:
    from wherry.reports.junit import render

    return render(record)
