"""Passwords that are typed: on a terminal of their own, beside a display of progress."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

OPEN = "import os, sys; os.setsid(); os.open({name!r}, os.O_RDWR)\n"  # its controlling terminal
ASK = """
import threading
from rich.console import Console
from rich.progress import Progress
from wherry.errors import Interrupted
from wherry.screen import SCREEN
from wherry_devices.ssh.secrets import SECRETS
stopped = threading.Event()
console = Console(force_terminal=True)
with Progress(console=console) as progress, SCREEN.display(hide=progress.stop, show=progress.start):
    progress.add_task("measuring", total=None)
    threading.Timer({stop_s}, stopped.set).start()
    try:
        typed = SECRETS.ask("board", "Password of the board: ", stopped)
        again = SECRETS.ask("board", "Password of the board: ", stopped)
        shown = "again asked" if again != typed else ascii(typed)
    except Interrupted:
        shown = "interrupted"
print("it was", shown)
os._exit(0)
"""


class Terminal:
    """A terminal with a process on it."""

    def __init__(self):
        self.ours, self.its = pty.openpty()
        self.shown = b""

    def run(self, code, **options):
        code = OPEN.format(name=os.ttyname(self.its)) + code
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=self.its,
            stdout=self.its,
            stderr=self.its,
            **options,
        )

    def expect(self, text, limit_s=60.0):
        """Wait until it is shown, and give what was shown until then."""
        deadline = time.monotonic() + limit_s
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.ours], [], [], 0.1)[0]:
                self.shown += os.read(self.ours, 4096)
        found, _, self.shown = self.shown.partition(text)
        return found

    def type(self, text):
        os.write(self.ours, text)

    @property
    def echoes(self):
        return bool(termios.tcgetattr(self.its)[3] & termios.ECHO)


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    os.close(made.ours)
    os.close(made.its)


def test_a_password_is_typed_beside_a_display_and_not_shown(terminal):
    with terminal.run(ASK.format(stop_s=60)) as process:
        assert b"measuring" in terminal.expect(b"Password of the board: ")
        assert not terminal.echoes
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:  # no display moves where the user types
            assert not select.select([terminal.ours], [], [], 0.1)[0]
        terminal.type("straße 1\n".encode())
        shown = terminal.expect(b"it was 'stra\\xdfe 1'")
        assert "straße".encode() not in shown
        assert b"measuring" in shown, "the display goes on"
        assert process.wait(20) == 0
    assert terminal.echoes


def test_a_stopped_run_ends_the_question(terminal):
    with terminal.run(ASK.format(stop_s=1.0)) as process:
        terminal.expect(b"Password of the board: ")
        terminal.type(b"half")
        assert b"half" not in terminal.expect(b"it was interrupted")
        assert process.wait(20) == 0
    assert terminal.echoes


def test_the_input_is_ended(terminal):
    with terminal.run(ASK.format(stop_s=60)) as process:
        terminal.expect(b"Password of the board: ")
        terminal.type(b"\x04")
        terminal.expect(b"Password of the board: ")  # nothing is known, so it is asked again
        terminal.type(b"\x04")
        terminal.expect(b"it was None")
        assert process.wait(20) == 0


@pytest.fixture
def probe(terminal, inprocess, workstation, tmp_path):
    """Probes a board with that password by the command, on the terminal."""

    def run(password):
        board = inprocess(password=password)
        workstation.trust(board)
        (tmp_path / "devices.yaml").write_text(
            f"devices:\n  pi: {{ssh: {{host: {board.host}, port: {board.port}, user: {board.user},"
            f" python: {sys.executable}, root: '{board.home}/w', lease: '{board.home}/lease'}}}}\n"
        )
        words = "[sys.executable, '-m', 'wherry', 'devices', 'probe', 'pi']"
        environment = workstation.environment()
        return terminal.run(f"os.execv(sys.executable, {words})", cwd=tmp_path, env=environment)

    return run


def test_a_board_asks_for_a_password(terminal, probe):
    with probe("straße 1") as process:
        terminal.expect(b"Password of ")
        terminal.type(b"wrong\n")
        terminal.expect(b"Password of ")
        terminal.type("straße 1\n".encode())
        terminal.expect(b"glibc")
        assert process.wait(20) == 0


def test_ctrl_c_at_the_question(terminal, probe):
    with probe("x") as process:
        terminal.expect(b"Password of ")
        terminal.type(b"\x03")
        assert process.wait(20) in (130, -signal.SIGINT)
    assert terminal.echoes


def test_where_there_is_no_terminal():
    code = (
        "import threading; from wherry_devices.ssh.secrets import type_in\n"
        "print(type_in('Password: ', threading.Event()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="secret\n",
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "None\n"
