"""What each pass recorded, as figures and tables: whatever a pass tells, by its own names.

A pass's record is JSON of no fixed form. Numbers and texts become figures; a list of mappings, or a
mapping from a layer to something, becomes a table with a row a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.reports import words
from wherry.reports.words import Result

ROWS = 60
"""Of a table; it says how many there are more."""


@dataclass(frozen=True)
class PassTable:
    """A row a layer, or whatever the pass counts.

    Attributes:
        title: the pass's name for it.
        heads: of the columns, the first is what each row speaks of.
        rows: of texts.
        left_out: rows that are not shown.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int


@dataclass(frozen=True)
class PassShown:
    """A pass: its name, its figures, its tables."""

    name: str
    figures: tuple[tuple[str, str], ...]
    tables: tuple[PassTable, ...]


def variants(results: Iterable[Result]) -> dict[str, list[PassShown]]:
    """Of each variant that has passes, what they recorded; all its targets share that."""
    found: dict[str, list[PassShown]] = {}
    for result in results:
        if result["passes"] and result["variant"] not in found:
            found[result["variant"]] = [shown(record) for record in result["passes"]]
    return found


def shown(record: Mapping[str, Any]) -> PassShown:
    """A pass's record, in the order in which the pass tells it."""
    figures: list[tuple[str, str]] = []
    tables: list[PassTable] = []
    for key, value in record.items():
        if key == "pass":
            continue
        before = key.removesuffix("_after") + "_before"
        if key.endswith("_before") and key.removesuffix("_before") + "_after" in record:
            continue  # told with what it became
        if key.endswith("_after") and before in record:
            figures.append((key.removesuffix("_after"), _change(record[before], value)))
        elif _is_table(value):
            tables.append(_table(key, value))
        elif isinstance(value, Mapping):
            figures += [(f"{key} {name}", text(inner)) for name, inner in value.items()]
        else:
            figures.append((key, text(value)))
    return PassShown(str(record["pass"]), tuple(figures), tuple(tables))


def _is_table(value: Any) -> bool:
    """A list of mappings, or a mapping by names that are nodes' or layers': with more than a few.

    A small mapping of plain values is figures of one thing (``held_out: {before, after}``).
    """
    if isinstance(value, Mapping):
        nested = any(isinstance(inner, Mapping | list | tuple) for inner in value.values())
        return bool(value) and (nested or len(value) > 4)
    listed = isinstance(value, list | tuple) and bool(value)
    return listed and all(isinstance(inner, Mapping) for inner in value)


def _table(title: str, value: Any) -> PassTable:
    rows: list[Mapping[str, Any]]
    if isinstance(value, Mapping):
        rows = [{"of": name, **_columns(inner)} for name, inner in value.items()]
    else:
        rows = list(value)
    heads = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    cells = [tuple(text(row[head]) if head in row else "-" for head in heads) for row in rows]
    named = tuple("" if head == "of" else head for head in heads)
    return PassTable(title, named, tuple(cells[:ROWS]), max(0, len(cells) - ROWS))


def _columns(value: Any) -> Mapping[str, Any]:
    """``[before, after]`` of counts, a mapping's own names, or the value alone."""
    if isinstance(value, Mapping):
        return {str(key): inner for key, inner in value.items()}
    pair = isinstance(value, list | tuple) and len(value) == 2
    if pair and all(isinstance(inner, int) for inner in value):
        return {"before": value[0], "after": value[1], "kept": _share(value[0], value[1])}
    return {"value": value}


def _share(before: float, after: float) -> str:
    return f"{100 * after / before:.1f} %" if before else "-"


def _change(before: Any, after: Any) -> str:
    numbers = isinstance(before, int | float) and isinstance(after, int | float)
    share = f" ({_share(before, after)})" if numbers and before else ""
    return f"{text(before)} to {text(after)}{share}"


def text(value: Any) -> str:
    """A value of a record: whole numbers with their thousands, others to five digits."""
    if value is None:
        return "-"
    if isinstance(value, bool | str):
        return words.option_text(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Sequence):
        return ", ".join(text(inner) for inner in value) or "-"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {text(inner)}" for key, inner in value.items()) or "-"
    return str(value)


def flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A nested mapping as lines, ``versions.onnx``; long values are cut, and say so."""
    found: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{before}{key}"
        if isinstance(inner, Mapping) and 0 < len(inner) <= MEMBERS:
            found += flat(inner, f"{name}.")
        elif isinstance(inner, Mapping | list | tuple) and len(inner) > MEMBERS:
            found.append((name, f"{len(inner)} entries: see the report's JSON"))
        else:
            found.append((name, _cut(text(inner))))
    return found


MEMBERS = 12
"""More members of a value than this are counted, not shown."""
_LONG = 300


def _cut(value: str) -> str:
    return value if len(value) <= _LONG else f"{value[:_LONG]}… ({len(value)} characters)"
