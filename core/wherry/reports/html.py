"""The report as one HTML page that opens offline: picture, table, gates, boards, manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.records.gates import name_of
from wherry.reports import RunRecord
from wherry.reports.terminal import LEGEND, bytes_text, collect_warnings, marks, metric_text

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 50
SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where it is in the picture, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """A result in the picture."""

    x: float
    y: float
    series: int
    shape: str
    label: str
    front: bool


@dataclass(frozen=True)
class Picture:
    """Latency against the first metric (or the size) for the results of one device."""

    device: str
    axis: str
    points: tuple[Point, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[tuple[int, str, str], ...]
    summary: str


def render(record: RunRecord) -> str:
    """The page. Every text from outside is escaped by the template."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wherry.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(bytes=bytes_text, metric=metric_text)
    values = record.values
    devices = dict.fromkeys(result["target"]["device"] for result in values["results"])
    return environment.get_template("report.html").render(
        values=values,
        manifest=record.manifest,
        devices=list(devices),
        pictures=[picture for device in devices if (picture := _picture(device, values))],
        metrics=[metric["name"] for metric in values["metrics"]],
        warnings=collect_warnings(values["results"]),
        counts={
            status: sum(result["status"] == status for result in values["results"])
            for status in ("ok", "failed", "skipped")
        },
        legend=LEGEND,
        marks=marks,
        name_of=name_of,
        width=WIDTH,
        height=HEIGHT,
        frame=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
    )


def _picture(device: str, values: Mapping[str, Any]) -> Picture | None:
    first = values["metrics"][0]["name"] if values["metrics"] else None
    axis = first or "size, kB"
    results = [
        result
        for result in values["results"]
        if result["target"]["device"] == device
        and result["status"] == "ok"
        and (first is None or result["metrics"].get(first) is not None)
    ]
    if not results:
        return None
    xs = [result["latency"]["median_ms"] for result in results]
    ys = [result["metrics"][first] if first else result["size_bytes"] / 1000 for result in results]
    x_low, x_high, x_ticks = _scale([0.0, *xs], LEFT, WIDTH - RIGHT)
    y_low, y_high, y_ticks = _scale(ys, HEIGHT - BOTTOM, TOP)
    kinds = list(
        dict.fromkeys((r["target"]["backend"], r["target"]["precision"]) for r in results)
    )
    backends = list(dict.fromkeys(backend for backend, _ in kinds))
    precisions = list(dict.fromkeys(precision for _, precision in kinds))
    points = tuple(
        Point(
            round(_place(x, x_low, x_high, LEFT, WIDTH - RIGHT), 1),
            round(_place(y, y_low, y_high, HEIGHT - BOTTOM, TOP), 1),
            backends.index(result["target"]["backend"]) % 8,
            SHAPES[precisions.index(result["target"]["precision"]) % len(SHAPES)],
            f"{name_of(result)}: {x:.3f} ms, {axis} {metric_text(y)}",
            bool(result["pareto"]),
        )
        for result, x, y in zip(results, xs, ys, strict=True)
    )
    front = sorted((point for point in points if point.front), key=lambda point: point.x)
    return Picture(
        device=device,
        axis=axis,
        points=points,
        front=" ".join(f"{point.x},{point.y}" for point in front),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        series=tuple(
            (backends.index(backend) % 8, SHAPES[precisions.index(precision) % len(SHAPES)],
             f"{backend} {precision}")
            for backend, precision in kinds
        ),  # fmt: skip
        summary=f"{len(points)} results on {device}: latency in milliseconds against {axis}; "
        f"{len(front)} on the Pareto front. The table below has all figures.",
    )


def _scale(
    values: Sequence[float], start: float, end: float
) -> tuple[float, float, tuple[Tick, ...]]:
    """Round limits around the values, and the ticks between them."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(high)):
        margin = abs(high) * 0.05 or 1.0
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
