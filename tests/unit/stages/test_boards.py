"""Runs on several boards, some of which are lost: what is tried again, kept, and said."""

from __future__ import annotations

import threading

import pytest
from fake_boards import LOST, TEXT, by_device, failing

from wherry.errors import DeviceError, Interrupted, ToolError
from wherry.execute import execute
from wherry.store import Store


def test_boards_work_at_the_same_time_whatever_jobs_is(lab, boards) -> None:
    together = threading.Barrier(2)

    def meet(_precision: str) -> None:
        together.wait(30)

    for name in "ab":
        boards[name].load = meet
    assert by_device(lab.run(jobs=1)) == {"a": ["ok"] * 3, "b": ["ok"] * 3}


def test_boards_of_one_type_share_no_measurement(lab, boards) -> None:
    lab.run()
    assert (len(boards["a"].loaded), len(boards["b"].loaded)) == (6, 6)
    parts = {tuple(entry.key.parts[part] for part in ("device", "identity", "board"))
             for entry in Store(lab.home / "store").entries("measure")}  # fmt: skip
    assert parts == {("a", "a", "a board"), ("b", "b", "a board")}


def test_another_board_under_the_same_name_is_measured_anew(lab, boards) -> None:
    lab.run()
    boards["a"].identity = "its successor"
    lab.run()
    assert (len(boards["a"].loaded), len(boards["b"].loaded)) == (12, 6)


# Lost boards


def test_a_board_that_was_lost_once_goes_on_with_the_missing_rounds(lab, boards) -> None:
    told: list[str] = []

    def fail_third(_precision: str) -> None:
        if len(boards["a"].loaded) == 3:
            raise LOST

    boards["a"].load = fail_third
    values = execute(lab.prepare(), on_event=lambda event: told.append(event.text)).values
    assert by_device(values) == {"a": ["ok"] * 3, "b": ["ok"] * 3}
    assert len(boards["a"].loaded) == 7, "six rounds, and one of them twice"
    assert boards["a"].sessions == 2
    assert any(text.startswith("a was lost (the device was lost: the cable") for text in told)


def test_a_board_that_cannot_be_reached_at_first_is_tried_again(lab, boards) -> None:
    boards["a"].open = failing(4)
    assert by_device(lab.run()) == {"a": ["ok"] * 3, "b": ["ok"] * 3}


def test_what_was_measured_of_a_board_that_is_lost_for_good_is_reported(lab, boards) -> None:
    def die(_precision: str) -> None:
        if len(boards["a"].loaded) == 5:  # in the second round
            boards["a"].open = failing(99)
            raise LOST

    boards["a"].load = die
    values = lab.run()
    assert sorted(by_device(values)["a"]) == ["failed", "failed", "ok"]
    assert by_device(values)["b"] == ["ok"] * 3
    errors = {result["error"] for result in values["results"] if result["error"]}
    assert len(errors) == 1
    assert "the cable was pulled; given up after 5 tries in a row" in errors.pop()


def test_a_board_that_is_never_reached_fails_its_own_step_alone(lab, boards) -> None:
    boards["a"].open = failing(99)
    values = lab.run()
    assert by_device(values) == {"a": ["failed"] * 3, "b": ["ok"] * 3}
    states = {step["id"]: step["state"] for step in values["steps"] if step["kind"] == "profile"}
    assert states == {"profile:a": "failed", "profile:b": "done"}


@pytest.mark.parametrize("leased", [False, True], ids=["probe", "lease"])
def test_a_board_that_refuses_is_not_asked_again(lab, boards, leased: bool) -> None:
    def refuse() -> None:
        if boards["a"].sessions or not leased:
            raise DeviceError("the key is refused", where="a")

    boards["a"].open = refuse
    values = lab.run()
    assert by_device(values) == {"a": ["failed"] * 3, "b": ["ok"] * 3}
    assert boards["a"].sessions == int(leased)


def test_a_row_that_brings_the_board_down_fails_alone(lab, boards) -> None:
    boards["a"].load = failing(99, precision="fp16")
    values = lab.run()
    assert by_device(values) == {"a": ["ok", "failed", "ok"], "b": ["ok"] * 3}
    (error,) = (result["error"] for result in values["results"] if result["error"])
    assert "the board was lost 2 times while this target ran" in error
    assert boards["a"].loaded.count("fp16") == 2
    assert len(boards["a"].loaded) == 6


def test_the_tries_of_a_row_are_not_the_boards(lab, boards, monkeypatch) -> None:
    """Each of the rows loses it once in each round, and is measured at the second try."""
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (0.0,) * 3)
    lost: set[tuple[str, int]] = set()

    def once(precision: str) -> None:
        place = (precision, boards["a"].loaded.count(precision) // 2)
        if boards["a"].loaded.count(precision) % 2 and place not in lost:
            lost.add(place)
            raise LOST

    boards["a"].load = once
    assert by_device(lab.run())["a"] == ["ok"] * 3
    assert len(lost) == 6


def test_what_rows_cost_that_bring_it_down_is_not_counted_against_the_board(lab, boards) -> None:
    boards["a"].load = failing(99)
    errors = {r["error"] for r in lab.run()["results"] if r["target"]["device"] == "a"}
    (error,) = errors
    assert "the board was lost 2 times while this target ran" in error
    assert len(boards["a"].loaded) == 6, "each of its three rows twice"


def test_a_board_that_no_row_can_use_is_given_up(lab, boards) -> None:
    boards["a"].load = failing(99)
    lab.text = TEXT.replace("int8]", "int8], threads: [1, 2, 3]")
    values = lab.run()
    assert by_device(values) == {"a": ["failed"] * 9, "b": ["ok"] * 9}
    assert len(boards["a"].loaded) == 5, "one for each of its tries"


def test_a_runner_that_crashes_costs_no_try_and_fails_its_own_row(lab, boards) -> None:
    boards["a"].load = failing(99, ToolError("the runner crashed"), precision="int8")
    assert by_device(lab.run())["a"] == ["ok", "ok", "failed"]
    assert boards["a"].sessions == 1


def test_another_board_that_answers_after_a_loss_measures_nothing(lab, boards) -> None:
    def replaced(_precision: str) -> None:
        if len(boards["a"].loaded) == 4:  # the first round is over
            boards["a"].identity = "another"
            raise LOST

    boards["a"].load = replaced
    values = lab.run()
    assert by_device(values)["a"] == ["failed"] * 3
    assert "another board answers than at the start of the run" in values["results"][0]["error"]
    assert len(boards["a"].loaded) == 4


def test_a_run_is_stopped_in_the_middle_of_a_pause(lab, boards, monkeypatch) -> None:
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (3600.0,))
    boards["a"].load = failing(1)
    prepared = lab.prepare()

    def stop(event) -> None:
        if "trying again" in event.text:
            prepared.services.cancelled.set()

    with pytest.raises(Interrupted):
        execute(prepared, on_event=stop)


def test_remeasuring_goes_on_after_a_loss(lab, boards) -> None:
    lab.run()
    boards["a"].loaded.clear()
    boards["a"].load = failing(1)
    lab.run(remeasure=True)
    assert len(boards["a"].loaded) == 7, "what was measured before the loss is not measured again"
