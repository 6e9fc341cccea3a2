"""Entries of the store and their keys: what a step made, and the hash of all that went into it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wherry.artifact import hash_file
from wherry.errors import PluginError

STORE_VERSION = 1
"""Part of every key: raise it when entries of the same key have to be made again."""


@dataclass(frozen=True, eq=False)
class Key:
    """What an entry is made from.

    Attributes:
        kind: of the step: ``convert``, ``measure``, ...
        parts: name to JSON value; what they hold decides, not the order of their keys.
        digest: sha256 over kind, parts and the store's version, hex.

    Raises:
        PluginError: a part is not JSON.
    """

    kind: str
    parts: Mapping[str, Any]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.kind):
            raise ValueError(f"no kind of a step: {self.kind!r}")
        parts = _plain(self.parts, self.kind)
        whole = {"store": STORE_VERSION, "kind": self.kind, "parts": parts}
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "digest", hashlib.sha256(canonical(whole)).hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def canonical(value: Any) -> bytes:
    """JSON in the one form that keys are hashed in."""
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.encode("utf-8", "surrogatepass")  # names of files may hold what is not UTF-8


def _plain(value: Any, path: str) -> Any:
    """A copy in dicts and lists; raises `PluginError` where it is not JSON."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, f"{path}.{name}") for name, item in value.items()}
    raise PluginError(f"the store's key holds {path} = {value!r}, which is no JSON value")


@dataclass(frozen=True)
class Entry:
    """What a step made.

    Attributes:
        key: what it was made from.
        directory: its files. They must not be changed.
        created: when it was committed.
        files: relative POSIX path to sha256, hex.
        stamps: per file its size in bytes and its time of change in nanoseconds.
        duration_s: how long it took to build, seconds.
        last_used: when a run last took it.
    """

    key: Key
    directory: Path
    created: datetime
    files: Mapping[str, str]
    stamps: Mapping[str, tuple[int, int]]
    duration_s: float
    last_used: datetime

    @property
    def size_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(size for size, _ in self.stamps.values())


class DamagedError(Exception):
    """What is wrong with an entry on the disk, in words."""


def read_entry(directory: Path) -> Entry:
    """Read an entry's description.

    Raises:
        FileNotFoundError: there is no such entry.
        DamagedError: it is not one.
    """
    path = directory / "entry.json"
    try:
        about = path.stat()
        text = path.read_bytes().decode("utf-8", "surrogatepass")
    except FileNotFoundError:
        if directory.is_dir():
            raise DamagedError("it has no entry.json") from None
        raise
    try:
        values = json.loads(text)
        files = values["files"]
        key = Key(values["kind"], values["parts"])
        if values["store"] != STORE_VERSION:
            raise DamagedError(f"it is of version {values['store']} of the store")
        if key.digest != directory.name:
            raise DamagedError("entry.json is of another key")
        return Entry(
            key,
            directory / "payload",
            datetime.fromisoformat(values["created"]),
            {name: file["sha256"] for name, file in files.items()},
            {name: (file["size"], file["mtime_ns"]) for name, file in files.items()},
            float(values["duration_s"]),
            datetime.fromtimestamp(about.st_mtime, UTC),
        )
    except (ValueError, KeyError, TypeError, AttributeError, PluginError) as error:
        raise DamagedError(f"entry.json cannot be read: {error!r}") from error


def damage(directory: Path) -> str | None:
    """What is wrong with an entry, as far as sizes and times of change tell; None: nothing."""
    try:
        entry = read_entry(directory)
        for name, (size, changed_ns) in entry.stamps.items():
            path = entry.directory / name
            about = path.lstat()
            if not stat.S_ISREG(about.st_mode):
                return f"{name} is no plain file"
            if about.st_size != size:
                return f"{name} has {about.st_size} bytes instead of {size}"
            if about.st_mtime_ns != changed_ns:
                if hash_file(path) != entry.files[name]:
                    return f"{name} was changed"
                os.utime(path, ns=(about.st_atime_ns, changed_ns))  # a copied store, say
    except DamagedError as error:
        return str(error)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    return None


def describe_files(payload: Path) -> dict[str, dict[str, Any]]:
    """Relative POSIX path to sha256, size and time of change, for all files below a folder.

    Raises:
        PluginError: there is something else than files and folders.
    """
    found = {}
    for path in sorted(payload.rglob("*")):
        name = path.relative_to(payload).as_posix()
        about = path.lstat()
        if stat.S_ISREG(about.st_mode):
            stamp = {"size": about.st_size, "mtime_ns": about.st_mtime_ns}
            found[name] = {"sha256": hash_file(path), **stamp}
        elif not stat.S_ISDIR(about.st_mode):
            raise PluginError(
                f"the step left {name!r}, which is no plain file",
                remedy="Write plain files below context.output; links lead out of the store.",
            )
    return found
