"""A run without pause for minutes: how latency, heat and clocks go together.

The runs are gathered in windows, a point of the series each; between two windows the sensors are
read. What a point has is small, whatever the board: it has to fit in a frame's header.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

from .timing import Plan, run_once

POINTS = 600  # at most
WINDOW_S = 0.5  # at least
_MOST_SAMPLES = 100_000  # of a window that are kept; further runs are run and not kept


def sustain(
    runner: Any,
    inputs: dict[str, Any],
    duration_s: float,
    sensors: Callable[[], dict[str, Any]],
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[dict[str, Any]]:
    """Run a loaded runner without pause; the series.

    A point: ``time_s`` since the start, at the window's end; ``runs``; ``median_ms`` and ``p90_ms``
    of the window; and what `state` makes of the reading after it.

    Args:
        runner: see `timing.measure`.
        inputs: one sample in the runtime's form.
        duration_s: how long.
        sensors: reads the board's sensors, fast.
        clock: nanoseconds, monotonic.
    """
    points: list[dict[str, Any]] = []
    window_ns = max(WINDOW_S, duration_s / POINTS) * 1e9
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        begun = now = clock()
        while now - begun < duration_s * 1e9:
            samples, runs = _window(runner, inputs, window_ns, clock)
            now = clock()
            samples.sort()
            point = {
                "time_s": round((now - begun) / 1e9, 3),
                "runs": runs,
                "median_ms": samples[len(samples) // 2] / 1e6,
                "p90_ms": samples[len(samples) * 9 // 10] / 1e6,
            }
            points.append({**point, **state(sensors()["values"])})
            now = clock()
    finally:
        gc.enable()
        gc.unfreeze()
    return points


def _window(
    runner: Any, inputs: dict[str, Any], window_ns: float, clock: Callable[[], int]
) -> tuple[list[int], int]:
    """The samples that are kept, nanoseconds, and how many runs there were."""
    if hasattr(runner, "measure"):  # its tool holds the clock
        plan = Plan(0.0, 0, window_ns / 1e9, 1, _MOST_SAMPLES)
        timed = [int(value) for value in runner.measure(inputs, plan._asdict())["infer_ns"]]
        return timed, len(timed)
    samples: list[int] = []
    runs = 0
    opened = now = clock()
    while not runs or now - opened < window_ns:
        sample = run_once(runner, inputs, clock)[0]
        if len(samples) < _MOST_SAMPLES:
            samples.append(sample)
        runs += 1
        now = clock()
    return samples, runs


def state(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a point keeps of a reading; what the board does not tell is absent.

    ``temperature_c``: of the hottest zone. ``frequency_khz``: of the fastest core.
    ``gpu_frequency_khz``. ``throttled``: flags. ``throttle_count`` and ``cooling``: sums.
    ``power_w``: watts by rail.
    """

    def numbers(prefix: str) -> dict[str, float]:
        return {
            name[len(prefix) :]: value
            for name, value in values.items()
            if name.startswith(prefix) and not isinstance(value, str)
        }

    clocks = numbers("frequency_khz.")
    cores = [clock for name, clock in clocks.items() if not name.startswith("gpu")]
    found: dict[str, Any] = {
        "temperature_c": max(numbers("temperature_c.").values(), default=None),
        "frequency_khz": max(cores, default=None),
        "gpu_frequency_khz": clocks.get("gpu"),
        "throttled": values.get("throttled"),
        "throttle_count": _total(numbers("throttle_count.")),
        "cooling": _total(numbers("cooling.")),
        "power_w": numbers("power_w.") or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _total(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) if values else None
