"""Pictures that stand in the page without any script: what is seen where the charts are not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.reports import words
from wherry.reports.words import Result

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 20, 50
SERIES_HEIGHT = 240
SIZE = {
    "width": WIDTH,
    "height": HEIGHT,
    "frame": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
    "small": (LEFT, TOP, WIDTH - LEFT, SERIES_HEIGHT - BOTTOM),
    "series_height": SERIES_HEIGHT,
}
"""What the template has to know of them."""
SHAPES = ("circle", "square", "diamond", "triangle")
COLOURS = 8
TOGETHER = 8.0
"""Points nearer than this cover each other: each of them names them all."""


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where it is in the picture, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """A result in the picture.

    Attributes:
        colour: index of its backend's colour.
        shape: one of `SHAPES`, its precision's.
        label: all results here, a line each.
        count: how many they are, at the one that is drawn last; else 0.
    """

    x: float
    y: float
    colour: int
    shape: str
    label: str
    count: int


@dataclass(frozen=True)
class Picture:
    """Latency against the first metric (or the size) for the results that one clock timed.

    Attributes:
        title: what is shown of which device.
        axis: what goes up.
        front: the Pareto front, as the points of a polyline; empty where it is one point.
        series: (colour, shape, text) of the legend.
        summary: for who cannot see it.
    """

    title: str
    axis: str
    points: tuple[Point, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[tuple[int, str, str], ...]
    summary: str


@dataclass(frozen=True)
class Series:
    """A run without pause: latency over time, and the temperature where the board tells it.

    Attributes:
        title: the result.
        text: what it showed.
        latency: the windows' medians, as the points of a polyline.
        temperature: likewise; empty where the board does not tell.
        throttled: where the board first slowed down; None: it did not.
        x_ticks: seconds.
        y_ticks: milliseconds.
        c_ticks: °C, on the right.
    """

    title: str
    text: str
    latency: str
    temperature: str
    throttled: float | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    c_ticks: tuple[Tick, ...]


def pictures(measured: Sequence[Result], values: Mapping[str, Any]) -> list[Picture]:
    """One a device and clock; of an emulated board there is none, for its latency says nothing."""
    first = values["metrics"][0]["name"] if values["metrics"] else None
    groups: dict[tuple[str, str], list[_Spot]] = {}
    for result in measured:
        latency = result["latency"]
        worth = result["metrics"].get(first) if first else result["size_bytes"] / 1000
        if worth is not None and not latency["emulated"]:
            group = groups.setdefault((result["target"]["device"], latency["timed_by"]), [])
            group.append((result, latency["median_ms"], worth))
    several = len({clock for _, clock in groups}) > 1
    looks = looks_of(measured)
    return [
        _picture(device + (f", timed by {clock}" if several else ""), first, group, looks)
        for (device, clock), group in groups.items()
    ]


_Spot = tuple[Result, float, float]
"""A result, its latency in milliseconds, and what goes up in the picture."""


def looks_of(measured: Sequence[Result]) -> dict[tuple[str, str], tuple[int, str]]:
    """The colour and the shape of each backend and precision, the same in all pictures."""
    kinds = dict.fromkeys((r["target"]["backend"], r["target"]["precision"]) for r in measured)
    backends = list(dict.fromkeys(backend for backend, _ in kinds))
    precisions = list(dict.fromkeys(precision for _, precision in kinds))
    return {
        (backend, precision): (
            backends.index(backend) % COLOURS,
            SHAPES[precisions.index(precision) % len(SHAPES)],
        )
        for backend, precision in sorted(
            kinds, key=lambda kind: (backends.index(kind[0]), precisions.index(kind[1]))
        )
    }


def _picture(
    place: str,
    first: str | None,
    group: Sequence[_Spot],
    looks: Mapping[tuple[str, str], tuple[int, str]],
) -> Picture:
    axis, unit = (first, "") if first else ("size", " kB")
    x_low, x_high, x_ticks = _scale([0.0, *(x for _, x, _ in group)], LEFT, WIDTH - RIGHT)
    y_low, y_high, y_ticks = _scale([y for _, _, y in group], HEIGHT - BOTTOM, TOP)
    spots = [
        (
            round(_place(x, x_low, x_high, LEFT, WIDTH - RIGHT), 1),
            round(_place(y, y_low, y_high, HEIGHT - BOTTOM, TOP), 1),
        )
        for _, x, y in group
    ]
    kinds = [(result["target"]["backend"], result["target"]["precision"]) for result, _, _ in group]
    labels = [
        f"{result['name']}: {words.ms_text(x)} ms, {axis} {words.metric_text(y)}{unit}"
        for result, x, y in group
    ]
    points = []
    for here in _clusters(spots):
        label = "\n".join(labels[index] for index in here)
        for index in here:
            count = len(here) if len(here) > 1 and index == here[-1] else 0
            points.append(Point(*spots[index], *looks[kinds[index]], label, count))
    front = sorted(
        spot for (result, _, _), spot in zip(group, spots, strict=True) if result["pareto"]
    )
    return Picture(
        title=f"Latency and {axis} on {place}",
        axis=axis + (f",{unit}" if unit else ""),
        points=tuple(points),
        front=" ".join(f"{x},{y}" for x, y in front) if len(front) > 1 else "",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        series=tuple((*look, " ".join(kind)) for kind, look in looks.items() if kind in kinds),
        summary=f"{len(points)} results on {place}: latency in milliseconds against {axis}; "
        f"{len(front)} on the Pareto front. The table below has all figures.",
    )


def series(result: Result) -> Series:
    """A result's run without pause."""
    found = result["sustained"]
    points = found["points"]
    right, bottom = WIDTH - LEFT, SERIES_HEIGHT - BOTTOM  # as wide on both sides: two axes
    x_low, x_high, x_ticks = _scale([0.0, found["duration_s"]], LEFT, right)

    def line(key: str, low: float, high: float) -> str:
        return " ".join(
            f"{round(_place(point['time_s'], x_low, x_high, LEFT, right), 1)},"
            f"{round(_place(point[key], low, high, bottom, TOP), 1)}"
            for point in points
            if point[key] is not None
        )

    y_low, y_high, y_ticks = _scale([0.0, *(p["median_ms"] for p in points)], bottom, TOP)
    degrees = [p["temperature_c"] for p in points if p["temperature_c"] is not None]
    temperature = ""
    c_ticks: tuple[Tick, ...] = ()
    if degrees:
        c_low, c_high, c_ticks = _scale(degrees, bottom, TOP)
        temperature = line("temperature_c", c_low, c_high)
    throttled = found["throttled_s"]
    if throttled is not None:
        throttled = round(_place(throttled, x_low, x_high, LEFT, right), 1)
    return Series(
        title=result["name"],
        text=words.sustained_text(result),
        latency=line("median_ms", y_low, y_high),
        temperature=temperature,
        throttled=throttled,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        c_ticks=c_ticks,
    )


def _clusters(spots: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Indices of spots that cover each other."""
    found: list[list[int]] = []
    for index, spot in enumerate(spots):
        near = (here for here in found if math.dist(spots[here[0]], spot) < TOGETHER)
        cluster = next(near, None)
        if cluster is None:
            found.append([index])
        else:
            cluster.append(index)
    return found


def _scale(
    values: Sequence[float], start: float, end: float
) -> tuple[float, float, tuple[Tick, ...]]:
    """Round limits around the values, and the ticks between them."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(low), abs(high)) or high == low:
        margin = abs(high) * 0.01 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    ends = first * step, last * step
    digits, power = math.floor(math.log10(step)), math.floor(math.log10(max(map(abs, ends))))
    form = f".{max(0, -digits)}f" if -3 <= power < 6 else f".{power - digits + 1}g"
    ticks = tuple(
        Tick(round(_place(i * step, *ends, start, end), 1), f"{i * step:{form}}")
        for i in range(first, last + 1)
    )
    return *ends, ticks


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)
