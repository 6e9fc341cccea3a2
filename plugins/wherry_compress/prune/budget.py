"""How many channels each group keeps, so that the whole costs what it may.

Units of a group are made and read by the same nodes, so what a network costs depends on how many of
each group stay, and not on which. `Budget` knows that; `steps` lists the widths that a group may
have; `narrowed` goes through steps in a given order until a target is met.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import numpy_helper

from wherry_compress.graph import costs
from wherry_compress.graph.channels import Channels, Group
from wherry_compress.job import Refusal

Measure = Literal["macs", "params"]
Counts = np.ndarray
"""Units that stay, int64 [groups]."""

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Step:
    """A group becomes narrower.

    Attributes:
        group: its index.
        before: units before it.
        after: units behind it.
    """

    group: int
    before: int
    after: int


class Budget:
    """MACs and parameters of a network as functions of the groups' counts.

    Args:
        channels: of the network.

    Attributes:
        full: units of each group.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.full: Counts = np.array([len(group.units) for group in channels.groups], np.int64)
        nodes = {node.name: node for node in channels.proto.graph.node}
        arrays = {t.name: numpy_helper.to_array(t) for t in channels.proto.graph.initializer}
        axes: dict[str, list[tuple[int, np.ndarray, int]]] = {}
        readers: dict[str, str] = {}
        for cut in channels.cuts:
            roots = channels.roots[cut.ids]
            units = [int((roots == group.units[0]).sum()) for group in channels.groups]
            fixed = len(roots) - int(np.array(units, np.int64) @ self.full)
            axes.setdefault(cut.tensor, []).append((cut.axis, np.array(units, np.int64), fixed))
            readers[cut.tensor] = cut.node
        before = costs.measure(channels.proto)
        self._fixed = {"macs": before.macs, "params": before.parameters}
        self._terms: dict[Measure, list[tuple[int, list[tuple[np.ndarray, int]]]]] = {
            "macs": [],
            "params": [],
        }
        for tensor, cuts in axes.items():
            size, node = arrays[tensor].size, nodes[readers[tensor]]
            widths = [(units, fixed) for _, units, fixed in cuts]
            rest = size // math.prod(arrays[tensor].shape[axis] for axis, _, _ in cuts)
            if arrays[tensor].dtype.kind == "f":
                self._terms["params"].append((rest, widths))
                self._fixed["params"] -= size
            if node.op_type in _WEIGHTED and tensor == node.input[1]:
                used = before.nodes[node.name].macs // size
                self._terms["macs"].append((rest * used, widths))
                self._fixed["macs"] -= before.nodes[node.name].macs

    def value(self, measure: Measure, counts: Counts) -> int:
        """What the network costs with so many units of each group."""
        return self._fixed[measure] + sum(
            factor * math.prod(int(units @ counts) + fixed for units, fixed in widths)
            for factor, widths in self._terms[measure]
        )


def steps(group: Group, channels: Channels, index: int, round_to: int, least: float) -> list[Step]:
    """The steps down from the whole width to the least, in order.

    A node's width becomes a multiple of ``round_to``, where the group is all of its channels. Where
    several groups share a node (behind shuffles and splits), single units are cut.

    Args:
        group: that becomes narrower.
        channels: that it is one of.
        index: of the group among them.
        round_to: what the width of a node is to be a multiple of.
        least: share of the units that stays, at least one.
    """
    others = {name for other in channels.groups if other is not group for name in other.makers}
    shared = not others.isdisjoint(group.makers)
    of_each = math.gcd(*group.makers.values())
    size = 1 if shared else round_to // math.gcd(round_to, of_each)
    count = len(group.units)
    bottom = max(1, math.ceil(least * count - 1e-9))
    widths = [count, *range((count - 1) // size * size, bottom - 1, -size)]
    return [Step(index, before, after) for before, after in itertools.pairwise(widths) if after > 0]


def uniform(all_steps: Iterable[Step], full: Counts) -> list[Step]:
    """In the order in which a ratio that grows in all groups alike comes to them.

    A width is rounded to the nearest that is allowed: a step's turn comes at its middle.
    """
    return sorted(all_steps, key=lambda s: (1 - (s.before + s.after) / 2 / full[s.group], s.group))


def ranked(all_steps: Iterable[Step], scores: Sequence[np.ndarray]) -> list[Step]:
    """In the order of the mean score of what a step cuts; scores are sorted, upwards."""

    def mean(step: Step) -> float:
        values = scores[step.group]
        return float(values[len(values) - step.before : len(values) - step.after].mean())

    return sorted(all_steps, key=lambda s: (mean(s), s.group, -s.before))


def cheapest(
    all_steps: Iterable[Step], budget: Budget, measure: Measure, errors: Sequence[np.ndarray]
) -> Iterable[Step]:
    """Next comes always the step that adds the least error for what it saves.

    Args:
        all_steps: of all groups.
        budget: of the network.
        measure: what is saved.
        errors: of each group, with 0, 1, ... units cut, [units].
    """
    waiting: dict[int, list[Step]] = {}
    for step in all_steps:
        waiting.setdefault(step.group, []).append(step)
    counts = budget.full.copy()
    while waiting:
        now = budget.value(measure, counts)

        def price(group: int, now: int = now) -> tuple[float, int]:
            step = waiting[group][0]
            trial = counts.copy()
            trial[group] = step.after
            total, curve = int(budget.full[group]), errors[group]
            added = float(curve[total - step.after] - curve[total - step.before])
            return added / max(1, now - budget.value(measure, trial)), group

        best = min(waiting, key=price)
        step = waiting[best].pop(0)
        if not waiting[best]:
            del waiting[best]
        counts[best] = step.after
        yield step


def narrowed(
    budget: Budget, order: Iterable[Step], measure: Measure, target: int, given: Counts
) -> Counts:
    """The counts after as many steps as meet a target.

    Args:
        budget: of the network.
        order: of steps; those of a group from the widest down.
        measure: that the target is of.
        target: the most that it may be.
        given: the counts before.

    Raises:
        Refusal: all steps together do not meet it.
    """
    counts = given.copy()
    if budget.value(measure, counts) <= target:
        return counts
    for step in order:
        if step.after < counts[step.group]:
            counts[step.group] = step.after
            if budget.value(measure, counts) <= target:
                return counts
    whole, least = budget.value(measure, budget.full), budget.value(measure, counts)
    word = {"macs": "MACs", "params": "parameters"}[measure]
    raise Refusal(
        f"{word} of {target} were asked for; the network has {whole}, and with all that may be cut "
        f"{least} are left ({least / max(1, whole):.3f})",
        remedy="Ask for more, lower `least` or `round_to`, or exclude less.",
    )


def listed(ratios: Mapping[int, float], all_steps: Iterable[Step], full: Counts) -> Counts:
    """The counts where groups lose given shares, each rounded to the nearest width allowed."""
    counts = full.copy()
    for step in all_steps:
        if step.group in ratios:
            wanted = (1 - ratios[step.group]) * full[step.group]
            if abs(step.after - wanted) < abs(counts[step.group] - wanted) + 1e-9:
                counts[step.group] = step.after
    return counts
