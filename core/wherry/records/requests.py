"""What a run was asked for: kept when it begins, so that another can go on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wherry.errors import StoreError, UsageError
from wherry.filelock import TakenError, hold
from wherry.records.naming import ID_STAMP, find_run

REQUEST_FILE = "request.json"

RUNNING = "running"
"""In a run's folder: the file that the run holds a lock on while it lives."""


@dataclass(frozen=True)
class Request:
    """What a run was asked for.

    Attributes:
        manifest: the file, absolute.
        digest: sha256 over what the manifest said, with what it includes and the overrides.
        overrides: as ``key.path=value``.
        chosen: tags, as targets have them (`wherry.tags`), to the device that was chosen.
        tag: of the run.
        continues: the id of the run that it goes on with.
    """

    manifest: str
    digest: str
    overrides: tuple[str, ...] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)
    tag: str | None = None
    continues: str | None = None


def digest_of(merged: Mapping[str, Any]) -> str:
    """Of a manifest's values, for `Request`."""
    return hashlib.sha256(json.dumps(merged, sort_keys=True).encode()).hexdigest()


def save_request(request: Request, directory: Path) -> None:
    """Write it to a run's folder, by rename."""
    temporary = directory / f"{REQUEST_FILE}.part"
    temporary.write_text(json.dumps(asdict(request), indent=1), encoding="utf-8")
    temporary.replace(directory / REQUEST_FILE)


def load_request(home: Path, name: str) -> tuple[str, Request]:
    """The id of a run, and what it was asked for; also of one that was stopped or killed.

    Args:
        home: the folder of wherry's own files.
        name: its id, the beginning of one, its tag, ``last`` or ``last~N``: of those that began.

    Raises:
        UsageError: there is no such run, or it has not ended yet.
        StoreError: its file cannot be read.
    """
    root = home / "runs"
    directory = root / find_run(name, _Begun(root), f"{root}")
    try:
        with hold(directory / RUNNING, wait=False, remove=True):
            return directory.name, _read(directory)
    except TakenError:
        raise UsageError(
            f"the run {directory.name} has not ended yet",
            remedy="Wait for it, or stop it first.",
        ) from None


def _read(directory: Path) -> Request:
    try:
        values = json.loads((directory / REQUEST_FILE).read_text(encoding="utf-8"))
        return Request(**{**values, "overrides": tuple(values["overrides"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"what the run was asked for cannot be read: {error}",
            where=str(directory / REQUEST_FILE),
            remedy="Run the manifest again.",
        ) from error


class _Begun:
    """The names of the runs that began here, for `find_run`."""

    def __init__(self, root: Path) -> None:
        def age(path: Path) -> tuple[str, int]:
            return path.name[:ID_STAMP], (path / REQUEST_FILE).stat().st_mtime_ns

        found = [path for path in root.glob("*") if (path / REQUEST_FILE).is_file()]
        self._folders = sorted(found, key=age, reverse=True)

    def newest(self, count: int, skip: int = 0) -> Sequence[str]:
        return [path.name for path in self._folders[skip : skip + count]]

    def count(self) -> int:
        return len(self._folders)

    def with_id(self, name: str) -> bool:
        return any(path.name == name for path in self._folders)

    def with_tag(self, tag: str) -> str | None:
        return next((path.name for path in self._folders if _tag(path) == tag), None)

    def beginning(self, name: str, limit: int) -> Sequence[str]:
        names = [path.name for path in reversed(self._folders)]
        return [run_id for run_id in names if run_id.startswith(name)][:limit]


def _tag(directory: Path) -> str | None:
    try:
        return _read(directory).tag
    except StoreError:
        return None  # taking it by its id says what is wrong
