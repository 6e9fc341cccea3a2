"""Devices and sessions for any transport."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.artifact import Artifact, hash_file
from wherry.device import BoardInfo, Stabilised
from wherry.errors import WherryError
from wherry.measurement import Sensors
from wherry.native import Wanted
from wherry.requirements import Requirements
from wherry.target import Backend, Target
from wherry_devices.board import SILENCE_S, Board, describe_holder
from wherry_devices.channel import Channel
from wherry_devices.connection import Connection
from wherry_devices.hosted import SHIPPED, Hosted
from wherry_devices.probe import board_info

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long to wait.

    Attributes:
        limit_s: for one command of the agent.
        wait_s: for a lease that another holds.
        silence_s: see `wherry_devices.board.SILENCE_S`.
    """

    limit_s: float = 600.0
    wait_s: float = 600.0
    silence_s: float = SILENCE_S


class BoardDevice:
    """See `wherry.device.Device`.

    Args:
        name: in the inventory.
        connect: opens a connection; raises `DeviceError`.
        patience: see there.
        tools: of the board's owner, by name: where the inventory says that they are.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        patience: Patience | None = None,
        tools: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._tools = dict(tools or {})
        self._connect = connect
        self._patience = patience or Patience()
        self._ended: set[str] = set()  # tokens of sessions that are over

    @property
    def name(self) -> str:
        """In the inventory."""
        return self._name

    def probe(self) -> BoardInfo:
        """What the board is; ``facts["in_use_by"]`` says who holds it, if anyone does."""
        with self.session(lease=False) as session:
            return session.info

    @contextmanager
    def session(
        self,
        *,
        lease: bool = True,
        wait: bool = True,
        report: Callable[[str], None] | None = None,
    ) -> Iterator[BoardSession]:
        """See `wherry.device.Device.session`."""
        connection = self._connect()
        try:
            board = Board(connection, self._name, self._patience.silence_s)
            try:
                if lease:
                    wait_s = self._patience.wait_s if wait else 0.0
                    board.lease(wait_s, report or _log.warning, self._ended)
                yield BoardSession(connection, board, self._patience.limit_s, self._tools)
            finally:
                if board.token is not None:
                    self._ended.add(board.token)
                board.close()
        finally:
            connection.close()

    def clean(self, unused_s: float) -> tuple[int, int]:
        """See `wherry.device.Device.clean`; with the lease, so that nothing is in use."""
        with self.session() as session:
            return session.clean(unused_s)

    def unlock(self) -> str | None:
        """See `wherry.device.Device.unlock`."""
        connection = self._connect()
        try:
            board = Board(connection, self._name, self._patience.silence_s)
            try:
                ended = board.unlock()
            finally:
                board.close()
        finally:
            connection.close()
        return None if ended is None else describe_holder(ended)

    def provision(
        self, requirements: Iterable[Requirements], progress: Callable[[str], None] | None = None
    ) -> str:
        """See `wherry.device.Device.provision`."""
        with self.session(lease=False) as session:
            return session.provide(tuple(requirements), progress)


class BoardSession:
    """See `wherry.device.Session`."""

    def __init__(
        self, connection: Connection, board: Board, limit_s: float, tools: Mapping[str, str]
    ) -> None:
        self._connection = connection
        self._board = board
        self._limit_s = limit_s
        self._tools = tools
        self._info = board_info(board.probe())

    @property
    def info(self) -> BoardInfo:
        """As probed when the session began."""
        return self._info

    def sensors(self) -> Sensors:
        """Read the board's sensors now."""
        return self._board.sensors()

    def runtime_lock(self, backend: Backend) -> str:
        """See `wherry.device.Session.runtime_lock`."""
        lock = self._connection.runtime_lock(self._board, backend.runtime)
        if not backend.tools and backend.native is None:
            return lock
        parts: list[Any] = [lock, self._found(backend)]
        if backend.native is not None:
            parts.append(backend.native.identity(self._machine))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _found(self, backend: Backend) -> Mapping[str, Any]:
        """The state of the owner's tools that a backend uses."""
        return self._board.tools(backend.tools, self._tools) if backend.tools else {}

    @property
    def _machine(self) -> str:
        """Of the board's userland, which may be narrower than its kernel."""
        return str(self._info.facts["python_machine"])

    def _native(self, backend: Backend, target: Target) -> str | None:
        """Ship a backend's machine code; where it is on the board."""
        if backend.native is None:
            return None
        options = target.options.model_dump(mode="json")
        wanted = Wanted(self._machine, frozenset(self._found(backend)), options)
        return self._board.ship(backend.native.files(wanted, self._connection.services))

    def provide(
        self, alternatives: Sequence[Requirements], progress: Callable[[str], None] | None = None
    ) -> str:
        """See `wherry_devices.connection.Connection.provide`."""
        return self._connection.provide(self._board, alternatives, progress)

    def ship(
        self,
        files: Mapping[str, tuple[str, Path]],
        containers: Mapping[str, tuple[str, Path]] | None = None,
    ) -> str:
        """See `wherry_devices.board.Board.ship`."""
        return self._board.ship(files, containers)

    def clean(self, unused_s: float) -> tuple[int, int]:
        """See `wherry.device.Device.clean`."""
        environments, size = self._board.clean(unused_s)
        return len(environments), size

    @contextmanager
    def stabilise(self, power_mode: int | None) -> Iterator[Stabilised]:
        """See `wherry.device.Session.stabilise`."""
        done, problems = self._board.stabilise(power_mode)
        stabilised = Stabilised(tuple(done), problems)
        try:
            yield stabilised
        except BaseException:
            with suppress(WherryError):  # the service does it as it ends, else its guardian
                self._board.restore()
            raise
        problems.extend(self._board.restore())

    @contextmanager
    def host(
        self,
        artifact: Artifact,
        target: Target,
        backend: Backend,
        preprocess: Mapping[str, Mapping[str, Any]],
    ) -> Iterator[Hosted]:
        """See `wherry.device.Session.host`."""
        python = self.provide(backend.runtime)
        directory = self._board.ship(artifact.shipped, artifact.containers)
        code = self._board.ship(
            {
                "runner.py": (hash_file(backend.runner), backend.runner),
                **{path.name: (hash_file(path), path) for path in backend.runner_files},
                **{path.name: (hash_file(path), path) for path in SHIPPED},
            }
        )
        native = self._native(backend, target)
        role = ["run", "--service", str(self._board.pid)]
        channel = Channel(self._connection, python, role, self._limit_s)
        hosted = Hosted(channel, self._board, artifact, target, self._limit_s)
        try:
            hosted.load(directory, code, backend, preprocess, self._tools, native)
            yield hosted
        except BaseException:
            hosted.abandon()
            raise
        hosted.close()
