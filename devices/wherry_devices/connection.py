"""What a transport is to a session: it starts processes on a board, and provides a runtime there.

Everything else (the agent's files, the store, the lease, the sensors) goes over the streams of
such a process, the same for every transport.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from wherry.requirements import Requirements

if TYPE_CHECKING:
    from wherry.device import DeviceServices
    from wherry_devices.board import Board


class Process(Protocol):
    """A process on the board and its three streams."""

    def write(self, buffers: Sequence[memoryview], limit_s: float) -> None:
        """Write all of them to its stdin.

        Raises OSError where it is gone, and TimeoutError (which is one) where it took nothing for
        ``limit_s`` seconds.
        """
        ...

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` from its stdout; 0 at the end. Raises OSError."""
        ...

    def wait(self, limit_s: float) -> int | None:
        """Its exit status, minus the signal's number where one ended it; None: it still runs.

        A transport that cannot know the status, because the link was lost, raises OSError.
        """
        ...

    def kill(self) -> None:
        """End it and its streams now; nothing where it has ended."""
        ...

    def stderr_tail(self) -> str:
        """The last lines of its stderr so far."""
        ...

    def close_input(self) -> None:
        """Hang up: its stdin ends. Writing then raises OSError."""
        ...

    def close(self) -> None:
        """Free the other streams of a process that has ended or was killed."""
        ...


class Connection(Protocol):
    """One connection to one board."""

    @property
    def root(self) -> str:
        """The folder of ours on the board; ``~`` is the board's to expand."""
        ...

    @property
    def lease(self) -> str:
        """The lease file on the board."""
        ...

    @property
    def cancelled(self) -> threading.Event:
        """When it is set, whoever waits for the board gives up."""
        ...

    @property
    def services(self) -> DeviceServices:
        """What the host lends."""
        ...

    def start(self, script: str, arguments: Sequence[str]) -> Process:
        """Start a process on the board: the board's own Python, isolated, runs a script.

        Args:
            script: Python source, standard library alone; it may become another program by exec.
            arguments: ``sys.argv[1:]`` of the script, any text but NUL.

        Raises:
            wherry.errors.DeviceError: it cannot be started.
        """
        ...

    def provide(
        self,
        board: Board,
        alternatives: Sequence[Requirements],
        progress: Callable[[str], None] | None = None,
    ) -> str:
        """Provide the first set that fits; the Python executable on the board that has it.

        No alternatives: the runner needs nothing but numpy.

        Args:
            board: the service agent at the other end of this connection.
            alternatives: sets of packages, best first.
            progress: told what is being done.

        Raises:
            wherry.errors.EnvironmentError_: none of them can be provided.
        """
        ...

    def runtime_lock(self, board: Board, alternatives: Sequence[Requirements]) -> str:
        """sha256 of what `provide` would provide, without making it."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...
