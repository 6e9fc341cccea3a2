"""Records as JSON lines, out of one database and into another.

A line is a record with the sha256 over its content. After the records comes a line that says how
many there were and the sha256 over theirs, so that a file without its end is not taken for whole.
Files can be concatenated.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wherry.errors import StoreError
from wherry.files import replacing
from wherry.records.rows import UNREADABLE, record_digest, rows_of
from wherry.records.samples import decode, encode
from wherry.reports import RunRecord

if TYPE_CHECKING:
    from wherry.records.database import Records

FORM = 1
_MOST_CHARS = 1 << 30  # in a line


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_file` did.

    Attributes:
        saved: ids of the runs that are new.
        there: ids of those that the database had.
    """

    saved: tuple[str, ...]
    there: tuple[str, ...]


def export_file(records: Iterable[RunRecord], path: Path) -> int:
    """Write records to a file, by rename; gives how many there were.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        with replacing(path) as file, file.open("w", encoding="ascii") as stream:
            return write_lines(records, stream)
    except OSError as error:
        raise StoreError(
            f"the export cannot be written: {error.strerror or error}",
            where=str(path),
            remedy="Name another file with --output.",
        ) from error


def write_lines(records: Iterable[RunRecord], stream: IO[str]) -> int:
    """Write the lines of records, and the one that closes them."""
    count, all_of_them = 0, hashlib.sha256()
    for record in records:
        digest = record_digest(record)
        content = {
            "values": record.values,
            "manifest": record.manifest,
            "samples": [
                {name: base64.b64encode(encode(array)).decode() for name, array in arrays.items()}
                for arrays in record.samples
            ],
        }
        _write(stream, {"wherry_record": FORM, "sha256": digest, **content})
        all_of_them.update(digest.encode())
        count += 1
    _write(stream, {"wherry_export": FORM, "records": count, "sha256": all_of_them.hexdigest()})
    return count


def _write(stream: IO[str], value: Mapping[str, Any]) -> None:
    stream.write(json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n")


def import_file(path: Path, records: Records) -> Imported:
    """Keep all records of a file, of which nothing is taken where any of it is damaged.

    Args:
        path: written by `export_file`; it is read twice.
        records: where they are kept.

    Raises:
        StoreError: a line is not as it was written, or the end is missing; or the database has
            another run of the same id.
    """
    for _ in read_file(path):
        pass
    saved: list[str] = []
    there: list[str] = []
    for line, record in read_file(path):
        try:
            new = records.save(record)
        except StoreError as error:
            raise error.within(f"{path}:{line}") from error
        (saved if new else there).append(record.values["run_id"])
    return Imported(tuple(saved), tuple(there))


def read_file(path: Path) -> Iterator[tuple[int, RunRecord]]:
    """The records of a file, each with the number of its line, and each checked.

    Raises:
        StoreError: see `import_file`.
    """
    count, all_of_them, number = 0, hashlib.sha256(), 0
    closed = False
    try:
        with path.open(encoding="ascii") as stream:
            while line := stream.readline(_MOST_CHARS):
                number += 1
                try:
                    value = _checked_form(line)
                    if "wherry_export" in value:
                        if (value["records"], value["sha256"]) != (count, all_of_them.hexdigest()):
                            raise ValueError("records before it are missing, or are others")
                        count, all_of_them, closed = 0, hashlib.sha256(), True
                        continue
                    record = _record(value)
                except (*UNREADABLE, RecursionError) as error:
                    raise _refused(path, number, error) from error
                count, closed = count + 1, False
                all_of_them.update(value["sha256"].encode())
                yield number, record
    except UnicodeDecodeError as error:
        raise _refused(path, number + 1, "it holds what is not ASCII") from error
    except OSError as error:
        raise StoreError(
            f"the export cannot be read: {error.strerror or error}",
            where=str(path),
            remedy="Name a file that `wherry records export` has written.",
        ) from error
    if not closed:
        raise _refused(path, number + 1, "the line that closes an export is missing")


def _checked_form(line: str) -> dict[str, Any]:
    if not line.endswith("\n"):
        raise ValueError("the line is cut off")
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 -- of the data, not the call
    if FORM not in (value.get("wherry_record"), value.get("wherry_export")):
        raise ValueError(
            "it is neither a record nor the end of an export, as this wherry knows them"
        )
    return value


def _record(value: Mapping[str, Any]) -> RunRecord:
    try:
        samples = tuple(
            {name: decode(base64.b64decode(data, validate=True)) for name, data in arrays.items()}
            for arrays in value["samples"]
        )
    except binascii.Error as error:
        raise ValueError(f"its samples are not base64: {error}") from error
    record = RunRecord(value["values"], samples, value["manifest"])
    if record_digest(record) != value["sha256"]:
        raise ValueError("it does not match its checksum")
    rows_of(record)  # all that a database will ask of it
    return record


def _refused(path: Path, line: int, why: object) -> StoreError:
    said = f"it has no {why}" if isinstance(why, KeyError) else str(why)
    return StoreError(
        f"the export is damaged: {said}",
        where=f"{path}:{line}",
        remedy="Nothing of it was imported: export the runs again.",
    )
