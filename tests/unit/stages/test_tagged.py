"""Devices that a manifest asks for by tags: which one a run takes, and when it waits."""

from __future__ import annotations

import threading

import pytest
from fake_boards import TEXT, by_device, failing, host_of

from wherry import api
from wherry.errors import DeviceError, Interrupted, ToolError
from wherry.execute import execute, prepare_again
from wherry.host import Host


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
