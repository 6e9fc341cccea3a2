"""Passwords and passphrases: typed on the terminal, and kept in memory alone."""

from __future__ import annotations

import os
import select
import termios
import threading
from dataclasses import dataclass, field

from wherry.errors import Interrupted
from wherry.screen import SCREEN

_POLL_S = 0.2  # how soon a stopped run is noticed
_LINE_BYTES = 4096


@dataclass(eq=False)
class Secrets:
    """Those of this process, for all its connections.

    Attributes:
        known: what was typed, by what it is for.
    """

    known: dict[str, str] = field(default_factory=dict, repr=False)
    asking: threading.RLock = field(default_factory=threading.RLock)

    def ask(
        self, what: str, prompt: str, cancelled: threading.Event, again: bool = False
    ) -> str | None:
        """A secret, asked on the terminal once; None where there is none to ask on.

        Args:
            what: names it.
            prompt: for people.
            cancelled: see `type_in`.
            again: what is known is wrong.
        """
        with self.asking:
            if not again and what in self.known:
                return self.known[what]
            self.known.pop(what, None)
            typed = type_in(prompt, cancelled)
            if typed is not None:
                self.known[what] = typed
            return typed


SECRETS = Secrets()


def type_in(prompt: str, cancelled: threading.Event) -> str | None:
    """A line that the user types on the terminal, and that is not shown there.

    Python's getpass neither ends when a run is stopped nor leaves stdin alone where there is no
    terminal.

    Args:
        prompt: for people.
        cancelled: when it is set, nothing more is waited for.

    Returns:
        None where there is no terminal, or the user ended the input (Ctrl-D).

    Raises:
        Interrupted: the run was stopped.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with SCREEN.borrowed():
            return _read_unseen(terminal, prompt, cancelled)
    finally:
        os.close(terminal)


def _read_unseen(terminal: int, prompt: str, cancelled: threading.Event) -> str | None:
    if cancelled.is_set():
        raise Interrupted("stopped while a password was asked for")
    try:
        before = termios.tcgetattr(terminal)
        unseen = list(before)
        unseen[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSAFLUSH, unseen)
    except termios.error:  # it is not ours any more: its session has ended
        return None
    line = b""
    try:
        os.write(terminal, prompt.encode())
        while not line.endswith(b"\n"):
            if cancelled.is_set():
                raise Interrupted("stopped while a password was asked for")
            if select.select([terminal], [], [], _POLL_S)[0]:
                piece = os.read(terminal, _LINE_BYTES)
                if not piece:
                    return None
                line += piece
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        os.write(terminal, b"\n")
    return line.decode("utf-8", "replace").rstrip("\r\n")  # what is no UTF-8 is no password
