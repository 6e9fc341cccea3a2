"""Timing: warm up until it is steady, then run one sample again and again and keep every sample.

Each run is split at the same two points: ``run()`` alone is the inference, from before
``set_inputs`` to after ``get_outputs`` is the inference with its copies. Nothing else happens
between two runs but storing two integers: the garbage collector is off, and the sensors are read
between chunks of runs, never by a thread beside them, a bounded number of times.
"""

from __future__ import annotations

import gc
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

STEADY = 0.02  # the medians of two successive windows differ by no more
WINDOW_RUNS = 3  # least runs of a window
WARMUP_BOUND = 10  # the warm-up ends, unsteady, after so many times its least duration
SENSOR_PERIOD_S = 1.0  # between two readings; a short measurement is halved by one
MOST_READINGS = 60  # of one measurement, about; a long one has them further apart


class Plan(NamedTuple):
    """How long to warm up and to measure; the fields of the manifest's ``measure:``."""

    warmup_s: float
    warmup_runs: int
    duration_s: float
    min_runs: int
    max_runs: int


class Timing(NamedTuple):
    """What was timed.

    Attributes:
        infer_ns: ``run()`` alone, per run.
        total_ns: the same runs with the copies of inputs and outputs.
        warmup_runs: runs before the measured ones.
        steady: the warm-up had become steady.
        sensors: readings before the warm-up, after it, between the runs, and after them.
        timed_by: what held the clock.
        record: what a tool that timed itself says of how it did; JSON values.
    """

    infer_ns: array[int]
    total_ns: array[int]
    warmup_runs: int
    steady: bool
    sensors: list[dict[str, Any]]
    timed_by: str = "agent"
    record: Mapping[str, Any] = {}


def measure(
    runner: Any,
    inputs: dict[str, Any],
    plan: Plan,
    sensors: Callable[[], dict[str, Any]],
    clock: Callable[[], int] = time.perf_counter_ns,
    ask: Callable[[], dict[str, Any]] | None = None,
) -> Timing:
    """Time a loaded runner.

    Args:
        runner: its ``set_inputs``, ``run`` and ``get_outputs`` are called.
        inputs: one sample in the runtime's form.
        plan: how long.
        sensors: reads the board's sensors, fast.
        clock: nanoseconds, monotonic.
        ask: reads them at leisure, before and after; None: as in between.
    """
    ask = ask or sensors
    if hasattr(runner, "measure"):
        return _by_its_tool(runner, inputs, plan, ask)
    infer, total = (array("Q", bytes(8 * plan.max_runs)) for _ in range(2))
    duration_ns = plan.duration_s * 1e9
    chunk_runs = (plan.min_runs + 1) // 2
    period_ns = max(SENSOR_PERIOD_S, plan.duration_s / MOST_READINGS) * 1e9
    readings = [ask()]
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        warmup_runs, steady = _warm_up(runner, inputs, plan, clock)
        count, spent_ns = 0, 0
        while count < plan.max_runs and (count < plan.min_runs or spent_ns < duration_ns):
            readings.append(sensors())
            run_once(
                runner, inputs, clock
            )  # what a pause does to caches and clocks is not measured
            chunk_ns = min(duration_ns / 2, duration_ns - spent_ns, period_ns)
            least = min(count + chunk_runs, plan.max_runs)
            started = now = clock()
            while count < least or (count < plan.max_runs and now - started < chunk_ns):
                infer[count], total[count] = run_once(runner, inputs, clock)
                count += 1
                now = clock()
            spent_ns += now - started
    finally:
        gc.enable()
        gc.unfreeze()
    readings.append(ask())
    return Timing(infer[:count], total[:count], warmup_runs, steady, readings)


def _by_its_tool(
    runner: Any, inputs: dict[str, Any], plan: Plan, ask: Callable[[], dict[str, Any]]
) -> Timing:
    """Let a runner time whose tool holds the clock itself; RuntimeError for what is no answer."""
    readings = [ask()]
    told = runner.measure(inputs, plan._asdict())
    readings.append(ask())
    infer = _nanoseconds(told["infer_ns"])
    total = _nanoseconds(told.get("total_ns") or told["infer_ns"])
    if not infer or len(infer) != len(total):
        raise RuntimeError(f"the runner gave {len(infer)} and {len(total)} times of its inferences")
    return Timing(
        infer,
        total,
        int(told["warmup_runs"]),
        bool(told["steady"]),
        readings,
        runner.timed_by,
        told.get("record", {}),
    )


def _nanoseconds(values: Iterable[Any]) -> array[int]:
    try:
        return array("Q", [int(value) for value in values])
    except OverflowError as error:
        raise RuntimeError("an inference took less than no time") from error


def _warm_up(
    runner: Any, inputs: dict[str, Any], plan: Plan, clock: Callable[[], int]
) -> tuple[int, bool]:
    """Run until the medians of two successive windows agree; (runs, whether they did)."""
    least_ns = plan.warmup_s * 1e9
    runs = 0
    last = None
    started = now = clock()
    while True:
        window: list[int] = []
        opened = now
        while len(window) < WINDOW_RUNS or now - opened < least_ns / 4:
            window.append(run_once(runner, inputs, clock)[0])
            now = clock()
        runs += len(window)
        median = statistics.median(window)
        if last is not None and runs >= plan.warmup_runs and now - started >= least_ns:
            steady = abs(median - last) <= STEADY * last
            if steady or now - started >= WARMUP_BOUND * least_ns:
                return runs, steady
        last = median


def run_once(runner: Any, inputs: dict[str, Any], clock: Callable[[], int]) -> tuple[int, int]:
    """One run: nanoseconds of the inference alone, and with the copies.

    A runner whose runtime is another process says itself how long the inference took there.
    """
    begun = clock()
    runner.set_inputs(inputs)
    before = clock()
    took = runner.run()
    after = clock()
    outputs = runner.get_outputs()
    ended = clock()
    del outputs  # what it frees is not timed
    return after - before if took is None else took, ended - begun
