"""``wherry plugins list``: the plugins, where they come from, what they provide, and what broke."""

from __future__ import annotations

import json
from dataclasses import asdict
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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
