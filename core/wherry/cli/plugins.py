"""``wherry plugins list|operators``: what the plugins provide, and what backends support."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wherry.host import Host


def plugins_list(host: Host | None = None) -> dict[str, Any]:
    """List the plugins.

    Args:
        host: the loaded plugins; None: load them.

    Returns:
        JSON values. ``plugins``: name, distribution, version, module, ``provides`` (kind to
        names), ``wraps`` (the stages' hooks); ``skipped``: the same four words and the ``cause``.
    """
    from wherry.cli import VERBS

    if host is None:
        from wherry.host import Host as HostClass

        host = HostClass.load()
    host.commands(reserved=VERBS)
    return {
        "plugins": [
            {**asdict(info), "provides": host.provided(info), "wraps": host.wrapped(info)}
            for info in host.plugins
        ],
        "skipped": [{**asdict(entry.plugin), "cause": entry.cause} for entry in host.skipped],
    }


def plugins_operators(
    model: Path | None = None, backends: Sequence[str] | None = None, host: Host | None = None
) -> dict[str, dict[str, dict[str, str]]]:
    """Which ONNX operators the backends support.

    Args:
        model: an ONNX file, of whose operators the pre-flights are asked; None: all operators,
            asked of the tools and runtimes.
        backends: their names; None: all that can tell.
        host: the loaded plugins; None: load them.

    Returns:
        JSON values: backend to operator to ``level`` (``yes``, ``partly``, ``no``) and ``reason``.
        An operator that a backend does not name is not supported.

    Raises:
        EnvironmentError_: a tool's environment cannot be made.
        ModelError: the file is no model.
        UsageError: there is no such backend.
    """
    from wherry import operators

    if host is None:
        from wherry.host import Host as HostClass

        host = HostClass.load()
    names = backends or None
    found = operators.ask(host, names) if model is None else operators.ask_for(host, model, names)
    return {
        backend: {name: asdict(support) for name, support in sorted(row.items())}
        for backend, row in found.items()
    }


@click.group(name="plugins", short_help="List the plugins and what they provide.")
def command() -> None:
    """Look at the plugins.

    WHERRY_PLUGINS= (empty) loads wherry's own alone, WHERRY_PLUGINS=NAME,... those besides;
    WHERRY_TRACE_HOOKS=1 writes every call of a hook to stderr.
    """


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List each plugin with its distribution, its version and what it provides."""
    found = plugins_list()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    from wherry.console import Console

    table = Table("plugin", "distribution", "version", "provides")
    for plugin in found["plugins"]:
        lines = [f"{kind}: {', '.join(names)}" for kind, names in plugin["provides"].items()]
        lines += [f"wraps: {', '.join(plugin['wraps'])}"] if plugin["wraps"] else []
        words = (plugin["name"], plugin["distribution"], plugin["version"], "\n".join(lines))
        table.add_row(*(Text(word or "") for word in words))
    console = Console()
    console.print(table)
    for entry in found["skipped"]:
        origin = f"{entry['distribution']} {entry['version']}"
        text = f"skipped: {entry['name']} ({origin}): {entry['cause']}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


@command.command(name="operators")
@click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Only the operators of this ONNX file, by the pre-flights.",
)
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Only this backend.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def operators_(model: Path | None, backends: tuple[str, ...], as_json: bool) -> None:
    """Show which ONNX operators the backends support.

    Their tools and runtimes are asked, in environments that are made on first use. A form of an
    operator may be refused that another form is not (partly): --model is exact.
    """
    found = plugins_operators(model, backends)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from rich.table import Column, Table
    from rich.text import Text

    from wherry.console import Console

    table = Table(Column("operator", no_wrap=True), *found)
    for name in sorted({name for row in found.values() for name in row}):
        cells = [row.get(name, {"level": "no", "reason": ""}) for row in found.values()]
        table.add_row(name, *(Text(_cell(cell)) for cell in cells))
    Console().print(table)


def _cell(support: dict[str, str]) -> str:
    return f"{support['level']}: {support['reason']}" if support["reason"] else support["level"]
