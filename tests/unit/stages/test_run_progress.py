"""What a run leaves of its progress: every step of the plan, as who looks on reads it."""

from __future__ import annotations

import pytest

from wherry.errors import Interrupted
from wherry.execute import execute
from wherry.records.progress import KEPT, ProgressReader


def progress_of(lab, run_id: str):
    return ProgressReader(lab.home, run_id).read()


def test_a_run_tells_how_each_step_ended(lab) -> None:
    values = lab.run()
    found = progress_of(lab, values["run_id"])
    assert (found.state, found.end) == ("ended", KEPT)
    assert {step.id: step.state for step in found.steps} == {
        step["id"]: step["state"] for step in values["steps"]
    }
    assert found.done == len(values["steps"])


def test_who_looks_on_sees_a_step_while_it_runs(lab) -> None:
    prepared = lab.prepare()
    told, seen = [], []

    def look(event) -> None:
        if event.state != "progress":  # of that no more than two a second are written
            found = progress_of(lab, prepared.run_id)
            (step,) = [step for step in found.steps if step.id == event.step.id]
            told.append((event.step.id, "running", event.state))
            seen.append((step.id, found.state, step.state))

    execute(prepared, jobs=1, on_event=look)
    assert seen == told
    assert {state for _, _, state in seen} >= {"started", "done"}


def test_a_run_that_is_stopped_says_so(lab) -> None:
    prepared = lab.prepare()

    def stop(_event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        execute(prepared, jobs=1, on_event=stop)
    found = progress_of(lab, prepared.run_id)
    assert found.state == "ended"
    assert found.end == str(caught.value)
