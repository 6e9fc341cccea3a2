"""The board's store: files by the hash of their bytes, and folders made of them.

A file is received under a temporary name (`incoming`), hashed as it arrives, and renamed when it
is right; a folder is linked together under a temporary name and renamed. So nothing under a final
name is ever partial, and what is there is not sent again. A folder is compared with its hashes once
after each start of the board: a power cut may take what was written. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from .incoming import Incoming, Partial
from .unpack import ContainerError, unpack

_BOOT = Path("/proc/sys/kernel/random/boot_id")
SPARE_BYTES = 16 << 20  # left free on the board's disk
_CHUNK = 1 << 20
_FRESH_S = 3600.0  # another session may be about to make a folder of a file that came so lately


class BoardStoreError(Exception):
    """A file cannot be taken, or a folder cannot be made; the text says why."""


class DamagedError(BoardStoreError):
    """Files on the board's disk no longer match their hashes; they are removed: send them again.

    Attributes:
        digests: of the files.
    """

    def __init__(self, digests: list[str]) -> None:
        what = ", ".join(f"the file {digest}" for digest in digests)
        super().__init__(f"{what} was damaged in the board's store; removed")
        self.digests = digests


class BoardStore:
    """See the module.

    Args:
        root: the folder of the store; made at need.
        boot: the file that tells one start of the board from another.
    """

    def __init__(self, root: Path, boot: Path = _BOOT) -> None:
        self._blobs = root / "blobs"
        self._trees = root / "trees"
        self._checked = root / "checked"
        for folder in (self._blobs, self._trees, self._checked):
            folder.mkdir(parents=True, exist_ok=True)
        self._incoming = Incoming(root / "incoming")
        self._begun: dict[str, Partial] = {}  # files that we were asked about, and have a part of
        self._received: set[str] = set()  # by us, and hashed as they came
        try:
            self._boot = boot.read_text("utf-8")
        except OSError:  # no /proc: folders are compared when they are made, and then trusted
            self._boot = ""

    def sweep(self) -> None:
        """Remove what processes that are no more left half-made."""
        self._incoming.sweep(lambda name: not _is_digest(name) or self._has(name))

    def missing(self, hashes: Iterable[str]) -> dict[str, int]:
        """Those that have to be sent, and from which byte on, in order."""
        wanted: dict[str, int] = {}
        for digest in hashes:
            if not self._has(digest):
                if digest not in self._begun and self._incoming.left(digest):
                    self._begun[digest] = self._incoming.open(digest)
                begun = self._begun.get(digest)
                wanted[digest] = begun.size if begun else 0
        return wanted

    def receive(self, digest: str, size: int) -> Receiver:
        """Begin to take a file, from the byte on that `missing` said.

        Raises:
            BoardStoreError: there is not enough space.
            OSError: the disk refuses.
        """
        final = self._blob(digest)
        partial = self._begun.pop(digest, None) or self._incoming.open(digest, fresh=True)
        needed = size - partial.size + SPARE_BYTES
        if self._free() < needed:
            self._incoming.sweep(lambda _: True)
        if self._free() < needed:
            partial.leave()
            raise BoardStoreError(
                f"{size - partial.size} bytes do not fit on the board's disk: {self._free()} are "
                f"free at {self._blobs}, and {SPARE_BYTES} stay free"
            )
        return Receiver(partial, final, digest, size, self._received)

    def unpack(self, container: str, digest: str, size: int) -> None:
        """Make a file of its container, which is then removed.

        Args:
            container: sha256 of a file of the store.
            digest: of the file.
            size: of the file, bytes.

        Raises:
            DamagedError: the container was damaged on the disk since it came; removed: send it
                again.
            BoardStoreError: it is no container of that file, or there is not enough space.
        """
        blob = self._blob(container)
        try:
            data = blob.read_bytes()
        except OSError as error:
            raise DamagedError([container]) from error
        if hashlib.sha256(data).hexdigest() != container:
            blob.unlink()
            raise DamagedError([container])
        receiver = self.receive(digest, size)
        try:
            unpack(data, lambda piece: receiver.write(memoryview(piece)), size)
        except ContainerError as error:
            receiver.drop()
            raise BoardStoreError(f"cannot unpack the file {digest}: {error}") from error
        if not self._has(digest):
            receiver.drop()
            raise BoardStoreError(f"the container holds less than the file {digest}")
        blob.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what was begun."""
        while self._begun:
            self._begun.popitem()[1].leave()

    def tree(self, files: Mapping[str, str]) -> Path:
        """A folder with files of the store.

        Args:
            files: relative POSIX path to sha256.

        Raises:
            DamagedError: files no longer match their hashes; they have to be sent again.
            BoardStoreError: a path leads out of the folder, or a file is not in the store.
        """
        name = hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()
        final = self._trees / name
        if final.is_dir():
            self._check(name, files)
            os.utime(final)  # when it was used last
            return final
        self._refuse_damaged(
            {d for d in files.values() if d not in self._received and not _is(self._blob(d), d)}
        )
        with self._incoming.building() as building:
            try:
                for path, digest in files.items():
                    self._link(digest, building / _safe(path))
                building.rename(final)
                self._note(name)
            except OSError as error:
                if not final.is_dir():  # else another session was faster
                    raise BoardStoreError(f"cannot make the folder {final}: {error}") from error
        return final

    def _check(self, name: str, files: Mapping[str, str]) -> None:
        """Compare a folder's files with their hashes, once after each start of the board.

        Nothing is forced to the disk when it is made: what a power cut took is found out here.
        """
        noted = self._checked / name
        if noted.is_file() and noted.read_text("utf-8") == self._boot:
            return
        folder = self._trees / name
        damaged = {digest for path, digest in files.items() if not _is(folder / path, digest)}
        if damaged:
            _remove_tree(folder)
            self._refuse_damaged(damaged)
        self._note(name)

    def _note(self, name: str) -> None:
        with contextlib.suppress(OSError):  # then it is compared again
            (self._checked / name).write_text(self._boot, "utf-8")

    def _refuse_damaged(self, digests: set[str]) -> None:
        """Remove files that do not match their hashes; `DamagedError` where there were any."""
        there = sorted(digest for digest in digests if self._blob(digest).exists())
        for digest in there:
            self._blob(digest).unlink()
        if there:
            raise DamagedError(there)

    def forget(self, unused_s: float) -> int:
        """Remove folders that nobody asked for in so many seconds, and files of no folder.

        Returns:
            How many bytes of files were removed.
        """
        for folder in self._trees.iterdir():
            if time.time() - folder.stat().st_mtime >= unused_s:
                _remove_tree(folder)
                (self._checked / folder.name).unlink(missing_ok=True)
        removed = self._incoming.sweep(lambda _: True)
        for blob in self._blobs.iterdir():
            found = blob.stat()
            # a file that no folder links to, and that did not arrive just now
            if found.st_nlink == 1 and time.time() - found.st_ctime >= min(unused_s, _FRESH_S):
                blob.unlink(missing_ok=True)
                removed += found.st_size
        return removed

    def _link(self, digest: str, path: Path) -> None:
        blob = self._blob(digest)
        if not blob.exists():
            raise BoardStoreError(f"the file {digest} is not in the board's store")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(blob, path)
        except OSError:  # file systems without hard links (FAT on an SD card)
            shutil.copyfile(blob, path)

    def _has(self, digest: str) -> bool:
        return self._blob(digest).exists()

    def _free(self) -> int:
        return shutil.disk_usage(self._blobs).free

    def _blob(self, digest: str) -> Path:
        if not _is_digest(digest):
            raise BoardStoreError(f"not a sha256: {digest!r}")
        return self._blobs / digest


class Receiver:
    """One file on its way into the store."""

    def __init__(
        self, partial: Partial, final: Path, digest: str, size: int, received: set[str]
    ) -> None:
        self._partial = partial
        self._resumed = partial.size > 0
        self._final = final
        self._digest = digest
        self._received = received
        self._size = size

    @property
    def taken(self) -> int:
        """Bytes of the file that have arrived."""
        return self._partial.size

    def write(self, data: memoryview) -> bool:
        """Take the next bytes; True when that was all, and the file is in the store.

        Raises:
            DamagedError: what an earlier session had taken of it was damaged since; removed.
            BoardStoreError: more came than was announced, the hash is another, or the disk
                refused; the temporary file is gone.
        """
        try:
            self._partial.write(data)
            if self._partial.size < self._size:
                return False
            self._finish()
        except OSError as error:
            self._partial.drop()
            raise BoardStoreError(f"cannot take the file {self._digest}: {error}") from error
        except BoardStoreError:
            self._partial.drop()
            raise
        return True

    def _finish(self) -> None:
        found = self._partial.sha256()
        if self._partial.size != self._size or found != self._digest:
            if self._resumed:
                raise DamagedError([self._digest])
            raise BoardStoreError(
                f"cannot take the file {self._digest}: what arrived has the sha256 {found}"
            )
        # folders share the file: nobody may write into it
        self._partial.move(self._final, 0o440)
        self._received.add(self._digest)

    def drop(self) -> None:
        """Remove what was written."""
        self._partial.drop()

    def close(self) -> None:
        """The host is gone: keep what has arrived."""
        self._partial.leave()


def _remove_tree(folder: Path) -> None:
    """By rename first: nobody finds a folder that is half gone."""
    gone = folder.with_name(f".gone-{folder.name}-{os.getpid()}")
    try:
        folder.rename(gone)
    except FileNotFoundError:  # another was faster
        return
    shutil.rmtree(gone)


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _is(path: Path, digest: str) -> bool:
    """Whether a file is there and whole."""
    try:
        return _hash(path) == digest
    except OSError:
        return False


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _safe(path: str) -> str:
    """The path, if it stays below the folder it is joined to."""
    parts = path.split("/")
    if "\0" in path or any(part in {"", ".", ".."} for part in parts):
        raise BoardStoreError(f"not a path below a folder: {path!r}")
    return path
