"""A link: a logged-in SSH connection to an endpoint, through its jumps."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wherry.errors import DeviceError, DeviceLostError, Interrupted
from wherry_devices.ssh import host_keys
from wherry_devices.ssh.login import Login

# What paramiko logs as errors comes to us as exceptions; nothing of it belongs on the terminal.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from paramiko import Channel, PKey, Transport

    from wherry_devices.ssh.config import Endpoint

# Encryption that costs the least where the processor has AES, and what every server has.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_WINDOW_BYTES = 1 << 24  # how much a server may send before we take it
_POLL_S = 0.2
_ACCEPT_S = 0.005  # between two looks for the answer to the first message of a login
_TYPING_S = 300.0  # a password is typed while the server waits
_UNACKNOWLEDGED_S = 30  # the kernel gives up a peer that takes nothing for so long


class Link:
    """See the module.

    Args:
        endpoint: the last hop.
        transports: paramiko's, one a hop; the last one is the board's.
        cancelled: when it is set, what waits gives up.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        transports: list[Transport],
        cancelled: threading.Event,
    ) -> None:
        self.endpoint = endpoint
        self._transports = transports
        self._cancelled = cancelled

    @property
    def is_up(self) -> bool:
        """As far as is known; a link that hangs looks up."""
        return self._transports[-1].is_active()

    def execute(self, command: str) -> Channel:
        """Start a command in a session of its own.

        Raises:
            DeviceLostError: the link is down, or the server does not answer.
            DeviceError: the server refuses.
        """
        from paramiko.ssh_exception import ChannelException

        transport = self._transports[-1]
        with _watched(transport, self.endpoint, self._cancelled, "start a command"):
            try:
                channel = transport.open_session(window_size=_WINDOW_BYTES)
                channel.exec_command(command)
            except ChannelException as error:
                raise DeviceError(
                    f"{self.endpoint} opens no further session: {error.text}",
                    where=self.endpoint.name,
                    remedy="Raise MaxSessions in the board's sshd_config.",
                ) from error
        return channel

    def shell(self, term: str, size: tuple[int, int]) -> Channel:
        """Start the user's login shell on a terminal of (columns, lines)."""
        transport = self._transports[-1]
        with _watched(transport, self.endpoint, self._cancelled, "start a shell"):
            channel = transport.open_session()
            channel.get_pty(term, *size)
            channel.invoke_shell()
        return channel

    def close(self) -> None:
        """Hang up, at once."""
        for transport in reversed(self._transports):
            transport.close()


def open_link(
    endpoint: Endpoint,
    *,
    password_env: str | None,
    env: Mapping[str, str],
    cancelled: threading.Event,
) -> Link:
    """Connect and log in.

    Raises:
        DeviceLostError: it cannot be reached; perhaps later.
        DeviceError: it is not the server that it was, or lets us not in.
        Interrupted: ``cancelled`` was set.
    """
    transports: list[Transport] = []
    try:
        for hop in endpoint.hops:
            transport = _greet(hop, transports, cancelled)
            with _watched(transport, hop, cancelled, "log in"):
                # the password of the inventory is the device's own, not that of a jump
                own = password_env if hop is endpoint else None
                Login(hop, own, env, cancelled).run(transport)
    except BaseException:
        for transport in reversed(transports):
            transport.close()
        raise
    return Link(endpoint, transports, cancelled)


def learn_host_keys(
    endpoint: Endpoint,
    *,
    confirm: Callable[[Endpoint, PKey], bool],
    env: Mapping[str, str],
    cancelled: threading.Event,
) -> list[tuple[Endpoint, PKey, str]]:
    """Ask each server on the way for its key, and remember those that ``confirm`` accepts.

    Returns:
        Per hop its key, and ``is known`` or ``was added to FILE``.

    Raises:
        DeviceError: a key is another than the known one, or was not accepted; as `open_link`.
    """
    transports: list[Transport] = []
    found: list[tuple[Endpoint, PKey, str]] = []
    try:
        for hop in endpoint.hops:
            transport = _greet(hop, transports, cancelled, strict=False)
            key, known = transport.get_remote_server_key(), host_keys.known_keys(hop)
            state = "is known"
            if not any(entry.kind == key.get_name() for entry in known):
                if not confirm(hop, key):
                    raise DeviceError(
                        f"the host key of {hop} was not accepted; nothing was written",
                        where=hop.name,
                        remedy="Compare it with what the board itself says: "
                        "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`.",
                    )
                state = f"was added to {host_keys.remember(hop, key)}"
            host_keys.check(hop, key, host_keys.known_keys(hop))
            found.append((hop, key, state))
            if hop is not endpoint:
                with _watched(transport, hop, cancelled, "log in"):
                    Login(hop, None, env, cancelled).run(transport)
    finally:
        for transport in reversed(transports):
            transport.close()
    return found


def _greet(
    endpoint: Endpoint,
    transports: list[Transport],
    cancelled: threading.Event,
    strict: bool = True,
) -> Transport:
    """Connect to a hop, agree on keys, and check the host's; the transport joins the others."""
    from paramiko.ssh_exception import IncompatiblePeer, SSHException

    stream = _stream(endpoint, transports, cancelled)
    try:
        transport = _transport_class()(stream)
        transports.append(transport)
        known = host_keys.known_keys(endpoint)
        options = transport.get_security_options()
        options.ciphers = [name for name in _CIPHERS if name in options.ciphers]
        options.key_types = host_keys.preferred_kinds(known, options.key_types)
        transport.banner_timeout = transport.auth_timeout = endpoint.timeout_s
        with _watched(transport, endpoint, cancelled, "agree on keys"):
            try:
                transport.start_client(timeout=endpoint.timeout_s)
                key = transport.get_remote_server_key()  # raises where that took too long
            except IncompatiblePeer as error:
                raise DeviceError(
                    f"{endpoint} speaks no SSH that is still safe: {error}",
                    where=endpoint.name,
                    remedy="Update the board's SSH server (OpenSSH 7 or later, dropbear 2020 or "
                    "later).",
                ) from error
            except SSHException as error:
                if transport.remote_version:
                    raise
                raise DeviceLostError(
                    f"what listens at {endpoint} does not answer as an SSH server",
                    where=endpoint.name,
                    remedy="Check host and port, and that sshd runs there.",
                ) from error
        if strict:
            host_keys.check(endpoint, key, known)
    except BaseException:
        stream.close()
        raise
    return transport


def _stream(endpoint: Endpoint, transports: list[Transport], cancelled: threading.Event) -> Any:
    """The bytes' way to a server: a socket, a jump's channel, or a command's pipes."""
    from paramiko import ProxyCommand
    from paramiko.ssh_exception import ChannelException

    if endpoint.proxy_command is not None:
        try:
            return ProxyCommand(endpoint.proxy_command)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"the ProxyCommand cannot be started: {error}",
                where=endpoint.name,
                remedy="Check ~/.ssh/config.",
            ) from error
    if transports:
        jump = transports[-1]
        with _watched(jump, endpoint, cancelled, "be reached through its jump"):
            try:
                return jump.open_channel(
                    "direct-tcpip",
                    (endpoint.host, endpoint.port),
                    ("127.0.0.1", 0),
                    timeout=endpoint.timeout_s,
                )
            except ChannelException as error:
                raise DeviceLostError(
                    f"the jump cannot reach {endpoint}: {error.text}",
                    where=endpoint.name,
                    remedy="Check that the board is up.",
                ) from error
    try:
        stream = socket.create_connection((endpoint.host, endpoint.port), endpoint.timeout_s)
    except OSError as error:
        raise DeviceLostError(
            f"{endpoint} cannot be reached: {_why(error, endpoint)}",
            where=endpoint.name,
            remedy="Check that the board is up, its address, and that sshd runs there.",
        ) from error
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # a link that is down is noticed by the kernel, also in the middle of a write
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED_S * 1000),
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 4),
    ):
        if hasattr(socket, name):  # Linux has all of them
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return stream


def _why(error: OSError, endpoint: Endpoint) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {endpoint.timeout_s:g} s"
    return error.strerror or str(error)


@contextmanager
def _watched(
    transport: Transport, endpoint: Endpoint, cancelled: threading.Event, what: str
) -> Iterator[None]:
    """Bound what paramiko does without a bound, and say what failed in our words.

    A thread ends the transport where the time is over or the run was stopped; whatever waits on it
    then raises.
    """
    from paramiko.ssh_exception import SSHException

    finished, late = threading.Event(), threading.Event()
    limit_s = 2 * endpoint.timeout_s + (0 if what != "log in" else _TYPING_S)

    def watch() -> None:
        deadline = time.monotonic() + limit_s
        while not finished.wait(_POLL_S):
            if cancelled.is_set() or time.monotonic() > deadline:
                late.set()
                transport.close()
                return

    watcher = threading.Thread(target=watch, name="wherry-watch", daemon=True)
    watcher.start()
    try:
        yield
    except (DeviceError, Interrupted):
        raise
    except (SSHException, OSError, EOFError, AttributeError) as error:
        if cancelled.is_set():
            raise Interrupted("the session was stopped") from error
        if isinstance(error, AttributeError) and transport.is_active():
            raise  # a bug; paramiko's own come of a transport that was closed meanwhile
        reason = f"no answer within {limit_s:g} s" if late.is_set() else _words(error, transport)
        raise DeviceLostError(
            f"{endpoint} was lost in the attempt to {what}: {reason}",
            where=endpoint.name,
            remedy="Check that the board is up, and the network.",
        ) from error
    finally:
        finished.set()


def _words(error: BaseException, transport: Transport) -> str:
    """An exception of paramiko's for people; some come without any text."""
    saved = transport.get_exception()
    for found in (error, saved):
        text = str(found).strip() if found is not None else ""
        if text:
            return text
    return "the connection was closed"


def _transport_class() -> type[Transport]:
    """Paramiko's transport, with some things mended.

    - It drops the ``exit-signal`` message (RFC 4254, 6.10): a crash would look like a lost link.
      Its table of handlers is private, and has been the same since 2003.
    - The plain one asks for the login service once a try, which not every server takes (RFC 4252,
      4); the one that does not loses an answer that comes before it has begun to wait.
    - A login that is not answered would look like one that is refused; where the link is lost
      before it begins, the parent waits for ever.
    """
    import paramiko
    from paramiko.auth_handler import AuthOnlyHandler
    from paramiko.common import MSG_CHANNEL_REQUEST, cMSG_SERVICE_REQUEST, cMSG_USERAUTH_REQUEST

    def handle(channel: Any, message: Any) -> None:
        start = message.packet.tell()
        if message.get_text() == "exit-signal":
            message.get_boolean()
            channel.exit_signal = message.get_text()
            channel.status_event.set()
            return
        message.packet.seek(start)
        paramiko.Channel._handle_request(channel, message)  # type: ignore[attr-defined]

    class Waiting(AuthOnlyHandler):
        def send_auth_request(
            self, username: str, method: str, finish_message: Callable[[Any], None] | None = None
        ) -> list[str]:
            self.auth_method, self.username = method, username
            request = paramiko.Message()
            request.add_byte(cMSG_USERAUTH_REQUEST)
            for text in (username, "ssh-connection", method):
                request.add_string(text)
            if finish_message is not None:
                finish_message(request)
            self.auth_event = threading.Event()
            with self.transport.lock:
                self.transport._send_message(request)  # type: ignore[attr-defined]  # as the parent
            try:
                return list(self.wait_for_response(self.auth_event))
            except paramiko.AuthenticationException as error:
                if "timeout" in str(error):
                    raise paramiko.SSHException("the login is not answered") from error
                raise

    class Mended(paramiko.ServiceRequestingTransport):  # type: ignore[name-defined,misc]  # not in its stubs
        _channel_handler_table = {  # noqa: RUF012 -- as in the parent
            **paramiko.Transport._channel_handler_table,  # type: ignore[attr-defined]
            MSG_CHANNEL_REQUEST: handle,
        }

        def get_auth_handler(self) -> Waiting:
            return Waiting(self)

        def ensure_session(self) -> None:
            if self._service_userauth_accepted:
                return
            request = paramiko.Message()
            request.add_byte(cMSG_SERVICE_REQUEST)
            request.add_string("ssh-userauth")
            self._send_message(request)
            while not self._service_userauth_accepted:
                if not self.is_active():
                    raise EOFError
                time.sleep(_ACCEPT_S)
            self.auth_handler = self.get_auth_handler()

    return Mended


def exit_status(channel: Channel, limit_s: float) -> int | None:
    """How a channel's process ended: its status, or minus its signal's number; None: it runs.

    Raises:
        OSError: nobody knows; the link was lost.
    """
    if not channel.status_event.wait(limit_s):
        return None
    name = getattr(channel, "exit_signal", None)
    if name is not None:
        known = signal.Signals.__members__.get(f"SIG{name}")
        if known is None:
            raise OSError(f"it was ended by the signal {name}")
        return -int(known)
    if channel.exit_status < 0:
        raise OSError("the connection was lost")
    return int(channel.exit_status)
