"""Logging in: key files, the user's agent, a password; what was tried is told where none works.

Secrets are asked for on the terminal, or come from a variable that the inventory names.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import DeviceError
from wherry_devices.ssh.secrets import SECRETS, Secrets

if TYPE_CHECKING:
    from paramiko import PKey, Transport

    from wherry_devices.ssh.config import Endpoint

_TRIES = 3  # for a password or a passphrase that is typed


@dataclass(frozen=True)
class Login:
    """How to log in at one endpoint.

    Attributes:
        password_env: see `SshParameters`.
        env: the process's variables.
        cancelled: when it is set, nothing more is asked.
        secrets: see there.
    """

    endpoint: Endpoint
    password_env: str | None
    env: Mapping[str, str]
    cancelled: threading.Event = field(default_factory=threading.Event)
    secrets: Secrets = SECRETS

    def run(self, transport: Transport) -> None:
        """Log in.

        Raises:
            DeviceError: nothing that was tried is accepted; the text lists it.
            paramiko.SSHException, OSError, EOFError: the connection failed.
        """
        from paramiko.ssh_exception import AuthenticationException, BadAuthenticationType

        user = self.endpoint.user
        tried: list[str] = []
        try:
            allowed = transport.auth_none(user)
            if not allowed:
                return  # the server asks for nothing
        except BadAuthenticationType as error:
            allowed = list(error.allowed_types)
        if "publickey" in allowed:
            for name, key in self._keys(tried):
                try:
                    rest = transport.auth_publickey(user, key)
                except AuthenticationException:
                    if not transport.is_active():
                        if any(word.endswith(": refused") for word in tried):
                            break  # "too many authentication failures"
                        raise
                    tried.append(f"{name}: refused")
                    continue
                if not rest:
                    return
                allowed = rest  # accepted, and the server asks for a second factor
                break
        words = {"password", "keyboard-interactive"} & set(allowed)
        if words and transport.is_active() and self._password(transport, tried):
            return
        if not transport.is_active():
            tried.append("the server hung up")
        raise self._refused(tried, allowed)

    def _keys(self, tried: list[str]) -> Iterator[tuple[str, PKey]]:
        """Keys in the order of OpenSSH: those of the agent that are named, files, other agent's."""
        from paramiko import PKey

        agent = self._agent_keys()
        named = {text for path in self.endpoint.keys if (text := _public(path))}
        held = [(name, key) for name, key in agent if key.get_base64() in named]
        yield from held
        for path in self.endpoint.keys:
            if any(key.get_base64() == _public(path) for _, key in held):
                continue
            if not path.exists():
                if self.endpoint.named_keys:
                    tried.append(f"{path}: there is no such file")
                continue
            loaded = self._load(path, tried)
            if isinstance(loaded, PKey):
                yield str(path), loaded
        if not self.endpoint.only_named_keys:
            yield from (pair for pair in agent if pair not in held)

    def _agent_keys(self) -> list[tuple[str, PKey]]:
        if self.endpoint.agent is None:
            return []
        import socket

        from paramiko.agent import AgentSSH
        from paramiko.ssh_exception import SSHException

        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self.endpoint.agent)
            client = AgentSSH()
            # its Agent takes no socket of our choice
            client._connect(connection)  # type: ignore[attr-defined]
            keys = client.get_keys()
        except (OSError, SSHException):
            return []  # an agent that is gone holds no keys
        return [(f"the agent's {key.get_name()}", key) for key in keys]

    def _load(self, path: Path, tried: list[str]) -> PKey | None:
        """A private key; asks for its passphrase where it has one."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from paramiko import PKey
        from paramiko.pkey import UnknownKeyType
        from paramiko.ssh_exception import PasswordRequiredException, SSHException

        passphrase: bytes | None = None
        for attempt in range(_TRIES + 1):
            try:
                return PKey.from_path(path, passphrase)  # type: ignore[arg-type]  # bytes, whatever its hint says
            except (PasswordRequiredException, TypeError):
                wrong = False  # it has a passphrase and none was given
            except ValueError as error:
                if passphrase is None:
                    tried.append(f"{path}: no private key ({error})")
                    return None
                wrong = True
            except (OSError, SSHException, UnsupportedAlgorithm, UnknownKeyType) as error:
                tried.append(f"{path}: {error or type(error).__name__}")
                return None
            if attempt == _TRIES:
                break
            prompt = f"Passphrase of {path}: "
            text = self.secrets.ask(str(path), prompt, self.cancelled, again=wrong)
            if text is None:
                tried.append(f"{path}: has a passphrase, and there is no terminal to ask for it")
                return None
            passphrase = text.encode()
        tried.append(f"{path}: the passphrase is wrong")
        return None

    def _password(self, transport: Transport, tried: list[str]) -> bool:
        from paramiko.ssh_exception import AuthenticationException

        endpoint, wrong = self.endpoint, False
        for _ in range(_TRIES):
            text = self.env.get(self.password_env) if self.password_env else None
            if text is None:
                prompt = f"Password of {endpoint}: "
                text = self.secrets.ask(str(endpoint), prompt, self.cancelled, again=wrong)
            if text is None:
                tried.append("password: there is no terminal to ask for it")
                return False
            try:
                transport.auth_password(endpoint.user, text)
                return True
            except AuthenticationException:
                wrong = True
                if self.password_env or not transport.is_active():
                    break
        tried.append(
            f"the password in ${self.password_env}: refused"
            if self.password_env
            else "password: refused"
        )
        return False

    def _refused(self, tried: list[str], allowed: list[str]) -> DeviceError:
        return DeviceError(
            f"{self.endpoint} lets nobody in with what was tried: "
            f"{'; '.join(tried) or 'nothing, for no key was found'}. It accepts: "
            f"{', '.join(allowed) or 'nothing'}",
            where=self.endpoint.name,
            remedy="Try `ssh` by hand; name the right user, and its key with `key:`, in "
            "devices.yaml or ~/.ssh/config.",
        )


def _public(path: Path) -> str | None:
    """The public half of a key file in base64, where it lies beside it."""
    try:
        words = path.with_name(f"{path.name}.pub").read_text("utf-8").split()
    except (OSError, ValueError):
        return None
    return words[1] if len(words) > 1 else None
