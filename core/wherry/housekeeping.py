"""Keeps a store small and sound, and explains its keys: why did a step run again?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from wherry.artifact import hash_file
from wherry.entry import DamagedError, Entry, damage, read_entry
from wherry.errors import UsageError
from wherry.store import Store

_LISTED = 5
_UNFINISHED = timedelta(days=7)


@dataclass(frozen=True)
class Collected:
    """What `gc` did, or would do.

    Attributes:
        removed: the entries, the least recently used first.
        damaged: folders of entries that cannot be read; removed as well.
        kept_bytes: the sizes of the entries that stay.
        in_use: how many stay because a run that is going on uses them.
    """

    removed: tuple[Entry, ...]
    damaged: tuple[Path, ...]
    kept_bytes: int
    in_use: int

    @property
    def freed_bytes(self) -> int:
        """The sizes of the removed entries."""
        return sum(entry.size_bytes for entry in self.removed)


def gc(
    store: Store,
    *,
    max_age: timedelta | None = None,
    max_bytes: int | None = None,
    keep: Collection[str] = (),
    dry_run: bool = False,
) -> Collected:
    """Remove entries, the least recently used first; never one that a living run uses.

    Args:
        store: where.
        max_age: entries that no run has taken for longer go; what interrupted steps left goes
            after a week at the latest.
        max_bytes: the entries that stay are together no larger, as far as those in use allow.
        keep: digests of keys that stay whatever happens.
        dry_run: only say what would go.

    Raises:
        StoreError: the store cannot be read or written.
    """
    with store.files():
        store.sweep()
        moved = []
        with store.alone() as used:
            entries, damaged = _read_all(store)
            protected = used.union(keep)
            removed, kept = [], sum(entry.size_bytes for entry in entries)
            oldest = datetime.now(UTC) - max_age if max_age is not None else None
            for entry in sorted(entries, key=lambda entry: entry.last_used):
                old = oldest is not None and entry.last_used < oldest
                large = max_bytes is not None and kept > max_bytes
                if (old or large) and entry.key.digest not in protected:
                    removed.append(entry)
                    kept -= entry.size_bytes
            if not dry_run:
                moved = store.take_out([*damaged, *(store.path(entry.key) for entry in removed)])
        for folder in moved:
            shutil.rmtree(folder)
        if not dry_run:
            store.drop_unfinished(_UNFINISHED if max_age is None else min(max_age, _UNFINISHED))
    in_use = sum(entry.key.digest in used for entry in entries)
    return Collected(tuple(removed), tuple(damaged), kept, in_use)


def _read_all(store: Store) -> tuple[list[Entry], list[Path]]:
    entries, damaged = [], []
    for directory in store.directories():
        try:
            entries.append(read_entry(directory))
        except DamagedError:
            damaged.append(directory)
    return entries, damaged


@dataclass(frozen=True, slots=True)
class Damage:
    """An entry that is not as it was committed."""

    directory: Path
    problem: str

    @property
    def digest(self) -> str:
        """Of its key."""
        return self.directory.name


def verify(store: Store, *, remove: bool = False) -> Iterator[tuple[Path, Damage | None]]:
    """Hash every file of every entry; yields each entry's folder and what is wrong with it.

    Args:
        store: where.
        remove: take the damaged ones out; the next run makes them again.
    """
    with store.files():
        for directory in sorted(store.directories()):
            problem = _verify(directory)
            if not directory.is_dir():  # removed while we read it
                continue
            if problem is not None and remove:
                store.discard([directory])
            yield directory, None if problem is None else Damage(directory, problem)


def _verify(directory: Path) -> str | None:
    problem = damage(directory)
    if problem is not None:
        return problem
    try:
        entry = read_entry(directory)
        for name, digest in entry.files.items():
            if hash_file(entry.directory / name) != digest:
                return f"{name} was changed"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    there = {
        path.relative_to(entry.directory).as_posix()
        for path in entry.directory.rglob("*")
        if not path.is_dir()
    }
    more = sorted(there.difference(entry.files))
    return f"{more[0]} does not belong to it" if more else None


@dataclass(frozen=True, slots=True)
class Difference:
    """A part in which two keys differ.

    Attributes:
        part: its path: ``options.threads``.
        here: its value in the key that is explained, as JSON; None: it has no such part.
        there: in the other key.
    """

    part: str
    here: str | None
    there: str | None


@dataclass(frozen=True)
class Explanation:
    """What a key is made of, and in what it differs from the nearest other one of its kind.

    Attributes:
        entry: the entry of the key.
        nearest: the entry of the same kind that differs in the fewest parts, of those the newest;
            None: there is no other one.
        differences: in the parts' order.
    """

    entry: Entry
    nearest: Entry | None
    differences: tuple[Difference, ...]


def explain(store: Store, digest: str) -> Explanation:
    """Explain a key by its digest, or by the first digits of it.

    Raises:
        UsageError: no entry has such a digest, or several have.
        StoreError: the store cannot be read.
    """
    entries = list(store.entries())
    found = [entry for entry in entries if entry.key.digest.startswith(digest.lower())]
    if not found:
        raise UsageError(
            f"no entry of the store has a key that begins with {digest!r}",
            where=str(store.root),
            remedy="`wherry cache list` shows them all.",
        )
    if len(found) > 1:
        some = ", ".join(entry.key.digest[:12] for entry in found[:_LISTED])
        raise UsageError(
            f"{len(found)} keys begin with {digest!r}: {some}", remedy="Give more of its digits."
        )
    entry = found[0]
    others = [
        (len(differences), -other.created.timestamp(), other, differences)
        for other in entries
        if other.key.kind == entry.key.kind and other.key != entry.key
        for differences in [_differences(entry, other)]
    ]
    if not others:
        return Explanation(entry, None, ())
    *_, nearest, differences = min(others, key=lambda other: other[:2])
    return Explanation(entry, nearest, differences)


def _differences(entry: Entry, other: Entry) -> tuple[Difference, ...]:
    here, there = leaves(entry.key.parts), leaves(other.key.parts)
    return tuple(
        Difference(part, here.get(part), there.get(part))
        for part in here | there
        if here.get(part) != there.get(part)
    )


def leaves(value: Any, path: str = "") -> dict[str, str]:
    """A JSON value as path to JSON text: ``{"a": {"b": 1}}`` is ``{"a.b": "1"}``."""
    if isinstance(value, dict) and value:
        parts = [(f"{path}.{name}" if path else name, item) for name, item in value.items()]
    elif isinstance(value, list) and value:
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {path: json.dumps(value, ensure_ascii=False)}
    return {name: text for part, item in parts for name, text in leaves(item, part).items()}
