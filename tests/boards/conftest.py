"""A local device of its own for each test, and artifacts for the fake runner beside this file."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest

from wherry.artifact import Artifact, Binding
from wherry.device import DeviceSpec
from wherry.errors import UnfitError
from wherry.target import Backend, RuntimeOptions, Target
from wherry_devices.transport.local import LocalParameters, connect


class FakeOptions(RuntimeOptions):
    behaviour: str = ""
    sleep_s: float = 0.0
    ballast_mb: int = 0
    marker: str = ""


@dataclasses.dataclass
class Services:
    """`wherry.device.DeviceServices` that make no environment."""

    home: Path
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    def environment(self, requirements, progress=None):
        raise UnfitError(f"{requirements.packages} cannot be made", remedy="Do not try.")

    def environment_lock(self, requirements):
        return self.environment(requirements)


@dataclasses.dataclass
class Bench:
    """What a test needs to host the fake runner."""

    home: Path
    backend: Backend = dataclasses.field(
        default_factory=lambda: Backend(
            name="fake",
            description="",
            precisions=("fp32",),
            runner=Path(__file__).with_name("fake_runner.py"),
            artifact_format="text",
            options=FakeOptions,
        )
    )

    def services(self):
        return Services(self.home)

    def device(self, **parameters):
        spec = DeviceSpec("bench", "local", LocalParameters(**parameters))
        return connect(spec, self.services())

    def artifact(self, inputs=None, outputs=None, factor=2.0):
        directory = self.home / "artifact"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "factor.txt").write_text(str(factor))
        plain = Binding("x", "in0", "float32", (1, 3, 4))
        return Artifact.from_directory(
            directory,
            backend="fake",
            precision="fp32",
            format="text",
            inputs=tuple(inputs or [plain]),
            outputs=tuple(outputs or [dataclasses.replace(plain, onnx="y", runtime="out0")]),
        )

    def target(self, **options):
        return Target("fake", "fp32", "bench", FakeOptions(**options))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "home")


def _processes(home):
    """Id and name of the processes that have to do with ``home``."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                name = (entry / "comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(str(home).encode() in word for word in words):
                found[int(entry.name)] = name
    return found


def _eventually(condition, limit_s=15.0):
    deadline = time.monotonic() + limit_s
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


@pytest.fixture
def nothing_is_left(bench):
    yield
    assert _eventually(lambda: not _processes(bench.home)), _processes(bench.home)
    board = bench.home / "board"
    if board.exists():
        assert bench.device().probe().facts["in_use_by"] is None  # and sweeps what the dead left
    assert list(board.glob("runs/*")) == list(board.glob("store/incoming/*")) == []


@pytest.fixture
def processes():
    """Id and name of the processes that have to do with a folder: ``processes(home)``."""
    return _processes


@pytest.fixture
def eventually():
    """Wait until a condition holds, and give its value: ``eventually(condition, limit_s)``."""
    return _eventually


@pytest.fixture
def agent_of(bench, processes):
    """The process id of the agent in a role: ``agent_of(role)``."""

    def find(role):
        for pid in processes(bench.home):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if role in words:
                return pid
        raise AssertionError(f"no {role} agent runs")

    return find
