"""``wherry debug``: which layer of a deployed network is to blame for lost accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.errors import GateFailed

if TYPE_CHECKING:
    from wherry.console import Console
    from wherry.host import Host


def debug_layers(
    manifest: str | Path,
    *,
    variant: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    options: Sequence[str] = (),
    samples: int | None = None,
    sets: Sequence[str] = (),
    bisect: bool = False,
    want: str | None = None,
    host: Host | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Compare a deployed artifact with the reference, layer by layer, on its device.

    Args:
        manifest: the YAML file; one of its rows is looked at.
        variant: of the row, where there are several.
        backend: likewise.
        precision: likewise.
        device: likewise.
        options: likewise, of the target, as ``KEY=VALUE``.
        samples: how many are looked at, evenly spread over the evaluation set.
        sets: overrides as ``key.path=value``.
        bisect: also find the least set of nodes to keep in fp32.
        want: the accuracy that it has to reach, ``METRIC=VALUE``; None: the manifest's first gate
            on a metric, or else 99 % agreement (20 dB where no metric looks at classes).
        host: the loaded plugins; None: load them.
        progress: told what is being done.

    Returns:
        JSON values, as ``--json`` prints them (``docs/debugging.md``).
    """
    from wherry.debug.case import Choice
    from wherry.debug.report import Asked, debug

    return debug(
        Path(manifest),
        Choice(variant, backend, precision, device, tuple(options)),
        Asked(samples, bisect, want),
        sets=sets,
        host=host,
        progress=progress,
    )


@click.group(name="debug", short_help="Find the layer that loses the accuracy.")
def command() -> None:
    """Find out where a deployed network differs from its original."""


@command.command(name="layers")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--variant", help="Of the row to debug, where the manifest has several.")
@click.option("--backend", help="Likewise.")
@click.option("--precision", help="Likewise.")
@click.option("--device", help="Likewise.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Likewise.")
@click.option(
    "--samples", type=click.IntRange(min=1), help="How many (default: 32; 500 for --bisect)."
)
@click.option("--bisect", is_flag=True, help="Find the least set of nodes to keep in fp32.")
@click.option(
    "--want",
    metavar="METRIC=VALUE",
    help="The accuracy that --bisect has to reach (default: the first gate on a metric).",
)
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Override a value.")
@click.option("--all", "everything", is_flag=True, help="Show all layers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def layers_(
    manifest: Path,
    variant: str | None,
    backend: str | None,
    precision: str | None,
    device: str | None,
    options: tuple[str, ...],
    samples: int | None,
    bisect: bool,
    want: str | None,
    sets: tuple[str, ...],
    everything: bool,
    as_json: bool,
) -> None:
    """Rank the layers of one row of MANIFEST by the error that each adds itself.

    The artifact runs on the device over real samples, beside the reference in fp32. What is
    converted and tried is kept in the store. Exit codes: 0 done; 1 something failed, named;
    3 --bisect cannot reach what is wanted; 130 interrupted, and what is done is kept.
    """
    from wherry.cli.run import progress_display
    from wherry.console import Console
    from wherry.debug.case import Choice
    from wherry.debug.report import Asked, debug, show

    errors = Console(stderr=True)
    with _status(errors) as progress:
        values = debug(
            manifest,
            Choice(variant, backend, precision, device, options),
            Asked(samples, bisect, want),
            sets=sets,
            on_plan=lambda plan: progress_display(plan, errors),
            progress=progress,
            tell=lambda text: errors.print(text, markup=False, highlight=False, soft_wrap=True),
        )
    if as_json:
        click.echo(json.dumps(values, indent=1))
    else:
        show(values, Console(), everything=everything)
    search = values["bisect"]
    if search is not None and search["found"] is None:
        raise GateFailed(f"{search['want']['text']} is not reached even with every layer in fp32")


@contextmanager
def _status(console: Console) -> Iterator[Callable[[str], None]]:
    """One line that changes; off a terminal, a line for each try of a search."""
    if not console.is_terminal:

        def line(text: str) -> None:
            if text.startswith("try "):
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield line
        return
    from rich.live import Live
    from rich.text import Text

    from wherry.screen import SCREEN

    live = Live(console=console, transient=True, refresh_per_second=8)
    shown: list[str] = []

    def show(text: str) -> None:
        if not shown:  # only now: while the plan's steps run, their own display is shown
            live.start()
        shown[:] = [text]
        live.update(Text(text))

    try:
        with SCREEN.display(hide=live.stop, show=live.start):
            yield show
    finally:
        live.stop()
