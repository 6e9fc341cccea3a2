"""The report as one HTML page that opens offline: gates, picture, table, boards, manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.reports import RunRecord, words
from wherry.reports.words import Result

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 20, 50
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
        front: the Pareto front, as the points of a polyline.
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


def render(record: RunRecord) -> str:
    """The page. Every text from outside is cleaned and escaped by the template."""
    import jinja2

    def finalize(value: Any) -> Any:
        made_here = hasattr(value, "__html__")  # by a macro of the template
        return words.clean(value) if isinstance(value, str) and not made_here else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wherry.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values, results = record.values, record.values["results"]
    measured = [result for result in results if result["status"] == "ok"]
    return environment.get_template("report.html").render(
        values=values,
        manifest=record.manifest,
        measured=measured,
        unmeasured=words.unmeasured(results),
        notes=words.notes(results),
        pictures=_pictures(measured, values),
        several=len({result["target"]["device"] for result in measured}) > 1,
        options=list(dict.fromkeys(["threads", *words.differing_options(measured)])),
        metrics=[metric["name"] for metric in values["metrics"]],
        counts={
            status: sum(result["status"] == status for result in results)
            for status in ("ok", "failed", "skipped")
        },
        clocks=sorted({result["latency"]["timed_by"] for result in measured}),
        words=words,
        width=WIDTH,
        height=HEIGHT,
        frame=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
    )


def _pictures(measured: Sequence[Result], values: Mapping[str, Any]) -> list[Picture]:
    """One a device and clock; of an emulated board there is none, for its latency says nothing."""
    first = values["metrics"][0]["name"] if values["metrics"] else None
    groups: dict[tuple[str, str], list[tuple[Result, float, float]]] = {}
    for result in measured:
        latency = result["latency"]
        worth = result["metrics"].get(first) if first else result["size_bytes"] / 1000
        if worth is not None and not latency["emulated"]:
            group = groups.setdefault((result["target"]["device"], latency["timed_by"]), [])
            group.append((result, latency["median_ms"], worth))
    clocks = {clock for _, clock in groups}
    return [
        _picture(
            device + (f", timed by {clock}" if len(clocks) > 1 else ""), first or "size, kB", group
        )
        for (device, clock), group in groups.items()
    ]


def _picture(place: str, axis: str, group: Sequence[tuple[Result, float, float]]) -> Picture:
    x_low, x_high, x_ticks = _scale([0.0, *(x for _, x, _ in group)], LEFT, WIDTH - RIGHT)
    y_low, y_high, y_ticks = _scale([y for _, _, y in group], HEIGHT - BOTTOM, TOP)
    spots = [
        (
            round(_place(x, x_low, x_high, LEFT, WIDTH - RIGHT), 1),
            round(_place(y, y_low, y_high, HEIGHT - BOTTOM, TOP), 1),
        )
        for _, x, y in group
    ]
    kinds = list(
        dict.fromkeys((r["target"]["backend"], r["target"]["precision"]) for r, _, _ in group)
    )
    backends = list(dict.fromkeys(backend for backend, _ in kinds))
    precisions = list(dict.fromkeys(precision for _, precision in kinds))

    def look(backend: str, precision: str) -> tuple[int, str]:
        shape = SHAPES[precisions.index(precision) % len(SHAPES)]
        return backends.index(backend) % COLOURS, shape

    labels = [
        f"{result['name']}: {words.ms_text(x)} ms, {axis} {words.metric_text(y)}"
        for result, x, y in group
    ]
    points = []
    for here in _clusters(spots):
        for index in here:
            target = group[index][0]["target"]
            label = "\n".join(labels[i] for i in here)
            count = len(here) if len(here) > 1 and index == here[-1] else 0
            points.append(
                Point(*spots[index], *look(target["backend"], target["precision"]), label, count)
            )
    front = sorted(
        spot for (result, _, _), spot in zip(group, spots, strict=True) if result["pareto"]
    )
    return Picture(
        title=f"Latency and {axis} on {place}",
        axis=axis,
        points=tuple(points),
        front=" ".join(f"{x},{y}" for x, y in front),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        series=tuple((*look(backend, precision), f"{backend} {precision}")
                     for backend, precision in kinds),
        summary=f"{len(points)} results on {place}: latency in milliseconds against {axis}; "
        f"{len(front)} on the Pareto front. The table below has all figures.",
    )  # fmt: skip


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
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = tuple(
        Tick(
            round(_place(i * step, first * step, last * step, start, end), 1),
            f"{i * step:.{digits}f}",
        )
        for i in range(first, last + 1)
    )
    return first * step, last * step, ticks


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)
