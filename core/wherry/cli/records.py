"""``wherry records``: carry the records of runs between databases, tag, thin and check them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.cli.ages import Age
from wherry.errors import StoreError, UsageError
from wherry.wording import counted

if TYPE_CHECKING:
    from wherry.records.lists import Summary
    from wherry.reports import RunRecord


def records_export(runs: Sequence[str] = (), *, output: str | Path) -> int:
    """Write records as JSON lines, each with a checksum, oldest first.

    Args:
        runs: ids, tags, beginnings of ids, ``last``, ``last~N``; none: all runs.
        output: the file.

    Returns:
        How many there were.

    Raises:
        UsageError: there is no such run.
        StoreError: the file cannot be written, or a run is not as it was kept.
    """
    from wherry.records.database import Records
    from wherry.records.transfer import export_file

    with Records.open() as records:
        names = [records.find(name) for name in runs]
        names = names or [each.run_id for each in reversed(records.runs())]

        def load() -> Iterator[RunRecord]:
            for name in dict.fromkeys(names):
                yield records.load(name)

        return export_file(load(), Path(output))


def records_import(file: str | Path) -> dict[str, list[str]]:
    """Take up the records of an export; of a damaged one, none.

    Args:
        file: that `records_export` wrote, or the ``record.jsonl`` of a run's folder.

    Returns:
        ``saved``: ids of the runs that are new; ``there``: of those that were there already.

    Raises:
        StoreError: the file is not as it was written, or there is another run of the same id.
    """
    from wherry.records.database import Records
    from wherry.records.transfer import import_file

    with Records.open() as records:
        found = import_file(Path(file), records)
    return {"saved": list(found.saved), "there": list(found.there)}


def records_tag(run: str, tag: str | None) -> str:
    """Give a run another tag; gives its id.

    Args:
        run: named as in `records_export`.
        tag: None: it has none from now on.

    Raises:
        UsageError: there is no such run, or it cannot be a tag.
    """
    from wherry.records.database import Records

    with Records.open() as records:
        run_id = records.find(run)
        records.retag(run_id, tag)
    return run_id


def records_delete(runs: Sequence[str]) -> list[str]:
    """Delete runs; gives their ids.

    Args:
        runs: named as in `records_export`.

    Raises:
        UsageError: there is no such run, and none was deleted.
    """
    from wherry.records.database import Records

    with Records.open() as records:
        names = list(dict.fromkeys(records.find(name) for name in runs))
        records.delete(names)
    return names


def records_prune(
    *,
    keep: int | None = None,
    older_than: timedelta | None = None,
    tagged: bool = False,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
    """Delete old runs.

    Args:
        keep: the newest so many stay, whatever their age; those with a tag are counted.
        older_than: only runs that began longer ago go; None: all but those that stay.
        tagged: runs with a tag go, too.
        dry_run: only say which would go.

    Returns:
        Per run that went, the newest first: ``run``, ``tag``, ``started``, ``manifest``.

    Raises:
        UsageError: there is no limit at all.
    """
    from wherry.records.database import Records

    with Records.open() as records:
        found = records.prune(keep=keep, older_than=older_than, tagged=tagged, dry_run=dry_run)
    return [_as_json(each) for each in found]


def records_verify() -> dict[str, Any]:
    """Compare every run with its hash.

    Returns:
        ``checked``, how many runs; ``damaged``: ``run`` and ``problem``; ``database``.
    """
    from wherry.records.database import Records

    with Records.open() as records:
        found = list(records.verify())
        where = records.where
    damaged = [{"run": run, "problem": problem} for run, problem in found if problem]
    return {"checked": len(found), "damaged": damaged, "database": where}


def _as_json(run: Summary) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "tag": run.tag,
        "started": run.started.isoformat(timespec="seconds"),
        "manifest": run.manifest,
    }


# The command line


@click.group(name="records", short_help="Export, import, tag, thin and check the records of runs.")
def command() -> None:
    """Export, import, tag, thin and check the records of runs.

    They are in a database: WHERRY_RECORDS names it (postgresql://... or sqlite:///...), or
    records.yaml in the config folder, or else it is records.db below WHERRY_HOME. `wherry report`
    shows and lists them.
    """


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@command.command(name="export")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="The file.",
)
def export_(runs: tuple[str, ...], output: Path) -> None:
    """Write the records of RUNs (ids, tags, last, last~1, ...; default: all) as JSON lines."""
    click.echo(f"{counted(records_export(runs, output=output), 'run')} in {output}")


@command.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@_json_option
def import_(file: Path, as_json: bool) -> None:
    """Take up the records of FILE, an export; of a damaged one, none."""
    found = records_import(file)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    there = f", {len(found['there'])} there already" if found["there"] else ""
    click.echo(f"{counted(len(found['saved']), 'run')} imported{there}")


@command.command(name="tag")
@click.argument("run")
@click.argument("tag", required=False)
@click.option("--remove", is_flag=True, help="Take the tag away.")
def tag_(run: str, tag: str | None, remove: bool) -> None:
    """Give RUN (an id, a tag, last, last~1, ...) the tag TAG."""
    if remove == (tag is not None):
        raise UsageError(
            "a run has one tag or none", remedy="Give a TAG, or --remove, and not both."
        )
    run_id = records_tag(run, tag)
    from wherry.reports.words import one_line

    click.echo(f"{run_id} has no tag" if tag is None else f"{run_id} ({one_line(tag)})")


@command.command(name="delete")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
def delete_(runs: tuple[str, ...]) -> None:
    """Delete RUNs (ids, tags, last, last~1, ...)."""
    for run in records_delete(runs):
        click.echo(f"deleted {run}")


@command.command(name="prune")
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="The newest N stay.")
@click.option("--older-than", type=Age(), metavar="AGE", help="Only older runs go: 12h, 90d, 8w.")
@click.option("--tagged", is_flag=True, help="Runs with a tag go, too.")
@click.option("--dry-run", is_flag=True, help="Only say which would go.")
@_json_option
def prune_(
    keep: int | None, older_than: timedelta | None, tagged: bool, dry_run: bool, as_json: bool
) -> None:
    """Delete old runs: all beyond the newest N, or all that are older, or what is both.

    Runs with a tag stay, unless --tagged is given.
    """
    found = records_prune(keep=keep, older_than=older_than, tagged=tagged, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from wherry.reports.words import one_line

    for run in found:
        tag = f" ({run['tag']})" if run["tag"] else ""
        click.echo("  ".join(map(one_line, (f"{run['run']}{tag}", run["manifest"]))))
    click.echo(f"{counted(len(found), 'run')} {'would be deleted' if dry_run else 'deleted'}")


@command.command(name="verify")
@_json_option
def verify_(as_json: bool) -> None:
    """Compare every run with its hash; exit code 1 where one was changed."""
    found = records_verify()
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for each in found["damaged"]:
            click.echo(f"{each['run']}: {each['problem']}")
        click.echo(f"{counted(found['checked'], 'run')}, {len(found['damaged'])} damaged")
    if found["damaged"]:
        raise StoreError(
            f"damaged in the database: {counted(len(found['damaged']), 'run')}",
            where=found["database"],
            remedy="`wherry records delete` takes them out; import them from an export.",
        )
