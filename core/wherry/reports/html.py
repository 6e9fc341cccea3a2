"""The report as one HTML page that opens offline: what stands in each of its parts.

The table, the boards and all figures are in the page's HTML; the charts, the filters and the choice
of axes come by its script (``page/*.js``), and without one the page has the pictures of `pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from wherry.reports import RunRecord, blame, layers, passes, pictures, results, sensors, words
from wherry.reports.figures import figures
from wherry.reports.page import charts, page
from wherry.reports.words import Result

LAYERS = 400
"""Rows of layers in a page, over all targets; of each the slowest are shown."""
PIECES = 600
"""Rows of layers side by side in a page, over all comparisons."""
LEAST = 2
"""Rows that each has in a page of many."""
STILL = 12
"""Runs without pause that have a picture without scripts."""


@dataclass(frozen=True)
class Best:
    """A result at the top of the page: what it is best in, its figure, and which it is."""

    head: str
    figure: str
    name: str
    index: int


def render(record: RunRecord) -> str:
    """The page. Every text from outside is cleaned and escaped by the template."""
    data, names = parts(record)
    return page("report.html", data, **names)


def parts(record: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of the report's script, and the names of its template."""
    values, every = record.values, record.values["results"]
    measured = [result for result in every if result["status"] == "ok"]
    sustained = [result for result in measured if result.get("sustained")]
    layered = [result for result in measured if result.get("layers")]
    table = results.table(every, values["metrics"])
    compared = layers.comparisons(measured, least=1)
    names = {
        "library": charts.library(),
        "values": values,
        "manifest": record.manifest,
        "measured": measured,
        "timed": [result for result in measured if not result["latency"]["emulated"]],
        "unmeasured": words.unmeasured(every),
        "notes": words.notes(every),
        "table": table,
        "places": {
            facet.name: {value: place for place, (value, _) in enumerate(facet.counts)}
            for facet in table.facets
        },
        "kinds": [(*look, " ".join(kind)) for kind, look in pictures.looks_of(measured).items()],
        "metrics_of": lambda result: [
            (m["name"], words.metric_text(result["metrics"].get(m["name"])))
            for m in values["metrics"]
        ],
        "sensor_lines": lambda told: [(sensor.name, sensor.said) for sensor in told],
        "pictures": pictures.pictures(measured, values),
        "series": [pictures.series(result) for result in sustained[:STILL]],
        "more_series": max(0, len(sustained) - STILL),
        "layered": layered,
        "most_layers": max(LEAST, LAYERS // max(len(layered), 1)),
        "most_pieces": max(LEAST, PIECES // max(len(compared), 1)),
        "comparisons": compared,
        "layers": layers,
        "variants": passes.variants(every),
        "passes": passes,
        "blamed": [blame.blamed(values) for values in record.blame],
        "blame_heads": blame.HEADS,
        "sensors": sensors,
        "best": _best(measured, values),
        "heading": values["manifest"].rpartition("/")[2] or values["manifest"],
        "duration": _duration(values),
        "counts": {
            status: sum(result["status"] == status for result in every)
            for status in ("ok", "failed", "skipped")
        },
        "clocks": sorted({result["latency"]["timed_by"] for result in measured}),
        "words": words,
        "size": pictures.SIZE,
    }
    return figures(record), names


def _best(measured: Sequence[Result], values: Any) -> list[Best]:
    """The fastest of each board that is on its front; none where only an emulator ran."""
    index = {id(result): i for i, result in enumerate(values["results"])}
    first = values["metrics"][0]["name"] if values["metrics"] else None
    found = []
    for device in dict.fromkeys(result["target"]["device"] for result in measured):
        front = [r for r in measured if r["pareto"] and r["target"]["device"] == device]
        # unlike clocks are not compared: each clock's own fastest is told
        for clock in dict.fromkeys(r["latency"]["timed_by"] for r in front):
            one = min(
                (r for r in front if r["latency"]["timed_by"] == clock),
                key=lambda r: r["latency"]["median_ms"],
            )
            worth = f", {first} {words.metric_text(one['metrics'].get(first))}" if first else ""
            found.append(
                Best(
                    f"Fastest on the front, {device}",
                    f"{words.ms_text(one['latency']['median_ms'])} ms",
                    f"{one['variant']}, {one['target']['backend']} "
                    f"{one['target']['precision']}{worth}",
                    index[id(one)],
                )
            )
    return found


def _duration(values: Any) -> str:
    started, finished = (datetime.fromisoformat(values[key]) for key in ("started", "finished"))
    seconds = int((finished - started).total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
