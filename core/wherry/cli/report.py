"""``wherry report``: an earlier run again, in any form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.errors import UsageError

if TYPE_CHECKING:
    from wherry.reports import RunRecord


def report(run: str = "last") -> RunRecord:
    """A kept run, by id, beginning of an id, tag, ``last`` or ``last~N``.

    Raises:
        UsageError: there is no such run.
        StoreError: its files cannot be read.
    """
    from wherry.home import home
    from wherry.records.runs import load_run

    return load_run(home(), run)


@click.command(name="report", short_help="Show or convert the report of a run.")
@click.argument("run", default="last")
@click.option("--format", "form", metavar="FORM", help="json, html, markdown, csv, junit, ...")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Instead of stdout."
)
@click.option("--list", "listing", is_flag=True, help="List the runs instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the report, or the list.")
def command(
    run: str, form: str | None, output: Path | None, listing: bool, as_json: bool
) -> None:
    """Show RUN (an id, a tag, last, last~1, ...; default: last), or write it in another form."""
    if listing:
        _print_list(as_json=as_json)
        return
    if as_json:
        form = "json"
    if form is None and output is None:
        from rich.console import Console

        from wherry.reports.terminal import print_record

        print_record(report(run), Console())
        return
    from wherry.cli.run import write_reports
    from wherry.host import Host

    forms = Host.load().reports
    if form is None and output is not None:
        form = next((name for name, kind in forms.items() if kind.suffix == output.suffix), None)
        if form is None:
            known = ", ".join(sorted(kind.suffix for kind in forms.values()))
            raise UsageError(
                f"no form of a report ends in {output.suffix!r}; there are {known}",
                remedy="Name one with --format.",
            )
    assert form is not None
    if form not in forms:
        raise UsageError(
            f"there is no form of a report named {form!r}",
            remedy=f"There are {', '.join(sorted(forms))}.",
        )
    record = report(run)
    if output is None:
        click.echo(forms[form].render(record), nl=False)
    else:
        write_reports(record, {form: output}, forms)


def _print_list(*, as_json: bool) -> None:
    rows = _runs()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "tag", "started", "manifest", "ok", "failed", "skipped", "gates")
    for row in rows:
        table.add_row(*(escape("-" if cell is None else str(cell)) for cell in row.values()))
    Console().print(table)


def _runs() -> list[dict[str, Any]]:
    """All runs, the newest last."""
    from wherry.home import home
    from wherry.records.runs import REPORT_FILE, list_runs

    rows = []
    for folder in list_runs(home()):
        values = json.loads((folder / REPORT_FILE).read_text())
        states = [result["status"] for result in values["results"]]
        broken = sum(not gate["passed"] for gate in values["gates"])
        rows.append(
            {
                "run": folder.name,
                "tag": values["tag"],
                "started": values["started"],
                "manifest": values["manifest"],
                **{status: states.count(status) for status in ("ok", "failed", "skipped")},
                "gates": f"{broken} failed" if broken else "hold",
            }
        )
    return rows
