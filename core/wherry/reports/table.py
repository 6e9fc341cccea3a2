"""The report as CSV: a line per result."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from wherry.reports import RunRecord

_LATENCY = ("median_ms", "p90_ms", "p99_ms", "min_ms", "mean_ms", "samples", "load_ms", "first_ms",
            "with_copies_ms", "timed_by", "clean", "emulated")  # fmt: skip


def render(record: RunRecord) -> str:
    """RFC 4180 with a head line; text that a spreadsheet would run as a formula is quoted."""
    values = record.values
    metrics = [metric["name"] for metric in values["metrics"]]
    options = sorted({key for r in values["results"] for key in r["target"]["options"]})
    head = [
        *("run_id", "variant", "backend", "precision", "device", "status"),
        *(f"option.{key}" for key in options),
        *(f"latency.{key}" for key in ("ci95_low_ms", "ci95_high_ms", *_LATENCY)),
        *(f"metric.{name}" for name in metrics),
        *("parity.sqnr_db", "parity.cosine", "size_bytes", "peak_memory_bytes"),
        *("speedup_vs_fp32", "pareto", "artifact", "error"),
    ]
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([_cell(name) for name in head])
    for result in values["results"]:
        writer.writerow([_cell(value) for value in _values(result, options, metrics, values)])
    return stream.getvalue()


def _values(
    result: Mapping[str, Any], options: list[str], metrics: list[str], values: Mapping[str, Any]
) -> list[Any]:
    target, latency, parity = result["target"], result["latency"] or {}, result["parity"] or {}
    return [
        *(values["run_id"], result["variant"], target["backend"], target["precision"]),
        *(target["device"], result["status"]),
        *(target["options"].get(key) for key in options),
        *(latency.get("ci95_ms") or (None, None)),
        *(latency.get(key) for key in _LATENCY),
        *(result["metrics"].get(name) for name in metrics),
        *(parity.get("sqnr_db"), parity.get("cosine"), result["size_bytes"]),
        *(result["peak_memory_bytes"], result["speedup_vs_fp32"], result["pareto"]),
        *(result["artifact"], result["error"]),
    ]


def _cell(value: Any) -> Any:
    """Spreadsheets run what begins so (OWASP, CSV injection); a quote before it stops them."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value
