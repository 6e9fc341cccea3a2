"""A record as the rows of the tables, and back; its hash, and the key of a target."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from wherry.entry import canonical
from wherry.records.naming import RUN_ID
from wherry.records.samples import decode, encode
from wherry.reports import SCHEMA_VERSION, RunRecord

_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_KEY_CHARS = 200  # PostgreSQL's indices take no long values; the whole is in the body
_STATES = ("ok", "failed", "skipped")
_MOST_JSON = 1 << 30

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError)
"""What `rows_of` and `record_of` raise of what is no record."""


@dataclass(frozen=True)
class Rows:
    """Of one record.

    Attributes:
        run: without its number in the database.
        results: with ``position``, without ``run``; and so the others.
        details: a body for each result.
        samples: for each array.
    """

    run: dict[str, Any]
    results: list[dict[str, Any]]
    details: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def target_key(result: Mapping[str, Any]) -> str:
    """What a result's target is called in trends, over all runs: 32 hexadecimal digits.

    Args:
        result: of a report's JSON. The key is of its variant, backend, precision, device, options.
    """
    target = result["target"]
    parts = [result["variant"], *(target[key] for key in ("backend", "precision", "device"))]
    return hashlib.sha256(canonical([*parts, target["options"]])).hexdigest()[:32]


def record_digest(record: RunRecord) -> str:
    """The sha256 over all of a record: its JSON, its manifest, every sample."""
    arrays = [
        {
            name: hashlib.sha256(array.astype("<u8").tobytes()).hexdigest()
            for name, array in s.items()
        }
        for s in record.samples
    ]
    parts = {"values": record.values, "manifest": record.manifest, "samples": arrays}
    return hashlib.sha256(canonical(parts)).hexdigest()


def column_text(text: str) -> str:
    """As a column holds it: without what no database takes. The body holds it as it is."""
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)


def key_text(text: str) -> str:
    """As a column holds it that has an index."""
    return column_text(text)[:_KEY_CHARS]


def rows_of(record: RunRecord) -> Rows:
    """The rows that keep a record.

    Raises:
        ValueError: it is no report, or JSON cannot say it; or KeyError, TypeError, AttributeError,
            OverflowError, where something in it is missing or is of another kind.
    """
    values = record.values
    if values["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"its schema_version is {values['schema_version']!r}")
    if not RUN_ID.fullmatch(values["run_id"]):
        raise ValueError(f"{values['run_id']!r} cannot be the id of a run")
    results, model = values["results"], values["model"]
    states = [result["status"] for result in results]
    if not set(states) <= set(_STATES):
        raise ValueError(f"a result's status is none of {', '.join(_STATES)}")
    if record.samples and len(record.samples) != len(results):
        raise ValueError(f"there are {len(results)} results, and samples of {len(record.samples)}")
    tag = values["tag"]
    run = {
        "run_id": values["run_id"],
        "tag": None if tag is None else key_text(tag),
        "started": _moment(values["started"]),
        "finished": _moment(values["finished"]),
        "manifest": column_text(values["manifest"]),
        "model": None if model is None else column_text(model["digest"]),
        "wherry": column_text(values["wherry"]),
        "host": column_text(values["host"]["hostname"]),
        **{state: states.count(state) for state in _STATES},
        "gates": len(values["gates"]),
        "gates_failed": sum(not gate["passed"] for gate in values["gates"]),
        "digest": record_digest(record),
        # the results' place in the order of the keys is kept
        "body": _packed({"values": {**values, "results": None}, "manifest": record.manifest}),
    }
    return Rows(
        run=run,
        results=[
            {**_result(i, result, values["devices"]), "started": run["started"]}
            for i, result in enumerate(results)
        ],
        details=[{"position": i, "body": _packed(result)} for i, result in enumerate(results)],
        samples=[
            {"position": i, "name": column_text(name), "data": encode(array)}
            for i, arrays in enumerate(record.samples)
            for name, array in arrays.items()
        ],
    )


def record_of(
    body: bytes, details: Sequence[bytes], samples: Iterable[tuple[int, str, bytes]]
) -> RunRecord:
    """The inverse.

    Args:
        body: of the run.
        details: the results' bodies, by position.
        samples: (position, name, data).

    Raises:
        ValueError: a row cannot be read; or KeyError, TypeError, IndexError.
    """
    run = _unpacked(body)
    results = [_unpacked(detail) for detail in details]
    arrays: list[dict[str, np.ndarray]] = [{} for _ in results]
    for position, name, data in samples:
        arrays[position][name] = decode(data)
    return RunRecord({**run["values"], "results": results}, tuple(arrays), run["manifest"])


def _result(position: int, result: Mapping[str, Any], devices: Mapping[str, Any]) -> dict[str, Any]:
    target, latency = result["target"], result["latency"] or {}
    low, high = latency.get("ci95_ms") or (None, None)
    board = devices.get(target["device"])
    timed_by = latency.get("timed_by")
    return {
        "position": position,
        "target_key": target_key(result),
        **{key: column_text(result[key]) for key in ("name", "variant", "status")},
        **{key: column_text(target[key]) for key in ("backend", "precision")},
        "device": key_text(target["device"]),
        "board": None if board is None else column_text(board["fingerprint"]),
        "median_ms": _real(latency.get("median_ms")),
        "low_ms": _real(low),
        "high_ms": _real(high),
        "timed_by": None if timed_by is None else column_text(timed_by),
        "clean": _flag(latency.get("clean")),
        "emulated": _flag(latency.get("emulated")),
        "size_bytes": _whole(result["size_bytes"]),
        "peak_memory_bytes": _whole(result["peak_memory_bytes"]),
        "energy_mj": _real(result["energy_mj"]),
        "metrics": {column_text(name): _real(v) for name, v in result["metrics"].items()},
    }


def _packed(value: Any) -> bytes:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return zlib.compress(text.encode("ascii"))


def _unpacked(data: bytes) -> dict[str, Any]:
    try:
        unpack = zlib.decompressobj()
        text = unpack.decompress(data, _MOST_JSON)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpack.eof:
        raise ValueError("a row is cut off")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a row holds no JSON object")  # noqa: TRY004 -- of the data, not the call
    return value


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _flag(value: bool | None) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _real(value: float | None) -> float | None:
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return None if value is None else float(value)


def _whole(value: float | None) -> int | None:
    if value is not None and (not isinstance(value, int | float) or not abs(value) < 1 << 63):
        raise ValueError(f"{value!r} is no number of bytes")
    return None if value is None else int(value)
