"""Runs without pause: the agent's series with a made-up clock, and what the host says of it."""

from __future__ import annotations

import dataclasses
import gc
import json

import numpy as np
import pytest

from wherry.artifact import Binding
from wherry.measurement import Measurement
from wherry_devices import plugin
from wherry_devices.agent.sustained import POINTS, state, sustain
from wherry_devices.sustained import summarise

MS = 1_000_000
VALUES = {
    "temperature_c.cpu": 50.0,
    "temperature_c.gpu": 61.5,
    "frequency_khz.policy0": 1_500_000,
    "frequency_khz.policy4": 2_000_000,
    "frequency_khz.gpu": 2_600_000,
    "governor.policy0": "ondemand",
    "throttled": 4,
    "throttle_count.oc1": 1,
    "throttle_count.oc3": 2,
    "cooling.cpufreq-cpu0": 1,
    "power_w.VDD_IN": 5.0,
    "load_1m": 1.0,
}


class Machine:
    """A clock that a runner moves."""

    def __init__(self, run_ms):
        self.now, self.runs, self.readings, self.run_ms = 0, 0, 0, run_ms

    def clock(self):
        return self.now

    def set_inputs(self, inputs):
        assert inputs == {"x": 1} and not gc.isenabled()

    def run(self):
        self.now += int(self.run_ms(self.runs) * MS)
        self.runs += 1

    def get_outputs(self):
        return {}

    def sensors(self):
        self.readings += 1
        self.now += 3 * MS
        return {"time_s": self.now / 1e9, "values": VALUES}


def sustained(run_ms, duration_s):
    machine = Machine(run_ms)
    return machine, sustain(machine, {"x": 1}, duration_s, machine.sensors, machine.clock)


def test_a_point_has_the_window_and_the_board():
    machine, points = sustained(lambda n: 10 + n % 10, 10)
    assert points[0] == {
        "time_s": pytest.approx(0.5, abs=0.02),
        "runs": pytest.approx(35, abs=2),
        "median_ms": pytest.approx(14.5, abs=0.6),
        "p90_ms": pytest.approx(18.5, abs=0.6),
        "temperature_c": 61.5,
        "frequency_khz": 2_000_000,
        "gpu_frequency_khz": 2_600_000,
        "throttled": 4,
        "throttle_count": 3,
        "cooling": 1,
        "power_w": {"VDD_IN": 5.0},
    }
    assert sum(point["runs"] for point in points) == machine.runs
    assert machine.readings == len(points) == 20
    assert gc.isenabled()


def test_a_long_run_has_no_more_points_than_fit_in_a_frame():
    _, points = sustained(lambda _: 100, 3600)
    assert POINTS * 0.98 <= len(points) <= POINTS
    assert points[-1]["time_s"] >= 3600


def test_a_run_longer_than_a_window_is_one():
    _, points = sustained(lambda _: 2000, 5)
    assert [point["runs"] for point in points] == [1, 1, 1]


def test_the_collector_is_on_again_after_a_failure():
    def fail(n):
        return 1 / (50 - n)

    with pytest.raises(ZeroDivisionError):
        sustained(fail, 10)
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_board_that_tells_nothing_has_latency_alone():
    assert state({"load_1m": 2.0, "governor.policy0": "ondemand"}) == {}


def points_of(count=120, **changes):
    """A window a second; ``changes`` are made of the second."""
    points = []
    for second in range(1, count + 1):
        point = {"time_s": float(second), "runs": 100, "median_ms": 4.0, "p90_ms": 4.5}
        point.update((name, change(second)) for name, change in changes.items())
        points.append(point)
    return points


def test_the_last_minute_is_compared_with_the_first():
    found = summarise(points_of(180, median_ms=lambda s: 4.0 if s <= 90 else 5.0), 180)
    assert found["ratio"] == pytest.approx(1.25) and found["duration_s"] == 180.0
    assert (found["throttled_s"], found["throttled_by"]) == (None, None)
    short = summarise(points_of(10, median_ms=lambda s: 4.0 if s <= 5 else 6.0), 10)
    assert short["ratio"] == pytest.approx(1.5)
    assert summarise(points_of(1), 0.5)["ratio"] == 1.0


@pytest.mark.parametrize(
    ("changes", "when", "why"),
    [
        ({"throttled": lambda s: 0x40004 if s > 30 else 0}, 31.0, "the board was throttled"),
        ({"throttled": lambda s: 0x50000}, None, None),  # once, before we came
        ({"throttle_count": lambda s: 5 + (s > 9)}, 10.0, "its throttle counters rose"),
        ({"cooling": lambda s: 2 * (s > 20)}, 21.0, "its cooling slowed it down"),
        (
            {"frequency_khz": lambda s: 1_800_000 if s < 77 else 1_500_000},
            77.0,
            "its clock fell from 1800 to 1500 MHz",
        ),
        ({"frequency_khz": lambda s: 600_000 if s < 3 else 1_800_000}, None, None),  # it rose
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_when_the_board_slowed_down_and_what_says_so(changes, when, why):
    found = summarise(points_of(**changes), 120)
    assert (found["throttled_s"], found["throttled_by"]) == (when, why)


def test_the_series_of_the_report():
    rails = {"VDD_IN": 5.0, "VDD_SOC": 1.0}
    found = summarise(points_of(2, power_w=lambda s: rails, temperature_c=lambda s: 50.0 + s), 2)
    assert found["points"][1] == {
        "time_s": 2.0,
        "runs": 100,
        "median_ms": 4.0,
        "p90_ms": 4.5,
        "temperature_c": 52.0,
        "frequency_khz": None,
        "power_w": 5.0,
    }
    json.dumps(found, allow_nan=False)


@dataclasses.dataclass
class Context:
    """What the profile hook is given for the run without pause."""

    backend: object
    sustained_s: float = 1.2
    said: list = dataclasses.field(default_factory=list)

    def progress(self, text):
        self.said.append(text)


def test_a_real_board_runs_without_pause(bench, tmp_path):
    taken = Binding("x", "in0", "float32", (1, 1, 4, 4))
    artifact = bench.artifact([taken], [dataclasses.replace(taken, onnx="y", runtime="out0")])
    context = Context(bench.backend)
    with bench.device().session() as session:
        measured = plugin.wherry_profile(
            artifact, bench.target(sleep_s=0.002), None, session, context
        )
    assert context.said == ["running for 1.2 s"]
    assert measured.sustained["duration_s"] >= 1.2
    points = measured.sustained["points"]
    assert len(points) >= 2 and all(point["median_ms"] > 2 for point in points)
    medians = [point["median_ms"] for point in points]
    assert np.allclose(measured.infer_ns / MS, medians, atol=1e-5)
    measured.save(tmp_path)
    assert Measurement.load(tmp_path).sustained == measured.sustained
