"""Files on their way into the board's store, and folders that are being made.

Each is locked (flock) by the process that takes it, so that nobody else touches it, and everybody
can tell what the dead have left. A file that a lost link has broken off is kept for some days: who
sends it again goes on where it broke off. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import locks

_KEPT_S = 7 * 86_400.0  # a file that was broken off
_CHUNK = 1 << 20


class Partial:
    """A file that is not whole yet, and is ours.

    Attributes:
        path: of the file.
        size: bytes that are there.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._stream = os.fdopen(descriptor, "r+b", buffering=0)
        self._hash = hashlib.sha256()
        self.size = 0
        while True:  # what an earlier session took
            chunk = self._stream.read(_CHUNK)
            if not chunk:
                break
            self._hash.update(chunk)
            self.size += len(chunk)

    def write(self, data: memoryview) -> None:
        """Append; raises OSError where the disk refuses."""
        self._hash.update(data)
        self.size += len(data)
        while len(data):  # a disk that is nearly full takes a part, and refuses the next
            data = data[self._stream.write(data) :]

    def sha256(self) -> str:
        """Of what is there."""
        return self._hash.hexdigest()

    def move(self, final: Path, mode: int) -> None:
        """Give it its name, once it is whole."""
        self.path.replace(final)
        os.fchmod(self._stream.fileno(), mode)  # after it: else nobody could go on with it
        self._stream.close()

    def drop(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)
        self._stream.close()

    def leave(self) -> None:
        """Keep what is there for who sends it again."""
        if self.size:
            self._stream.close()
        else:
            self.drop()


class Incoming:
    """See the module.

    Args:
        folder: made at need, on the file system of the store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def left(self, digest: str) -> bool:
        """Whether there may be a part of a file to go on with."""
        return (self._folder / f"{digest}.0").exists()

    def open(self, digest: str, *, fresh: bool = False) -> Partial:
        """A part of the file that was left, or (``fresh``: always) an empty one."""
        with self._guard():
            number = 0
            while True:
                path = self._folder / f"{digest}.{number}"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if not locks.take(descriptor):  # another process is at the same file
                    number += 1
                elif locks.is_named(descriptor, path):
                    break
                os.close(descriptor)  # it has just got its name, or is gone: try that again
        if fresh:
            os.ftruncate(descriptor, 0)
        return Partial(path, descriptor)

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """A new folder; what is not renamed is removed at the end."""
        with self._guard():
            path = Path(tempfile.mkdtemp(prefix="folder.", dir=self._folder))
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            locks.take(descriptor)
        try:
            yield path
        finally:
            os.close(descriptor)
            shutil.rmtree(path, ignore_errors=True)  # it is there only where the work failed

    def sweep(self, needless: Callable[[str], bool], kept_s: float = _KEPT_S) -> int:
        """Remove what nobody works on.

        Args:
            needless: whether a file (by its sha256) is not wanted any more.
            kept_s: what was broken off since then is kept, seconds.

        Returns:
            How many bytes of files were removed.
        """
        removed = 0
        with self._guard():
            for path in sorted(self._folder.iterdir()):
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:  # it has just got its name
                    continue
                try:
                    # shared: some network file systems give no other lock for reading
                    if not (
                        locks.take(descriptor, fcntl.LOCK_SH) and locks.is_named(descriptor, path)
                    ):
                        continue
                    found = os.fstat(descriptor)
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    elif needless(path.name.partition(".")[0]) or (
                        time.time() - found.st_mtime >= kept_s
                    ):
                        path.unlink(missing_ok=True)
                        removed += found.st_size
                finally:
                    os.close(descriptor)
        return removed

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Nobody sees a file of another's between its making and its locking."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
