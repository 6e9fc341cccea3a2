"""What a board's sensors said, in one line a sensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.reports import words
from wherry.reports.words import Result


@dataclass(frozen=True)
class Sensor:
    """A sensor over some readings.

    Attributes:
        name: as the board calls it.
        said: the words that it said, or the least and the greatest number, with the unit.
        readings: how many.
    """

    name: str
    said: str
    readings: int


def over(readings: Iterable[Mapping[str, Any]]) -> list[Sensor]:
    """Each sensor over the readings; counters by how much they rose."""
    found: dict[str, list[Any]] = {}
    for reading in readings:
        for name, value in reading["values"].items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return [Sensor(name, _said(name, values), len(values)) for name, values in found.items()]


def of_device(results: Sequence[Result], device: str) -> list[Sensor]:
    """Of a board over the whole run, without what earlier runs read."""
    return over(
        reading
        for result in results
        if result["target"]["device"] == device and not result["cached"]
        for reading in result["sensors"]
    )


def _said(name: str, values: Sequence[Any]) -> str:
    if not all(isinstance(value, int | float) for value in values):
        return ", ".join(dict.fromkeys(map(str, values)))
    kind = name.partition(".")[0]
    if kind.endswith("_s"):  # a counter since the board started
        return f"rose by {max(values) - min(values):.4g} s"
    ends = dict.fromkeys(_text(kind, value) for value in (min(values), max(values)))
    return " to ".join(ends)


def _text(kind: str, value: float) -> str:
    if kind.endswith("_bytes"):
        return words.bytes_text(int(value))
    if kind.endswith("_khz"):
        return f"{value / 1000:.0f} MHz"
    units = {"_c": " \N{DEGREE SIGN}C", "_w": " W", "_mw": " mW", "_v": " V", "_mj": " mJ"}
    unit = next((unit for suffix, unit in units.items() if kind.endswith(suffix)), "")
    return f"{value:.4g}{unit}"
