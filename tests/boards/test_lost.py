"""What another try may cure, and what it cannot: how the host tells them apart."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from wherry.errors import DeviceError, DeviceLostError
from wherry_devices.board import Board
from wherry_devices.transport.local import LocalConnection


class Broken(LocalConnection):
    """A board whose Python does not start, or dies at once."""

    end = "exit 127"

    def start(self, script, arguments):
        return super().start(f"import os; os.execv('/bin/sh', ['sh', '-c', '{self.end}'])", [])


def test_a_service_that_died_was_lost(bench):
    board = Board(LocalConnection(bench.services()), "bench")
    try:
        os.kill(board.pid, signal.SIGKILL)
        with pytest.raises(DeviceLostError, match="the device was lost"):
            board.check()
    finally:
        board.close()


def test_a_board_that_refuses_was_not_lost(bench):
    board = Board(LocalConnection(bench.services()), "bench")
    try:
        with pytest.raises(DeviceError, match="the board refused") as caught:
            board.call("nonsense")
        assert not isinstance(caught.value, DeviceLostError)
    finally:
        board.close()


def test_an_agent_that_cannot_start_is_not_tried_again(bench):
    connection = Broken(bench.services())
    with pytest.raises(DeviceError, match=r"the agent cannot start.*127") as caught:
        Board(connection, "bench")
    assert not isinstance(caught.value, DeviceLostError)


def test_an_agent_that_was_killed_as_it_started_is(bench):
    connection = Broken(bench.services())
    connection.end = "kill -KILL $$"
    with pytest.raises(DeviceLostError):
        Board(connection, "bench")


class Run:
    """What a board ends together with itself."""

    ended = ""

    def kill(self, reason: str) -> None:
        self.ended = reason


def test_the_runs_on_a_silent_board_are_ended_with_it(bench):
    board = Board(LocalConnection(bench.services()), "bench", silence_s=0.6)
    run = Run()
    board.watch(run)
    try:
        os.kill(board.pid, signal.SIGSTOP)
        with pytest.raises(DeviceLostError, match="silent"):
            board.sensors()
    finally:
        board.close()
    assert "silent" in run.ended
    assert not Path(f"/proc/{board.pid}").exists()
