"""The lease of a board, and the processes that work under it.

The lease is a lock (flock) that the service agent holds on a file of the board: the kernel takes it
back when that process ends, however it ends. The file says who holds it. Each process that hosts a
runner leaves a record of itself, so that it can be ended with the service that it belongs to, also
by the next one. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import locks


class Lease:
    """One board's lease, as one process sees it.

    Args:
        path: the lease file; its folder is made at need.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds it."""
        return self._descriptor is not None

    def acquire(self, owner: dict[str, Any]) -> dict[str, Any] | None:
        """Take the lease if it is free; else see `holder`.

        Args:
            owner: written into the file, with the process id and the time since the board's boot
                (its clock may be wrong, and may be set at any time).
        """
        while True:
            descriptor = self._open()
            if not locks.take(descriptor):
                os.close(descriptor)
                return self.holder() or {}
            if locks.is_named(descriptor, self.path):
                break
            os.close(descriptor)  # the file was removed meanwhile
        text = json.dumps({**owner, "pid": os.getpid(), "since": _uptime()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        self._descriptor = descriptor
        return None

    def _open(self) -> int:
        """The file, made where there is none; every user of the board may lock it.

        In a folder that all may write into, the kernel lets nobody open another's file with
        O_CREAT (``fs.protected_regular``), root neither: so it is asked for only at need.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            with contextlib.suppress(FileNotFoundError):
                return os.open(self.path, flags)
            with contextlib.suppress(FileExistsError):  # another was faster
                descriptor = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(descriptor, 0o666)  # whatever the umask says
                return descriptor

    def evict(self, token: str | None = None) -> dict[str, Any] | None:
        """End the agent that holds the lease, and see who it was; None: it was free.

        Args:
            token: of the only holder that is meant; None: whoever holds it.

        Raises:
            ValueError: it is held by something that is no agent of ours, or is not known.
            OSError: it is another user's.
        """
        holder = self.holder()
        if holder is None or (token is not None and holder.get("token") != token):
            return None
        pid = int(holder.get("pid", 0))
        if pid <= 0 or b"wherry-agent" not in _command_line(pid):
            raise ValueError(f"the process {pid} that holds the lease is no wherry-agent")
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(pid, signal.SIGKILL)
        return holder

    def release(self) -> None:
        """Give the lease back; nothing if it is not held."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> dict[str, Any] | None:
        """What the process that holds the lease now wrote, and ``held_s``; None: it is free.

        Empty where it has not written it yet.
        """
        if self._descriptor is None:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                if locks.take(descriptor, fcntl.LOCK_SH):  # nobody has it
                    return None
            finally:
                os.close(descriptor)
        holder = _read_json(self.path)
        if "since" in holder:
            holder["held_s"] = max(0.0, _uptime() - holder["since"])
        return holder


class Runs:
    """Records of the processes that host a runner.

    Args:
        directory: where they are; made at need.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, service: int) -> None:
        """Record this process as belonging to the service agent with that process id."""
        self._directory.mkdir(parents=True, exist_ok=True)
        record = {
            "started": _started(os.getpid()),
            "service": service,
            "service_started": _started(service),
        }
        path = self._directory / str(os.getpid())
        writing = path.with_suffix(".new")
        writing.write_text(json.dumps(record))
        writing.replace(path)

    def remove(self) -> None:
        """Remove this process's record."""
        (self._directory / str(os.getpid())).unlink(missing_ok=True)

    def end(self, service: int) -> None:
        """End what belongs to ``service``, and what belongs to services that are no more."""
        for path, record in self._records():
            pid, owner = int(path.name), int(record.get("service", 0))
            orphan = _started(owner) != record.get("service_started")
            if owner != service and not orphan:
                continue
            if _started(pid) == record.get("started") is not None:
                with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                    os.kill(pid, signal.SIGKILL)
            path.unlink(missing_ok=True)

    def end_one(self, pid: int, service: int) -> None:
        """End one process that belongs to ``service``; nothing where it has ended."""
        path = self._directory / str(pid)
        record = _read_json(path)
        if record.get("service") == service and _started(pid) == record.get("started") is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            path.unlink(missing_ok=True)

    def _records(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        paths = self._directory.iterdir() if self._directory.is_dir() else ()
        for path in paths:
            if path.name.isdigit():
                yield path, _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of ours says; empty where nobody wrote it, or not all of it yet."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _uptime() -> float:
    """Seconds since the board was started, the same for all its processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it is gone
        return b""


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot; None if it is gone. Tells reused ids apart."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
