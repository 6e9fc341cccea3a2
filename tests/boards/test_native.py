"""Machine code beside a runner: made for the board's machine, shipped, and part of the lock."""

from __future__ import annotations

import dataclasses
import hashlib
import platform

import pytest

from wherry.device import DeviceSpec
from wherry.native import Native
from wherry_devices.transport.local import LocalParameters, connect

pytestmark = pytest.mark.usefixtures("nothing_is_left")

RUNNER = """
from pathlib import Path

def prepare(directory, artifact, options, board):
    native = board["native"]
    found = {} if native is None else {p.name: p.read_text() for p in Path(native).iterdir()}
    return {"record": {"found": found}}

def load(directory, artifact, options):
    return Runner()

class Runner:
    def set_inputs(self, inputs):
        (self.given,) = inputs.values()

    def run(self):
        pass

    def get_outputs(self):
        return {"out0": self.given}

    def close(self):
        pass
"""


@pytest.fixture
def runner(tmp_path):
    path = tmp_path / "runner.py"
    path.write_text(RUNNER)
    return path


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program"
    path.write_text("made here")
    return path


@pytest.fixture
def session(bench):
    tools = {"own": "/somewhere"}
    spec = DeviceSpec("bench", "local", LocalParameters(), (), tools)
    with connect(spec, bench.services()).session(lease=False) as opened:
        yield opened


def test_files_are_made_for_the_board_and_shipped(bench, session, runner, program):
    asked = []

    def files(wanted, services):
        asked.append((wanted, services))
        return {"program": (hashlib.sha256(program.read_bytes()).hexdigest(), program)}

    native = Native(lambda machine: f"1 for {machine}", files)
    backend = dataclasses.replace(bench.backend, runner=runner, tools={"own": ()}, native=native)
    with session.host(bench.artifact(), bench.target(), backend, {}) as hosted:
        assert hosted.record["found"] == {"program": "made here"}
    ((wanted, services),) = asked
    assert (wanted.machine, wanted.tools) == (platform.machine(), {"own"})
    assert wanted.options == bench.target().options.model_dump(mode="json")
    assert services.home


def test_a_backend_without_any_is_given_none(bench, session, runner):
    backend = dataclasses.replace(bench.backend, runner=runner)
    with session.host(bench.artifact(), bench.target(), backend, {}) as hosted:
        assert hosted.record["found"] == {}


def test_other_machine_code_is_another_runtime(bench, session, runner):
    def lock(text):
        native = Native(lambda machine: f"{text} for {machine}", lambda _wanted, _services: {})
        backend = dataclasses.replace(bench.backend, runner=runner, native=native)
        return session.runtime_lock(backend)

    assert lock("1") == lock("1") != lock("2")
    assert session.runtime_lock(bench.backend) not in {lock("1"), lock("2")}
