"""The board's store: files by the hash of their bytes, and folders made of them.

A file is received under a temporary name, hashed as it arrives, and renamed when it is right; a
folder is linked together under a temporary name and renamed. So nothing under a final name is ever
partial, and what is there is not sent again. A folder is compared with its hashes once after each
start of the board: a power cut may take what was written. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

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
        self._incoming = root / "incoming"
        self._checked = root / "checked"
        self._received: set[str] = set()  # by us, and hashed as they came
        for folder in (self._blobs, self._trees, self._incoming, self._checked):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._boot = boot.read_text("utf-8")
        except OSError:  # no /proc: folders are compared when they are made, and then trusted
            self._boot = ""

    def sweep(self) -> None:
        """Remove what processes that are no more left half-received."""
        for path in self._incoming.iterdir():
            if Path("/proc", path.name.partition(".")[0]).exists():
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # another session may sweep too
            else:
                path.unlink(missing_ok=True)

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Those that have to be sent, in order."""
        return [digest for digest in hashes if not self._blob(digest).exists()]

    def receive(self, digest: str, size: int) -> Receiver:
        """Begin to take a file.

        Raises:
            BoardStoreError: there is not enough space.
        """
        free = shutil.disk_usage(self._incoming).free
        if free < size + SPARE_BYTES:
            raise BoardStoreError(
                f"{size} bytes do not fit on the board's disk: {free} are free at "
                f"{self._incoming}, and {SPARE_BYTES} stay free"
            )
        return Receiver(self._incoming, self._blob(digest), digest, size, self._received)

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
        building = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}.", dir=self._incoming))
        try:
            for path, digest in files.items():
                self._link(digest, building / _safe(path))
            building.rename(final)
            self._note(name)
        except OSError as error:
            if not final.is_dir():  # else another session was faster
                raise BoardStoreError(f"cannot make the folder {final}: {error}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)  # it is there only where this failed
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
        removed = 0
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

    def _blob(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise BoardStoreError(f"not a sha256: {digest!r}")
        return self._blobs / digest


class Receiver:
    """One file on its way into the store."""

    def __init__(
        self, incoming: Path, final: Path, digest: str, size: int, received: set[str]
    ) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f"{os.getpid()}.", dir=incoming)
        self._stream = os.fdopen(descriptor, "wb")
        self._path = Path(name)
        self._final = final
        self._digest = digest
        self._received = received
        self._left = size
        self._hash = hashlib.sha256()

    def write(self, data: memoryview) -> bool:
        """Take the next bytes; True when that was all, and the file is in the store.

        Raises:
            BoardStoreError: more came than was announced, the hash is another, or the disk
                refused; the temporary file is gone.
        """
        try:
            self._stream.write(data)
            self._hash.update(data)
            self._left -= len(data)
            if self._left > 0:
                return False
            self._finish()
        except (OSError, BoardStoreError) as error:
            self.close()
            raise BoardStoreError(f"cannot take the file {self._digest}: {error}") from error
        return True

    def _finish(self) -> None:
        if self._left < 0 or self._hash.hexdigest() != self._digest:
            raise BoardStoreError(f"what arrived has the sha256 {self._hash.hexdigest()}")
        self._stream.close()
        self._path.chmod(0o440)  # folders share the file: nobody may write into it
        self._path.replace(self._final)
        self._received.add(self._digest)

    def close(self) -> None:
        """Give up: remove the temporary file, if the file did not arrive."""
        try:
            self._stream.close()
        except OSError:  # a full disk refuses what was buffered, once more
            pass
        finally:
            self._path.unlink(missing_ok=True)


def _remove_tree(folder: Path) -> None:
    """By rename first: nobody finds a folder that is half gone."""
    gone = folder.with_name(f".gone-{folder.name}-{os.getpid()}")
    try:
        folder.rename(gone)
    except FileNotFoundError:  # another was faster
        return
    shutil.rmtree(gone)


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
