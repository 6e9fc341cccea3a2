"""Times of layers: how often the runner is asked to time them, and whether its answer is one."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable
from typing import Any

from .timing import run_once

LEAST_RUNS, MOST_RUNS = 10, 100
"""Inferences whose layers are timed; some runtimes write a file of them all."""

_SIZING_RUNS = 3


def time_layers(
    runner: Any,
    inputs: dict[str, Any],
    duration_s: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, array[int]] | None:
    """Nanoseconds of each layer by its name in the runtime, one per inference.

    The order is the runner's. None: the runner does not time layers. What is no answer is a
    `RuntimeError`.

    Args:
        runner: its optional ``time_layers`` is asked.
        inputs: one sample in the runtime's form.
        duration_s: about as long as the inferences take, without what timing them adds.
        clock: nanoseconds, monotonic.
    """
    if not hasattr(runner, "time_layers"):
        return None
    lasted = statistics.median(run_once(runner, inputs, clock)[0] for _ in range(_SIZING_RUNS))
    runs = int(min(MOST_RUNS, max(LEAST_RUNS, duration_s * 1e9 // max(1, lasted))))
    found = {}
    for name, times in runner.time_layers(inputs, runs).items():
        if len(times) != runs:
            raise RuntimeError(f"layer {name!r} has {len(times)} times of {runs} inferences")
        try:
            found[name] = array("Q", [int(value) for value in times])
        except OverflowError as error:
            raise RuntimeError(f"layer {name!r} took less than no time") from error
    return found
