"""What the page's charts are drawn from: the results as small numbers, and every Pareto front.

Fronts are made here, by the function that makes the record's own, for each pair of axes that a
reader can choose. Only what the same clock timed on the same board stands in one picture, and of
an emulated board nothing that an emulator falsifies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wherry.reports import RunRecord, layers, words
from wherry.reports.pictures import looks_of
from wherry.reports.words import Result
from wherry.stats import pareto

BINS = 48
"""Of a histogram."""
WINDOWS = 2_400
"""Windows of samples in a page, over all results."""
SUSTAINED = 2_400
"""Points of runs without pause in a page, over all results."""
READINGS = 1_200
"""Readings of sensors in a page, over all boards."""
PIECES = 40
"""Bars in a comparison of layers, for each of its results."""
COMPARED = 600
"""Pieces of models in a page, over all comparisons."""
UNITS = (
    ("_khz", "MHz", 1e-3),
    ("_bytes", "MB", 1e-6),
    ("_c", "\N{DEGREE SIGN}C", 1.0),
    ("_w", "W", 1.0),
    ("_mw", "mW", 1.0),
    ("_v", "V", 1.0),
    ("", "", 1.0),
)
"""How a sensor's name ends, the unit in a picture, and the factor to it."""
FALSIFIED = frozenset({"latency", "energy", "memory"})
"""Costs that mean nothing on an emulated board."""


@dataclass(frozen=True)
class Axis:
    """What can be put on an axis.

    Attributes:
        key: names it within the page.
        title: for people, with its unit.
        better: ``higher`` or ``lower``.
    """

    key: str
    title: str
    better: str = "lower"


COSTS = (
    Axis("latency", "median latency, ms"),
    Axis("energy", "energy of an inference, mJ"),
    Axis("size", "size of the artifact, kB"),
    Axis("packed", "size as it is sent, kB"),
    Axis("memory", "peak memory, MB"),
)


def figures(record: RunRecord) -> dict[str, Any]:
    """The data of the page's script; see the scripts for how each part is shown."""
    values = record.values
    measured = [(i, r) for i, r in enumerate(values["results"]) if r["status"] == "ok"]
    looks = looks_of([result for _, result in measured])
    worths = worth_axes(values["metrics"])
    spread = Spread(len(measured), sum(bool(r.get("sustained")) for _, r in measured))
    return {
        "costs": {axis.key: vars(axis) for axis in COSTS},
        "worths": {axis.key: vars(axis) for axis in worths},
        "results": [
            _result(index, result, looks, record, spread, worths) for index, result in measured
        ],
        "groups": groups(measured, values["metrics"]),
        "boards": boards([result for _, result in measured]),
        "board_order": list(values["devices"]),
        "layers": comparisons([result for _, result in measured]),
    }


def worth_axes(metrics: Sequence[Mapping[str, Any]]) -> list[Axis]:
    """What can go up: the metrics, and the size."""
    found = [
        Axis(
            f"metric.{m['name']}", m["name"] + (f", {m['unit']}" if m["unit"] else ""), m["better"]
        )
        for m in metrics
    ]
    return [*found, Axis("size", "size of the artifact, kB")]


def value_of(result: Result, key: str) -> float | None:
    """A result's figure on an axis, in the axis' unit; None where it has none."""
    if key == "latency":
        return float(result["latency"]["median_ms"])
    if key == "energy":
        return _scaled(result["energy_mj"], 1.0)
    if key == "memory":
        return _scaled(result["peak_memory_bytes"], 1e-6)
    if key in {"size", "packed"}:
        return _scaled(result[f"{key}_bytes"], 1e-3)
    return _scaled(result["metrics"].get(key.removeprefix("metric.")), 1.0)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def groups(
    measured: Sequence[tuple[int, Result]], metrics: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What can be seen together, one a device and clock, with the front for each pair of axes."""
    found: dict[tuple[str, str, bool], list[tuple[int, Result]]] = {}
    for index, result in measured:
        latency = result["latency"]
        key = result["target"]["device"], latency["timed_by"], latency["emulated"]
        found.setdefault(key, []).append((index, result))
    clocks = {clock for _, clock, _ in found}
    worths = worth_axes(metrics)
    made = []
    for (device, clock, emulated), members in found.items():
        costs = [
            axis.key
            for axis in COSTS
            if not (emulated and axis.key in FALSIFIED)
            and any(value_of(result, axis.key) is not None for _, result in members)
        ]
        fronts = {
            f"{cost}|{worth.key}": _front(members, cost, worth, worths[0])
            for cost in costs
            for worth in worths
            if cost != worth.key
        }
        title = device + (f", timed by {clock}" if len(clocks) > 1 else "")
        made.append(
            {
                "title": title + (" (emulated: no times)" if emulated else ""),
                "device": device,
                "results": [index for index, _ in members],
                "costs": costs,
                "fronts": fronts,
            }
        )
    return made


def _front(members: Sequence[tuple[int, Result]], cost: str, worth: Axis, first: Axis) -> list[int]:
    """The results on the front; of latency and the first metric, those that the record marks."""
    if cost == "latency" and worth is first:
        return [index for index, result in members if result["pareto"]]
    sign = 1.0 if worth.better == "higher" else -1.0
    points = []
    for _, result in members:
        value = value_of(result, worth.key)
        points.append((value_of(result, cost), None if value is None else sign * value))
    marks = pareto(points)
    return [index for (index, _), best in zip(members, marks, strict=True) if best]


@dataclass(frozen=True)
class Spread:
    """How many points a result may have, so that a page of many stays small."""

    results: int
    sustained: int

    @property
    def windows(self) -> int:
        """Of its samples."""
        return min(150, max(12, WINDOWS // max(self.results, 1)))

    @property
    def points(self) -> int:
        """Of its run without pause."""
        return min(600, max(12, SUSTAINED // max(self.sustained, 1)))


def _result(
    index: int,
    result: Result,
    looks: Mapping[tuple[str, str], tuple[int, str]],
    record: RunRecord,
    spread: Spread,
    worths: Sequence[Axis],
) -> dict[str, Any]:
    target, latency = result["target"], result["latency"]
    colour, shape = looks[target["backend"], target["precision"]]
    axes = {*(axis.key for axis in COSTS), *(axis.key for axis in worths)}
    samples = record.samples[index] if index < len(record.samples) else {}
    infer = samples.get("infer_ns")
    emulated = latency["emulated"]
    return {
        "index": index,
        "name": result["name"],
        "label": f"{result['variant']}, {target['backend']} {target['precision']}",
        "device": target["device"],
        "colour": colour,
        "shape": shape,
        "clean": latency["clean"],
        "emulated": emulated,
        "values": {key: value_of(result, key) for key in sorted(axes)},
        "ci95": latency["ci95_ms"],
        **(distribution(infer, spread.windows) if infer is not None and len(infer) else {}),
        "sustained": _sustained(result, spread.points),
    }


def distribution(infer_ns: np.ndarray, windows: int) -> dict[str, Any]:
    """Samples in milliseconds as quantiles, as a histogram, and in their order.

    Args:
        infer_ns: uint64 [samples], in the order of the runs.
        windows: how many the order is cut into.

    Returns:
        ``box``: 5th, 25th, 50th, 75th and 95th percentile; ``histogram``: its first edge, the width
        of a bin, and the counts, with ``beyond`` how many are above the last edge: eight times the
        middle half above the median, or where the slowest percent begins; ``order``: for each
        window the 10th, 50th and 90th percentile.
    """
    milliseconds = infer_ns.astype(np.float64) / 1e6
    box = np.percentile(milliseconds, [5, 25, 50, 75, 95])
    low, high = float(milliseconds.min()), float(np.percentile(milliseconds, 99))
    high = min(high, float(box[2] + 8 * (box[3] - box[1])))
    if high <= low:
        high = low + max(abs(low) * 1e-3, 1e-6)
    counts, _ = np.histogram(milliseconds, bins=BINS, range=(low, high))
    order = [
        _rounded(np.percentile(part, [10, 50, 90]))
        for part in np.array_split(milliseconds, min(windows, len(milliseconds)))
    ]
    return {
        "box": _rounded(box),
        "histogram": {
            "from": _round(low),
            "step": (high - low) / BINS,
            "counts": counts.tolist(),
            "beyond": int((milliseconds > high).sum()),
        },
        "order": order,
    }


def _sustained(result: Result, most: int) -> dict[str, Any] | None:
    found = result.get("sustained")
    if not found:
        return None
    points = thinned(found["points"], most)
    keys = ("time_s", "median_ms", "p90_ms", "temperature_c")
    return {
        "text": words.sustained_text(result),
        "throttled": found["throttled_s"],
        "points": [[_round(point[key]) for key in keys] for point in points],
    }


def boards(measured: Sequence[Result]) -> dict[str, Any]:
    """Of each board what its sensors said over the run: seconds since the first reading."""
    devices: dict[str, list[Mapping[str, Any]]] = {}
    for result in measured:
        if not result["cached"]:  # read in another run
            devices.setdefault(result["target"]["device"], []).extend(result["sensors"])
    most = max(40, READINGS // max(len(devices), 1))
    found: dict[str, Any] = {}
    for device, readings in devices.items():
        kept = thinned(sorted(readings, key=lambda reading: reading["time_s"]), most)
        names = dict.fromkeys(name for reading in kept for name in reading["values"])
        curves: dict[str, Any] = {}
        for name in names:
            kind, _, rest = name.partition(".")
            if kind.endswith("_s"):  # a counter, which tells nothing by itself
                continue
            unit, shown, factor = next(each for each in UNITS if kind.endswith(each[0]))
            points = [
                [
                    _round(reading["time_s"] - kept[0]["time_s"]),
                    _round(reading["values"][name] * factor),
                ]
                for reading in kept
                if isinstance(reading["values"].get(name), int | float)
            ]
            if len(points) > 1:
                title = kind.removesuffix(unit).replace("_", " ") + (f" {rest}" if rest else "")
                curves[title + (f", {shown}" if shown else "")] = points
        if curves:
            found[device] = curves
    return found


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, most)]


def comparisons(measured: Sequence[Result]) -> list[dict[str, Any]]:
    """The layers side by side, of a single result too; the slowest pieces of each."""
    found = layers.comparisons(measured, least=1)
    most = min(PIECES, max(5, COMPARED // max(len(found), 1)))
    made = []
    for each in found:
        kept = each.slowest(most)
        made.append(
            {
                "title": each.title + (" (emulated: times mean nothing)" if each.emulated else ""),
                "heads": list(each.heads),
                "left_out": len(each.pieces) - len(kept),
                "pieces": [
                    {"nodes": piece.label, "times": [_round(value) for value in piece.times_ms]}
                    for piece in kept
                ],
            }
        )
    return made


def _rounded(values: np.ndarray) -> list[float | None]:
    return [_round(float(value)) for value in values]


def _round(value: float | None) -> float | None:
    """Five significant digits: what a picture shows."""
    return None if value is None else float(f"{value:.5g}")
