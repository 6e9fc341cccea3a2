"""Asking many devices at the same time: order, errors, the bound, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from wherry.asking import at_once
from wherry.errors import DeviceError, Interrupted, WherryError

LIMIT_S = 30.0


def test_answers_come_in_the_order_of_the_names() -> None:
    later = threading.Event()

    def ask(name: str) -> str:
        if name == "a":
            assert later.wait(LIMIT_S)
        if name == "c":
            later.set()
        return name.upper()

    found = at_once("abcb", ask, threading.Event())
    assert list(found.items()) == [("a", "A"), ("b", "B"), ("c", "C")]
    assert at_once([], ask, threading.Event()) == {}


def test_an_error_is_that_devices_answer() -> None:
    def ask(name: str) -> int:
        if name == "b":
            raise DeviceError("the key is refused")
        return 1

    found = at_once("abc", ask, threading.Event())
    assert (found["a"], found["c"]) == (1, 1)
    assert isinstance(found["b"], WherryError) and str(found["b"]) == "the key is refused"


def test_a_bug_is_nobodys_answer() -> None:
    cancelled = threading.Event()

    def ask(name: str) -> int:
        return {"a": 1}[name]

    with pytest.raises(KeyError):
        at_once("ab", ask, cancelled)
    assert cancelled.is_set(), "the others end"


def test_no_more_than_the_bound_are_asked_at_the_same_time() -> None:
    together, most, lock = threading.Barrier(3), [0, 0], threading.Lock()

    def ask(_name: str) -> None:
        with lock:
            most[0] += 1
            most[1] = max(most)
        together.wait(LIMIT_S)
        with lock:
            most[0] -= 1

    at_once("abcdef", ask, threading.Event(), bound=3)
    assert most == [0, 3]


def test_cancelling_ends_it() -> None:
    cancelled, asked = threading.Event(), []

    def ask(name: str) -> None:
        asked.append(name)
        cancelled.set()
        raise Interrupted("the session was stopped")

    with pytest.raises(Interrupted):
        at_once("abc", ask, cancelled, bound=1)
    assert asked == ["a"]


def test_it_does_not_wait_for_what_does_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry.asking._END_S", 0.1)
    over, cancelled = threading.Event(), threading.Event()
    cancelled.set()
    try:
        with pytest.raises(Interrupted):
            at_once("a", lambda _name: over.wait(LIMIT_S), cancelled)
    finally:
        over.set()


def test_ctrl_c_sets_the_event_and_ends_it() -> None:
    cancelled = threading.Event()

    def ask(_name: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # Python raises it in the main thread
        assert cancelled.wait(LIMIT_S)
        raise Interrupted("the session was stopped")

    with pytest.raises(Interrupted, match="while devices were asked"):
        at_once("abc", ask, cancelled)
    assert cancelled.is_set()
