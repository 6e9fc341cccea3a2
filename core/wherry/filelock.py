"""A lock on a file: one holder at a time among processes and threads, gone when its holder is.

The kernel releases a ``flock`` when the last descriptor of it is closed, however its process ends;
so a lock that is held has a living holder, and nothing ever has to guess whether one is stale.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.errors import Interrupted

_POLL_S = 0.05
_QUIET_S = 2.0


class TakenError(Exception):
    """Somebody holds the lock, and the caller did not want to wait."""


@contextmanager
def hold(
    path: Path,
    *,
    shared: bool = False,
    wait: bool = True,
    remove: bool = False,
    on_wait: Callable[[], None] | None = None,
    cancelled: threading.Event | None = None,
) -> Iterator[int]:
    """Hold the lock on ``path``, which is made if it is not there; yields its descriptor.

    A child process that inherits the descriptor shares the lock, and holds it until it ends too.
    The same thread must not ask for a lock twice: it would wait for itself.

    Args:
        path: of an empty file in an existing folder.
        shared: many may hold it so at a time, and none alone meanwhile.
        wait: else `TakenError` is raised where somebody holds it.
        remove: take the file away at the end.
        on_wait: called once when it has not been got within two seconds.
        cancelled: when it is set, `Interrupted` ends the waiting.

    Raises:
        OSError: the file cannot be made, or the file system knows no locks.
    """
    descriptor = take(path, shared=shared, wait=wait, on_wait=on_wait, cancelled=cancelled)
    try:
        yield descriptor
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def take(
    path: Path,
    *,
    shared: bool = False,
    wait: bool = True,
    on_wait: Callable[[], None] | None = None,
    cancelled: threading.Event | None = None,
) -> int:
    """`hold` for as long as the returned descriptor is open; closing it is the caller's to do."""
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    tell_at = time.monotonic() + _QUIET_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        got = kept = False
        try:
            got = _try(descriptor, operation)
            kept = got and _is_still(path, descriptor)
        finally:
            if not kept:
                os.close(descriptor)
        if kept:
            return descriptor
        if got:
            continue
        if not wait:
            raise TakenError(str(path))
        if cancelled is not None and cancelled.is_set():
            raise Interrupted("stopped while waiting for another run")
        if on_wait is not None and time.monotonic() > tell_at:
            on_wait()
            on_wait = None
        time.sleep(_POLL_S)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock alone; makes no file, and keeps no lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _try(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EINTR}:
            return False
        raise
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file was not taken away by its last holder while we waited for it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
