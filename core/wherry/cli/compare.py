"""``wherry compare``: two runs, or a run against a baseline in git, figure by figure."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from wherry.errors import GateFailed


def compare(
    base: str, new: str = "last", *, allow: Sequence[str] = (), fail_on: str | None = None
) -> dict[str, Any]:
    """What has changed from one run to another; see ``docs/compare.md`` for the JSON.

    Args:
        base: an id of a run, the beginning of one, a tag, ``last``, ``last~1``, ``best``, or a
            baseline file, by a path or a name that ends in .json.
        new: the same, but ``best``.
        allow: reasons for which unlike figures are compared all the same.
        fail_on: ``worse`` or ``worse:5%``: what stands in ``failures``.

    Raises:
        UsageError: there is no such run, reason, or what to fail on.
        StoreError: a run or a baseline cannot be read.
    """
    from wherry.records.compare import FailOn, failures
    from wherry.records.compare import compare as compare_sides
    from wherry.records.likeness import check_reasons
    from wherry.records.sides import sides

    check_reasons(allow)
    judge = None if fail_on is None else FailOn.parse(fail_on)
    found = compare_sides(*sides(base, new, allow=allow), allow=allow)
    return {
        **found,
        "fail_on": fail_on,
        "failures": [] if judge is None else failures(found, judge),
    }


@click.command(name="compare", short_help="Compare two runs, or a run with a baseline.")
@click.argument("base")
@click.argument("new", default="last")
@click.option(
    "--allow", multiple=True, metavar="REASON", help="Compare unlike measurements of this kind."
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
    fail_on: str | None,
    as_json: bool,
    markdown: Path | None,
    junit: Path | None,
    github: bool,
) -> None:
    """Compare BASE with NEW (default: last): ids, tags, last~1, best, or a baseline file.

    A figure is better, worse, the same within noise, or not comparable, with the reason; `--allow`
    takes the word of a reason, and every output says so. A baseline file is written by
    `wherry report RUN --output NAME.baseline.json`.
    """
    from wherry.cli.run import check_folders, write_file
    from wherry.console import Console
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
    found = compare(base, new, allow=allow, fail_on=fail_on)
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
    if found["failures"]:
        raise GateFailed(_failed(found))


def _failed(found: dict[str, Any]) -> str:
    from wherry.reports.comparison_words import failure_text
    from wherry.reports.words import one_line

    texts = [one_line(failure_text(each, found)) for each in found["failures"]]
    more = f"; and {len(texts) - 5} more" if len(texts) > 5 else ""
    return f"{found['fail_on']}: " + "; ".join(texts[:5]) + more
