"""Runs on disk: each a folder below ``home()/runs``, named by its id."""

from __future__ import annotations

import json
import re
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from wherry.errors import StoreError, UsageError
from wherry.reports import SCHEMA_VERSION, RunRecord

REPORT_FILE = "report.json"
SAMPLES_FILE = "samples.npz"
MANIFEST_FILE = "manifest.yaml"
_BACK = re.compile(r"last(?:~(\d{1,9}))?")

_STAMP = "%Y%m%d-%H%M%S"
_STAMP_LENGTH = len("20261124-040500")


def new_run_id(now: datetime | None = None) -> str:
    """Sorts by time, e.g. ``20261124-040500-3f9a``."""
    return f"{now or datetime.now(UTC):{_STAMP}}-{secrets.token_hex(2)}"


def check_tag(tag: str) -> None:
    """Refuse a tag by which no run could be found again; raises `UsageError`."""
    if not tag or _BACK.fullmatch(tag):
        raise UsageError(
            f"{tag!r} cannot be a tag: it would not name this run",
            remedy="Take any other word.",
        )


def save_run(record: RunRecord, directory: Path) -> None:
    """Write a run's files; the report last and by rename, so that a run with one is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST_FILE).write_bytes(record.manifest.encode())
    arrays: dict[str, Any] = {
        f"{index}.{name}": array
        for index, samples in enumerate(record.samples)
        for name, array in samples.items()
    }
    np.savez_compressed(directory / SAMPLES_FILE, **arrays)
    temporary = directory / f"{REPORT_FILE}.part"
    try:
        temporary.write_text(json.dumps(record.values, indent=1, allow_nan=False), encoding="utf-8")
        temporary.replace(directory / REPORT_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def load_run(home: Path, name: str = "last") -> RunRecord:
    """A run by id, tag, unique beginning of an id, ``last`` or ``last~N``.

    Raises:
        UsageError: there is no such run.
        StoreError: its files cannot be read.
    """
    directory = find_run(home, name, list_runs(home), _tag)
    values = read_report(directory)
    try:
        manifest = (directory / MANIFEST_FILE).read_bytes().decode()
        with (  # numpy leaves a file open that it cannot read
            (directory / SAMPLES_FILE).open("rb") as stream,
            np.load(stream, allow_pickle=False) as arrays,
        ):
            samples = _samples(arrays, len(values["results"]))
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(directory, error) from error
    return RunRecord(values, samples, manifest)


def read_report(directory: Path) -> dict[str, Any]:
    """The report's JSON of a run's folder; raises `StoreError`."""
    try:
        values = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(directory, error) from error
    if not isinstance(values, dict) or not isinstance(values.get("results"), list):
        raise _unreadable(directory, f"{REPORT_FILE} holds no report")
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise _unreadable(directory, f"its schema_version is {version!r}, not {SCHEMA_VERSION}")
    return values


def _unreadable(directory: Path, why: object) -> StoreError:
    return StoreError(
        f"the run cannot be read: {why}",
        where=str(directory),
        remedy="Remove the folder, and run again.",
    )


def list_runs(home: Path) -> list[Path]:
    """The folders of whole runs, oldest first; of one second, in the order of their ends."""
    return sorted_runs(home, REPORT_FILE)


def sorted_runs(home: Path, file: str) -> list[Path]:
    """The folders of runs that have a file, oldest first; of one second, in the files' order."""

    def age(path: Path) -> tuple[str, int]:
        return path.name[:_STAMP_LENGTH], (path / file).stat().st_mtime_ns

    root = home / "runs"
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if (path / file).is_file()), key=age)


def with_gates(record: RunRecord, gates: list[dict[str, Any]]) -> RunRecord:
    """The same run with what its gates found."""
    return replace(record, values={**record.values, "gates": gates})


def find_run(
    home: Path, name: str, runs: Sequence[Path], tag_of: Callable[[Path], str | None]
) -> Path:
    """Of the folders of runs, oldest first, the one that ``name`` means; raises `UsageError`."""
    if not runs:
        raise UsageError(
            f"there is no run yet below {home / 'runs'}", remedy="Start one with `wherry run`."
        )
    listed = ", ".join(path.name for path in runs[-3:])
    if match := _BACK.fullmatch(name):
        back = int(match[1] or 0)
        if back < len(runs):
            return runs[-1 - back]
        count = "is only 1 run" if len(runs) == 1 else f"are only {len(runs)} runs"
        raise UsageError(f"{name}: there {count}", remedy=f"The newest are {listed}.")
    found = [path for path in runs if path.name == name]
    # of a tag, the newest run; an unfinished word of an id only where no tag is like it
    found = found or [path for path in runs if tag_of(path) == name][-1:]
    found = found or [path for path in runs if name and path.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(path.name for path in found[:5])
        raise UsageError(f"{name} could be any of {listed}", remedy="Give more of the id.")
    raise UsageError(f"there is no run named {name!r}", remedy=f"The newest are {listed}.")


def _tag(directory: Path) -> str | None:
    try:
        tag = read_report(directory)["tag"]
    except (StoreError, KeyError):
        return None  # an unreadable run has no tag; loading it by its id says what is wrong
    return tag if isinstance(tag, str) else None


def _samples(arrays: Mapping[str, np.ndarray], count: int) -> tuple[Mapping[str, np.ndarray], ...]:
    samples: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    for key in arrays:
        index, name = key.split(".", 1)
        samples[int(index)][name] = arrays[key]
    return tuple(samples)
