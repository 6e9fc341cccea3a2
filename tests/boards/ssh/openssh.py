"""Real sshd of OpenSSH on loopback addresses, as boards; needs root and openssh-server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_SSHD = "/usr/sbin/sshd"
_CONFIG = """\
Port {port}
ListenAddress {host}
HostKey {folder}/hostkey
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/pid
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
MaxSessions 100
MaxStartups 200:30:400
UseDNS no
SetEnv HOME={folder}/home
Subsystem sftp internal-sftp
"""


def missing() -> str | None:
    """Why there can be no such board here."""
    if os.geteuid() != 0:
        return "sshd needs root"
    for program in (_SSHD, "ssh-keygen"):
        if shutil.which(program) is None:
            return f"{program} is missing: apt install openssh-server openssh-client"
    return None


class OpenSsh:
    """One sshd; a context manager.

    Args:
        folder: of its own.
        host: a loopback address of its own.
        prefix: what starts it, as ``ip netns exec NAME``.

    Attributes:
        home: its home folder.
    """

    port = 22022
    user = "root"

    def __init__(self, folder: Path, host: str, prefix: Sequence[str] = ()) -> None:
        self.host = host
        self._prefix = tuple(prefix)
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self._folder = folder
        Path("/run/sshd").mkdir(exist_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "hostkey"], check=True
        )
        config = _CONFIG.format(port=self.port, host=host, folder=folder)
        (folder / "config").write_text(config)
        self.authorized = _Keys(folder / "authorized_keys")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host_key(self) -> str:
        """Its public host key: type and base64."""
        return " ".join((self._folder / "hostkey.pub").read_text().split()[:2])

    def __enter__(self) -> OpenSsh:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.signal_sessions(signal.SIGKILL)
        self.stop()

    def start(self) -> None:
        """Listen."""
        self._process = subprocess.Popen(
            [*self._prefix, _SSHD, "-D", "-f", self._folder / "config", "-E", self._folder / "log"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError((self._folder / "log").read_text())

    def stop(self) -> None:
        """Listen no more; sessions live on."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait(10)
        self._process = None
        # a child that was just forked listens too, until it has closed what it does not serve
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((self.host, self.port)) != 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"{self.host}:{self.port} listens on")

    def signal_sessions(self, number: signal.Signals) -> None:
        """Send a signal to the processes of sshd that serve connections."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), number)


class _Keys(list[str]):
    """Public keys that log in, written to the file at once."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        file.write_text("")

    def append(self, line: str) -> None:
        super().append(line)
        self._file.write_text("\n".join([*self, ""]))
