"""The SSH transport: a board behind an SSH server, and nothing but a Python on it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from wherry.device import Device, DeviceServices, DeviceSpec, Transport
from wherry_devices.session import BoardDevice, Patience
from wherry_devices.ssh.parameters import SshParameters
from wherry_devices.tail import Tail

if TYPE_CHECKING:
    from paramiko import Channel

    from wherry.requirements import Requirements
    from wherry_devices.board import Board
    from wherry_devices.provision import Provisioner
    from wherry_devices.ssh.link import Link

_TAKE_BYTES = 1 << 20  # at most, of what has arrived
_SEND_BYTES = 1 << 18
_SMALL_BYTES = 1 << 15
_POLL_S = 0.2
# Runs a script with arguments, all in one word of letters, digits, + / and =: whatever the login
# shell is, and whatever the arguments hold, there is nothing in it that a shell could change.
_LAUNCH = (
    "import sys,json,zlib,base64;"
    's,a=json.loads(zlib.decompress(base64.b64decode("{word}")).decode());'
    'sys.argv[1:]=a;exec(compile(s,"wherry","exec"),{{"__name__":"__main__"}})'
)


def ssh_transport() -> Transport:
    """The descriptor."""
    return Transport(
        name="ssh",
        description="a Linux board behind an SSH server",
        parameters=SshParameters,
        connect=connect,
        trust=trust,
        shell=shell,
    )


def connect(spec: DeviceSpec, services: DeviceServices) -> Device:
    """The device that ``spec`` names; nothing is reached yet."""
    from wherry_devices.provision import Provisioner

    parameters = spec.parameters
    assert isinstance(parameters, SshParameters)
    patience = Patience(parameters.limit_s, parameters.wait_s, parameters.silence_s)
    provisioner = Provisioner(services)

    def open_connection() -> SshConnection:
        return SshConnection(reach(spec, services.cancelled), parameters, services, provisioner)

    return BoardDevice(spec.name, open_connection, patience, spec.tools)


def reach(spec: DeviceSpec, cancelled: threading.Event) -> Link:
    """Connect to a device's server and log in; raises `wherry.errors.DeviceError`."""
    from wherry_devices.ssh.config import resolve
    from wherry_devices.ssh.link import open_link

    parameters = spec.parameters
    assert isinstance(parameters, SshParameters)
    endpoint = resolve(parameters, spec.name, os.environ)
    return open_link(
        endpoint, password_env=parameters.password_env, env=os.environ, cancelled=cancelled
    )


def trust(spec: DeviceSpec, confirm: Callable[[str, str], bool]) -> list[str]:
    """See `wherry.device.Transport.trust`."""
    from wherry_devices.ssh.config import resolve
    from wherry_devices.ssh.host_keys import fingerprint
    from wherry_devices.ssh.link import learn_host_keys

    parameters = spec.parameters
    assert isinstance(parameters, SshParameters)
    learned = learn_host_keys(
        resolve(parameters, spec.name, os.environ),
        confirm=lambda hop, key: confirm(str(hop), f"{key.get_name()} {fingerprint(key)}"),
        env=os.environ,
        cancelled=threading.Event(),
    )
    return [f"{hop}: {key.get_name()} {fingerprint(key)} {state}" for hop, key, state in learned]


def shell(spec: DeviceSpec) -> int:
    """See `wherry.device.Transport.shell`."""
    from wherry_devices.ssh.terminal import converse

    link = reach(spec, threading.Event())
    try:
        return converse(link)
    finally:
        link.close()


class SshConnection:
    """See `wherry_devices.connection.Connection`."""

    def __init__(
        self,
        link: Link,
        parameters: SshParameters,
        services: DeviceServices,
        provisioner: Provisioner,
    ) -> None:
        self._link = link
        self._python = parameters.python
        self._provisioner = provisioner
        self.root = parameters.root
        self.lease = parameters.lease
        self.services = services
        self.cancelled = services.cancelled

    def start(self, script: str, arguments: Sequence[str]) -> SshProcess:
        """By the board's Python, in a session of its own."""
        command = launch_command(self._python, script, arguments)
        return SshProcess(self._link.execute(command))

    def provide(
        self,
        board: Board,
        alternatives: Sequence[Requirements],
        progress: Callable[[str], None] | None = None,
    ) -> str:
        """From wheels that the host fetches and ships."""
        return self._provisioner.provide(board, alternatives, progress)

    def runtime_lock(self, board: Board, alternatives: Sequence[Requirements]) -> str:
        """Of those wheels."""
        return self._provisioner.lock(board, alternatives)

    def close(self) -> None:
        """Hang up: the board ends what it runs for us."""
        self._link.close()


def launch_command(python: str, script: str, arguments: Sequence[str]) -> str:
    """The command line that a login shell on the board is given; see ``_LAUNCH``."""
    text = json.dumps([script, list(arguments)])
    word = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    # the home is the shell's to expand; everything else of the path stands in quotes
    home, path = ("~/", python[2:]) if python.startswith("~/") else ("", python)
    return f"exec {home}'{path}' -I -S -X utf8 -c '{_LAUNCH.format(word=word)}'"


class SshProcess:
    """See `wherry_devices.connection.Process`; a session's channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        channel.settimeout(_POLL_S)
        self._taken = memoryview(b"")
        self._tail = Tail()
        self._listener = threading.Thread(target=self._listen, name="wherry-stderr", daemon=True)
        self._listener.start()

    def write(self, buffers: Sequence[memoryview], limit_s: float) -> None:
        """To its stdin."""
        from paramiko.ssh_exception import SSHException

        for view in _joined(buffers):
            done, deadline = 0, time.monotonic() + limit_s
            while done < len(view):
                piece = view[done : done + _SEND_BYTES]
                try:
                    sent = self._channel.send(piece)  # type: ignore[arg-type]  # it copies any buffer
                except TimeoutError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"it took nothing for {limit_s:g} s") from None
                    continue
                except (EOFError, SSHException) as error:
                    raise BrokenPipeError(f"the connection was lost: {error}") from error
                if sent == 0:
                    raise BrokenPipeError("the connection is closed")
                done += sent
                deadline = time.monotonic() + limit_s

    def readinto(self, view: memoryview) -> int:
        """From its stdout."""
        while not len(self._taken):
            try:
                data = self._receive(self._channel.recv)
            except TimeoutError:
                continue
            if not data:
                return 0
            self._taken = memoryview(data)
        count = min(len(view), len(self._taken))
        view[:count] = self._taken[:count]
        self._taken = self._taken[count:]
        return count

    def wait(self, limit_s: float) -> int | None:
        """As the server tells it."""
        from wherry_devices.ssh.link import exit_status

        return exit_status(self._channel, limit_s)

    def kill(self) -> None:
        """Close its session: an agent ends when its stdin does."""
        with _lost_already():
            self._channel.close()

    def stderr_tail(self) -> str:
        """The last lines; complete where the process has ended."""
        if self._channel.exit_status_ready():
            self._listener.join(1.0)
        return self._tail.text()

    def close_input(self) -> None:
        """Of its stdin."""
        with _lost_already():
            self._channel.shutdown_write()

    def close(self) -> None:
        """Of the session."""
        with _lost_already():
            self._channel.close()
        self._listener.join(1.0)

    def _listen(self) -> None:
        while True:
            try:
                data = self._receive(self._channel.recv_stderr)
            except TimeoutError:
                continue
            except OSError:  # the reader of stdout, or who asks for the status, says so
                return
            if not data:
                return
            self._tail.feed(data)

    def _receive(self, take: Callable[[int], bytes]) -> bytes:
        """What has arrived; empty at the end. Taking it sends the server more room for the next.

        Raises:
            TimeoutError: nothing, so far.
            OSError: the link was lost.
        """
        from paramiko.ssh_exception import SSHException

        try:
            return take(_TAKE_BYTES)
        except (EOFError, SSHException) as error:
            raise ConnectionError(f"the connection was lost: {error}".rstrip(": ")) from error


def _joined(buffers: Sequence[memoryview]) -> Iterator[memoryview]:
    """The same bytes in fewer pieces: each becomes a message of its own."""
    small = bytearray()
    for buffer in buffers:
        view = buffer.cast("B")
        if len(view) < _SMALL_BYTES:
            small += view
            continue
        if small:
            yield memoryview(bytes(small))
            small.clear()
        yield view
    if small:
        yield memoryview(bytes(small))


@contextlib.contextmanager
def _lost_already() -> Iterator[None]:
    """Hang up: where the link was lost, that has happened."""
    from paramiko.ssh_exception import SSHException

    with contextlib.suppress(EOFError, OSError, SSHException):
        yield
