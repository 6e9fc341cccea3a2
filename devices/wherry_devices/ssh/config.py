"""Where a device is and how to log in there: the inventory's words over those of ssh_config(5).

Read are the user's ``~/.ssh/config`` and ``/etc/ssh/ssh_config``, first value wins, as OpenSSH
does. ``Include`` is expanded here, for paramiko's parser does not know it.
"""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.errors import DeviceError

if TYPE_CHECKING:
    from wherry_devices.ssh.parameters import SshParameters

PORT = 22
CONNECT_TIMEOUT_S = 15.0
_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_SYSTEM_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_INCLUDE_DEPTH = 16  # as in OpenSSH
_JUMPS = 8


@dataclass(frozen=True)
class Endpoint:
    """One SSH server, and everything that reaches it.

    Attributes:
        name: for messages: of the device; of a jump, as the configuration has it.
        host: name or address.
        port: of the server.
        user: to log in as.
        keys: private key files, in the order in which they are tried.
        named_keys: the keys were named, by the inventory or the configuration; a missing file is
            then worth a word.
        agent: socket of the user's SSH agent; None: none is asked.
        only_named_keys: of the agent's keys those alone that ``keys`` name (IdentitiesOnly).
        known_as: the name that known_hosts files have it under.
        known_hosts: files of host keys.
        trust_file: of these, the user's own that ``trust`` writes; None: they have none.
        timeout_s: for the connection, and again for each part of the login.
        proxy_command: its stdin and stdout are the connection; None: a socket is.
        jump: the server through which this one is reached.
    """

    name: str
    host: str
    port: int
    user: str
    keys: tuple[Path, ...]
    named_keys: bool
    agent: str | None
    only_named_keys: bool
    known_as: str
    known_hosts: tuple[Path, ...]
    trust_file: Path | None
    timeout_s: float
    proxy_command: str | None = None
    jump: Endpoint | None = None

    def __str__(self) -> str:
        at = f"{self.user}@{self.host}"
        return at if self.port == PORT else f"{at}:{self.port}"

    @property
    def hops(self) -> tuple[Endpoint, ...]:
        """All servers on the way, the nearest first, this one last."""
        return (*(self.jump.hops if self.jump else ()), self)


def resolve(parameters: SshParameters, device: str, env: Mapping[str, str]) -> Endpoint:
    """The endpoint of a device.

    Args:
        parameters: of the inventory; they win over the configuration.
        device: its name, for errors.
        env: the process's variables.

    Raises:
        DeviceError: the configuration cannot be read, or asks for what is not known here.
    """
    from paramiko import SSHConfig
    from paramiko.ssh_exception import SSHException

    home = Path.home()
    user_config = home / ".ssh" / "config"
    try:
        text = _with_includes(user_config, home / ".ssh")
        text += "\nHost *\n" + _with_includes(_SYSTEM_CONFIG, _SYSTEM_CONFIG.parent)
        config = SSHConfig.from_text(text)
        given: dict[str, Any] = {
            "user": parameters.user,
            "port": parameters.port,
            "keys": parameters.keys,
            "timeout_s": parameters.connect_timeout_s,
        }
        return replace(_endpoint(parameters.host, given, config, env, depth=0), name=device)
    except (SSHException, OSError, ValueError) as error:
        raise DeviceError(
            f"the SSH configuration cannot be used: {error}",
            where=device,
            remedy=f"Check {user_config} and {_SYSTEM_CONFIG}.",
        ) from error


def _endpoint(
    name: str, given: Mapping[str, Any], config: Any, env: Mapping[str, str], depth: int
) -> Endpoint:
    if depth > _JUMPS:
        raise ValueError(f"ProxyJump goes through more than {_JUMPS} servers, or in a circle")
    found = config.lookup(name)
    host = found.get("hostname", name)
    port = given.get("port") or int(found.get("port", PORT))
    user = given.get("user") or found.get("user") or getpass.getuser()
    files = given.get("keys") or [
        _path(text) for text in found.get("identityfile", ()) if text.lower() != "none"
    ]
    named = bool(files)
    defaults = [_path(text) for text in _DEFAULT_KEYS]
    known_as = found.get("hostkeyalias", host)
    user_files = found.get("userknownhostsfile")
    system_files = found.get("globalknownhostsfile")
    own = _files(shlex.split(user_files) if user_files else _USER_KNOWN_HOSTS)
    system = _files(shlex.split(system_files) if system_files else _SYSTEM_KNOWN_HOSTS)
    proxy = found.get("proxycommand")
    proxy = None if proxy is None or proxy.lower() == "none" else proxy
    timeout_s = given.get("timeout_s") or float(found.get("connecttimeout", CONNECT_TIMEOUT_S))
    return Endpoint(
        name=name,
        host=host,
        port=port,
        user=user,
        keys=tuple(files or [path for path in defaults if path.exists()]),
        named_keys=named,
        agent=_agent(found.get("identityagent"), env),
        only_named_keys=bool(given.get("keys")) or found.get("identitiesonly") == "yes",
        # OpenSSH writes an alias as it is, and the port of a host where it is another than 22
        known_as=known_as if "hostkeyalias" in found or port == PORT else f"[{host}]:{port}",
        known_hosts=(*own, *system),
        trust_file=own[0] if own else None,
        timeout_s=timeout_s,
        proxy_command=proxy,
        jump=None if proxy else _jump(found.get("proxyjump"), config, env, depth),
    )


def _jump(text: str | None, config: Any, env: Mapping[str, str], depth: int) -> Endpoint | None:
    """Of ``[user@]host[:port][,...]``: the last of them, which is reached through the others."""
    if text is None or text.lower() == "none":
        return None
    jump: Endpoint | None = None
    for hop in text.split(","):
        user, _, address = hop.strip().removeprefix("ssh://").rpartition("@")
        host, port = _split_port(address)
        given = {"user": user or None, "port": port}
        through = _endpoint(host, given, config, env, depth + 1)
        if jump is not None:
            through = _through(through, jump)
        jump = through
    return jump


def _through(endpoint: Endpoint, jump: Endpoint) -> Endpoint:
    """The endpoint reached through ``jump``, whatever else its own configuration says."""
    return replace(endpoint, jump=jump, proxy_command=None)


def _split_port(address: str) -> tuple[str, int | None]:
    """``host``, ``host:port``, ``[v6]:port`` or a bare IPv6 address."""
    if address.startswith("["):
        host, _, port = address[1:].partition("]")
        return host, int(port[1:]) if port else None
    host, separator, port = address.rpartition(":")
    if not separator or ":" in host:
        return address, None
    return host, int(port)


def _agent(setting: str | None, env: Mapping[str, str]) -> str | None:
    """The socket of the agent, as IdentityAgent and SSH_AUTH_SOCK say."""
    if setting is None or setting == "SSH_AUTH_SOCK":
        return env.get("SSH_AUTH_SOCK") or None
    if setting.lower() == "none":
        return None
    if setting.startswith("$"):
        return env.get(setting.strip("${}")) or None
    return str(_path(setting))


def _files(texts: Sequence[str]) -> tuple[Path, ...]:
    return tuple(_path(text) for text in texts if text.lower() != "none")


def _path(text: str) -> Path:
    return Path(text.strip('"')).expanduser()


def _with_includes(file: Path, base: Path, depth: int = 0) -> str:
    """A configuration's text with its includes in their places; empty where there is no file.

    After an include the block that it stood in goes on, so its first line is said again.
    """
    if depth > _INCLUDE_DEPTH:
        raise ValueError(f"{file} is included too deep, or includes itself")
    try:
        lines = file.read_text("utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return ""
    out: list[str] = []
    block = "Host *"
    for line in lines:
        words = _words(line)
        keyword = words[0].lower() if words else ""
        if keyword in {"host", "match"}:
            block = line
        if keyword != "include":
            out.append(line)
            continue
        for pattern in words[1:]:
            wanted = _path(pattern)
            path = wanted if wanted.is_absolute() else base / wanted
            for included in _matching(path):
                out.extend([block, _with_includes(included, base, depth + 1)])
        out.append(block)
    return "\n".join(out)


def _words(line: str) -> Sequence[str]:
    keyword, _, rest = line.strip().replace("=", " ", 1).partition(" ")
    if keyword.lower() != "include":
        return [keyword]
    return [keyword, *shlex.split(rest)]


def _matching(path: Path) -> list[Path]:
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
