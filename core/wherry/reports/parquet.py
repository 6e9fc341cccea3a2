"""The report as Parquet: a row per result, in typed columns, for pandas, Polars and DuckDB."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wherry.errors import EnvironmentError_
from wherry.reports import RunRecord
from wherry.reports.table import columns, value_at
from wherry.reports.words import clean, option_text

if TYPE_CHECKING:
    import pyarrow

_TEXTS = ("variant", "backend", "precision", "device", "status", "artifact", "error")
_FLAGS = ("clean", "steady", "emulated", "pareto", "cached")
_COUNTS = ("samples", "outliers", "rounds", "size_bytes", "packed_bytes", "gzip_bytes",
           "peak_memory_bytes")  # fmt: skip


def render(record: RunRecord, *, samples: bool = False) -> bytes:
    """A Parquet file with the columns of the CSV, and ``manifest``, ``started`` and ``tag``.

    A column has the same type in every run: text, whole numbers (int64), flags, or doubles; options
    have the type of their values, and are text where these are of several. Names and values are
    what they are: nothing runs a formula here.

    Args:
        record: of the run.
        samples: the raw samples too: ``samples.infer_ns`` and ``samples.total_ns``, lists of
            uint64 in nanoseconds, in the order in which they were measured.

    Raises:
        EnvironmentError_: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise EnvironmentError_(
            "Parquet needs pyarrow, which is not installed",
            remedy='Install it: pip install "wherry[parquet]".',
        ) from error
    results = record.values["results"]
    made: dict[str, Any] = {
        key: pa.array([_text(record.values[key])] * len(results), pa.string())
        for key in ("run_id", "tag", "manifest", "started")
    }
    for name, path in columns(record).items():
        values = [value_at(result, path) for result in results]
        made[name] = _typed(name, values, pa)
    if samples:
        for kind in ("infer_ns", "total_ns"):
            lists = [raw.get(kind) for raw in record.samples]
            made[f"samples.{kind}"] = pa.array(lists, pa.list_(pa.uint64()))
    stream = io.BytesIO()
    table = pa.table({clean(name): values for name, values in made.items()})
    pyarrow.parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _typed(name: str, values: Iterable[Any], pa: Any) -> pyarrow.Array:
    """One column; null where there is no value."""
    values = list(values)
    last = name.rpartition(".")[2]
    if name.startswith("option."):
        kinds = {type(value) for value in values if value is not None}
        if kinds == {bool}:
            return pa.array(values, pa.bool_())
        if kinds == {int}:
            return pa.array(values, pa.int64())
        if kinds and kinds <= {int, float}:
            return pa.array(values, pa.float64())
        texts = [None if value is None else option_text(value) for value in values]
        return pa.array(map(_text, texts), pa.string())
    if name in _TEXTS or last == "timed_by":
        return pa.array(map(_text, values), pa.string())
    if not name.startswith("metric."):
        if last in _FLAGS:
            return pa.array(values, pa.bool_())
        if last in _COUNTS:
            return pa.array(values, pa.int64())
    return pa.array(values, pa.float64())


def _text(value: Any) -> str | None:
    return None if value is None else clean(value)
