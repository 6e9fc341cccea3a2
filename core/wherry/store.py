"""The content-addressed store: what a step made, under the hash of all that went into it.

Below the store's folder: ``KIND/AA/DIGEST/entry.json`` and ``payload/`` beside it; ``.tmp/`` for
what is being built, ``.locks/`` for keys that are being worked on, ``.live/`` for the runs that use
the store now, ``.unfinished/`` for what interrupted steps go on from. An entry appears by one
rename, whole and on the disk, or not at all; it never changes afterwards. Any number of processes
and threads share a store; ``wherry.housekeeping`` cleans and explains it.

Payloads are not made read-only: the mode would travel with every copy that a tool makes to work
on, and root ignores it. Instead each use compares sizes and times of change, and hashes where
they differ, so that a payload that was written to is found and made again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from wherry.entry import (
    STORE_VERSION,
    DamagedError,
    Entry,
    Key,
    canonical,
    damage,
    describe_files,
    read_entry,
)
from wherry.errors import StoreError
from wherry.filelock import TakenError, hold, take

__all__ = ["STORE_VERSION", "Entry", "Key", "Store"]

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Store:
    """A store in a folder, which is made on first use.

    Entries that this object gave or committed are in use until it is gone, and no housekeeping
    of any process removes them.

    Args:
        root: the folder, on a local disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mutex = threading.RLock()
        self._live: tuple[str, int] | None = None
        self._used: set[str] = set()

    def get(self, key: Key) -> Entry | None:
        """The entry, or None where there is none; a damaged one is taken away, with a warning.

        Raises:
            StoreError: the store cannot be read or written.
        """
        directory = self.path(key)
        with self.files():
            if not directory.is_dir():
                return None
            with self.sharing():
                problem = damage(directory)
                if problem is None:
                    self._use(key.digest)
                    os.utime(directory / "entry.json")
                    return read_entry(directory)
            if directory.is_dir():  # else another run has just found the damage, too
                _log.warning("%s is damaged and will be made again: %s", directory, problem)
                self.discard([directory], only_damaged=True)
            return None

    @contextmanager
    def lock(
        self,
        key: Key,
        *,
        on_wait: Callable[[], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Iterator[None]:
        """Work on a key alone: one thread of one process at a time, the others wait.

        Args:
            key: not one that this thread has locked already.
            on_wait: called once when somebody else still has it after two seconds.
            cancelled: when it is set, the waiting ends.

        Raises:
            StoreError: the store cannot be written.
            Interrupted: ``cancelled`` was set.
        """
        with contextlib.ExitStack() as stack:
            with self.files():
                self._make_folders()
                path = self.root / ".locks" / key.digest
                stack.enter_context(hold(path, remove=True, on_wait=on_wait, cancelled=cancelled))
            yield

    @contextmanager
    def build(self, key: Key) -> Iterator[Path]:
        """Make an entry: yields an empty folder, whose files are committed at the end.

        An exception commits nothing. Where another process has committed the key meanwhile, its
        entry stays and ours is dropped: both were made from the same.

        Raises:
            StoreError: the store cannot be written.
            PluginError: something that is no plain file was left in the folder.
        """
        started = time.monotonic()
        with self.files():
            owner = self._owner()
            temporary = Path(tempfile.mkdtemp(prefix=f"{owner}-", dir=self.root / ".tmp"))
            payload = temporary / "payload"
            payload.mkdir()
        try:
            try:
                yield payload
            except OSError as error:
                if is_full(error):  # what a full disk does to the step is told alike
                    raise explained(error, self.root) from error
                raise
            with self.files():
                self._commit(key, temporary, time.monotonic() - started)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already where it was committed

    def remove(self, key: Key) -> None:
        """Remove an entry, if it is there."""
        with self.files():
            self.discard([self.path(key)])

    def path(self, key: Key) -> Path:
        """The folder of a key's entry."""
        return self.root / key.kind / key.digest[:2] / key.digest

    def unfinished(self, key: Key) -> Path:
        """A folder for what the making of an entry can go on from; who holds its lock has it alone.

        Neither it nor what it lies in is made here.
        """
        return self.root / ".unfinished" / key.digest

    def drop_unfinished(self, unused_for: timedelta) -> int:
        """Remove what interrupted steps left so long ago; returns how many folders."""
        oldest, count = time.time() - unused_for.total_seconds(), 0
        self._make_folders()
        for folder in (self.root / ".unfinished").glob("[0-9a-f]*"):
            try:
                with hold(self.root / ".locks" / folder.name, wait=False, remove=True):
                    if folder.stat().st_mtime < oldest:
                        shutil.rmtree(folder)
                        count += 1
            except (TakenError, FileNotFoundError):  # a run works on it, or has just removed it
                continue
        return count

    def directories(self) -> Iterator[Path]:
        """The folders of all entries, damaged ones too."""
        return self.root.glob("[a-z]*/[0-9a-f][0-9a-f]/" + "[0-9a-f]" * 64)

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """All entries that can be read, of one kind or of all; their files are not looked at."""
        with self.files():
            for directory in sorted(self.directories()):
                if kind in {None, directory.parent.parent.name}:
                    with contextlib.suppress(DamagedError, FileNotFoundError):
                        yield read_entry(directory)

    # Committing

    def _commit(self, key: Key, temporary: Path, duration_s: float) -> None:
        values = {
            "store": STORE_VERSION,
            "kind": key.kind,
            "digest": key.digest,
            "parts": key.parts,
            "created": datetime.now(UTC).isoformat(),
            "duration_s": round(duration_s, 3),
            "files": describe_files(temporary / "payload"),
        }
        (temporary / "entry.json").write_bytes(canonical(values))
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        directory = self.path(key)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with self.sharing():
            try:
                temporary.rename(directory)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
            self._use(key.digest)
        _sync(directory.parent)

    # Who uses what

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Keep housekeeping away for a moment."""
        self._make_folders()
        with hold(self.root / ".housekeeping", shared=True):
            yield

    @contextmanager
    def alone(self) -> Iterator[frozenset[str]]:
        """Keep every other user away for a moment; yields the digests that live runs use."""
        self._make_folders()
        with hold(self.root / ".housekeeping"):
            used: set[str] = set()
            for path in (self.root / ".live").iterdir():
                try:
                    with hold(path, wait=False, remove=True):
                        pass  # its run has ended
                except TakenError:
                    with contextlib.suppress(FileNotFoundError):  # it ended just now
                        used.update(path.read_text(encoding="ascii").split())
            yield frozenset(used)

    def discard(self, directories: Iterable[Path], *, only_damaged: bool = False) -> None:
        """Take entries out of the store at once, and remove their files after that."""
        with self.alone():
            moved = self.take_out(
                directory
                for directory in directories
                if not only_damaged or damage(directory) is not None  # else made again meanwhile
            )
        for folder in moved:
            shutil.rmtree(folder)

    def take_out(self, directories: Iterable[Path]) -> list[Path]:
        """Move entries to where they are no entries any more, for a caller that is `alone`.

        Returns:
            Where they are now; should nobody remove them, a later `sweep` will.
        """
        moved = []
        for directory in directories:
            target = self.root / ".tmp" / f"{self._owner()}-{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):
                directory.rename(target)
                moved.append(target)
        return moved

    def sweep(self) -> int:
        """Remove what killed processes left half built; returns how many folders."""
        self._make_folders()
        left: dict[str, list[Path]] = {}
        for path in (self.root / ".live").iterdir():
            left[path.name] = []
        for path in (self.root / ".tmp").iterdir():
            left.setdefault(path.name.partition("-")[0], []).append(path)
        count = 0
        for owner, folders in left.items():
            try:
                with hold(self.root / ".live" / owner, wait=False, remove=True):
                    for folder in folders:
                        shutil.rmtree(folder, ignore_errors=True)  # another may sweep as well
                        count += 1
            except TakenError:  # alive
                continue
        return count

    def _use(self, digest: str) -> None:
        """Note for every other process that this one uses an entry."""
        self._owner()
        with self._mutex:
            assert self._live is not None
            if digest not in self._used:
                os.write(self._live[1], f"{digest}\n".encode())
                self._used.add(digest)

    def _owner(self) -> str:
        """The name of this object's file in ``.live``, locked as long as this object lives."""
        with self._mutex:
            if self._live is None:
                self._make_folders()
                self.sweep()
                name = uuid.uuid4().hex
                path = self.root / ".live" / name
                descriptor = take(path)
                weakref.finalize(self, _leave, path, descriptor, os.getpid())
                self._live = (name, descriptor)
            return self._live[0]

    def _make_folders(self) -> None:
        for name in (".tmp", ".locks", ".live"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def files(self) -> Iterator[None]:
        """Tell an error of the file system as a `StoreError`."""
        try:
            yield
        except OSError as error:
            raise explained(error, self.root) from error


def _leave(path: Path, descriptor: int, pid: int) -> None:
    if os.getpid() == pid:  # else a forked child ends, and its parent goes on
        path.unlink(missing_ok=True)
    os.close(descriptor)


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Whether it says that a disk is full, or a user's share of it."""
    return error.errno in _FULL


_CAUSES = (
    (
        _FULL,
        "the disk of the store is full",
        "Make room (`wherry cache gc --max-size 5GB`), or set WHERRY_HOME to a folder elsewhere.",
    ),
    (
        (errno.EROFS,),
        "the store is on a file system that can only be read",
        "Set WHERRY_HOME to a folder that can be written.",
    ),
    (
        (errno.EACCES, errno.EPERM),
        "the store is not yours to use",
        "Ask its owner for the right to it, or set WHERRY_HOME to a folder of your own.",
    ),
    (
        (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS),
        "the file system of the store knows no locks",
        "Set WHERRY_HOME to a folder on a local disk.",
    ),
)


def explained(error: OSError, root: Path) -> StoreError:
    """The file system's error in words, with what to do about it."""
    for numbers, words, remedy in _CAUSES:
        if error.errno in numbers:
            return StoreError(words, where=str(error.filename or root), remedy=remedy)
    return StoreError(
        f"the store cannot be used: {error.strerror or error}",
        where=str(error.filename or root),
        remedy="Look at that path, or set WHERRY_HOME to another folder.",
    )
