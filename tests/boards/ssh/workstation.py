"""The host's side of the tests: a user's home folder with keys, known_hosts and an ssh config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import asyncssh
from ruamel.yaml import YAML


class SshBoard(Protocol):
    """What the kinds of boards of these tests have in common."""

    host: str
    port: int
    user: str
    authorized: list[str]

    @property
    def host_key(self) -> str: ...


class Workstation:
    """A home folder; tests set HOME to it.

    Args:
        home: made at need.

    Attributes:
        key: the user's private key.
        public: its public half, an OpenSSH line.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ssh = home / ".ssh"
        self.ssh.mkdir(parents=True)
        self.ssh.chmod(0o700)
        self.key = self.ssh / "id_ed25519"
        self.public = self.new_key("id_ed25519")
        self.known_hosts = self.ssh / "known_hosts"

    def environment(self) -> dict[str, str]:
        """For a child process: this home, and no agent of the real user."""
        environment = dict(os.environ, HOME=str(self.home))
        environment.pop("SSH_AUTH_SOCK", None)
        return environment

    def new_key(
        self, name: str, algorithm: str = "ssh-ed25519", passphrase: str | None = None
    ) -> str:
        """Make a key pair in ``.ssh``; its public line."""
        key = asyncssh.generate_private_key(algorithm)
        path = self.ssh / name
        path.write_bytes(key.export_private_key(passphrase=passphrase))
        path.chmod(0o600)
        public = key.export_public_key().decode()
        path.with_name(f"{name}.pub").write_text(public)
        return public

    def enter(self, board: SshBoard, *, trust: bool = True) -> None:
        """Have the board let our key in, and know its host key."""
        board.authorized.append(self.public)
        if trust:
            self.trust(board)

    def trust(self, board: SshBoard, *, host: str | None = None, port: int | None = None) -> None:
        """Know the board's host key, perhaps at another address, as that of a proxy."""
        line = f"[{host or board.host}]:{port or board.port} {board.host_key}\n"
        with self.known_hosts.open("a") as stream:
            stream.write(line)

    def alias(self, name: str, board: SshBoard, **options: str) -> None:
        """Write a Host into ``.ssh/config``."""
        lines = {"HostName": board.host, "Port": str(board.port), "User": board.user, **options}
        with (self.ssh / "config").open("a") as stream:
            stream.write(f"Host {name}\n")
            stream.writelines(f"    {key} {value}\n" for key, value in lines.items())

    def parameters(self, board: SshBoard, **more: Any) -> dict[str, Any]:
        """The ``ssh:`` of the board in an inventory."""
        return {
            "host": board.host,
            "port": board.port,
            "user": board.user,
            "key": str(self.key),
            **more,
        }


def write_inventory(folder: Path, devices: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``devices.yaml`` there: device to its ``ssh:`` parameters."""
    entries = {name: {"ssh": dict(parameters)} for name, parameters in devices.items()}
    with (folder / "devices.yaml").open("w") as stream:
        YAML(typ="safe").dump({"devices": entries}, stream)
