"""Host keys: known_hosts files as sshd(8) describes them, strictly kept.

A server whose key is not known is refused, whatever StrictHostKeyChecking says; ``trust`` is the
only way in. Hashed names, patterns, ``[host]:port`` and ``@revoked`` lines are understood; keys
signed by a certificate authority (``@cert-authority``) are not.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import DeviceError

if TYPE_CHECKING:
    from paramiko import PKey

    from wherry_devices.ssh.config import Endpoint

_RSA = ("rsa-sha2-512", "rsa-sha2-256")  # signatures by a key of type ssh-rsa


@dataclass(frozen=True)
class KnownKey:
    """A line of a known_hosts file that speaks of a server.

    Attributes:
        kind: of the key, e.g. ``ssh-ed25519``.
        blob: the key in base64.
        revoked: it must never be accepted.
        place: ``file:line``.
    """

    kind: str
    blob: str
    revoked: bool
    place: str


def known_keys(endpoint: Endpoint) -> list[KnownKey]:
    """What the files say of a server."""
    return [key for file in endpoint.known_hosts for key in _of_file(file, endpoint.known_as)]


def preferred_kinds(known: Iterable[KnownKey], supported: Iterable[str]) -> list[str]:
    """The algorithms to ask the server for: those first whose keys we know."""
    kinds: set[str] = set()
    for key in known:
        kinds |= set(_RSA) if key.kind == "ssh-rsa" else {key.kind}
    supported = list(supported)
    return sorted(supported, key=lambda name: name not in kinds)


def check(endpoint: Endpoint, key: PKey, known: Iterable[KnownKey]) -> None:
    """Accept the server's key, or raise `DeviceError`; nothing was sent to it yet but a hello."""
    known = list(known)
    kind, blob = key.get_name(), key.get_base64()
    same = [entry for entry in known if (entry.kind, entry.blob) == (kind, blob)]
    if any(entry.revoked for entry in same):
        raise DeviceError(
            f"the host key of {endpoint} is marked as revoked in {same[0].place}",
            where=endpoint.name,
            remedy="Do not connect. Ask whoever looks after the board for its new key.",
        )
    if same:
        return
    others = [entry for entry in known if entry.kind == kind and not entry.revoked]
    if others:
        raise DeviceError(
            f"the host key of {endpoint} is not the known one: it shows {kind} {fingerprint(key)}, "
            f"and {others[0].place} has another. Either the board was set up anew, or somebody "
            "else answers in its place",
            where=endpoint.name,
            remedy="If it was set up anew, remove that line, and use `wherry devices trust`.",
        )
    raise DeviceError(
        f"the host key of {endpoint} is not known: {kind} {fingerprint(key)}",
        where=endpoint.name,
        remedy="Compare it with the board's own, and accept it with `wherry devices trust NAME`.",
    )


def fingerprint(key: PKey) -> str:
    """As ``ssh-keygen -l`` prints it: ``SHA256:...``."""
    return str(key.fingerprint)


def remember(endpoint: Endpoint, key: PKey) -> Path:
    """Write the server's key down in the user's known_hosts file, which is returned."""
    file = endpoint.trust_file
    if file is None:
        raise DeviceError(
            "the SSH configuration names no file of known hosts to write to",
            where=endpoint.name,
            remedy="Name one with UserKnownHostsFile.",
        )
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = f"{endpoint.known_as} {key.get_name()} {key.get_base64()}\n".encode()
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
    return file


def _of_file(file: Path, name: str) -> Iterator[KnownKey]:
    try:
        text = file.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeviceError(
            f"the known host keys cannot be read: {error}",
            where=str(file),
            remedy="Make the file readable.",
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in {"", "@revoked"}:
            continue
        if _names(words[0], name):
            yield KnownKey(words[1], words[2], bool(marker), f"{file}:{number}")


def _names(patterns: str, name: str) -> bool:
    """Whether the first word of a line means a server."""
    if patterns.startswith("|1|"):
        from paramiko import HostKeys

        return bool(HostKeys.hash_host(name, patterns) == patterns)
    found = False
    for pattern in patterns.lower().split(","):
        negated = pattern.startswith("!")
        # brackets are no sets of characters here, but part of [host]:port
        literal = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(name.lower(), literal):
            if negated:
                return False
            found = True
    return found
