"""Two runs, figure by figure: better, worse, the same within noise, or not comparable."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.difference import (
    LEAST_ROUNDS,
    Rounds,
    is_count,
    latency_difference,
    share_difference,
)
from wherry.errors import UsageError
from wherry.records.likeness import (
    ENERGY,
    LATENCY,
    MEMORY,
    ORIGINAL,
    SIZE,
    Unlike,
    check_reasons,
    differences,
    disturbed,
    one_measurement,
    pair,
    took_turns,
)
from wherry.records.snapshot import Score, Snapshot, TargetSnapshot

VERSION = 1
"""Of the comparison's JSON: fields are added, never changed."""

MARGINS = {SIZE: 0.001, MEMORY: 0.05, ENERGY: 0.05}
"""Relative changes of what is read once that count as the same. Converters write paths and times
into their files; memory comes in pages and arenas, and power from a few readings."""

UNITS = {LATENCY: "ms", SIZE: "B", MEMORY: "B", ENERGY: "mJ"}

OTHER_MODEL = "the model is another"
"""The first thing to know of a change, in ``differs`` and in a gate's line."""

VERDICTS = ("worse", "better", "same", "not comparable")


def compare(base: Snapshot, new: Snapshot, *, allow: Iterable[str] = ()) -> dict[str, Any]:
    """Compare two runs.

    Args:
        base: what was there.
        new: what is to be judged.
        allow: reasons (`wherry.records.likeness.REASONS`) for which unlike figures are compared all
            the same.

    Returns:
        The comparison's JSON, see ``docs/compare.md``.

    Raises:
        UsageError: ``allow`` names what is no reason.
    """
    allowed = check_reasons(allow)
    results = [compare_targets(*both, allowed) for both in pair(base.targets, new.targets)]
    counts = Counter(figure["verdict"] for result in results for figure in result["figures"])
    alone = Counter(result["status"] for result in results)
    return {
        "schema_version": VERSION,
        "base": _side(base),
        "new": _side(new),
        "allowed": sorted(allowed),
        "results": results,
        "summary": {
            **{verdict: counts[verdict] for verdict in VERDICTS},
            **{status: alone[status] for status in ("compared", "only base", "only new", "failed")},
        },
    }


@dataclass(frozen=True)
class FailOn:
    """What ``--fail-on`` asks for.

    Attributes:
        least: the relative change from which on a figure that is worse fails.
    """

    least: float = 0.0

    @classmethod
    def parse(cls, text: str) -> FailOn:
        """Of ``worse`` or ``worse:5%``; raises `UsageError`."""
        found = re.fullmatch(r"worse(?::(\d{1,6}(?:\.\d{1,6})?)%)?", text)
        if found is None:
            raise UsageError(
                f"{text!r} is nothing to fail on", remedy="Give `worse`, or `worse:5%`."
            )
        return cls(float(found[1] or 0) / 100)


def failures(comparison: Mapping[str, Any], fail_on: FailOn) -> list[dict[str, Any]]:
    """What fails: figures that are worse, and all that was there and is not known to be as good.

    Metrics against originals that differ are no such figures: they say nothing about each other, so
    that every change of the network would fail.

    Returns:
        Per failure ``name`` of the result (empty: the whole), ``figure`` (empty: all), ``why``;
        ``kind``: ``worse``, ``not comparable`` or ``not measured``; ``reasons``: what would have to
        be allowed to compare it.
    """
    found: list[dict[str, Any]] = []

    def add(kind: str, name: str, why: str, figure: str = "", reasons: Sequence[str] = ()) -> None:
        entry = {"name": name, "figure": figure, "why": why}
        found.append({**entry, "kind": kind, "reasons": list(reasons)})

    for result in comparison["results"]:
        name = result["name"]
        if result["status"] in {"failed", "only base"}:
            add("not measured", name, result["why"])
        for figure in result["figures"]:
            kind, what, change = figure["verdict"], figure["figure"], figure["change"]
            asked = figure["base"] is not None and ORIGINAL not in figure["reasons"]
            if kind == "worse" and (change is None or abs(change) > fail_on.least):
                add(kind, name, "it is worse", what)
            elif kind == "not comparable" and asked:
                add(kind, name, f"{kind}: {figure['why']}", what, figure["reasons"])
    if not any(result["figures"] for result in comparison["results"]):
        add("not measured", "", "no target is in both")
    return found


def _side(side: Snapshot) -> dict[str, Any]:
    return side.model_dump(include={"source", "run_id", "tag", "wherry", "manifest", "finished"})


def compare_targets(
    base: TargetSnapshot | None, new: TargetSnapshot | None, allowed: frozenset[str]
) -> dict[str, Any]:
    """One of the comparison's ``results``; at least one of both is given."""
    one = new or base
    assert one is not None
    entry: dict[str, Any] = {
        "name": one.name,
        "variant": one.variant,
        "target": one.model_dump(include={"backend", "precision", "device", "options"}),
        "status": "compared",
        "why": "",
        "base_run": base.run_id if base else None,
        "new_run": new.run_id if new else None,
        "unlike": [],
        "differs": [],
        "figures": [],
    }
    broken = [
        f"{word} was not measured: {side.error}"
        for word, side in (("the base", base), ("the new one", new))
        if side is not None and side.error is not None
    ]
    if broken:
        return {**entry, "status": "failed", "why": "; ".join(broken)}
    if base is None:
        return {**entry, "status": "only new", "why": "the base has no such target"}
    if new is None:
        return {**entry, "status": "only base", "why": "the new run has no such target"}
    found = differences(base, new)
    entry["unlike"] = [
        {"reason": each.reason, "text": each.text, "allowed": each.reason in allowed}
        for each in found
    ]
    entry["differs"] = list(_differs(base, new))
    against = [each for each in found if each.reason not in allowed]
    entry["figures"] = [
        _figure(figure, base, new, [u for u in against if figure in u.figures])
        for figure in figures_of(base, new)
    ]
    return entry


def figures_of(base: TargetSnapshot, new: TargetSnapshot) -> list[str]:
    """What can be asked of two results; metrics that one of them has not, too."""
    # boards that do not tell need no line that says so
    known = [
        name for name in (MEMORY, ENERGY) if {getattr(base, name), getattr(new, name)} != {None}
    ]
    return [LATENCY, *dict.fromkeys([*base.scores, *new.scores]), SIZE, *known]


def _differs(base: TargetSnapshot, new: TargetSnapshot) -> Iterator[str]:
    """What is another on both sides and may be why, and how it was measured: for people."""
    if base.model != new.model:
        yield OTHER_MODEL
    if base.runtime != new.runtime:
        yield f"runtime {base.runtime} against {new.runtime}"
    if base.artifact != new.artifact:
        yield "the artifact is another"
    which = disturbed(base, new)
    if which and took_turns(base, new) and not one_measurement(base, new):
        if which == "both":
            yield "neither is clean; they took turns, and what disturbed one disturbed the other"
        else:
            yield f"{which} is not clean; they took turns, and rounds are compared in pairs"


def _figure(
    figure: str, base: TargetSnapshot, new: TargetSnapshot, against: Sequence[Unlike]
) -> dict[str, Any]:
    old, fresh = value_of(figure, base), value_of(figure, new)
    entry: dict[str, Any] = {
        "figure": figure,
        "unit": UNITS[figure] if figure in UNITS else _score(figure, base, new).unit,
        "better": "lower" if figure in UNITS else _score(figure, base, new).better,
        "base": old,
        "new": fresh,
        "difference": None,
        "change": None,
        "ci95": None,
        "p": None,
        "verdict": "not comparable",
        "why": "",
        "reasons": [],
    }
    if old is None or fresh is None:
        side = "the base" if old is None else "the new one"
        return {**entry, "why": f"{side} has none"}
    if against:
        why = "; ".join(f"{each.reason}: {each.text}" for each in against)
        return {**entry, "why": why, "reasons": [each.reason for each in against]}
    entry["difference"] = fresh - old
    entry["change"] = fresh / old - 1 if old else None
    if figure == LATENCY:
        return entry | _latency(base, new)
    if figure in MARGINS:
        return entry | _once(old, fresh, MARGINS[figure])
    return entry | _metric(old, fresh, base, new, _score(figure, base, new))


def value_of(figure: str, target: TargetSnapshot) -> float | None:
    """A figure of a result; None where it has none."""
    if figure == LATENCY:
        return target.timing.median_ms if target.timing else None
    if figure in UNITS:
        value: float | None = getattr(target, figure)
        return value
    score = target.scores.get(figure)
    return score.value if score else None


def _score(figure: str, base: TargetSnapshot, new: TargetSnapshot) -> Score:
    return new.scores.get(figure) or base.scores[figure]


def _latency(base: TargetSnapshot, new: TargetSnapshot) -> dict[str, Any]:
    assert base.timing is not None
    assert new.timing is not None
    sides = [Rounds(timing.median_ms, timing.round_ms) for timing in (base.timing, new.timing)]
    if least := [len(s.medians) for s in sides if len(s.medians) < LEAST_ROUNDS]:
        why = f"rounds: {min(least)} of a side, and it takes {LEAST_ROUNDS} to know their noise"
        return {"verdict": "not comparable", "why": why}
    if one_measurement(base, new):
        return {"verdict": "same", "why": "it is the same measurement"}
    found = latency_difference(sides[0], sides[1], in_turns=took_turns(base, new))
    return {
        "change": found.change,
        "ci95": [base.timing.median_ms * end for end in found.ci95],
        "p": found.p,
        "verdict": found.verdict,
        "why": "within noise" if found.verdict == "same" else "",
    }


def _once(old: float, fresh: float, margin: float) -> dict[str, Any]:
    """A figure that is read once, where less is better."""
    if abs(fresh - old) <= margin * old:
        why = "" if fresh == old else f"by no more than {100 * margin:g} %"
        return {"verdict": "same", "why": why}
    return {"verdict": "worse" if fresh > old else "better"}


def _metric(
    old: float, fresh: float, base: TargetSnapshot, new: TargetSnapshot, score: Score
) -> dict[str, Any]:
    """A share of samples by its counts; any other is exact: same data, same code."""
    up = "better" if score.better == "higher" else "worse"
    down = "worse" if score.better == "higher" else "better"
    counts = (base.evaluated, new.evaluated)
    if score.unit == "" and is_count(old, counts[0]) and is_count(fresh, counts[1]):
        found = share_difference(old, fresh, *counts)
        if found.verdict == "same":
            why = "" if old == fresh else f"within noise of {min(counts)} samples"
            return {"ci95": list(found.ci95), "verdict": "same", "why": why}
        verdict = up if found.verdict == "higher" else down
        return {"ci95": list(found.ci95), "verdict": verdict}
    if abs(fresh - old) <= 1e-9 * max(abs(old), abs(fresh)):
        return {"verdict": "same"}
    return {"verdict": up if fresh > old else down, "why": "no noise is known: it is as computed"}
