"""The local transport: the host itself as a board, reached through pipes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from wherry.device import Device, DeviceServices, DeviceSpec, Transport
from wherry.errors import DeviceError
from wherry.requirements import Requirements
from wherry_devices.agent import frames
from wherry_devices.alternatives import Alternatives
from wherry_devices.session import BoardDevice, Patience
from wherry_devices.tail import Tail

if TYPE_CHECKING:
    from wherry_devices.board import Board

_PIPE_BYTES = 1 << 20  # fewer switches between the two processes; Linux's limit for users
_STDERR_BYTES = 4096  # at a time


class LocalParameters(BaseModel):
    """What an inventory may say of the local device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit_s: float = Field(600, gt=0, description="how long one command of the agent may take")
    wait_s: float = Field(600, ge=0, description="how long to wait for the lease")


def local_transport() -> Transport:
    """The descriptor."""
    return Transport(
        name="local",
        description="this machine, through pipes",
        parameters=LocalParameters,
        connect=connect,
        host=True,
    )


def connect(spec: DeviceSpec, services: DeviceServices) -> Device:
    """The device that ``spec`` names; nothing is started yet."""
    parameters = spec.parameters
    assert isinstance(parameters, LocalParameters)
    patience = Patience(limit_s=parameters.limit_s, wait_s=parameters.wait_s)
    chosen = Alternatives()
    return BoardDevice(spec.name, lambda: LocalConnection(services, chosen), patience, spec.tools)


class LocalConnection:
    """See `wherry_devices.connection.Connection`.

    Args:
        services: make the environments.
        chosen: what other connections to this device have chosen.
    """

    def __init__(self, services: DeviceServices, chosen: Alternatives | None = None) -> None:
        self.services = services
        self._chosen = chosen or Alternatives()
        self.cancelled = services.cancelled
        board = services.home / "board"
        self.root = str(board)
        self.lease = str(board / "lease")
        # A board's agent runs on the board's own Python, not in an environment of ours.
        self._python = str(getattr(sys, "_base_executable", sys.executable))

    def start(self, script: str, arguments: Sequence[str]) -> LocalProcess:
        """Start it as a child that no signal of our terminal reaches."""
        command = [self._python, "-I", "-S", "-c", script, *arguments]
        try:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            return LocalProcess(command, self.root)
        except OSError as error:
            raise DeviceError(
                f"cannot start {self._python}: {error}",
                where=self.root,
                remedy="Check the folder and the interpreter.",
            ) from error

    def provide(
        self,
        board: Board,  # noqa: ARG002 -- the board is this machine
        alternatives: Sequence[Requirements],
        progress: Callable[[str], None] | None = None,
    ) -> str:
        """From the host's environments."""
        if not alternatives:
            return sys.executable
        requirements, _ = self._choose(tuple(alternatives))
        return str(self.services.environment(requirements, progress))

    def runtime_lock(
        self,
        board: Board,  # noqa: ARG002 -- the board is this machine
        alternatives: Sequence[Requirements],
    ) -> str:
        """Of the host's environments."""
        if not alternatives:
            import numpy as np

            return hashlib.sha256(f"{sys.version} numpy {np.__version__}".encode()).hexdigest()
        return self._choose(tuple(alternatives))[1]

    def _choose(self, alternatives: tuple[Requirements, ...]) -> tuple[Requirements, str]:
        return self._chosen.choose(alternatives, alternatives, self.services.environment_lock)

    def close(self) -> None:
        """Nothing to hang up."""


class LocalProcess:
    """See `wherry_devices.connection.Process`."""

    def __init__(self, argv: Sequence[str], directory: str) -> None:
        self._process = subprocess.Popen(
            argv,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._stderr = self._process.stderr
        for stream in (self._stdin, self._stdout):
            _widen(stream.fileno())
        os.set_blocking(self._stdin.fileno(), False)
        self._tail = Tail()
        self._listener = threading.Thread(target=self._listen, name="wherry-stderr", daemon=True)
        self._listener.start()

    def write(self, buffers: Sequence[memoryview], limit_s: float) -> None:
        """To its stdin."""
        if self._stdin.closed:
            raise BrokenPipeError("hung up")
        descriptor = self._stdin.fileno()

        def wait() -> None:
            poll = select.poll()  # select() knows no descriptors from 1024 on
            poll.register(descriptor, select.POLLOUT)
            if not poll.poll(limit_s * 1000):
                raise TimeoutError(f"it took nothing for {limit_s:g} s")

        frames.write(descriptor, buffers, wait)

    def readinto(self, view: memoryview) -> int:
        """From its stdout."""
        return os.readv(self._stdout.fileno(), [view])

    def wait(self, limit_s: float) -> int | None:
        """Its exit status as subprocess has it."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """SIGKILL, also to what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)

    def stderr_tail(self) -> str:
        """The last lines; complete where the process has ended."""
        if self._process.poll() is not None:
            self._listener.join(1.0)
        return self._tail.text()

    def close_input(self) -> None:
        """Of its stdin."""
        self._stdin.close()

    def close(self) -> None:
        """Of its stdout and stderr, after it has ended."""
        self._process.wait()
        self._listener.join(1.0)
        self._stdout.close()

    def _listen(self) -> None:
        with self._stderr as stream:
            while data := stream.read(_STDERR_BYTES):
                self._tail.feed(data)


def _widen(descriptor: int) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:  # over this user's limit: the pipe stays as it is, slower
        return
