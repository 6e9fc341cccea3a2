"""The pass ``prune.filters``: filters that are worth least are cut out of the network for good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wherry_compress.graph.channels import Channels, trace
from wherry_compress.job import Done, Job
from wherry_compress.prune import sensitivity, targets
from wherry_compress.prune.budget import Budget, Measure, Step, cheapest, ranked, uniform
from wherry_compress.prune.compensate import compensated, with_biases, without_biases
from wherry_compress.prune.scores import scores


def apply(job: Job) -> Done:
    """The narrower network; its figures are what it costs, what was cut, and what was held."""
    before = job.load()
    channels = trace(with_biases(before) if job.parameters["compensate"] else before)
    data, about = job.data.get("calibration"), job.parameters
    worth = scores(channels, about["criterion"], about["norm_of"], job.seed, data)
    told: dict[str, Any] = {}

    def order(steps: list[Step], budget: Budget, measure: Measure) -> Iterable[Step]:
        kind = about["allocation"]
        if kind == "uniform":
            return uniform(steps, budget.full)
        if kind == "global":
            return ranked(steps, [np.sort(values) for values in worth])
        assert data is not None, "the pass needs it"
        rows = sensitivity.table(channels, worth, data, about["samples"])
        told["sensitivity_db"] = _shown(channels, rows)
        return cheapest(steps, budget, measure, sensitivity.errors(rows, budget.full))

    counts, reached = targets.counts_for(job, channels, order)
    removed = targets.lowest(worth, channels, counts)
    if about["compensate"]:
        assert data is not None, "the pass needs it"
        after = without_biases(compensated(channels, removed, data).slice(removed), before)
    else:
        after = channels.slice(removed)
    return targets.finished(channels, before, after, counts, {**reached, **told})


def _shown(channels: Channels, rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """The most sensitive groups first."""
    pairs = zip(channels.groups, rows, strict=True)
    worst = sorted(((row, group.name) for group, row in pairs), key=lambda pair: list(pair[0]))
    return {name: [round(value, 1) for value in row] for row, name in worst[:12]}
