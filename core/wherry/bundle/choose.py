"""Which result of a run is bundled: the one that was named, or the best; never one of several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.errors import GateFailed, UsageError
from wherry.reports.words import Result, metric_text, option_text

LATENCY = "latency"
_FIELDS = {"size": "size_bytes", "memory": "peak_memory_bytes", "energy": "energy_mj"}
_TIMED = (LATENCY, "energy")
_LISTED = 12
_SAY_MORE = (
    "Say more with --target: words such as a variant, a backend, a precision, a device or an "
    "option (threads=2)."
)


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        target: a result's name, or words that are its variant, its backend, its precision, its
            device, or an option of it as ``KEY=VALUE``; None: any.
        best: ``latency``, ``size``, ``memory``, ``energy`` or a metric of the run: of those that
            hold every gate, the best; None: the one that ``target`` means, or without it the
            fastest on the front that holds every gate.
    """

    target: str | None = None
    best: str | None = None


def choose(
    values: Mapping[str, Any], wish: Wish, broken: Callable[[Result], Sequence[str]]
) -> Result:
    """The result.

    Args:
        values: the report's JSON.
        wish: what is asked for.
        broken: the reasons why a result does not hold the gates that speak of it.

    Raises:
        UsageError: none is like that, or several are; they are listed.
        GateFailed: none of them holds every gate.
    """
    results = [result for result in values["results"] if result["status"] == "ok"]
    if not results:
        raise UsageError(
            f"no target of the run {values['run_id']} was measured", remedy="Bundle another run."
        )
    found = [result for result in results if _is(result, wish.target)]
    if not found:
        raise UsageError(
            f"no result of the run is like {wish.target!r}; there are {_listed(results)}",
            remedy="Correct --target.",
        )
    if wish.target is not None and wish.best is None:
        return _only(found, f"results of the run are like {wish.target!r}")
    return _best(found, wish.best, values, broken)


def _is(result: Result, target: str | None) -> bool:
    if target is None or result["name"] == target:
        return True
    about = result["target"]
    options = {f"{key}={option_text(value)}" for key, value in about["options"].items()}
    known = {result["variant"], about["backend"], about["precision"], about["device"], *options}
    words = target.split()
    return bool(words) and known.issuperset(words)


def _best(
    found: Sequence[Result],
    best: str | None,
    values: Mapping[str, Any],
    broken: Callable[[Result], Sequence[str]],
) -> Result:
    key = best or LATENCY
    better = {metric["name"]: metric["better"] for metric in values["metrics"]}
    if key not in {LATENCY, *_FIELDS, *better}:
        raise UsageError(
            f"nothing of a result is {key!r}",
            remedy=f"--best takes {', '.join([LATENCY, *_FIELDS, *better])}.",
        )
    front = [result for result in found if result["pareto"]] if best is None else list(found)
    if key in _TIMED:  # what an emulated board took means nothing
        front = [result for result in front if not result["latency"]["emulated"]]
    front = [result for result in front if _figure(result, key) is not None]
    if not front:
        raise UsageError(
            f"no result {'stands on the front' if best is None else f'has a {key}'}; there are "
            f"{_listed(found)}",
            remedy="Name one with --target, or ask for another figure with --best.",
        )
    failing = {result["name"]: list(broken(result)) for result in front}
    holding = [result for result in front if not failing[result["name"]]]
    if not holding:
        reasons = "; ".join(reason for reasons in failing.values() for reason in reasons[:1])
        raise GateFailed(
            f"no result {'on the front ' if best is None else ''}holds every gate: {reasons}",
            remedy="Name one with --target to bundle it all the same.",
        )
    sign = -1.0 if better.get(key) == "higher" else 1.0
    groups: dict[Any, list[Result]] = {}
    for result in holding:  # other boards and other clocks are not compared
        clock = (result["target"]["device"], result["latency"]["timed_by"])
        groups.setdefault(clock if key in _TIMED else None, []).append(result)
    winners: list[Result] = []
    for group in groups.values():
        least = min(sign * _value(result, key) for result in group)
        winners += [result for result in group if sign * _value(result, key) == least]
    # variants whose passes changed nothing have one artifact, which was measured once
    same = {(each["artifact"], json.dumps(each["target"], sort_keys=True)) for each in winners}
    if len(same) == 1:
        return winners[0]
    return _only(winners, f"results are the best by {key}, each on its board or with its clock")


def _figure(result: Result, key: str) -> float | None:
    if key == LATENCY:
        return float(result["latency"]["median_ms"])
    value = result[_FIELDS[key]] if key in _FIELDS else result["metrics"].get(key)
    return None if value is None else float(value)


def _value(result: Result, key: str) -> float:
    value = _figure(result, key)
    assert value is not None, "those without were left out"
    return value


def _only(found: Sequence[Result], what: str) -> Result:
    if len(found) > 1:
        raise UsageError(f"{len(found)} {what}: {_listed(found)}", remedy=_SAY_MORE)
    return found[0]


def _listed(results: Sequence[Result]) -> str:
    words = [
        f"{each['name']} ({metric_text(each['latency']['median_ms'])} ms)"
        for each in results[:_LISTED]
    ]
    more = f"; and {len(results) - _LISTED} more" if len(results) > _LISTED else ""
    return "; ".join(words) + more
