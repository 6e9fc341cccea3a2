"""``wherry schema``: the manifest's JSON Schema for editors, the plugins' sections included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry.errors import StoreError
from wherry.files import replacing

if TYPE_CHECKING:
    from wherry.host import Host


def schema(output: Path | None = None, *, host: Host | None = None) -> dict[str, Any]:
    """Make the JSON Schema (Draft 2020-12) of manifests from the plugins in use.

    Args:
        output: a file to write it to as well.
        host: the loaded plugins; None: load them.
    """
    from wherry.manifest.json_schema import manifest_schema

    if host is None:
        from wherry.host import Host as HostClass

        host = HostClass.load()
    made = manifest_schema(host)
    if output is not None:
        _write(output, json.dumps(made, indent=1) + "\n")
    return made


def _write(path: Path, text: str) -> None:
    try:
        with replacing(path) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"the schema cannot be written: {error.strerror}",
            where=str(path),
            remedy="Name a file in a folder that exists and that you may write to.",
        ) from error


@click.command(name="schema", short_help="Print the manifest's JSON Schema.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write it to this file.")
def command(output: Path | None) -> None:
    """Print the JSON Schema of manifests, with the options of the plugins in use.

    An editor with the YAML language server completes and checks a manifest that begins with
    `# yaml-language-server: $schema=FILE`.
    """
    made = schema(output)
    if output is None:
        click.echo(json.dumps(made, indent=1))
    else:
        click.echo(f"wrote {output}")
