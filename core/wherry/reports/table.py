"""The report as CSV: a line per result."""

from __future__ import annotations

import csv
import io
from typing import Any

from wherry.reports import RunRecord
from wherry.reports.words import Result, clean, option_text

_LATENCY = ("p90_ms", "p99_ms", "min_ms", "mean_ms", "samples", "outliers", "rounds", "load_ms",
            "first_ms", "with_copies_ms", "timed_by", "clean", "steady", "emulated")  # fmt: skip

Path = tuple[str | int, ...]
"""Keys and indices, one below the other."""


def render(record: RunRecord) -> str:
    """RFC 4180 with a head line; text that a spreadsheet would run as a formula is quoted."""
    paths = columns(record)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["run_id", *map(_cell, paths)])
    for result in record.values["results"]:
        cells = [_cell(value_at(result, path)) for path in paths.values()]
        writer.writerow([_cell(record.values["run_id"]), *cells])
    return stream.getvalue()


def columns(record: RunRecord) -> dict[str, Path]:
    """The columns of a table of results: name to where the value stands in a result."""
    results = record.values["results"]
    options = sorted({name for result in results for name in result["target"]["options"]})
    return {
        "variant": ("variant",),
        **{key: ("target", key) for key in ("backend", "precision", "device")},
        "status": ("status",),
        **{f"option.{name}": ("target", "options", name) for name in options},
        "latency.median_ms": ("latency", "median_ms"),
        "latency.ci95_low_ms": ("latency", "ci95_ms", 0),
        "latency.ci95_high_ms": ("latency", "ci95_ms", 1),
        **{f"latency.{key}": ("latency", key) for key in _LATENCY},
        **{
            f"metric.{metric['name']}": ("metrics", metric["name"])
            for metric in record.values["metrics"]
        },
        **{f"parity.{key}": ("parity", key) for key in ("sqnr_db", "cosine")},
        **{
            key: (key,)
            for key in ("size_bytes", "packed_bytes", "gzip_bytes", "peak_memory_bytes",
                        "energy_mj", "speedup_vs_fp32", "speedup_vs_original", "pareto", "cached",
                        "artifact", "error")
        },
        **{
            f"sustained.{key}": ("sustained", key)
            for key in ("duration_s", "ratio", "throttled_s")
        },
    }  # fmt: skip


def value_at(result: Result, path: Path) -> Any:
    """The value at a path; None where something on the way is None or absent."""
    value: Any = result
    for key in path:
        if value is None:
            return None
        value = value[key] if isinstance(key, int) else value.get(key)
    return value


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Spreadsheets run what begins so (OWASP, CSV injection); a quote before it stops them."""


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list | dict):
        value = option_text(value)
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if value.startswith(_FORMULA) else text
