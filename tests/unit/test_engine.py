"""The local engine: order, bound, exclusivity, failures, interruption."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from wherry.engine import local
from wherry.errors import Interrupted, ModelError, PluginError
from wherry.plan import Step
from wherry.stages.context import StageResult


class Trace:
    """Runs steps by functions and writes down what ran when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.lock = threading.Lock()
        self.running: set[str] = set()
        self.together: list[frozenset[str]] = []
        self.order: list[str] = []
        self.work = {}
        self.directory = tmp_path
        monkeypatch.setattr(local, "stage", lambda _kind: self.do)

    def do(self, step, inputs, services):
        with self.lock:
            self.running.add(step.id)
            self.together.append(frozenset(self.running))
        try:
            value = self.work.get(step.id, lambda _inputs: time.sleep(0.02))(inputs)
        finally:
            with self.lock:
                self.running.discard(step.id)
                self.order.append(step.id)
        return StageResult(value)

    def run(self, *steps: Step, jobs: int = 4, on_event=None):
        services = SimpleNamespace(
            plan=SimpleNamespace(steps={step.id: step for step in steps}),
            cancelled=threading.Event(),
            notify=None,
            run_directory=self.directory,
        )
        self.services = services
        return local.run_steps(services, jobs=jobs, on_event=on_event)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trace:
    return Trace(monkeypatch, tmp_path)


def step(name: str, *needs: str, **more) -> Step:
    return Step(name, "convert", name, needs, **more)


def test_values_flow_along_the_needs(trace: Trace) -> None:
    trace.work["a"] = lambda _: 20
    trace.work["b"] = lambda _: 22
    trace.work["sum"] = lambda inputs: sum(inputs.values())
    outcomes = trace.run(step("sum", "a", "b"), step("a"), step("b"))
    assert outcomes["sum"].result.value == 42


def test_no_more_than_jobs_at_once_and_more_than_one(trace: Trace) -> None:
    trace.run(*(step(f"s{i}") for i in range(12)), jobs=3)
    assert max(map(len, trace.together)) == 3


def test_an_exclusive_step_runs_alone_and_after_the_others(trace: Trace) -> None:
    steps = [step("time", exclusive=True), *(step(f"s{i}") for i in range(5))]
    trace.run(*steps, step("late", "s0"))
    assert trace.order[-1] == "time"
    assert all(group == {"time"} for group in trace.together if "time" in group)


def test_two_exclusive_steps_never_overlap(trace: Trace) -> None:
    trace.run(step("x", exclusive=True), step("y", exclusive=True))
    assert all(len(group) == 1 for group in trace.together)


def test_a_hundred_boards_work_at_once_beside_the_host(trace: Trace) -> None:
    boards = [step(f"board{i}", device=f"b{i}") for i in range(100)]
    meeting = threading.Barrier(len(boards) + 1)
    for name in ("host", *(board.id for board in boards)):
        trace.work[name] = lambda _: meeting.wait(60)
    outcomes = trace.run(*boards, step("host"), step("next"), jobs=1)
    assert all(outcome.error is None for outcome in outcomes.values())


def test_boards_take_no_place_of_the_hosts_steps(trace: Trace) -> None:
    steps = [step(f"b{i}", device="x") for i in range(5)] + [step(f"s{i}") for i in range(9)]
    trace.run(*steps, jobs=2)
    of_host = [{name for name in group if name.startswith("s")} for group in trace.together]
    assert max(map(len, of_host)) == 2


def test_nothing_is_timed_on_the_host_while_a_board_works(trace: Trace) -> None:
    trace.run(step("time", device="local", exclusive=True), step("b", device="b"), step("s"))
    assert trace.order[-1] == "time"
    assert all(group == {"time"} for group in trace.together if "time" in group)


def test_a_failure_fails_what_needs_it_and_nothing_else(trace: Trace) -> None:
    def fail(_inputs):
        raise ModelError("no model")

    trace.work["bad"] = fail
    trace.work["profile"] = sorted
    events = []
    outcomes = trace.run(
        step("bad"),
        step("after", "bad"),
        step("far", "after"),
        step("good"),
        step("profile", "far", "good", tolerates=("far", "good")),
        on_event=lambda event: events.append((event.step.id, event.state)),
    )
    assert str(outcomes["far"].error) == "no model"
    assert outcomes["far"].result is None
    assert outcomes["good"].error is None
    assert outcomes["profile"].result.value == ["good"]
    assert ("bad", "failed") in events
    assert ("after", "skipped") in events
    assert "after" not in trace.order


def test_what_tolerates_failures_needs_one_that_did_not_fail_and_all_that_it_does_not_tolerate(
    trace: Trace,
) -> None:
    def fail(_inputs):
        raise ModelError("no model")

    trace.work["bad"] = fail
    events = []
    outcomes = trace.run(
        step("bad"),
        step("good"),
        step("all", "bad", tolerates=("bad",)),
        step("other", "good", "bad", tolerates=("good",)),
        on_event=events.append,
    )
    assert outcomes["all"].error is outcomes["other"].error is outcomes["bad"].error
    said = [event.text for event in events if event.state == "skipped"]
    assert said == ["it needs `bad`"] * 2


def test_a_plugins_bug_is_named_and_its_traceback_kept(trace: Trace) -> None:
    trace.work["bug"] = lambda _: {}["missing"]
    outcomes = trace.run(step("bug"), step("good"))
    error = outcomes["bug"].error
    assert isinstance(error, PluginError)
    assert "KeyError" in str(error)
    (log,) = (trace.directory / "logs").iterdir()
    assert "KeyError: 'missing'" in log.read_text()
    assert str(log) in str(error)
    assert outcomes["good"].error is None


def test_ctrl_c_cancels_the_tools_and_ends(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def tool(_inputs):
        trace.services.cancelled.wait(10)
        ended.set()
        raise Interrupted("stopped")

    def interrupt(*args, **kwargs):
        if "tool" in trace.running:
            raise KeyboardInterrupt
        return set(), set()

    trace.work["tool"] = tool
    monkeypatch.setattr(local, "wait", interrupt)
    with pytest.raises(Interrupted):
        trace.run(step("tool"))
    assert ended.is_set()


def test_a_run_that_is_cancelled_from_outside_starts_nothing_more(trace: Trace) -> None:
    trace.work["first"] = lambda _: trace.services.cancelled.set()
    with pytest.raises(Interrupted):
        trace.run(step("first"), step("second", "first"), jobs=1)
    assert trace.order == ["first"]


def test_progress_of_a_part_is_told_of_its_step(trace: Trace) -> None:
    events = []
    trace.work["convert:x"] = lambda _: trace.services.notify("convert:x:parity", "checking")
    trace.run(step("convert:x"), on_event=events.append)
    assert [e.text for e in events if e.state == "progress"] == ["checking"]


def test_progress_is_not_told_of_a_step_whose_name_begins_alike(trace: Trace) -> None:
    events = []
    trace.work["profile:pi4"] = lambda _: trace.services.notify("profile:pi4:row", "timing")
    trace.run(step("profile:pi"), step("profile:pi4"), on_event=events.append)
    assert [e.step.id for e in events if e.state == "progress"] == ["profile:pi4"]
