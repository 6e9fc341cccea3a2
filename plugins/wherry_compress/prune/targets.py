"""What the passes that cut channels share: from their parameters to counts, and to figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from wherry_compress.graph import costs
from wherry_compress.graph.channels import Channels, Group
from wherry_compress.graph.patterns import matching, meant
from wherry_compress.job import Done, Job, Refusal
from wherry_compress.prune.budget import Budget, Counts, Measure, Step, listed, narrowed, steps

Order = Callable[[list[Step], Budget, Measure], Iterable[Step]]
_SHOWN = 12  # nodes in a list of the figures

NOTHING = (
    "nothing was cut: the target was met before, or the shares in `ratios` come to less than a "
    "step of `round_to`"
)


def counts_for(job: Job, channels: Channels, order: Order) -> tuple[Counts, dict[str, Any]]:
    """How many units of each group stay, and what was asked for and reached, for the report.

    Args:
        job: its parameters are those of the module's passes.
        channels: of the job's model.
        order: in which groups are narrowed, from all steps that they may go.

    Raises:
        Refusal: nothing may be cut, a pattern matches nothing, or the target is out of reach.
    """
    about = job.parameters
    nodes = list(dict.fromkeys(cut.node for cut in channels.cuts if cut.role == "filters"))
    excluded = meant(about["exclude"], nodes, "exclude", "node with filters")
    open_ = [i for i, group in enumerate(channels.groups) if excluded.isdisjoint(group.makers)]
    ratios = _ratios(about["ratios"], channels.groups, nodes)
    ratios = {index: share for index, share in ratios.items() if index in open_}
    free = [index for index in open_ if index not in ratios]
    every = [
        steps(group, channels, index, about["round_to"], about["least"])
        for index, group in enumerate(channels.groups)
    ]
    if not any(every[index] for index in (*free, *ratios)):
        raise Refusal(
            f"there is nothing to cut: {_reasons(channels, free, about['round_to'])}",
            remedy="Lower `round_to` or `least`, exclude less, or leave the pass out.",
        )
    budget = Budget(channels)
    counts = listed(ratios, (step for each in every for step in each), budget.full)
    told: dict[str, Any] = {}
    measure: Measure = "macs" if about["macs"] is not None else "params"
    if about[measure] is not None:
        # a shared constant counts once there; cut, each of its readers has its own
        source = job.model
        if about["relative_to"] == "original":
            assert job.original is not None, "the pass needs it"
            source = job.original
        before = costs.measure(onnx.load(source))
        whole = before.macs if measure == "macs" else before.parameters
        target = int(about[measure] * whole)
        down = [step for index in free for step in every[index]]
        counts = narrowed(budget, order(down, budget, measure), measure, target, counts)
        told = {
            "target": {measure: about[measure], "relative_to": about["relative_to"]},
            "whole": whole,
        }
    return counts, told


def _ratios(
    said: Mapping[str, float], groups: Sequence[Group], nodes: Sequence[str]
) -> dict[int, float]:
    """Groups to the shares that they lose."""
    matched = matching(said, nodes, "ratios", "node with filters")
    found: dict[int, float] = {}
    for index, group in enumerate(groups):
        for pattern, share in said.items():
            if not set(group.makers).isdisjoint(matched[pattern]):
                found[index] = share
                break
    return found


def _reasons(channels: Channels, free: Sequence[int], round_to: int) -> str:
    """Why nothing can be cut, in words."""
    reasons = [
        f"{next(iter(group.makers))!r} has {len(group.units)} filters that can go, and its width "
        f"is to be a multiple of {round_to}"
        for group in (channels.groups[index] for index in free)
        if len(group.units) <= round_to
    ]
    reasons += [
        f"{node!r} stays, because {reason.where} {reason.why}"
        for node, reason in channels.frozen.items()
    ]
    return "; ".join(reasons[:3]) or "no node has filters with constant weights"


def held(channels: Channels, scores: Sequence[np.ndarray]) -> set[int]:
    """Units that must not go: of each set of which one has to stay, the one worth most.

    Args:
        channels: of the network.
        scores: of each group, [units].
    """
    worth = {
        unit: value
        for group, values in zip(channels.groups, scores, strict=True)
        for unit, value in zip(group.units.tolist(), values.tolist(), strict=True)
    }
    found = set()
    for ids in channels.needed:
        units = np.unique(channels.roots[ids]).tolist()
        if all(unit in worth for unit in units):  # else one of them stays anyway
            found.add(max(units, key=worth.__getitem__))
    return found


def lowest(scores: Sequence[np.ndarray], channels: Channels, counts: Counts) -> list[int]:
    """The units that go: of each group those worth least, but never what must stay.

    Args:
        scores: of each group, [units].
        channels: that the groups are of.
        counts: units that stay.
    """
    kept = list(held(channels, scores))
    removed: list[int] = []
    for group, values, count in zip(channels.groups, scores, counts.tolist(), strict=True):
        order = np.lexsort((np.arange(len(values)), values, np.isin(group.units, kept)))
        removed += group.units[order[: len(values) - count]].tolist()
    return removed


def finished(
    channels: Channels,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    counts: Counts,
    told: Mapping[str, Any],
) -> Done:
    """The result with its figures."""
    was, now = costs.measure(before), costs.measure(after)
    if "target" in told:
        value = now.macs if "macs" in told["target"] else now.parameters
        reached = {"reached": value / told["whole"]}
        told = {key: each for key, each in told.items() if key != "whole"} | reached
    narrower = {
        group.name: [len(group.units), int(count)]
        for group, count in zip(channels.groups, counts.tolist(), strict=True)
        if count < len(group.units)
    }
    stays = {node: f"{why.where} {why.why}" for node, why in channels.frozen.items()}
    figures = {
        "macs_before": was.macs,
        "macs_after": now.macs,
        "params_before": was.parameters,
        "params_after": now.parameters,
        "peak_bytes_before": was.peak_bytes,
        "peak_bytes_after": now.peak_bytes,
        **told,
        "groups": len(channels.groups),
        "groups_cut": len(narrower),
        "units": dict(list(narrower.items())[:_SHOWN]),
        "held": dict(list(stays.items())[:_SHOWN]),
    }
    return Done(after, figures, () if narrower else (NOTHING,))
