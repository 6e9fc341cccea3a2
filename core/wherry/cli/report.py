"""``wherry report``: an earlier run again, in any form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.errors import RunFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wherry.host import Host
    from wherry.reports import Report, RunRecord


def report(run: str = "last") -> RunRecord:
    """A kept run, by id, tag, beginning of an id, ``last`` or ``last~N``.

    Raises:
        UsageError: there is no such run.
        StoreError: it is not as it was kept, or the database cannot be used.
    """
    from wherry.records.database import Records

    with Records.open() as records:
        return records.load(run)


def report_track(tracker: str, run: str = "last", host: Host | None = None) -> str:
    """Tell a tracker of a kept run, as when it could not be reached at the run's end.

    Args:
        tracker: its name; its parameters are the defaults.
        run: see `report`.
        host: the loaded plugins; None: load them.

    Returns:
        Where the run can be seen there, in words.

    Raises:
        UsageError: there is no such run or tracker.
        RunFailed: the tracker failed; why is in the text.
    """
    from wherry.host import Host
    from wherry.trackers import track, wanted

    host = host or Host.load()
    trackers = wanted([tracker], {}, host)
    said: list[str] = []
    found = track(report(run), trackers, host, tell=lambda _text: None, warn=said.append)
    where = found[tracker]
    if where is None:
        raise RunFailed(" ".join(said))
    return where


@click.command(name="report", short_help="Show or convert the report of a run.")
@click.argument("run", required=False)
@click.option("--format", "form", metavar="FORM", help="json, html, markdown, csv, junit, ...")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Instead of stdout."
)
@click.option(
    "--track",
    metavar="NAME",
    help="Tell a tracker of the run, with its settings in the environment.",
)
@click.option("--list", "listing", is_flag=True, help="List the runs instead.")
@click.option("--limit", type=click.IntRange(min=1), help="Of the list: the newest so many.")
@click.option(
    "--blame",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="Of `debug layers --json`, for the HTML report; again for more targets.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the report, or the list.")
def command(
    run: str | None,
    form: str | None,
    output: Path | None,
    track: str | None,
    listing: bool,
    limit: int | None,
    blame: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Show RUN (an id, a tag, last, last~1, ...; default: last), or write it in another form."""
    if listing:
        if run or form or output or track:
            raise UsageError(
                "--list shows the runs, in one form",
                remedy="Give nothing beside it but --limit and --json.",
            )
        _print_list(limit, as_json=as_json)
        return
    if limit is not None:
        raise UsageError("--limit is of the list", remedy="Give --list with it.")
    if track is not None:
        if form or output or as_json:
            raise UsageError("--track tells a tracker alone", remedy="Give no form beside it.")
        where = report_track(track, run or "last")
        click.echo(f"{track}: {where}")
        return
    if as_json:
        if form not in {None, "json"}:
            raise UsageError(f"--json and --format {form} ask for two forms", remedy="Give one.")
        form = "json"
    if blame and form != "html" and not (form is None and output and output.suffix == ".html"):
        raise UsageError(
            "--blame is of the HTML report", remedy="Write one: `wherry report RUN -o FILE.html`."
        )
    if form is None and output is None:
        from wherry.console import Console
        from wherry.reports.terminal import print_record

        print_record(report(run or "last"), Console())
        return
    from wherry.cli.run import write_reports
    from wherry.host import Host

    forms = Host.load().reports
    name = _form(form, output, forms)
    record = report(run or "last")
    if blame:
        from wherry.reports.blame import with_blame

        record = with_blame(record, blame)
    if output is None:
        made = forms[name].render(record)
        if isinstance(made, bytes) and sys.stdout.isatty():
            raise UsageError(
                f"{name} is no text for a terminal", remedy="Give a file with --output."
            )
        click.echo(made, nl=False)
    else:
        write_reports(record, {name: output}, forms)


def _form(form: str | None, output: Path | None, forms: Mapping[str, Report]) -> str:
    """The form that was asked for, by its name or the end of the file's name."""
    if form is not None:
        if form in forms:
            return form
        raise UsageError(
            f"there is no form of a report named {form!r}",
            remedy=f"There are {', '.join(sorted(forms))}.",
        )
    assert output is not None
    fitting = {known.suffix: name for name, known in forms.items() if _ends(output, known.suffix)}
    if fitting:
        return fitting[max(fitting, key=len)]
    suffixes = ", ".join(sorted(known.suffix for known in forms.values()))
    raise UsageError(
        f"no form of a report ends in {output.suffix!r}; there are {suffixes}",
        remedy="Name one with --format.",
    )


def _ends(output: Path, suffix: str) -> bool:
    return output.name.endswith(suffix) and output.name != suffix


def _print_list(limit: int | None, *, as_json: bool) -> None:
    rows = _runs(limit)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.text import Text

    from wherry.console import Console
    from wherry.reports.words import one_line

    console = Console()
    for row in rows:
        tag = f" ({row['tag']})" if row["tag"] else ""
        counts = ", ".join(
            f"{row[status]} {status}" for status in ("ok", "failed", "skipped") if row[status]
        )
        gates = "gates hold" if row["gates"] else "no gates"
        if row["gates_failed"]:
            gates = f"{row['gates_failed']} of {row['gates']} gates failed"
        words = [f"{row['run']}{tag}", f"{counts}; {gates}", row["manifest"]]
        console.print(Text("  ".join(map(one_line, words))), soft_wrap=True)
    if not rows:
        console.print("There is no run yet; `wherry run` makes one.")


def _runs(limit: int | None) -> list[dict[str, Any]]:
    """The newest runs, the last of them last."""
    from wherry.records.database import Records

    with Records.open() as records:
        found = records.runs(limit)
    return [
        {
            "run": each.run_id,
            "tag": each.tag,
            "started": each.started.isoformat(timespec="seconds"),
            "manifest": each.manifest,
            "ok": each.ok,
            "failed": each.failed,
            "skipped": each.skipped,
            "gates": each.gates,
            "gates_failed": each.gates_failed,
        }
        for each in reversed(found)
    ]
