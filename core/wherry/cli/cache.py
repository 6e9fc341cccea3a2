"""``wherry cache``: what the store holds, why a step ran again, tidying up, checking."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from wherry.cli.ages import Age
from wherry.cli.sizes import Size
from wherry.errors import StoreError
from wherry.home import home
from wherry.wording import counted

if TYPE_CHECKING:
    from wherry.engine.environments import Environment
    from wherry.engine.wheels import Shelf, Wheels
    from wherry.entry import Entry
    from wherry.store import Store

_UNUSED = timedelta(days=30)
_SHOWN_DIGITS = 12
_SHOWN_CHARS = 60


def cache_list(kind: str | None = None) -> list[dict[str, Any]]:
    """List the store's entries, the last used first.

    Args:
        kind: of the step (``convert``, ``measure``, ...); None: all.

    Returns:
        JSON values: ``key``, ``kind``, ``parts``, ``created``, ``last_used``, ``duration_s``,
        ``size_bytes``, ``files`` (name to sha256), ``directory``.
    """
    entries = sorted(_store().entries(kind), key=lambda entry: entry.last_used, reverse=True)
    return [_as_json(entry) for entry in entries]


def cache_explain(key: str) -> dict[str, Any]:
    """Say what a key was made of, and in what it differs from the nearest other of its kind.

    Args:
        key: the first digits of its digest, enough to be the only one.

    Returns:
        JSON values: ``entry`` as in `cache_list`; ``nearest`` too, or None; ``differences``:
        ``part``, ``here`` and ``there``, JSON as text, None where a key has no such part.

    Raises:
        UsageError: there is no such key, or there are several.
    """
    from dataclasses import asdict

    from wherry.housekeeping import explain

    found = explain(_store(), key)
    return {
        "entry": _as_json(found.entry),
        "nearest": None if found.nearest is None else _as_json(found.nearest),
        "differences": [asdict(difference) for difference in found.differences],
    }


def cache_gc(
    max_age: timedelta | None = None, max_size: int | None = None, *, dry_run: bool = False
) -> dict[str, Any]:
    """Remove what is no longer used: entries, the least recently used first, and packages.

    What a run that is going on uses stays. Without a limit, what no run has used for 30 days goes.

    Args:
        max_age: entries, environments and wheels for boards that no run has used for longer go.
        max_size: of all entries together, bytes.
        dry_run: only say what would go.

    Returns:
        JSON values: ``removed`` as in `cache_list`; ``damaged``, folders; ``environments``:
        ``directory``, ``packages``, ``size_bytes``; ``wheels`` the same; ``freed_bytes``,
        ``kept_bytes``, ``in_use``.
    """
    from wherry.engine.environments import Environments
    from wherry.housekeeping import gc

    if max_age is None and max_size is None:
        max_age = _UNUSED
    collected = gc(_store(), max_age=max_age, max_bytes=max_size, dry_run=dry_run)
    environments = [
        _packages_as_json(found)
        for found in Environments(home()).remove(unused_for=max_age, dry_run=dry_run)
    ]
    wheels = [
        _packages_as_json(found) for found in _wheels().remove(unused_for=max_age, dry_run=dry_run)
    ]
    freed = sum(found["size_bytes"] for found in (*environments, *wheels))
    return {
        "removed": [_as_json(entry) for entry in collected.removed],
        "damaged": [str(path) for path in collected.damaged],
        "environments": environments,
        "wheels": wheels,
        "freed_bytes": collected.freed_bytes + freed,
        "kept_bytes": collected.kept_bytes,
        "in_use": collected.in_use,
    }


def cache_verify(*, remove: bool = False) -> dict[str, Any]:
    """Hash every file of the store.

    Args:
        remove: take damaged entries out, so that the next run makes them again.

    Returns:
        JSON values: ``checked``, how many entries; ``damaged``: ``directory`` and ``problem``.
    """
    from wherry.housekeeping import verify

    found = list(verify(_store(), remove=remove))
    damaged = [damage for _, damage in found if damage is not None]
    return {
        "checked": len(found),
        "damaged": [{"directory": str(d.directory), "problem": d.problem} for d in damaged],
    }


def _store() -> Store:
    from wherry.store import Store

    return Store(home() / "store")


def _wheels() -> Wheels:
    import threading

    from wherry.engine.environments import Environments
    from wherry.engine.wheels import Wheels

    return Wheels(home(), Environments(home()), threading.Event())


def _packages_as_json(found: Environment | Shelf) -> dict[str, Any]:
    return {
        "directory": str(found.directory),
        "packages": list(found.packages),
        "size_bytes": found.size_bytes,
    }


def _as_json(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key.digest,
        "kind": entry.key.kind,
        "parts": entry.key.parts,
        "created": entry.created.isoformat(),
        "last_used": entry.last_used.isoformat(),
        "duration_s": entry.duration_s,
        "size_bytes": entry.size_bytes,
        "files": dict(entry.files),
        "directory": str(entry.directory),
    }


# The command line


@click.group(name="cache", short_help="Look into the store and tidy it.")
def command() -> None:
    """Look into the store and tidy it.

    A step whose inputs, parameters and tools have not changed is taken from the store. It lies
    below WHERRY_HOME, or else in the user's cache folder.
    """


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@command.command(name="list")
@click.option("--kind", metavar="KIND", help="Of the step: convert, measure, ...")
@_json_option
def list_(kind: str | None, as_json: bool) -> None:
    """List the entries, the last used first, and how much there is of wheels for boards."""
    entries = cache_list(kind)
    if as_json:
        _print_json(entries)
        return
    from rich.table import Table
    from rich.text import Text

    from wherry.console import Console

    console = Console()
    table = Table("key", "kind", "made from", "size", "took", "used")
    for entry in entries:
        words = (
            *(entry["key"][:_SHOWN_DIGITS], entry["kind"], _summary(entry["parts"])),
            *(_size(entry["size_bytes"]), f"{entry['duration_s']:.1f} s"),
            _ago(entry["last_used"]),
        )
        table.add_row(*map(Text, words))
    if entries:
        console.print(table)
    elif kind is not None and (every := cache_list()):
        kinds = ", ".join(sorted({entry["kind"] for entry in every}))
        click.echo(f"no entry is of the kind {kind}; there are entries of {kinds}")
    total = sum(entry["size_bytes"] for entry in entries)
    click.echo(f"{_entries(len(entries))}, {_size(total)}, in {home() / 'store'}")
    wheels = list(_wheels())
    if wheels:
        size = sum(found.size_bytes for found in wheels)
        sets = counted(len(wheels), "set")
        click.echo(f"wheels for boards: {sets}, {_size(size)}, in {home() / 'wheels'}")


@command.command(name="explain")
@click.argument("key")
@_json_option
def explain_(key: str, as_json: bool) -> None:
    """Show what KEY was made of, and why its step ran again.

    KEY is the first digits of an entry's key, as `wherry cache list` shows it. The nearest other
    entry of the same kind is compared with it, part by part.
    """
    found = cache_explain(key)
    if as_json:
        _print_json(found)
        return
    from rich.table import Column, Table
    from rich.text import Text

    from wherry.console import Console
    from wherry.housekeeping import leaves

    console, entry, nearest = Console(), found["entry"], found["nearest"]
    took = f"took {entry['duration_s']:.1f} s"
    click.echo(f"{entry['kind']} {entry['key']}, {_size(entry['size_bytes'])}, {took}")
    click.echo(
        f"made {_ago(entry['created'])}, used {_ago(entry['last_used'])}: {entry['directory']}"
    )
    table = Table("part", Column("value", overflow="fold"))
    for part, value in leaves(entry["parts"]).items():
        table.add_row(Text(part), Text(value))
    console.print(table)
    if nearest is None:
        click.echo(
            f"It is the only entry of its kind: nothing was there that {entry['kind']} could take."
        )
        return
    click.echo(
        f"The nearest other one is {nearest['key'][:_SHOWN_DIGITS]}, {_ago(nearest['created'])}:"
    )
    table = Table("part", *(Column(name, overflow="fold") for name in ("here", "there")))
    for row in found["differences"]:
        here, there = ("(absent)" if row[s] is None else row[s] for s in ("here", "there"))
        table.add_row(Text(row["part"]), Text(here), Text(there))
    console.print(table)


@command.command(name="gc")
@click.option("--max-age", type=Age(), metavar="AGE", help="Unused for longer goes: 12h, 30d, 2w.")
@click.option("--max-size", type=Size(), metavar="SIZE", help="Of all entries: 500MB, 5GB.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_json_option
def gc_(max_age: timedelta | None, max_size: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove what is no longer used, the least recently used first.

    What a run that is going on uses stays. --max-age counts for environments of tools and
    runtimes too, and for wheels that were fetched for boards. Without a limit, what no run has
    used for 30 days goes.
    """
    found = cache_gc(max_age, max_size, dry_run=dry_run)
    if as_json:
        _print_json(found)
        return
    for entry in found["removed"]:
        shown = f"{entry['kind']} {entry['key'][:_SHOWN_DIGITS]}"
        click.echo(f"{shown}  {_size(entry['size_bytes'])}, used {_ago(entry['last_used'])}")
    for path in found["damaged"]:
        click.echo(f"damaged  {path}")
    for kind, word in (("environments", "environment"), ("wheels", "wheels")):
        for each in found[kind]:
            packages = ", ".join(each["packages"]) or "half made"
            click.echo(f"{word} {_short(packages)}  {_size(each['size_bytes'])}")
    count = sum(len(found[kind]) for kind in ("removed", "damaged", "environments", "wheels"))
    verb = "would be removed" if dry_run else "removed"
    in_use = f", {_entries(found['in_use'])} in use" if found["in_use"] else ""
    freed, kept = _size(found["freed_bytes"]), _size(found["kept_bytes"])
    click.echo(f"{count} {verb}, {freed}; {kept} of entries stay{in_use}")


@command.command(name="verify")
@click.option("--remove", is_flag=True, help="Remove damaged entries; a run makes them again.")
@_json_option
def verify_(remove: bool, as_json: bool) -> None:
    """Hash every file of the store; exit code 1 where an entry is damaged."""
    found = cache_verify(remove=remove)
    if as_json:
        _print_json(found)
    else:
        for damage in found["damaged"]:
            click.echo(f"{damage['directory']}: {damage['problem']}")
        click.echo(f"{_entries(found['checked'])}, {len(found['damaged'])} damaged")
    if found["damaged"] and not remove:
        raise StoreError(
            f"damaged in the store: {_entries(len(found['damaged']))}",
            remedy="`wherry cache verify --remove` takes them out; the next run makes them again.",
        )


def _print_json(values: Any) -> None:
    click.echo(json.dumps(values, indent=1))


def _size(size_bytes: int) -> str:
    from rich.filesize import decimal

    return decimal(size_bytes)


def _entries(count: int) -> str:
    return f"{count} entr{'y' if count == 1 else 'ies'}"


def _ago(moment: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def _summary(parts: dict[str, Any]) -> str:
    """The parts that people know by name: hashes and nested values are left to ``explain``."""
    words = [f"{name}={value}" for name, value in parts.items() if isinstance(value, str | int)]
    return _short(" ".join(word for word in words if not re.search(r"=[0-9a-f]{32,}$", word)))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 4]} ..."
