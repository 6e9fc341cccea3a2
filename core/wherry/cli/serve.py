"""``wherry serve``: the team's page: runs, trends, comparisons, boards, what is in progress."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Collection
from pathlib import Path

import click

from wherry.errors import UsageError

_log = logging.getLogger(__name__)
TOKEN = "WHERRY_SERVE_TOKEN"  # noqa: S105 -- the name of the variable
PORT = 8420


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    allow_hosts: Collection[str] = (),
    token_file: Path | None = None,
    on_ready: Callable[[str], None] = lambda _address: None,
) -> None:
    """Serve the records as web pages until Ctrl-C; nothing can be changed without the token.

    Args:
        host: the address to listen on.
        port: 0: any that is free.
        allow_hosts: names by which browsers may call this server, besides ``localhost``, ``host``,
            this machine's name, and addresses.
        token_file: holds the token; None: ``$WHERRY_SERVE_TOKEN``; without either, there is none.
        on_ready: told the address when the server listens.

    Raises:
        UsageError: the extra ``serve`` is missing, the address is taken, or the token is unsafe.
        StoreError: the database of records cannot be used.
    """
    missing = [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(
            f"the server needs {' and '.join(missing)}",
            remedy="Install the extra: python -m pip install 'wherry[serve]'.",
        )
    from wherry.serve.guard import is_loopback
    from wherry.serve.server import read_token, run_server

    token = read_token(token_file, TOKEN)
    if not is_loopback(host):
        _log.warning(
            "whoever reaches %s can read all records here, over a link that is not encrypted%s",
            host,
            ", and the token is sent over it: put a proxy with TLS before it" if token else "",
        )
    run_server(host=host, port=port, allow_hosts=allow_hosts, token=token, on_ready=on_ready)


@click.command(name="serve", short_help="Serve the team's page.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="0: any free one.",
)
@click.option(
    "--allow-host", "allow_hosts", multiple=True, metavar="NAME", help="A name of this server."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Holds the token that changes need (else ${TOKEN}; without: read-only).",
)
def command(host: str, port: int, allow_hosts: tuple[str, ...], token_file: Path | None) -> None:
    """Serve runs, trends, comparisons, boards and runs in progress as web pages and as JSON.

    Reading needs no token. To tag or delete a run and to probe a board, sign in with the token, or
    send it as `Authorization: Bearer TOKEN`. Only this machine is served unless --host says
    otherwise.
    """

    def ready(address: str) -> None:
        click.echo(f"The records are at {address} (Ctrl-C ends this)")

    serve(host=host, port=port, allow_hosts=allow_hosts, token_file=token_file, on_ready=ready)
