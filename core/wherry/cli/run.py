"""``wherry run``: everything that a manifest asks for, from the model to the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wherry.errors import StoreError, UsageError
from wherry.files import check_place, replacing

if TYPE_CHECKING:
    from wherry.engine.local import Event
    from wherry.execute import Prepared
    from wherry.plan import Plan
    from wherry.reports import Report, RunRecord

_log = logging.getLogger(__name__)


def run(
    manifest: str | Path | None = None,
    *,
    continue_: str | None = None,
    sets: Sequence[str] = (),
    jobs: int | None = None,
    remeasure: bool = False,
    tag: str | None = None,
    track: Sequence[str] = (),
    outputs: Mapping[str, Path] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunRecord:
    """Run a manifest; what failed and which gates did not hold is in the record.

    Args:
        manifest: the YAML file; None where a run is continued.
        continue_: go on with a run (an id, the beginning of one, a tag, ``last``, ``last~1``),
            with its manifest, its overrides and its devices: what is done comes from the store,
            what failed or is missing is tried again.
        sets: overrides as ``key.path=value``.
        jobs: how many steps at once on the host; None: the cores at hand. Boards do not count.
        remeasure: take everything from the store but the measurements.
        tag: a name for this run; None: that of the run that it goes on with, if it had one.
        track: trackers that are told of the run, beside the manifest's; one that fails is a
            warning in the log.
        outputs: a report's form to the file that it is written to.
        on_event: told of every step's progress.

    Raises:
        UsageError: there is no such run to continue, or more is asked than to continue it.
        UnkeptError: all was run, and the database could not take the record; the error has it.
    """
    from wherry.execute import UnkeptError, execute
    from wherry.records.naming import check_tag
    from wherry.trackers import track as tell_trackers
    from wherry.trackers import wanted

    check_folders(outputs or {})
    if tag is not None:
        check_tag(tag)
    prepared = _prepare(manifest, continue_, sets, remeasure)
    host = prepared.services.host
    reports = host.reports
    try:
        for form in outputs or {}:
            if form not in reports:
                raise UsageError(
                    f"there is no form of a report named {form!r}",
                    remedy=f"There are {', '.join(sorted(reports))}.",
                )
        trackers = wanted(track, prepared.services.manifest.track, host)
    except UsageError:
        prepared.services.release()
        raise
    try:
        record = execute(prepared, jobs=jobs, tag=tag, on_event=on_event)
    except UnkeptError as error:
        write_reports(error.record, outputs or {}, reports)
        raise
    write_reports(record, outputs or {}, reports)
    tell_trackers(record, trackers, host, tell=_log.info, warn=_log.warning)
    return record


def _prepare(
    manifest: str | Path | None,
    continue_: str | None,
    sets: Sequence[str],
    remeasure: bool,
    tell: Callable[[str], None] = _log.warning,
) -> Prepared:
    """The manifest's plan, or that of the run to continue; ``tell`` as `execute.prepare` has it."""
    from wherry.execute import prepare, prepare_again

    if continue_ is None:
        if manifest is None:
            raise UsageError(
                "there is nothing to run", remedy="Name a manifest, or a run to --continue."
            )
        return prepare(Path(manifest), overrides=sets, remeasure=remeasure, tell=tell)
    if manifest is not None or sets or remeasure:
        extra = manifest or ("--set" if sets else "--remeasure")
        raise UsageError(
            f"a run is continued with its own manifest and overrides, and {extra} is given too",
            remedy="Give --continue without it, or run the manifest: the store has what is done.",
        )
    return prepare_again(continue_, tell=tell)


def check_folders(outputs: Mapping[str, Path]) -> None:
    """Raise `UsageError` for a report that could not be written, before the run has taken hours."""
    for form, path in outputs.items():
        check_place(path, f"the {form} report")


def write_reports(
    record: RunRecord, outputs: Mapping[str, Path], reports: Mapping[str, Report]
) -> None:
    """Write each report to its file, by rename."""
    for form, path in outputs.items():
        remedy = f"The run is kept; `wherry report --format {form} --output FILE` makes it."
        write_file(reports[form].render(record), path, form, remedy)


def write_file(made: str | bytes, path: Path, form: str, remedy: str) -> None:
    """Write a report by rename; raises `StoreError` with the remedy."""
    try:
        with replacing(path) as file:
            file.write_bytes(made.encode() if isinstance(made, str) else made)
    except OSError as error:
        raise StoreError(
            f"the {form} report cannot be written: {error.strerror}",
            where=str(path),
            remedy=remedy,
        ) from error


@click.command(name="run", short_help="Run a manifest and report.")
@click.argument("manifest", type=click.Path(path_type=Path), required=False)
@click.option(
    "--continue",
    "continue_",
    is_flag=False,
    flag_value="last",
    metavar="[RUN]",
    help="Go on with a run (an id, a tag, last~1, ...; alone: the last) instead of a manifest.",
)
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Override a value.")
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(min=1),
    help="Steps at once on the host (default: cores); boards do not count.",
)
@click.option("--remeasure", is_flag=True, help="Take all but the measurements from the store.")
@click.option("--tag", help="A name for this run.")
@click.option(
    "--track", multiple=True, metavar="NAME", help="Tell a tracker of the run: mlflow, ..."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress and no table.")
@click.option("--json", type=click.Path(path_type=Path), metavar="FILE", help="Write JSON.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write HTML.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Markdown.")
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write CSV.")
@click.option("--parquet", type=click.Path(path_type=Path), metavar="FILE", help="Write Parquet.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="JUnit XML.")
@click.option("--github", is_flag=True, help="Print annotations for GitHub Actions.")
def command(
    manifest: Path | None,
    continue_: str | None,
    sets: tuple[str, ...],
    jobs: int | None,
    remeasure: bool,
    tag: str | None,
    track: tuple[str, ...],
    quiet: bool,
    github: bool,
    **files: Path | None,
) -> None:
    """Optimise, calibrate, convert, ship and measure what MANIFEST asks for.

    Steps whose inputs have not changed are taken from the store. `--continue` takes up what failed
    or is missing in an earlier run, as when a board was lost. Exit codes: 0 done; 1 something
    failed, named; 3 a gate did not hold; 130 interrupted, and what is done is kept.
    """
    from wherry.console import Console
    from wherry.execute import UnkeptError, execute, raise_for_outcome
    from wherry.records.naming import check_tag
    from wherry.reports import github as annotations
    from wherry.reports.terminal import print_record
    from wherry.trackers import track as tell_trackers
    from wherry.trackers import wanted

    outputs = {form: path for form, path in files.items() if path is not None}
    check_folders(outputs)
    if tag is not None:
        check_tag(tag)
    errors = Console(stderr=True, quiet=quiet)

    def tell(text: str) -> None:
        errors.print(text, markup=False, highlight=False, soft_wrap=True)

    unkept: UnkeptError | None = None
    with annotations.unheard() if github else nullcontext():
        prepared = _prepare(manifest, continue_, sets, remeasure, tell)
        host = prepared.services.host
        try:
            trackers = wanted(track, prepared.services.manifest.track, host)
        except UsageError:
            prepared.services.release()
            raise
        with progress_display(prepared.plan, errors) as on_event:
            try:
                record = execute(prepared, jobs=jobs, tag=tag, on_event=on_event)
            except UnkeptError as error:
                record, unkept = error.record, error
        write_reports(record, outputs, host.reports)
        if not quiet:
            print_record(record, Console())
    tell_trackers(record, trackers, host, tell=tell, warn=_log.warning)
    if github:
        for line in annotations.run_annotations(record):
            click.echo(line)
    if unkept is not None:
        raise unkept
    raise_for_outcome(record, shown=not quiet)


@contextmanager
def progress_display(plan: Plan, console: object) -> Iterator[Callable[[Event], None]]:
    """A bar over all steps and a line for each that runs; plain lines where it is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from wherry.console import Console
    from wherry.screen import SCREEN

    assert isinstance(console, Console)
    if not console.is_terminal:
        yield lambda event: _print_event(event, console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=console, transient=True) as progress,
        SCREEN.display(hide=progress.stop, show=progress.start),
    ):
        overall = progress.add_task("steps", total=len(plan.steps))
        tasks = {}

        def on_event(event: Event) -> None:
            step = event.step
            if event.state == "started":
                tasks[step.id] = progress.add_task(step.title, total=None)
            elif event.state == "progress":
                if step.id in tasks:
                    progress.update(tasks[step.id], description=f"{step.title}: {event.text}")
            else:
                if step.id in tasks:
                    progress.remove_task(tasks.pop(step.id))
                progress.advance(overall)
                if event.state == "failed":
                    progress.console.print(f"failed: {step.title}", markup=False)

        yield on_event


def _print_event(event: Event, console: object) -> None:
    from wherry.console import Console

    assert isinstance(console, Console)
    if event.state in {"done", "cached", "failed", "skipped"}:
        detail = f": {event.text}" if event.text else ""
        console.print(
            f"{event.state:8}{event.step.title}{detail}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
