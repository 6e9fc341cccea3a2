"""Archives of bundles: written so that the same files give the same bytes, and read with distrust.

Of an archive that comes from elsewhere nothing is believed: ``contents.json`` is read first, and
says which files follow, how long they are, and their sha256. Everything else (another name, a link,
a device, a file twice, a byte too many) is refused before it reaches the disk. No more is unpacked
or kept in memory than the limits say.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from wherry.artifact import hash_file
from wherry.bundle import BUNDLE_VERSION, CONTENTS
from wherry.errors import BundleError, UsageError
from wherry.files import check_place, replacing

SUFFIXES = (".tar.gz", ".tgz", ".zip")
Content = bytes | Path

_BLOCK = 512  # of a tar
_RECORD = 20 * _BLOCK
_CHUNK = 1 << 20
_MOST_FILES = 10_000
_CONTENTS_BYTES = 8 << 20
_NAME_BYTES = 200  # with the folder's name, a tar of the POSIX form can say it
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_AGAIN = (
    "Get the archive again from whoever made it, as wherry wrote it: what was unpacked and packed "
    "again is another."
)
_BROKEN = (tarfile.HeaderError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


# --- writing ----------------------------------------------------------------------------------


def write(path: Path, root: str, files: Mapping[str, Content]) -> None:
    """Write an archive, by rename; the same bytes for the same files.

    Args:
        path: ends in one of `SUFFIXES`.
        root: the folder in the archive.
        files: relative POSIX path to its bytes, or to the file that holds them.

    Raises:
        UsageError: the name ends in something else, or the file cannot be written.
        BundleError: a name cannot stand in an archive.
    """
    check_name(path)
    check_names(files)
    described = {name: _described(files[name]) for name in sorted(files)}
    contents = {"bundle": BUNDLE_VERSION, "files": described}
    first = {CONTENTS: (json.dumps(contents, indent=1) + "\n").encode()}
    try:
        with replacing(path) as file, file.open("wb") as stream:
            members = [
                (f"{root}/{name}", each) for name, each in [*first.items(), *sorted(files.items())]
            ]
            (_write_zip if path.name.endswith(".zip") else _write_tar)(stream, members)
    except OSError as error:
        raise UsageError(
            f"the bundle cannot be written: {error.strerror or error}",
            where=str(path),
            remedy="Name a file in a folder that you may write, on a disk with room.",
        ) from error


def check_name(path: Path) -> None:
    """Raise `UsageError` where no archive can be at a path: before one is made.

    Its name has to end in one of `SUFFIXES`, and its folder to be there.
    """
    if not path.name.endswith(SUFFIXES):
        raise UsageError(
            f"a bundle's name ends in {', '.join(SUFFIXES)}, and {path.name!r} does not",
            remedy="Name it so with -o FILE.",
        )
    check_place(path, "the bundle")


def _described(content: Content) -> dict[str, object]:
    if isinstance(content, Path):
        return {"sha256": hash_file(content), "bytes": content.stat().st_size}
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _write_tar(stream: BinaryIO, members: Iterable[tuple[str, Content]]) -> None:
    with (
        gzip.GzipFile("", "wb", 6, stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in members:
            info = tarfile.TarInfo(name)  # owner 0, time 0
            info.mode = 0o644
            with _opened(content) as (source, size):
                info.size = size
                archive.addfile(info, source)


def _write_zip(stream: BinaryIO, members: Iterable[tuple[str, Content]]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            with _opened(content) as (source, size):
                info.file_size = size
                with archive.open(info, "w") as target:
                    while block := source.read(_CHUNK):
                        target.write(block)


@contextmanager
def _opened(content: Content) -> Iterator[tuple[IO[bytes], int]]:
    if isinstance(content, bytes):
        yield io.BytesIO(content), len(content)
        return
    with content.open("rb") as stream:
        yield stream, content.stat().st_size


# --- names ------------------------------------------------------------------------------------


def check_names(names: Iterable[str]) -> None:
    """Refuse names that lead out of a folder, or that two systems would take for different ones.

    Raises:
        BundleError: naming the first.
    """
    known = set(names)
    folded: set[str] = set()
    for name in sorted(known):
        problem = _problem(name)
        if problem is None and name.casefold() in folded:
            problem = "stands there twice, but for capitals"
        if problem is None and any(str(each) in known for each in PurePosixPath(name).parents):
            problem = "lies in a folder of a file's name"
        if problem is not None:
            raise BundleError(f"the name {_shown(name)} {problem}", remedy=_AGAIN)
        folded.add(name.casefold())


def _problem(name: str) -> str | None:
    if not name or not name.isprintable() or "\\" in name:
        return "holds what no name in an archive may hold"
    if any(part in {"", ".", ".."} for part in name.split("/")):
        return "leads out of the archive's folder"
    if len(name.encode()) > _NAME_BYTES:
        return f"is longer than {_NAME_BYTES} bytes"
    return None


def _shown(name: str) -> str:
    return ascii(name if len(name) <= _NAME_BYTES else name[:_NAME_BYTES] + "...")


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A file of an archive that is being read.

    Attributes:
        name: as it stands there.
        size: in bytes, as the archive says.
        read: gives up to so many bytes more.
    """

    name: str
    size: int
    read: Callable[[int], bytes]


def unpack(path: Path, folder: Path, *, most_bytes: int) -> dict[str, str]:
    """Check an archive and write its files below an empty folder.

    Args:
        path: the archive.
        folder: exists and is empty; the archive's own folder is left out.
        most_bytes: how long all files may be together.

    Returns:
        Relative POSIX path of each file to its sha256.

    Raises:
        BundleError: something is not as ``contents.json`` says, with the file's name; what was
            written so far is left to whoever made the folder.
        UsageError: there is no such file.
    """
    try:
        with path.open("rb") as stream:
            return _unpack(stream, path, folder, most_bytes)
    except BundleError as error:
        raise error.within(str(path)) from error
    except OSError as error:
        raise UsageError(
            f"the bundle cannot be read: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="Correct the path.",
        ) from error


def _unpack(stream: BinaryIO, path: Path, folder: Path, most_bytes: int) -> dict[str, str]:
    members = _members(stream, path)
    first = next(members, None)
    if first is None or not first.name.endswith(f"/{CONTENTS}"):
        raise BundleError(f"it does not begin with {CONTENTS}: it is no bundle", remedy=_AGAIN)
    root = first.name.removesuffix(CONTENTS)
    check_names([root.removesuffix("/")])
    wanted = _contents(first, most_bytes)
    found: dict[str, str] = {}
    for member in members:
        name = member.name.removeprefix(root)
        if not member.name.startswith(root) or name not in wanted:
            raise BundleError(f"{_shown(name)} is not in {CONTENTS}", remedy=_AGAIN)
        if name in found:
            raise BundleError(f"{_shown(name)} stands there twice", remedy=_AGAIN)
        digest, size = wanted[name]
        if member.size != size:
            raise BundleError(
                f"{name} has {member.size} bytes, and {CONTENTS} says {size}", remedy=_AGAIN
            )
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if _copy(member, target) != digest:
            raise BundleError(f"{name} is not what {CONTENTS} says: it was changed", remedy=_AGAIN)
        found[name] = digest
    if missing := sorted(wanted.keys() - found.keys()):
        raise BundleError(f"{missing[0]} is missing", remedy=_AGAIN)
    return found


def _contents(member: Member, most_bytes: int) -> dict[str, tuple[str, int]]:
    """Name to (sha256, bytes), as ``contents.json`` says."""
    if member.size > _CONTENTS_BYTES:
        raise BundleError(f"{CONTENTS} has {member.size} bytes: too many", remedy=_AGAIN)
    try:
        values = json.loads(_exactly(member.read, member.size, CONTENTS))
        version, files = values["bundle"], values["files"]
        wanted = {
            str(name): (str(each["sha256"]), _whole(each["bytes"])) for name, each in files.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{CONTENTS} cannot be read: {error!r}", remedy=_AGAIN) from error
    if version != BUNDLE_VERSION:
        raise BundleError(
            f"it is a bundle of version {_shown(str(version))}, and this wherry reads "
            f"{BUNDLE_VERSION}",
            remedy="Use the wherry that made it.",
        )
    if len(wanted) > _MOST_FILES:
        raise BundleError(f"it has {len(wanted)} files: too many", remedy=_AGAIN)
    if CONTENTS in wanted:
        raise BundleError(f"{CONTENTS} names itself", remedy=_AGAIN)
    check_names([CONTENTS, *wanted])
    total = sum(size for _, size in wanted.values())
    if total > most_bytes:
        raise BundleError(
            f"its files have {total} bytes, and at most {most_bytes} are unpacked",
            remedy="If you trust it, allow more with --max-size.",
        )
    return wanted


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no number of bytes")
    return value


def _copy(member: Member, target: Path) -> str:
    digest, left = hashlib.sha256(), member.size
    with target.open("xb") as stream:
        while left:
            block = _exactly(member.read, min(left, _CHUNK), member.name)
            digest.update(block)
            stream.write(block)
            left -= len(block)
    return digest.hexdigest()


def _exactly(read: Callable[[int], bytes], count: int, name: str) -> bytes:
    """So many bytes; raises `BundleError` where there are fewer, or they cannot be unpacked."""
    parts = []
    try:
        while count:
            block = read(count)
            if not block:
                raise EOFError("it ends too soon")
            parts.append(block)
            count -= len(block)
    except (*_BROKEN, RuntimeError, NotImplementedError) as error:
        raise BundleError(
            f"it is truncated or damaged at {_shown(name)}: {error}", remedy=_AGAIN
        ) from error
    return b"".join(parts)


def _members(stream: BinaryIO, path: Path) -> Iterator[Member]:
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return _tar_members(stream)
    if magic == b"PK\x03\x04":
        return _zip_members(stream)
    raise BundleError(
        "it is neither a .tar.gz nor a .zip", remedy=f"Name a bundle, not {path.name!r}."
    )


def _tar_members(stream: BinaryIO) -> Iterator[Member]:
    """Header by header: plain files alone, so that no extension's header is ever acted on."""
    with gzip.GzipFile(fileobj=stream, mode="rb") as packed:
        name = "the first file"
        while True:
            block = _exactly(packed.read, _BLOCK, f"what follows {name}")
            if not any(block):
                break
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            except (tarfile.HeaderError, UnicodeDecodeError) as error:
                raise BundleError(
                    f"it is damaged behind {_shown(name)}: {error}", remedy=_AGAIN
                ) from error
            name = info.name
            if info.type != tarfile.REGTYPE or info.size < 0:
                raise BundleError(f"{_shown(name)} is no plain file", remedy=_AGAIN)
            counted = _Counted(packed.read, info.size)
            yield Member(name, info.size, counted.read)
            _exactly(counted.read, counted.left, name)
            _exactly(packed.read, -info.size % _BLOCK, name)
        rest = b""
        while len(rest) <= _RECORD and (block := _some(packed, name)):
            rest += block
        if len(rest) > _RECORD or any(rest):
            raise BundleError("something stands behind its end", remedy=_AGAIN)


def _some(packed: gzip.GzipFile, name: str) -> bytes:
    try:
        return packed.read(_BLOCK)
    except _BROKEN as error:
        raise BundleError(
            f"it is truncated or damaged behind {_shown(name)}: {error}", remedy=_AGAIN
        ) from error


class _Counted:
    """Reads at most so many bytes of a stream."""

    def __init__(self, read: Callable[[int], bytes], left: int) -> None:
        self._read = read
        self.left = left

    def read(self, count: int) -> bytes:
        block = self._read(min(count, self.left))
        self.left -= len(block)
        return block


def _zip_members(stream: BinaryIO) -> Iterator[Member]:
    stream.seek(0, io.SEEK_END)
    stream.seek(max(0, stream.tell() - 22))
    if not stream.read(4) == b"PK\x05\x06":
        raise BundleError("it is truncated, or something stands behind its end", remedy=_AGAIN)
    try:
        archive = zipfile.ZipFile(stream)
        infos = archive.infolist()
    except (*_BROKEN, NotImplementedError, ValueError, UnicodeDecodeError) as error:
        raise BundleError(f"its directory is damaged: {error}", remedy=_AGAIN) from error
    with archive:
        if len(infos) > _MOST_FILES + 1:
            raise BundleError(f"it has {len(infos)} files: too many", remedy=_AGAIN)
        for info in infos:
            name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in {0, stat.S_IFREG} or info.flag_bits & 1:
                raise BundleError(f"{_shown(name)} is no plain file", remedy=_AGAIN)
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise BundleError(f"{_shown(name)} is packed in another way", remedy=_AGAIN)
            try:
                member = archive.open(info)
            except (*_BROKEN, NotImplementedError, RuntimeError, ValueError, OSError) as error:
                raise BundleError(f"{_shown(name)} is damaged: {error}", remedy=_AGAIN) from error
            with member:
                yield Member(name, info.file_size, member.read)
                _exactly_nothing(member, name)


def _exactly_nothing(member: IO[bytes], name: str) -> None:
    """Read to the end, where the checksum of the archive itself is compared."""
    try:
        if member.read(1):
            raise BundleError(f"{_shown(name)} is longer than it says", remedy=_AGAIN)
    except (*_BROKEN, RuntimeError) as error:
        raise BundleError(f"{_shown(name)} is damaged: {error}", remedy=_AGAIN) from error
