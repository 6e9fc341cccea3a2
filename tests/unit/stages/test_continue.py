"""Going on with a run that lost a board, or was stopped."""

from __future__ import annotations

import pytest
from fake_boards import TEXT, by_device, failing, host_of

from wherry import api
from wherry.errors import Interrupted, UsageError
from wherry.execute import execute, prepare_again
from wherry.host import Host


def test_a_run_that_lost_a_board_is_continued(lab, boards) -> None:
    boards["a"].open = failing(99)
    first = lab.run("measure.rounds=3")
    assert by_device(first)["a"] == ["failed"] * 3
    boards["a"].open = failing(0)
    again = execute(prepare_again("last", host=host_of(lab))).values
    assert by_device(again) == {"a": ["ok"] * 3, "b": ["ok"] * 3}
    assert len(boards["b"].loaded) == 9, "b has done its part"
    assert (again["continues"], first["continues"]) == (first["run_id"], None)
    assert again["overrides"] == ["measure.rounds=3"]
    assert again["measure"]["rounds"] == 3


def test_a_run_that_was_stopped_is_the_last_one(lab, boards) -> None:
    lab.run()
    prepared = lab.prepare("targets.0.device=c")

    def stop(event) -> None:
        if event.step.device and event.state == "progress":
            prepared.services.cancelled.set()

    with pytest.raises(Interrupted):
        execute(prepared, on_event=stop)
    again = execute(prepare_again("last", host=host_of(lab))).values
    assert by_device(again) == {"c": ["ok"] * 3}
    assert again["continues"] == prepared.run_id


def test_the_tag_goes_with_it(lab, boards) -> None:
    execute(lab.prepare(), tag="nightly")
    lab.run()
    again = execute(prepare_again("nightly", host=host_of(lab))).values
    assert again["tag"] == "nightly"
    named = execute(prepare_again("nightly", host=host_of(lab)), tag="other").values
    assert (named["tag"], named["continues"]) == ("other", again["run_id"])


def test_a_manifest_that_has_changed_is_run_as_it_is_and_that_is_said(lab, boards) -> None:
    run_id = lab.run()["run_id"]
    told: list[str] = []
    execute(prepare_again(run_id, host=host_of(lab), tell=told.append))
    assert told == []
    lab.manifest.write_text(TEXT.replace("rounds: 2", "rounds: 1"))
    again = execute(prepare_again("last", host=host_of(lab), tell=told.append)).values
    assert again["measure"]["rounds"] == 1
    (text,) = told
    assert "says something else than in 2" in text


def test_what_cannot_be_continued(lab, boards, monkeypatch) -> None:
    host = host_of(lab)
    monkeypatch.setattr(Host, "load", lambda **_: host)
    with pytest.raises(UsageError, match="there is no run yet"):
        api.run(continue_="last")
    run_id = lab.run()["run_id"]
    with pytest.raises(UsageError, match=r"no run named 'm\.yaml'"):
        api.run(continue_="m.yaml")
    for extra in ({"manifest": "m.yaml"}, {"sets": ["seed=1"]}, {"remeasure": True}):
        with pytest.raises(UsageError, match="with its own manifest and overrides"):
            api.run(continue_=run_id, **extra)
    with pytest.raises(UsageError, match="nothing to run"):
        api.run()
    assert api.run(continue_=run_id[:-1]).values["continues"] == run_id


def test_a_run_that_goes_on_is_not_continued(lab, boards) -> None:
    found: list[str] = []

    def look(event) -> None:
        if event.state == "started" and event.step.kind == "model":
            with pytest.raises(UsageError) as caught:
                prepare_again("last", host=host_of(lab))
            found.append(str(caught.value))

    execute(lab.prepare(), on_event=look)
    assert "has not ended yet" in found[0]
