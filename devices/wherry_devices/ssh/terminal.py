"""A login shell of a board on the user's own terminal."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wherry.errors import UsageError

if TYPE_CHECKING:
    from wherry_devices.ssh.link import Link

_CHUNK = 1 << 14


def converse(link: Link) -> int:
    """Run the shell until it ends; its exit status.

    Raises:
        UsageError: stdin is no terminal.
        DeviceError: the link was lost.
        OSError: how the shell ended is not known.
    """
    if not sys.stdin.isatty():
        raise UsageError("a shell needs a terminal", remedy="Use `ssh` in scripts.")
    size = shutil.get_terminal_size()
    channel = link.shell(os.environ.get("TERM", "vt100"), (size.columns, size.lines))
    ended = threading.Event()

    def show() -> None:
        while data := channel.recv(_CHUNK):
            os.write(sys.stdout.fileno(), data)
        ended.set()

    def resize(*_: object) -> None:
        size = shutil.get_terminal_size()
        channel.resize_pty(size.columns, size.lines)

    threading.Thread(target=show, daemon=True).start()
    with _raw(), _on_signal(signal.SIGWINCH, resize):
        while not ended.is_set():
            if not select.select([sys.stdin], [], [], 0.1)[0]:
                continue
            data = os.read(sys.stdin.fileno(), _CHUNK)
            with contextlib.suppress(OSError):  # it ended meanwhile
                channel.sendall(data) if data else channel.shutdown_write()
    return channel.recv_exit_status()


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Every key goes to the board, Ctrl-C too."""
    saved = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


@contextlib.contextmanager
def _on_signal(number: signal.Signals, handler: object) -> Iterator[None]:
    saved = signal.signal(number, handler)  # type: ignore[arg-type]  # a function of (number, frame)
    try:
        yield
    finally:
        signal.signal(number, saved)
