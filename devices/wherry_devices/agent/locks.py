"""Locks of the kernel's on open files (flock): they end with the process. Standard library only."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def take(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock was free, and now is ours."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_named(descriptor: int, path: Path) -> bool:
    """Whether an open file still is the one of that name: a lock on another is worth nothing."""
    try:
        named = os.stat(path)  # noqa: PTH116 -- beside fstat
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
