"""The server: its address, its token, and how it begins and ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Collection
from pathlib import Path

import uvicorn

from wherry.errors import UsageError
from wherry.home import home
from wherry.records.database import Records
from wherry.serve.app import make_app
from wherry.serve.guard import Keeper
from wherry.serve.pages import static
from wherry.serve.site import Site

_PATIENCE_S = 3  # for answers that are being given when the server is stopped


def run_server(
    *,
    host: str,
    port: int,
    allow_hosts: Collection[str],
    token: str | None,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM; see `wherry.api.serve`."""
    keeper = Keeper(token)
    with Records.open() as records, _listening(host, port) as listener:
        site = Site(records, keeper, home())
        app = make_app(site, {host, socket.gethostname(), *allow_hosts})
        static()  # the charts' library takes seconds to make, the first time
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=_PATIENCE_S,
            )
        )
        shown = f"[{host}]" if ":" in host else host
        on_ready(f"http://{shown}:{listener.getsockname()[1]}/")
        with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn at its end
            server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:  # the latter of a name that no network can have
        why = error.strerror if isinstance(error, OSError) else None
        raise UsageError(
            f"{host}:{port} cannot be listened on: {why or error}",
            remedy="Take another --port (0: any that is free), or an address of this machine.",
        ) from error


def read_token(file: Path | None, variable: str) -> str | None:
    """The token, of a file or else of the environment, out of which it is taken.

    Raises:
        UsageError: the file cannot be read, or others may read it.
    """
    found = os.environ.pop(variable, None)  # what is started from here need not know it
    if file is None:
        return found or None
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(
            f"the token's file cannot be read: {why}",
            where=str(file),
            remedy="Name a file that holds the token alone.",
        ) from error
    if mode & 0o077:
        raise UsageError(
            "others may read the token's file",
            where=str(file),
            remedy=f"Make it yours alone: chmod 600 {file}.",
        )
    return text
