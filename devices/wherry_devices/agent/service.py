"""The service role: what a board does for a session besides running an artifact.

It takes the lease, serves the board's store, reads the sensors, probes the board, and runs the
commands that provision a runtime. It ends when the host hangs up or is silent, and ends the
processes that host runners with it. Standard library only: any Python 3.8 of the board runs it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import probe, sensors, tools
from .board_store import BoardStore, BoardStoreError, DamagedError, Receiver
from .environments import Environments, EnvironmentsError
from .frames import Frame
from .lease import Lease, Runs
from .stabilise import Stabiliser
from .wire import Wire

_TAIL_BYTES = 32768  # of a command's output that the host is told
_CHUNK_BYTES = 1 << 24  # of a file, at most, in one frame


class Service:
    """See the module.

    Args:
        wire: to the host.
        root: the folder of ours on this board.
        lease: the lease file.
        system: where /sys, /proc and the board's tools are.
    """

    def __init__(self, wire: Wire, root: Path, lease: Path, system: Path = Path("/")) -> None:
        self._wire = wire
        self._system = system
        self._root = root
        self._store = BoardStore(root / "store")
        self._lease = Lease(lease)
        self._runs = Runs(root / "runs")
        self._stabiliser = Stabiliser(root, system)
        self._receivers: dict[int, Receiver] = {}
        self._refused: set[int] = set()  # files of which more chunks may still be under way
        self._commands: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.Lock()
        self._ended = False
        self._environments = Environments(root, self._start)
        self._answers: dict[str, Callable[[Frame], dict[str, Any] | None]] = {
            "ping": self._ping,
            "probe": self._probe,
            "sensors": self._sensors,
            "tools": self._tools,
            "lease": self._take_lease,
            "unlock": self._unlock,
            "end_run": self._end_run,
            "missing": self._missing,
            "put": self._put,
            "unpack": self._unpack,
            "tree": self._tree,
            "execute": self._execute,
            "environment": self._environment,
            "make_environment": self._make_environment,
            "clean": self._clean,
            "stabilise": self._stabilise,
            "restore": self._restore,
        }

    def serve(self) -> None:
        """Answer until the host hangs up; `HostSilent` and `FrameError` pass through."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        self._store.sweep()
        hello = {"pid": os.getpid(), "root": str(self._root), "lease": str(self._lease.path)}
        self._wire.write({"op": "hello", **hello})
        try:
            while True:
                frame = self._wire.read()
                if frame is None:
                    return
                self._answer(frame)
        finally:
            self._end()

    def _answer(self, frame: Frame) -> None:
        number = frame.header.get("id")
        try:
            reply = self._answers[frame.header["op"]](frame)
        except (BoardStoreError, OSError, KeyError, TypeError, ValueError) as error:
            text = str(error) if isinstance(error, BoardStoreError) else repr(error)
            self._wire.write({"id": number, "error": text})
        else:
            if reply is not None:
                self._wire.write(dict(reply, id=number))

    def _end(self) -> None:
        with self._starting:  # a command is known before it can be missed here
            self._ended = True
            commands = list(self._commands)
        for command in commands:
            if command.poll() is None:  # the number of one that has ended may be another's by now
                _end_group(command)
        self._runs.end(os.getpid())
        for receiver in self._receivers.values():
            receiver.close()
        self._store.close()
        try:
            if self._lease.is_held:
                self._stabiliser.close()
        finally:
            self._lease.release()

    def _ping(self, _frame: Frame) -> dict[str, Any]:
        return {"op": "pong"}

    def _probe(self, _frame: Frame) -> dict[str, Any]:
        facts = probe.board_facts(self._root)
        facts["facts"]["lease"] = self._lease.holder()
        return {"board": facts}

    def _sensors(self, _frame: Frame) -> dict[str, Any]:
        return {"reading": sensors.read(self._system)}

    def _tools(self, frame: Frame) -> dict[str, Any]:
        return {"tools": tools.state(tools.find(frame.header["wanted"], frame.header["named"]))}

    def _take_lease(self, frame: Frame) -> dict[str, Any]:
        holder = self._lease.acquire(frame.header["owner"])
        if holder is None:
            self._runs.end(os.getpid())  # what an earlier holder left: the board has to be quiet
            return {"holder": None, "left": self._stabiliser.restore()}
        return {"holder": holder}

    def _unlock(self, frame: Frame) -> dict[str, Any]:
        return {"ended": self._lease.evict(frame.header["token"])}

    def _end_run(self, frame: Frame) -> dict[str, Any]:
        self._runs.end_one(int(frame.header["pid"]), os.getpid())
        return {}

    def _stabilise(self, frame: Frame) -> None:
        """Fix the clocks beside the conversation: a board's tools take seconds."""
        if not self._lease.is_held:
            raise ValueError("the clocks are the lease's holder's to fix")
        mode = frame.header["power_mode"]
        self._beside(frame.header["id"], lambda: self._stabiliser.set(mode))

    def _restore(self, frame: Frame) -> None:
        if not self._lease.is_held:
            raise ValueError("the clocks are the lease's holder's to give back")
        self._beside(frame.header["id"], lambda: {"problems": self._stabiliser.restore()})

    def _beside(self, number: int, work: Callable[[], dict[str, Any]]) -> None:
        """Answer from a thread: the main one goes on answering pings."""

        def answer() -> None:
            try:
                self._wire.write(dict(work(), id=number))
            except (BoardStoreError, EnvironmentsError) as error:
                self._wire.write({"id": number, "error": str(error)})
            except Exception as error:  # noqa: BLE001 -- else the host would wait for an answer
                self._wire.write({"id": number, "error": repr(error)})

        threading.Thread(target=answer, daemon=True).start()

    def _missing(self, frame: Frame) -> None:
        """Hashes of files that are missed, each with the byte from which on it has to be sent."""
        hashes = frame.header["hashes"]
        self._beside(frame.header["id"], lambda: {"missing": self._store.missing(hashes)})

    def _put(self, frame: Frame) -> dict[str, Any] | None:
        """Take a chunk of a file; the answer says how much of the file is here."""
        number = frame.header["id"]
        if number in self._refused:
            return None
        try:
            if number not in self._receivers:
                size = int(frame.header["size"])
                self._receivers[number] = self._store.receive(frame.header["sha256"], size)
            receiver = self._receivers[number]
            if not receiver.write(_decoded(frame)):
                return {"taken": receiver.taken}
        except DamagedError as error:
            del self._receivers[number]
            return {"damaged": error.digests}
        except (BoardStoreError, OSError):
            self._refused.add(number)
            self._receivers.pop(number, None)
            raise
        del self._receivers[number]
        return {"taken": receiver.taken}

    def _unpack(self, frame: Frame) -> None:
        """A file of the store from its container there; beside the conversation: it takes long."""
        header = frame.header

        def work() -> dict[str, Any]:
            try:
                self._store.unpack(header["container"], header["sha256"], int(header["size"]))
            except DamagedError as error:
                return {"damaged": error.digests}
            return {}

        self._beside(header["id"], work)

    def _tree(self, frame: Frame) -> None:
        """A folder of files of the store; beside the conversation: it may compare gigabytes."""
        files = frame.header["files"]

        def work() -> dict[str, Any]:
            try:
                return {"directory": str(self._store.tree(files))}
            except DamagedError as error:
                return {"damaged": error.digests}

        self._beside(frame.header["id"], work)

    def _execute(self, frame: Frame) -> None:
        self._beside(frame.header["id"], lambda: self._command(frame.header))

    def _start(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a command that ends with us; raises OSError where we are ending."""
        with self._starting:
            if self._ended:
                raise OSError("the agent is ending")
            command = subprocess.Popen(argv, **options)
            self._commands.add(command)
        return command

    def _environment(self, frame: Frame) -> None:
        def find() -> dict[str, Any]:
            python, damage = self._environments.find(frame.header["lock"])
            return {"python": python, "damage": damage}

        self._beside(frame.header["id"], find)

    def _make_environment(self, frame: Frame) -> None:
        request = frame.header["request"]
        self._beside(frame.header["id"], lambda: {"python": self._environments.make(request)})

    def _clean(self, frame: Frame) -> None:
        """Remove what nobody used for so long, seconds; how many bytes and what was removed."""
        unused_s = float(frame.header["unused_s"])

        def work() -> dict[str, Any]:
            gone = self._environments.forget(unused_s)
            return {"environments": gone, "bytes": self._store.forget(unused_s)}

        self._beside(frame.header["id"], work)

    def _command(self, header: dict[str, Any]) -> dict[str, Any]:
        """Run a command to its end."""
        with tempfile.TemporaryFile() as output:
            command = self._start(
                header["argv"],
                cwd=self._root,
                env=dict(os.environ, **header.get("environment", {})),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            timed_out = False
            try:
                command.wait(header["limit_s"])
            except subprocess.TimeoutExpired:
                timed_out = True
                _end_group(command)
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - _TAIL_BYTES))
            text = output.read().decode(errors="replace")
        return {"status": command.returncode, "timed_out": timed_out, "output": text}


def _decoded(frame: Frame) -> memoryview:
    """The bytes of a file in a frame."""
    data = frame.tensors["data"].data
    if frame.header.get("encoding") != "zlib":
        return data
    unpacking = zlib.decompressobj()
    try:
        plain = unpacking.decompress(data, _CHUNK_BYTES)
    except zlib.error as error:
        raise BoardStoreError(f"what arrived cannot be unpacked: {error}") from error
    if not unpacking.eof:
        raise BoardStoreError("what arrived is cut off, or unpacks to more than a chunk may be")
    return memoryview(plain)


def _end_group(command: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it started."""
    try:
        os.killpg(command.pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended meanwhile
        return
    finally:
        command.wait()
