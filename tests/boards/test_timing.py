"""Timing with a clock and a runner that are made up, so that the figures are exact."""

from __future__ import annotations

import gc

import pytest

from wherry_devices.agent.timing import Plan, measure

MS = 1_000_000


class Machine:
    """A clock, and a runner that moves it: 1 ms in, ``run_ms(n)`` for run n, 2 ms out."""

    def __init__(self, run_ms):
        self.now, self.runs, self.readings, self.run_ms = 0, 0, 0, run_ms
        self.collected_while_running = []

    def clock(self):
        return self.now

    def set_inputs(self, inputs):
        assert inputs == {"x": 1}
        self.now += MS

    def run(self):
        self.collected_while_running.append(gc.isenabled())
        self.now += int(self.run_ms(self.runs) * MS)
        self.runs += 1

    def get_outputs(self):
        self.now += 2 * MS
        return {}

    def sensors(self):
        self.readings += 1
        self.now += 500 * MS  # slow sensors are in no sample
        return {"time_s": self.now, "values": {}}


def timed(run_ms, **plan):
    machine = Machine(run_ms)
    defaults = {
        "warmup_s": 0.3,
        "warmup_runs": 5,
        "duration_s": 1.0,
        "min_runs": 10,
        "max_runs": 20_000,
    }
    result = measure(
        machine, {"x": 1}, Plan(**{**defaults, **plan}), machine.sensors, machine.clock
    )
    return machine, result


def test_every_run_is_split_in_two():
    machine, result = timed(lambda _: 7)
    assert set(result.infer_ns) == {7 * MS} and set(result.total_ns) == {10 * MS}
    assert len(result.infer_ns) == len(result.total_ns) == 100
    assert result.steady
    assert machine.runs == result.warmup_runs + 2 + 100  # one run after each pause is not kept
    assert len(result.sensors) == machine.readings == 4  # before, after warming up, midway, after
    assert not any(machine.collected_while_running) and gc.isenabled()


def test_warming_up_ends_when_it_is_steady():
    _, result = timed(lambda n: 7 + max(0, 40 - n) / 10)
    assert result.steady
    assert result.warmup_runs >= 40
    assert max(result.infer_ns) == 7 * MS


def test_warming_up_is_bounded():
    _, result = timed(lambda n: 5 * 1.01**n)
    assert not result.steady
    assert result.warmup_runs * 8 * MS <= 11 * 0.3e9


def test_slow_networks_are_run_as_often_as_asked():
    machine, result = timed(lambda _: 60_000, min_runs=4)
    assert len(result.infer_ns) == 4
    assert result.warmup_runs == 6
    assert machine.runs == 6 + 4 + 2


def test_fast_networks_are_run_no_more_often_than_asked():
    _, result = timed(lambda _: 0.01, max_runs=25)
    assert len(result.infer_ns) == 25


def test_nothing_to_wait_for_still_gives_samples():
    _, result = timed(lambda _: 5, warmup_s=0, warmup_runs=0, duration_s=0, min_runs=1)
    assert len(result.infer_ns) == 1 and result.warmup_runs == 6


def test_a_long_measurement_reads_the_sensors_every_second():
    _, result = timed(lambda _: 97, duration_s=21.0)
    assert len(result.sensors) == 2 + 21
    assert sum(result.total_ns) == pytest.approx(21e9, rel=0.01)


def test_a_very_long_measurement_has_no_more_readings_than_fit():
    _, result = timed(lambda _: 997, duration_s=1200.0)
    assert len(result.sensors) == 2 + 60


def test_the_boards_tools_are_asked_before_and_after_alone():
    machine = Machine(lambda _: 7)
    asked = []

    def ask():
        asked.append(machine.runs)
        return {"time_s": machine.now, "values": {"asked": 1}}

    plan = Plan(0.3, 5, 3.0, 10, 20_000)
    result = measure(machine, {"x": 1}, plan, machine.sensors, machine.clock, ask)
    assert asked == [0, machine.runs]
    told = [bool(reading["values"]) for reading in result.sensors]
    assert told == [True, *[False] * 3, True]


def test_the_collector_is_on_again_after_a_failure():
    def fail(n):
        if n == 12:
            raise ValueError("a bad day")
        return 50

    with pytest.raises(ValueError, match="a bad day"):
        timed(fail)
    assert gc.isenabled() and gc.get_freeze_count() == 0
