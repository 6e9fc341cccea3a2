"""Layers to blame beside a run: what ``wherry debug layers --json`` wrote, checked and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wherry.errors import UsageError
from wherry.reports import RunRecord, words

SHOWN = 25
"""Layers of a target in the page, the worst first."""
HEADS = ("layer", "type", "nodes", "part of the error", "own dB", "accumulated dB")


@dataclass(frozen=True)
class Blame:
    """The layers of a target.

    Attributes:
        name: the target's.
        outputs: of the board against the reference, in a sentence.
        rows: texts under `HEADS`, the worst first.
        left_out: layers that are not shown.
        keep: what ``keep_fp32`` can be given, as it stands in a manifest; empty: nothing.
    """

    name: str
    outputs: str
    rows: tuple[tuple[str, ...], ...]
    left_out: int
    keep: str


def with_blame(record: RunRecord, files: tuple[Path, ...]) -> RunRecord:
    """The record with what was found of its targets; raises `UsageError`."""
    return replace(record, blame=tuple(_read(file, record) for file in files))


def _read(file: Path, record: RunRecord) -> Mapping[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        blamed(values)
        whose = (values["variant"], values["target"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"it is not what `wherry debug layers --json` prints: {_words(error)}",
            where=str(file),
            remedy="Write it anew: `wherry debug layers MANIFEST ... --json > FILE`.",
        ) from error
    found: Mapping[str, Any] = values
    if whose not in [(result["variant"], result["target"]) for result in record.values["results"]]:
        raise UsageError(
            f"the run {record.values['run_id']} has no target like {found['name']!r}",
            where=str(file),
            remedy="Debug a target of this run, with the same options.",
        )
    return found


def _words(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def blamed(values: Mapping[str, Any]) -> Blame:
    """What the page shows of one file."""
    layers = [layer for layer in values["layers"] if layer["tensor"] is not None]
    outputs = "; ".join(
        f"{name} {figures['sqnr_db']:.1f} dB, cosine {figures['cosine']:.5f}"
        for name, figures in values["outputs"].items()
    )
    rows = [
        (
            str(layer["layer"]),
            str(layer["type"]) or "-",
            ", ".join(layer["nodes"]) or "-",
            "-" if layer["share"] is None else f"{100 * layer['share']:.1f} %",
            words.metric_text(layer["own"]["sqnr_db"]),
            words.metric_text(layer["accumulated"]["sqnr_db"]),
        )
        for layer in layers[:SHOWN]
    ]
    keep = f"keep_fp32: {json.dumps(values['keep_fp32'])}" if values["keep_fp32"] else ""
    text = f"{values['samples']} samples of the {values['data']} data; outputs: {outputs}"
    return Blame(str(values["name"]), text, tuple(rows), max(0, len(layers) - SHOWN), keep)
