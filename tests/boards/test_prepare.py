"""Runners that need what the board's owner has installed, and that are timed elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from wherry.device import DeviceSpec
from wherry.errors import UnsupportedError
from wherry.measurement import MeasureSettings
from wherry_devices.agent import tools
from wherry_devices.transport.local import LocalParameters, connect

pytestmark = pytest.mark.usefixtures("nothing_is_left")

QUICK = MeasureSettings(warmup_s=0.01, warmup_runs=2, duration_s=0.02, min_runs=5, max_runs=50)
SAMPLE = {"x": np.arange(12, dtype=np.float32).reshape(1, 3, 4)}


@pytest.fixture
def backend(bench):
    runner = Path(__file__).with_name("preparing_runner.py")
    return dataclasses.replace(bench.backend, runner=runner, tools={"multiplier": ()}, prepare_s=60)


@pytest.fixture
def session(bench, tmp_path):
    """A session on a board whose owner has the tool at a place, or not: ``session(path)``."""
    opened = []

    def make(path=None, *, lease=False):
        named = {} if path is None else {"multiplier": str(path)}
        spec = DeviceSpec("bench", "local", LocalParameters(), (), named)
        context = connect(spec, bench.services()).session(lease=lease)
        opened.append(context)
        return context.__enter__()

    yield make
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture
def tool(tmp_path):
    path = tmp_path / "multiplier"
    path.write_text("3")
    return path


def test_what_a_runner_prepares_is_what_it_loads(bench, backend, session, tool):
    with session(tool).host(bench.artifact(), bench.target(), backend, {}) as runner:
        (output,) = runner.infer([SAMPLE])
        assert runner.peak_memory_bytes() == 77
        record = dict(runner.record)
    assert np.array_equal(output["y"], 3 * SAMPLE["x"])
    assert record.pop("prepare_ms") > 0
    assert record == {"tool": str(tool), "machine": record["machine"]}


def test_a_board_without_the_tool_says_what_to_do(bench, backend, session):
    with (
        pytest.raises(UnsupportedError, match=r"no multiplier.*Install one") as caught,
        session().host(bench.artifact(), bench.target(), backend, {}),
    ):
        pass
    assert caught.value.where == "bench: tool multiplier"


def test_an_inference_in_another_process_is_timed_there(bench, backend, session, tool):
    opened = session(tool, lease=True)
    with opened.host(bench.artifact(), bench.target(), backend, {}) as runner:
        timing = runner.time(SAMPLE, QUICK)
        points = runner.sustain(SAMPLE, 0.01)
    assert timing.timed_by == "agent" and set(timing.infer_ns) == {12}
    assert min(timing.total_ns) > 12
    assert {point["median_ms"] for point in points} == {0.000012}


def test_a_tool_that_times_itself_is_named(bench, backend, session, tool):
    opened, target = session(tool, lease=True), bench.target(behaviour="times itself")
    with opened.host(bench.artifact(), target, backend, {}) as runner:
        timing = runner.time(SAMPLE, QUICK)
        (point, *_) = runner.sustain(SAMPLE, 0.01)
    assert timing.timed_by == "stopwatch" and list(timing.infer_ns) == [5000] * 5
    assert list(timing.total_ns) == list(timing.infer_ns) and timing.warmup_runs == 2
    assert timing.record == {"convention": "its own"} and len(timing.sensors) == 2
    assert point["median_ms"] == 0.005


def test_another_state_of_the_tool_is_another_runtime(backend, session, tool):
    opened, without = session(tool), session()
    first = opened.runtime_lock(backend)
    assert first == opened.runtime_lock(backend) != without.runtime_lock(backend)
    assert without.runtime_lock(backend) != without.runtime_lock(
        dataclasses.replace(backend, tools={})
    )
    tool.write_text("30")
    assert opened.runtime_lock(backend) != first


def test_a_tool_is_where_the_owner_says_or_where_it_usually_is(tmp_path, monkeypatch):
    usual, other = tmp_path / "usual", tmp_path / "other"
    other.write_text("")
    wanted = {"multiplier": (str(usual), str(other))}
    monkeypatch.delenv("MULTIPLIER", raising=False)
    assert tools.find(wanted, {}) == {"multiplier": str(other)}
    monkeypatch.setenv("MULTIPLIER", "/from/the/environment")
    assert tools.find(wanted, {}) == {"multiplier": "/from/the/environment"}
    assert tools.find(wanted, {"multiplier": "~/mine"}) == {
        "multiplier": str(Path("~/mine").expanduser())
    }
    monkeypatch.delenv("MULTIPLIER")
    assert tools.find({"multiplier": ()}, {}) == {}
    assert tools.find({"sh": ()}, {}) and tools.state({"x": "/nowhere"}) == {"x": ["/nowhere"]}


@pytest.mark.parametrize(
    ("told", "says"),
    [({"infer_ns": []}, "gave 0"), ({"infer_ns": [1, 2], "total_ns": [3]}, "gave 2 and 1"),
     ({"infer_ns": [-1]}, "less than no time")],
)  # fmt: skip
def test_what_is_no_answer_of_a_tool_is_refused(told, says):
    from wherry_devices.agent.timing import Plan, measure

    class Runner:
        timed_by = "stopwatch"

        def measure(self, inputs, plan):
            return {**told, "warmup_runs": 0, "steady": True}

    with pytest.raises(RuntimeError, match=says):
        measure(Runner(), {}, Plan(0, 0, 0, 1, 1), dict)
