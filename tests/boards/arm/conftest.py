"""Emulated ARM boards: a Debian root of another architecture with a real sshd, under qemu-user.

The roots are built once a session, or kept where WHERRY_TEST_BOARDS says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from wherry.filelock import hold

_HERE = Path(__file__).parent
_PACKAGES = [
    *("base-files", "base-passwd", "bash", "dash", "coreutils", "grep", "sed", "mawk", "findutils"),
    *("tar", "gzip", "procps", "hostname", "libc-bin", "util-linux", "openssh-server"),
    *("openssh-sftp-server", "python3", "ca-certificates", "libstdc++6", "libgomp1"),
]


def _missing(qemu: str) -> str | None:
    """Why there can be no such board here."""
    if os.geteuid() != 0:
        return "an emulated board needs root"
    if shutil.which(qemu) is None:
        return f"{qemu} is missing: apt install qemu-user-static binfmt-support"
    for program in ("ssh-keygen", "dpkg-deb", "unshare", "apt-get"):
        if shutil.which(program) is None:
            return f"{program} is missing"
    return None


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """Builds a root: ``roots(arch, *packages)``."""
    named = os.environ.get("WHERRY_TEST_BOARDS")
    folder = Path(named) if named else tmp_path_factory.mktemp("boards")
    folder.mkdir(parents=True, exist_ok=True)

    def build(arch, *packages):
        root = folder / arch
        with hold(folder / f"{arch}.lock"):  # several test processes may share the folder
            if not (root / "complete").exists():
                subprocess.run(
                    [_HERE / "build_root.sh", arch, root, *_PACKAGES, *packages],
                    check=True,
                    stdin=subprocess.DEVNULL,
                    timeout=280,
                )
                (root / "complete").touch()
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        if worker is None:
            return root
        own = folder / f"{arch}-{worker}"  # a board writes keys and settings into its root
        if not (own / "complete").exists():
            shutil.rmtree(own, ignore_errors=True)
            subprocess.run(["cp", "-a", root, own], check=True, timeout=280)
        return own

    return build


@contextlib.contextmanager
def _running(root: Path, state: Path, **variables: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [_HERE / "start_board.sh", root, str(port), state],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert time.monotonic() < deadline, (state / "log").read_text()
            assert process.poll() is None, (state / "log").read_text()
            time.sleep(0.1)
        yield SimpleNamespace(
            host="127.0.0.1",
            port=port,
            user="root",
            key=state / "id",
            known_hosts=(state / "known_hosts").read_text(),
        )
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself: its log says why
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def arm64_board(roots, tmp_path_factory):
    """A board with a 64-bit ARM, and nothing but python3."""
    if (why := _missing("qemu-aarch64-static")) is not None:
        pytest.skip(why)
    with _running(roots("arm64"), tmp_path_factory.mktemp("arm64-state")) as board:
        yield board


@pytest.fixture(scope="session")
def armhf_board(roots, tmp_path_factory):
    """A board with a 32-bit ARM and Debian's numpy."""
    if (why := _missing("qemu-arm-static")) is not None:
        pytest.skip(why)
    root = roots("armhf", "python3-numpy")
    state = tmp_path_factory.mktemp("armhf-state")
    with _running(root, state, QCPU="cortex-a15") as board:
        yield board


@pytest.fixture
def project(tmp_path, monkeypatch, wherry_home):
    """A copy of the examples, with a board in its inventory: ``project(board)``."""

    def make(board):
        home = tmp_path / "user"
        (home / ".ssh").mkdir(parents=True)
        (home / ".ssh/known_hosts").write_text(board.known_hosts)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        folder = tmp_path / "manifests"
        shutil.copytree(_HERE.parents[2] / "manifests", folder)
        (folder / "devices.yaml").write_text(
            "devices:\n"
            f"  board: {{ssh: {{host: {board.host}, port: {board.port}, user: {board.user}, "
            f"key: {board.key}}}, tags: [arm]}}\n"
        )
        return folder

    return make
