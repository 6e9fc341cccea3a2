"""A latency as the target of pruning: candidates of other MACs are made and measured.

What a network takes on a board does not follow its MACs, so they are found by bisection: the first
try is as if it did, and each next one lies between those that are too slow and those that are fast
enough. Runs on the host; a candidate is made by the pass itself, with ``macs`` for a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from wherry.errors import ToolError
from wherry_compress.prune.passes import Latency

Made = TypeVar("Made")

LEAST = 0.05
"""Share of the MACs below which nothing is tried."""


def search(
    wanted: Latency,
    given_ms: float,
    make: Callable[[float], tuple[Made, Mapping[str, Any]]],
    measure: Callable[[Made], float],
) -> tuple[Made, dict[str, Any]]:
    """The candidate with the most MACs that is fast enough, and its figures.

    Args:
        wanted: how fast.
        given_ms: what the model takes as it is.
        make: a candidate with a share of the MACs, and the figures of that; raises `ToolError`
            where so little cannot be left.
        measure: its latency, ms.

    Raises:
        ToolError: the model is fast enough already, or none of the candidates is.
    """
    goal = wanted.at_most if wanted.fraction is None else wanted.fraction * given_ms
    assert goal is not None, "one of both is given"
    if given_ms <= goal:
        raise ToolError(
            f"{goal:.4g} ms were asked for, and the model takes {given_ms:.4g} ms as it is",
            where=f"latency on {wanted.backend}",
            remedy="Ask for less, or leave the pass out.",
        )
    slow, fast = 1.0, LEAST
    best: tuple[Made, Mapping[str, Any], float] | None = None
    tried: list[list[float]] = []
    refused: ToolError | None = None
    macs = max(goal / given_ms, LEAST)
    for _ in range(wanted.tries):
        try:
            made, figures = make(macs)
        except ToolError as error:
            refused, fast = error, macs
        else:
            ms = measure(made)
            tried.append([round(macs, 4), round(ms, 5)])
            if ms <= goal:
                best, fast = (made, figures, ms), macs
            else:
                slow = macs
        macs = (slow + fast) / 2
    if best is None:
        if not tried and refused is not None:
            raise refused
        least, ms = min(tried)
        raise ToolError(
            f"{goal:.4g} ms were asked for; with {least:.3f} of its MACs the network takes "
            f"{ms:.4g} ms, as it is {given_ms:.4g}",
            where=f"latency on {wanted.backend}",
            remedy="Ask for more, or give more `tries`.",
        )
    made, figures, ms = best
    told = {"goal_ms": goal, "given_ms": given_ms, "reached_ms": ms, "tried": tried}
    return made, {**figures, "latency": told}
