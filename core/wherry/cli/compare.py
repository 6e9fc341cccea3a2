"""``wherry compare``: two runs, a run against a baseline in git, or two manifests in turns."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.errors import GateFailed, RunFailed, UsageError
from wherry.wording import counted

if TYPE_CHECKING:
    from wherry.console import Console
    from wherry.engine.local import Event
    from wherry.execute import Prepared
    from wherry.records.snapshot import Snapshot
    from wherry.turns import Watch

_log = logging.getLogger(__name__)


def compare(
    base: str,
    new: str = "last",
    *,
    allow: Sequence[str] = (),
    fail_on: str | None = None,
    rounds: int | None = None,
    sets: Sequence[str] = (),
    watch: Watch | None = None,
) -> dict[str, Any]:
    """What has changed from one run to another; see ``docs/compare.md`` for the JSON.

    With two manifests both are run, and their rounds take turns.

    Args:
        base: an id of a run, the beginning of one, a tag, ``last``, ``last~1``, ``best``, or a
            baseline file, by a path or a name that ends in .json; or a manifest, .yaml.
        new: the same, but ``best``; a manifest where ``base`` is one.
        allow: reasons for which unlike figures are compared all the same.
        fail_on: ``worse`` or ``worse:5%``: what stands in ``failures``.
        rounds: of manifests: of each side; None: 30.
        sets: of manifests: overrides of both, as ``key.path=value``.
        watch: of manifests: see `wherry.turns.execute_in_turns`.

    Raises:
        UsageError: there is no such run, reason, or what to fail on; or a manifest and a run.
        StoreError: a run or a baseline cannot be read.
    """
    from wherry.records.compare import FailOn, failures
    from wherry.records.compare import compare as compare_sides
    from wherry.records.likeness import check_reasons
    from wherry.records.sides import is_manifest, sides

    check_reasons(allow)
    judge = None if fail_on is None else FailOn.parse(fail_on)
    manifests = [name for name in (base, new) if is_manifest(name)]
    if len(manifests) == 1 or ((rounds or sets) and not manifests):
        raise UsageError(
            f"{base} and {new} are not two manifests",
            remedy="Give two manifests, which are run in turns; or two runs or baseline files, "
            "which are not run again, so that there are no rounds to set.",
        )
    both = _in_turns(base, new, rounds, sets, watch) if manifests else sides(base, new, allow=allow)
    found = compare_sides(*both, allow=allow)
    return {
        **found,
        "fail_on": fail_on,
        "failures": [] if judge is None else failures(found, judge),
    }


def _in_turns(
    base: str, new: str, rounds: int | None, sets: Sequence[str], watch: Watch | None
) -> tuple[Snapshot, Snapshot]:
    """Both sides, run."""
    from wherry.records.snapshot import snapshot
    from wherry.turns import ROUNDS, execute_in_turns, prepare_all, unwatched

    prepared = prepare_all(
        [Path(base), Path(new)],
        overrides=sets,
        rounds=ROUNDS if rounds is None else rounds,
        tell=_log.warning,
    )
    records = execute_in_turns(prepared, watch=watch or unwatched)
    return snapshot(records[0]), snapshot(records[1])


@click.command(name="compare", short_help="Compare two runs, or a run with a baseline.")
@click.argument("base")
@click.argument("new", default="last")
@click.option(
    "--allow", multiple=True, metavar="REASON", help="Compare unlike measurements of this kind."
)
@click.option(
    "--rounds", type=click.IntRange(min=4), help="Of two manifests: of each (default: 30)."
)
@click.option(
    "--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Of two manifests: override."
)
@click.option("--fail-on", metavar="worse[:5%]", help="Exit with 3 where a figure is worse.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Markdown.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="JUnit XML.")
@click.option("--github", is_flag=True, help="Print annotations for GitHub Actions.")
def command(
    base: str,
    new: str,
    allow: tuple[str, ...],
    rounds: int | None,
    sets: tuple[str, ...],
    fail_on: str | None,
    as_json: bool,
    markdown: Path | None,
    junit: Path | None,
    github: bool,
) -> None:
    """Compare BASE with NEW (default: last): ids, tags, last~1, best, or a baseline file.

    Two manifests (.yaml) are run now, and their rounds take turns, so that what the machine does
    meanwhile hits both: that finds small changes on noisy machines.

    A figure is better, worse, the same within noise, or not comparable, with the reason; `--allow`
    takes the word of a reason, and every output says so. A baseline file is written by
    `wherry report RUN --output NAME.baseline.json`.
    """
    from wherry.cli.run import check_folders, write_file
    from wherry.console import Console
    from wherry.records.sides import is_manifest
    from wherry.reports import github as annotations
    from wherry.reports.junit import render_comparison as junit_text
    from wherry.reports.markdown import render_comparison as markdown_text
    from wherry.reports.terminal import print_comparison

    forms: dict[str, Callable[[dict[str, Any]], str]] = {
        "markdown": markdown_text,
        "junit": junit_text,
    }
    files = {"markdown": markdown, "junit": junit}
    outputs = {form: path for form, path in files.items() if path is not None}
    check_folders(outputs)
    found = compare(
        base,
        new,
        allow=allow,
        fail_on=fail_on,
        rounds=rounds,
        sets=sets,
        watch=_watching(Console(stderr=True)),
    )
    for form, path in outputs.items():
        write_file(forms[form](found), path, form, "Compare again to write it.")
    with annotations.unheard() if github else contextlib.nullcontext():
        if as_json:
            click.echo(json.dumps(found, indent=1, allow_nan=False))
        else:
            print_comparison(found, Console())
    if github:
        for line in annotations.comparison_annotations(found):
            click.echo(line)
    if is_manifest(base):  # both were run by this command, and nobody else tells
        broken = [each for each in found["results"] if each["status"] == "failed"]
        if broken:
            names = "; ".join(each["name"] for each in broken[:3])
            raise RunFailed(
                f"{len(broken)} of {counted(len(found['results']), 'target')} failed: {names}",
                remedy="What is printed above says why for each.",
            )
    if found["failures"]:
        from wherry.reports.comparison_words import failures_remedy, failures_text

        raise GateFailed(failures_text(found), remedy=failures_remedy(found) or None)


def _watching(console: Console) -> Watch:
    """A display for the steps before the measuring and after it; a line for each round between."""
    from wherry.cli.run import progress_display

    @contextmanager
    def watch(prepared: Prepared, upto: int | None) -> Iterator[Callable[[Event], None] | None]:
        rounds = prepared.services.manifest.measure.rounds
        if upto is not None:
            text = f"round {upto} of {rounds}: {prepared.request.manifest}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        if upto == 1 or console.is_terminal:
            with progress_display(prepared.plan, console) as on_event:
                yield on_event
        else:
            yield None

    return watch
