"""What each page shows, as JSON values: ``/api/...`` gives them as they are, a template as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wherry.records.lists import FIGURES
from wherry.serve.refusals import Refusal

if TYPE_CHECKING:
    from wherry.records.lists import Point
    from wherry.records.progress import Progress
    from wherry.serve.site import Site

Query = Mapping[str, str]
Values = dict[str, Any]

PAGE = 50
"""Runs on a page of the list, unless another ``limit`` is asked for."""
POINTS = 200
"""Runs of a trend, likewise."""
_MOST_RUNS = 500
_MOST_POINTS = 5000


def runs(site: Site, query: Query) -> Values:
    """``runs``, the newest first; ``next``: what ``before`` has to be for the page after it.

    Args:
        site: what is asked.
        query: ``limit``, ``before``, ``tag``, ``manifest``, ``device``, ``since`` (a day).
    """
    limit = _count(query, "limit", PAGE, _MOST_RUNS)
    found = site.records.runs(
        limit + 1,
        before=query.get("before") or None,
        tag=query.get("tag") or None,
        manifest=query.get("manifest") or None,
        device=query.get("device") or None,
        since=_day(query, "since"),
    )
    rows = [_json(asdict(each)) for each in found[:limit]]
    return {"runs": rows, "next": rows[-1]["run_id"] if len(found) > limit else None}


def live(site: Site, _query: Query) -> Values:
    """``runs``: those of this machine that are in progress, without their steps."""
    return {"runs": [progress_values(one, steps=False) for one in site.live()]}


def live_run(site: Site, run_id: str) -> Values:
    """A run of this machine as far as it is, with its steps; 404 where there is none."""
    found = site.progress(run_id)
    if found is None:
        raise Refusal(
            404,
            f"no run {run_id!r} has left its progress on this machine",
            "`GET /api/live` lists those in progress here; all others are in `GET /api/runs`.",
        )
    return progress_values(found)


def progress_values(progress: Progress, *, steps: bool = True) -> Values:
    """The fields of `wherry.records.progress.Progress`, with ``done``, ``of`` and ``devices``."""
    values = asdict(progress)
    each = values.pop("steps")
    values |= {"done": progress.done, "of": len(each), "devices": progress.devices}
    return {**values, "steps": each} if steps else values


def targets(site: Site, query: Query) -> Values:
    """``targets``: every target of any run, by ``device`` and ``manifest``."""
    found = site.records.targets(
        manifest=query.get("manifest") or None, device=query.get("device") or None
    )
    return {"targets": [_json(asdict(each)) for each in found]}


def trend(site: Site, target_key: str, query: Query) -> Values:
    """A figure of one target over the runs, the oldest first.

    Args:
        site: what is asked.
        target_key: of the target.
        query: ``metric``, ``limit``, ``manifest``.

    Returns:
        ``target``; ``metric``; ``metrics``: what can be asked for; ``points``, each with
        ``series``, the place in ``series`` of what timed it, on which board, for which manifest:
        only points of one may be joined; None: it was not measured.
    """
    summaries = site.records.targets(target_key=target_key)
    if not summaries:
        raise Refusal(
            404, "no run has this target", "`GET /api/targets` lists all, each with its key."
        )
    target = summaries[0]
    metrics = [*FIGURES, *site.records.metrics(target_key)]
    metric = query.get("metric") or metrics[0]
    points = site.records.trend(
        target_key,
        metric,
        _count(query, "limit", POINTS, _MOST_POINTS),
        manifest=query.get("manifest") or None,
    )
    kinds = list(dict.fromkeys(_kind(point) for point in points if point.value is not None))
    return {
        "target": _json(asdict(target)),
        "metric": metric,
        "metrics": metrics,
        "series": [
            {"timed_by": timed_by, "board": board, "emulated": emulated, "manifest": manifest}
            for timed_by, board, emulated, manifest in kinds
        ],
        "points": [
            {
                **_json(asdict(point)),
                "series": None if point.value is None else kinds.index(_kind(point)),
            }
            for point in points
        ],
    }


def _kind(point: Point) -> tuple[str | None, str | None, bool | None, str]:
    """Not the model: what it became when it was trained anew is what a trend is looked at for."""
    return point.timed_by, point.board, point.emulated, point.manifest


def compare(site: Site, query: Query) -> Values:
    """The comparison of the runs ``base`` and ``new`` (see ``docs/compare.md``)."""
    from wherry.records.compare import compare as compare_sides
    from wherry.records.snapshot import snapshot

    base, new = query.get("base", ""), query.get("new", "")
    if not base or not new:
        raise Refusal(
            400,
            "a comparison takes two runs",
            "Give both: base=RUN&new=RUN; an id, a tag, last or last~1.",
        )
    # by their names alone: a name that is a file's means none here
    sides = [snapshot(site.records.load(name)) for name in (base, new)]
    return {**compare_sides(*sides), "fail_on": None, "failures": []}


def boards(site: Site, _query: Query) -> Values:
    """``boards`` of the inventory, and those that only the records know: nothing is reached.

    Each has ``name``, ``transport`` (None: it is not in the inventory), ``tags``, ``location``;
    ``last_run`` that measured on it;
    ``held_by``: the runs of this machine that measure on it now; ``probed``: what the last probe
    by this server found, and when.
    """
    inventory = site.inventory()
    last: dict[str, str] = {}
    for target in site.records.targets():  # those of the newest runs first
        last.setdefault(target.device, target.run_id)
    holders: dict[str, list[str]] = {}
    for run in site.live():
        for device in run.devices:
            holders.setdefault(device, []).append(run.run_id)
    known: list[Values] = [
        {"name": name, "transport": spec.transport, "tags": list(spec.tags),
         "location": inventory.location(name)}
        for name, spec in inventory.devices.items()
    ] + [
        {"name": name, "transport": None, "tags": [], "location": None}
        for name in sorted(last.keys() - inventory.devices.keys())
    ]  # fmt: skip
    return {
        "boards": [
            {
                **board,
                "last_run": last.get(board["name"]),
                "held_by": holders.get(board["name"], []),
                "probed": site.probed.get(board["name"]),
            }
            for board in known
        ]
    }


def _json(values: Values) -> Values:
    """Moments as texts."""
    return {
        key: value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
        for key, value in values.items()
    }


def _count(query: Query, name: str, default: int, most: int) -> int:
    text = query.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise Refusal(
            400, f"{name}={text!r} is no number from 1 to {most}", "Correct it, or leave it out."
        )
    return int(text)


def _day(query: Query, name: str) -> datetime | None:
    text = query.get(name) or None
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refusal(400, f"{name}={text!r} is no day", "Write it as 2026-11-24.") from None
