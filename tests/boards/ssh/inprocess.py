"""A board inside the test's process: an SSH server of asyncssh that runs commands of this machine.

It needs pip packages alone. Like sshd it runs `SHELL -c COMMAND` in a home folder with a small
environment, closes the command's streams when the connection is lost, and tells exit statuses and
exit signals. Faults of the network are `proxy.py`'s; those of a login are here.
"""

from __future__ import annotations

import asyncio
import getpass
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import asyncssh

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIMIT_S = 15.0
_CHUNK = 1 << 16


class InProcessBoard:
    """See the module; a context manager.

    Args:
        folder: of its own; its home folder is made there.
        shell: the login shell, with what stands before ``-c``.
        home: name of the home folder.
        password: that logs in; None: passwords are not asked for.

    Attributes:
        host: the address that it listens on.
        port: likewise.
        user: whom it lets in.
        home: its home folder.
        authorized: public keys that log in, one OpenSSH line each; may change at any time.
        refuse: nobody is let in.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shell: Sequence[str] = ("/bin/sh",),
        home: str = "home",
        password: str | None = None,
    ) -> None:
        self.host, self.port, self.user = "127.0.0.1", 0, getpass.getuser()
        self.home = folder / home
        self.home.mkdir(parents=True)
        self.authorized: list[str] = []
        self.refuse = False
        self._shell = tuple(shell)
        self._password = password
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="board", daemon=True)
        self._server: asyncssh.SSHAcceptor | None = None

    @property
    def host_key(self) -> str:
        """Its public host key: type and base64."""
        return " ".join(self._key.export_public_key().decode().split()[:2])

    def __enter__(self) -> InProcessBoard:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.drop()
        self._do(self._wait_for_commands())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = self._do(self._listen())
        self.port = self._server.get_port()

    def stop(self) -> None:
        """Listen no more; sessions live on, as with sshd."""
        if self._server is not None:
            server, self._server = self._server, None
            self._do(_stop(server))

    def drop(self) -> None:
        """Cut all connections."""
        self._do(self._abort())

    def new_host_key(self) -> None:
        """Be another board at the same address."""
        self.stop()
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self.start()

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_LIMIT_S)

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.create_server(
            lambda: _Login(self),
            self.host,
            self.port,
            server_host_keys=[self._key],
            process_factory=self._run,
            encoding=None,
            reuse_address=True,
        )

    async def _abort(self) -> None:
        for connection in tuple(self._connections):
            connection.abort()

    async def _wait_for_commands(self) -> None:
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        _, running = await asyncio.wait(tasks, timeout=_LIMIT_S / 2) if tasks else ((), ())
        for task in running:  # a command that outlives its connection is the tests' to find
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        if process.command is None:
            process.stderr.write(b"no terminal here: commands only\n")
            process.exit(1)
            return
        command = await asyncio.create_subprocess_exec(
            *self._shell,
            "-c",
            process.command,
            cwd=self.home,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        upwards = asyncio.create_task(_upwards(process.stdin, command.stdin))
        try:
            await asyncio.gather(
                _downwards(command.stdout, process.stdout),
                _downwards(command.stderr, process.stderr),
            )
            status = await command.wait()
        finally:
            upwards.cancel()
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)

    def _environment(self) -> dict[str, str]:
        own = Path(getattr(sys, "_base_executable", sys.executable)).parent
        return {
            "HOME": str(self.home),
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": self._shell[0],
            "PATH": f"{own}:{_PATH}",
            "SSH_CLIENT": f"{self.host} 50000 {self.port}",  # bash reads ~/.bashrc for it
        }


class _Login(asyncssh.SSHServer):
    """Who is let in; and which connections there are."""

    def __init__(self, board: InProcessBoard) -> None:
        self._board = board
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._board._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._board._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        offered = key.export_public_key().split()[:2]
        known = [line.encode().split()[:2] for line in self._board.authorized]
        return not self._board.refuse and username == self._board.user and offered in known

    def password_auth_supported(self) -> bool:
        return self._board._password is not None

    def validate_password(self, username: str, password: str) -> bool:
        right = username == self._board.user and password == self._board._password
        return right and not self._board.refuse


async def _stop(server: asyncssh.SSHAcceptor) -> None:
    server.close()  # `wait_closed` would wait for the sessions too


async def _upwards(source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter) -> None:
    """From the host to a command; where the connection is lost, its stdin ends."""
    try:
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
    except (asyncssh.Error, OSError):
        pass  # the connection, or the command, is gone
    finally:
        sink.close()


async def _downwards(source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
    """From a command to the host; where that is gone, to nowhere."""
    gone = False
    while data := await source.read(_CHUNK):
        try:
            if not gone:
                sink.write(data)
                await sink.drain()
        except (asyncssh.Error, OSError):
            gone = True


def noisy_shell(path: Path, text: str, sleep_s: float = 0.0) -> str:
    """Write a login shell that speaks, and dawdles, before it runs a command; its path."""
    path.with_suffix(".txt").write_text(text)
    path.write_text(
        f"#!/bin/sh\ncat '{path.with_suffix('.txt')}'\nsleep {sleep_s}\nexec /bin/sh \"$@\"\n"
    )
    path.chmod(0o755)
    return str(path)
