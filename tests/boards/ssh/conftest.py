"""Boards over SSH: in the test's process, real sshd on loopback, and the links to them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from loading import load

from wherry.device import DeviceSpec
from wherry_devices.agent.lease import Lease
from wherry_devices.session import BoardDevice, Patience
from wherry_devices.ssh.parameters import SshParameters
from wherry_devices.transport.ssh import SshConnection, reach


def _load(stem: str) -> ModuleType:
    """A file of this folder."""
    return load(Path(__file__).with_name(f"{stem}.py"))


@pytest.fixture
def workstation(tmp_path, monkeypatch):
    """The user's home folder: HOME of this process and its children."""
    made = _load("workstation").Workstation(tmp_path / "workstation")
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return made


@pytest.fixture
def stack():
    """What tests enter is left when they end, the last first."""
    with contextlib.ExitStack() as opened:
        yield opened


@pytest.fixture
def inprocess(tmp_path, stack):
    """Makes boards inside this process: ``inprocess(shell=..., password=...)``."""
    module = _load("inprocess")
    count = 0

    def make(**options):
        nonlocal count
        count += 1
        return stack.enter_context(module.InProcessBoard(tmp_path / f"board{count}", **options))

    return make


@pytest.fixture
def board(inprocess, workstation):
    """A board inside this process that our key enters and whose host key we know."""
    made = inprocess()
    workstation.enter(made)
    return made


@pytest.fixture
def proxy(stack):
    """Puts a link in front of a board: ``proxy(board, delay_s=..., rate=...)``."""
    module = _load("proxy")
    return lambda board, **options: stack.enter_context(
        module.Proxy((board.host, board.port), **options)
    )


@pytest.fixture
def noisy_shell(tmp_path):
    """A login shell that prints, and waits, first: ``noisy_shell(text, sleep_s)`` is its path."""
    return lambda text, sleep_s=0.0: _load("inprocess").noisy_shell(
        tmp_path / "noisy-shell", text, sleep_s
    )


@pytest.fixture
def openssh(tmp_path, stack, workstation):
    """Makes boards of real sshd that our key enters: ``openssh(host=..., prefix=...)``."""
    module = _load("openssh")
    if (why := module.missing()) is not None:
        pytest.skip(why)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = 0

    def make(host=None, prefix=()):
        nonlocal count
        count += 1
        folder, own = tmp_path / f"sshd{count}", f"127.0.{9 + worker}.{count}"
        made = stack.enter_context(module.OpenSsh(folder, host or own, prefix))
        workstation.enter(made)
        return made

    return make


class Provided:
    """Provides the interpreter of the tests."""

    def provide(self, board, alternatives, progress=None):
        return sys.executable

    def lock(self, board, alternatives):
        return "lock"


@pytest.fixture
def device(bench, workstation):
    """Makes the device of a board: ``device(board, **parameters)``."""

    def make(board, **more):
        values = {
            "lease": str(board.home / "lease"),
            "root": str(board.home / ".wherry"),
            "python": sys.executable,
            **more,
        }
        parameters = SshParameters.model_validate(workstation.parameters(board, **values))
        spec = DeviceSpec("bench", "ssh", parameters)
        services = bench.services()

        def connect():
            return SshConnection(reach(spec, services.cancelled), parameters, services, Provided())

        patience = Patience(parameters.limit_s, parameters.wait_s, parameters.silence_s)
        return BoardDevice("bench", connect, patience)

    return make


@pytest.fixture
def hosted(bench):
    """Hosts the fake runner in a session: ``hosted(session)`` is a context manager."""

    artifact = bench.artifact()

    @contextlib.contextmanager
    def host(session, **options):
        with session.host(artifact, bench.target(**options), bench.backend, {}) as runner:
            yield runner

    return host


@pytest.fixture
def agents():
    """The process ids of agents whose folder is this board's: ``agents(board)``."""

    def find(board):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if str(board.home / ".wherry").encode() in words:
                    found.append(int(folder.name))
        return found

    return find


@pytest.fixture
def free(agents):
    """Whether nothing of ours is left on a board: no process, no lease, no half-made folder.

    A file that broke off stays, under a name that says so, for who sends it again.
    """

    def wait(board):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            lease = Lease(board.home / "lease")
            if agents(board) == [] and lease.acquire({"owner": "test"}) is None:
                lease.release()
                left = (board.home / ".wherry/store/incoming").iterdir()
                return all(re.fullmatch(r"[0-9a-f]{64}\.\d+", path.name) for path in left)
            time.sleep(0.1)
        return False

    return wait


@pytest.fixture
def samples():
    """So many samples of the fake network, each of one number: ``samples(count)``."""
    return lambda count: [{"x": np.full((1, 3, 4), index, np.float32)} for index in range(count)]
