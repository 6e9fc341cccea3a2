"""Devices that a manifest asks for by tags: which one a run takes, and when it waits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from fake_boards import TEXT, by_device, failing, host_of

from wherry import api
from wherry.errors import DeviceError, Interrupted, ToolError
from wherry.execute import execute, prepare_again
from wherry.host import Host
from wherry.store import Store


def with_tags(lab, boards, device: str = "{tags: [fast, arm]}", gates: str = "", **options):
    lab.text = TEXT.replace("[a, b]", device) + gates
    return execute(lab.prepare(**options)).values


def test_the_first_free_device_with_the_tags_is_taken(lab, boards) -> None:
    told: list[str] = []
    boards["a"].used_by = "kim@desk (process 3)"
    values = with_tags(lab, boards, tell=told.append)
    assert by_device(values) == {"b": ["ok"] * 3}
    assert values["tagged"] == {"tags:arm+fast": "b"}
    assert told == ["the device with the tags arm, fast is b"]
    assert not boards["c"].loaded


def test_one_that_cannot_be_reached_is_passed_over(lab, boards) -> None:
    boards["a"].open = failing(1)
    assert by_device(with_tags(lab, boards)) == {"b": ["ok"] * 3}


def test_where_all_are_in_use_the_first_that_is_free_is_waited_for(lab, boards) -> None:
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        boards["b"].used_by = ""

    boards["a"].used_by, boards["b"].used_by = "kim", "lee"
    assert by_device(with_tags(lab, boards, tell=tell)) == {"b": ["ok"] * 3}
    assert told == [
        "all devices with the tags arm, fast are in use: a by kim; b by lee; waiting",
        "the device with the tags arm, fast is b",
    ]


def test_waiting_has_an_end(lab, boards, monkeypatch) -> None:
    monkeypatch.setattr("wherry.choose.WAIT_S", 0.0)
    boards["a"].used_by, boards["b"].used_by = "kim", "lee"
    with pytest.raises(DeviceError, match=r"in use: a by kim; b by lee; waited 0 s"):
        with_tags(lab, boards)


def test_waiting_ends_with_the_run(lab, boards) -> None:
    stopped = threading.Event()
    boards["a"].used_by, boards["b"].used_by = "kim", "lee"
    with pytest.raises(Interrupted):
        with_tags(lab, boards, cancelled=stopped, tell=lambda _: stopped.set())


def test_where_none_can_be_reached_each_says_why(lab, boards) -> None:
    boards["a"].open = failing(1)
    boards["b"].open = failing(1, DeviceError("the key is refused"))
    with pytest.raises(DeviceError) as caught:
        with_tags(lab, boards)
    assert "no device with the tags arm, fast can be reached" in str(caught.value)
    assert "a: the device was lost: the cable was pulled" in str(caught.value)
    assert "b: the key is refused" in str(caught.value)


def test_a_device_that_nothing_else_uses_comes_first(lab, boards) -> None:
    values = with_tags(lab, boards, "[a, {tags: arm}, {tags: [fast, arm]}]")
    assert values["tagged"] == {"tags:arm": "b", "tags:arm+fast": "a"}
    assert by_device(values) == {"a": ["ok"] * 3, "b": ["ok"] * 3}, "rows that are equal are one"


def test_a_gate_speaks_of_the_device_that_was_chosen(lab, boards) -> None:
    boards["a"].used_by = "kim"
    gate = "gates: [{metric: size_bytes, max: 1, where: {device: {tags: [arm, fast]}}}]\n"
    (judged,) = with_tags(lab, boards, gates=gate)["gates"]
    assert judged["passed"] is False
    assert judged["result"].endswith("on b")
    assert judged["gate"] == "size_bytes max 1 where device tags:arm+fast"


def test_a_continued_run_takes_the_same_device(lab, boards) -> None:
    boards["a"].used_by = "kim"
    boards["b"].load = failing(1, ToolError("crashed"))
    assert "failed" in by_device(with_tags(lab, boards))["b"]
    boards["a"].used_by = ""
    again = execute(prepare_again("last", host=host_of(lab))).values
    assert by_device(again) == {"b": ["ok"] * 3}
    assert boards["a"].loaded == []
    assert again["tagged"] == {"tags:arm+fast": "b"}


def test_a_plan_reaches_no_board(lab, boards, monkeypatch) -> None:
    host = host_of(lab)
    monkeypatch.setattr(Host, "load", lambda **_: host)
    for board in boards.values():
        board.open = failing(1, AssertionError("a plan reaches nothing"))
    lab.manifest.write_text(TEXT.replace("[a, b]", "[c, {tags: [fast, arm]}]"))
    found = api.plan(lab.manifest)
    assert found["candidates"] == {"tags:arm+fast": ["a", "b"]}
    assert {row["target"]["device"] for row in found["rows"]} == {"c", "tags:arm+fast"}


# The lease of what was chosen


def test_two_runs_at_the_same_moment_get_different_devices(lab, boards) -> None:
    """Each has a device before either measures, whoever was faster."""
    told: dict[str, list[str]] = {"one": [], "two": []}
    lab.text = TEXT.replace("[a, b]", "{tags: [arm, fast]}")
    together, asked = threading.Barrier(2), []

    def meet() -> None:  # both ask for the first device before either takes it
        if len(asked) < 2:
            asked.append(1)
            together.wait(30)

    boards["a"].open = meet
    with ThreadPoolExecutor() as pool:
        futures = {run: pool.submit(lab.prepare, tell=told[run].append) for run in told}
        prepared = {run: future.result(30) for run, future in futures.items()}
        chosen = {run: one.request.chosen["tags:arm+fast"] for run, one in prepared.items()}
        assert sorted(chosen.values()) == ["a", "b"]
        runs = {run: pool.submit(execute, one) for run, one in prepared.items()}
        for run, future in runs.items():
            assert by_device(future.result(60).values) == {chosen[run]: ["ok"] * 3}
    assert all(f"is {chosen[run]}" in told[run][-1] for run in told)
    assert not any(board.leased.locked() for board in boards.values())
    assert (boards["a"].sessions, boards["b"].sessions) in {(2, 1), (1, 1)}, (
        "what was held when it was chosen is measured in the same session"
    )


def test_what_is_measured_is_keyed_by_the_device_that_was_held(lab, boards) -> None:
    with boards["a"].session():  # it says that it is free, and is not
        with_tags(lab, boards)
    devices = {entry.key.parts["device"] for entry in Store(lab.home / "store").entries("measure")}
    assert devices == {"b"}


def test_nothing_is_held_for_some_tags_while_others_are_waited_for(lab, boards) -> None:
    free: list[bool] = []

    def tell(text: str) -> None:
        if "in use" in text:
            free.append(not boards["a"].leased.locked())
            boards["c"].used_by = ""

    boards["c"].used_by = "kim"
    values = with_tags(lab, boards, "[{tags: fast}, {tags: slow}]", tell=tell)
    assert values["tagged"] == {"tags:fast": "a", "tags:slow": "c"}
    assert free == [True]


def test_a_board_that_was_held_and_lost_is_tried_again(lab, boards) -> None:
    boards["a"].load = failing(1)
    assert by_device(with_tags(lab, boards)) == {"a": ["ok"] * 3}
    assert boards["a"].sessions == 2
    assert not boards["a"].leased.locked()


def test_a_board_whose_step_is_never_reached_is_given_back(lab, boards) -> None:
    (lab.folder / "evaluation.npz").write_bytes(b"no numbers")
    assert by_device(with_tags(lab, boards)) == {"a": ["failed"] * 3}
    assert not boards["a"].leased.locked()


def test_where_the_choice_fails_nothing_stays_held(lab, boards, monkeypatch) -> None:
    monkeypatch.setattr("wherry.choose.WAIT_S", 0.0)
    boards["c"].open = failing(2, ToolError("no device at all"))
    with pytest.raises(DeviceError):
        with_tags(lab, boards, "[{tags: fast}, {tags: slow}]")
    assert not boards["a"].leased.locked()


def test_a_run_says_whom_it_waits_for(lab, boards, caplog) -> None:
    told: list[str] = []

    def tell(event) -> None:
        told.append(event.text)
        if "waiting" in event.text:
            holding.close()

    with ExitStack() as holding:
        holding.enter_context(boards["a"].session())
        lab.text = TEXT
        execute(lab.prepare(), on_event=tell)
    text = "a is in use by another run; waiting for it"
    assert told.count(text) == 1
    assert [record.message for record in caplog.records] == [text], "off the terminal, too"
