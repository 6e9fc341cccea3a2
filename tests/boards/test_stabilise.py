"""The board's clocks are fixed for a lease and given back, whatever ends it; on fake /sys trees.

The services are real processes, and are killed; the Jetson's tools are scripts that write down what
they were asked.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from wherry_devices.agent.stabilise import Stabiliser
from wherry_devices.channel import AgentEnded, Channel
from wherry_devices.transport.local import LocalConnection

POLICIES = {"policy0": "schedutil", "policy4": "ondemand"}
CPUFREQ = "sys/devices/system/cpu/cpufreq"
JETSON_CLOCKS = """#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >> jetson.log
if [ "$1" = --store ]; then
  [ -e "$2" ] && exit 1
  cp clocks "$2"
elif [ "$1" = --restore ]; then
  cp "$2" clocks
else
  echo fixed > clocks
fi
"""
NVPMODEL = """#!/bin/sh
cd "$(dirname "$0")"
if [ "$1" = -m ]; then
  [ -e stubborn ] && echo "NVPM WARN: Reboot required" && exit 0
  echo "$2" > mode
fi
echo "NV Power Mode: MODE_$(cat mode)"
cat mode
"""


class System:
    """A fake board's /sys, /proc and tools."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, governor in POLICIES.items():
            folder = root / CPUFREQ / name
            folder.mkdir(parents=True)
            (folder / "scaling_governor").write_text(f"{governor}\n")
            (folder / "scaling_min_freq").write_text("600000\n")
            (folder / "scaling_max_freq").write_text("1800000\n")
        self.boot("first")

    def boot(self, name: str) -> None:
        path = self.root / "proc/sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")

    def jetson(self) -> None:
        self.bin.mkdir(parents=True)
        for name, script in (("jetson_clocks", JETSON_CLOCKS), ("nvpmodel", NVPMODEL)):
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)
        (self.bin / "clocks").write_text("free\n")
        (self.bin / "mode").write_text("1\n")

    @property
    def bin(self) -> Path:
        return self.root / "usr/bin"

    def read(self, policy: str, name: str) -> str:
        return (self.root / CPUFREQ / policy / name).read_text().strip()

    def governors(self) -> dict[str, str]:
        return {policy: self.read(policy, "scaling_governor") for policy in POLICIES}

    def is_free(self) -> bool:
        lows = {self.read(policy, "scaling_min_freq") for policy in POLICIES}
        return self.governors() == POLICIES and lows == {"600000"}

    def is_fixed(self) -> bool:
        lows = {self.read(policy, "scaling_min_freq") for policy in POLICIES}
        return set(self.governors().values()) == {"performance"} and lows == {"1800000"}


@pytest.fixture
def system(tmp_path):
    return System(tmp_path / "system")


class Service:
    """A service agent on the fake board, and questions to it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.pid = channel.receive(30).header["pid"]
        self.number = 0

    def ask(self, op: str, **fields):
        self.number += 1
        self.channel.send({"op": op, "id": self.number, **fields})
        header = self.channel.receive(30).header
        assert header["id"] == self.number
        return header


@pytest.fixture
def serve(bench, system):
    @contextmanager
    def start(lease=True, python=""):
        connection = LocalConnection(bench.services())
        connection._python = python or connection._python
        arguments = ["service", "--lease", str(bench.home / "board/lease"), "--silence", "60"]
        arguments += ["--system", str(system.root)]
        channel = Channel(connection, "", arguments, 30)
        try:
            service = Service(channel)
            if lease:
                while (answer := service.ask("lease", owner={"token": "t"}))["holder"] is not None:
                    time.sleep(0.02)  # the kernel has not yet taken it back from the dead
                service.left = answer["left"]
            yield service
        finally:
            channel.close(10)

    return start


def eventually(condition, limit_s=15.0):
    deadline = time.monotonic() + limit_s
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def guardians(home):
    """Ids of the guardians that have to do with ``home``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"guard" in words and str(home / "board").encode() in words:
                found.append(int(entry.name))
    return found


def test_the_clocks_are_fixed_and_given_back(serve, system, bench):
    with serve() as service:
        answer = service.ask("stabilise", power_mode=None)
        assert answer["problems"] == []
        assert "governor of policy4: performance" in answer["done"]
        assert "least clock of policy0: 1800000" in answer["done"]
        assert system.is_fixed()
        assert len(guardians(bench.home)) == 1
        assert service.ask("restore")["problems"] == []
        assert system.is_free()
        assert guardians(bench.home) == []
        assert not (bench.home / "board/stabilised.json").exists()


def old_python():
    """A Python 3.8, where this machine has one."""
    found = [os.environ.get("WHERRY_TEST_PYTHON38"), shutil.which("python3.8")]
    found += map(str, Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8"))
    code = "import sys; assert sys.version_info[:2] == (3, 8)"

    def fits(python):  # a shim may lead to another version, or to none
        command = [python, "-c", code]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    return next((python for python in found if python and fits(python)), None)


@pytest.mark.skipif(old_python() is None, reason="there is no Python 3.8 here")
def test_an_old_python_fixes_them_and_its_guardian_gives_them_back(serve, system, bench):
    with serve(python=old_python()) as service:
        assert service.ask("stabilise", power_mode=None)["problems"] == []
        assert system.is_fixed()
        os.kill(service.pid, signal.SIGKILL)
        assert eventually(system.is_free)
    assert eventually(lambda: not guardians(bench.home))


def test_a_host_that_hangs_up_gets_them_given_back(serve, system, bench):
    with serve() as service:
        service.ask("stabilise", power_mode=None)
    assert system.is_free()
    assert eventually(lambda: not guardians(bench.home))


def test_nobody_without_the_lease_touches_them(serve, system):
    with serve(lease=False) as service:
        for question in ("stabilise", "restore"):
            assert "lease" in service.ask(question, power_mode=None)["error"]
    assert system.is_free()


def test_the_guardian_gives_them_back_when_the_service_is_killed(serve, system, bench):
    with serve() as service:
        service.ask("stabilise", power_mode=None)
        os.kill(service.pid, signal.SIGKILL)
        with pytest.raises(AgentEnded):
            service.channel.receive(30)
        assert eventually(system.is_free)
    assert eventually(lambda: not guardians(bench.home))
    assert not (bench.home / "board/stabilised.json").exists()


def test_a_guardian_is_not_ended_by_what_ends_a_session(serve, system, bench):
    with serve() as service:
        service.ask("stabilise", power_mode=None)
        (guardian,) = guardians(bench.home)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(guardian, number)
        os.killpg(service.pid, signal.SIGKILL)
        assert eventually(system.is_free)
    assert eventually(lambda: not guardians(bench.home))


def test_the_next_service_gives_back_what_both_left(serve, system, bench):
    with serve() as service:
        service.ask("stabilise", power_mode=None)
        (guardian,) = guardians(bench.home)
        os.kill(guardian, signal.SIGKILL)
        os.kill(service.pid, signal.SIGKILL)
        with pytest.raises(AgentEnded):
            service.channel.receive(30)
    assert system.is_fixed()
    with serve() as service:
        assert service.left == []
        assert system.is_free()
        service.ask("stabilise", power_mode=None)
        assert system.is_fixed()
    assert system.is_free()


def test_a_late_guardian_leaves_another_record_alone(system, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    record = {"token": "new", "boot": "first", "files": {}, "clocks": None, "mode": None}
    (home / "stabilised.json").write_text(json.dumps(record))
    assert Stabiliser(home, system.root).restore("old") == []
    assert (home / "stabilised.json").exists()


def left_by_another(system, home, *, mode=None):
    """What a service that was killed left, guardian too."""
    stabiliser = Stabiliser(home, system.root)
    stabiliser._guard = lambda token: None
    home.mkdir()
    return stabiliser.set(mode)


def test_after_a_reboot_only_the_power_mode_is_given_back(system, tmp_path):
    system.jetson()
    home = tmp_path / "home"
    answer = left_by_another(system, home, mode=2)
    assert answer["problems"] == [] and answer["done"][:2] == ["power mode 2", "jetson_clocks"]
    system.boot("second")
    for policy, governor in POLICIES.items():  # the board's own, after it has booted
        (system.root / CPUFREQ / policy / "scaling_governor").write_text(f"{governor}-2\n")
    (system.bin / "jetson.log").unlink()
    assert Stabiliser(home, system.root).restore() == []
    assert (system.bin / "mode").read_text() == "1\n"
    assert system.governors() == {policy: f"{name}-2" for policy, name in POLICIES.items()}
    assert not (system.bin / "jetson.log").exists()
    assert [path.name for path in home.iterdir()] == ["stabilised.lock"]


def test_a_jetsons_own_tools_fix_and_restore(serve, system):
    system.jetson()
    with serve() as service:
        answer = service.ask("stabilise", power_mode=None)
        assert answer["problems"] == [] and "jetson_clocks" in answer["done"]
        assert (system.bin / "clocks").read_text() == "fixed\n"
        assert service.ask("restore")["problems"] == []
    assert (system.bin / "clocks").read_text() == "free\n"
    assert (system.bin / "mode").read_text() == "1\n"  # left alone, for nobody asked
    assert system.is_free()


def test_a_power_mode_that_wants_a_reboot_is_told(system, tmp_path):
    system.jetson()
    (system.bin / "stubborn").touch()
    answer = left_by_another(system, tmp_path / "home", mode=0)
    assert answer["problems"] == [
        "The power mode could not be set to 0: NVPM WARN: Reboot required."
    ]
    assert system.is_fixed()


def test_what_cannot_be_set_is_told_and_the_rest_is_set(system, tmp_path, monkeypatch):
    (system.root / CPUFREQ / "policy0/scaling_max_freq").unlink()

    def refuse(path, mode="r", **options):
        if "w" in mode and str(path).endswith("policy4/scaling_governor"):
            raise OSError(22, "Invalid argument", path)
        return Path(path).open(mode, **options)

    monkeypatch.setattr("wherry_devices.agent.stabilise.open", refuse, raising=False)
    answer = left_by_another(system, tmp_path / "home")
    assert answer["done"] == ["governor of policy0: performance", "least clock of policy4: 1800000"]
    assert answer["problems"] == [
        "The least clock of policy0 could not be set: the greatest is not told.",
        "The governor of policy4 could not be set: Invalid argument.",
    ]


def test_a_governor_that_does_not_stay_is_told(system, tmp_path, monkeypatch):
    monkeypatch.setattr(Stabiliser, "_write", lambda self, path, value: "")
    answer = left_by_another(system, tmp_path / "home")
    assert "The governor of policy0 could not be set: it stays schedutil." in answer["problems"]


def test_what_is_asked_as_the_service_ends_comes_too_late(system, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    stabiliser = Stabiliser(home, system.root)
    stabiliser.close()
    assert stabiliser.set(None) == {"done": [], "problems": ["The service ends."]}
    assert system.is_free()


def test_a_host_that_hangs_up_while_they_are_set_gets_them_given_back(serve, system, bench):
    with serve() as service:
        service.channel.send({"op": "stabilise", "id": 77, "power_mode": None})
    assert system.is_free()
    assert eventually(lambda: not guardians(bench.home))
    assert not (bench.home / "board/stabilised.json").exists()


def test_nothing_is_changed_where_no_guardian_starts(system, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/no/such/agent"])
    home = tmp_path / "home"
    home.mkdir()
    stabiliser = Stabiliser(home, system.root)
    answer = stabiliser.set(None)
    assert answer["done"] == [] and "did not start" in answer["problems"][0]
    assert system.is_free()
    assert stabiliser.restore() == []


def test_a_board_without_clocks_says_so(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    stabiliser = Stabiliser(home, tmp_path / "nothing")
    stabiliser._guard = lambda token: None
    assert stabiliser.set(None) == {"done": [], "problems": ["The board offers no clocks to fix."]}
    assert stabiliser.restore() == []
    assert not (home / "stabilised.json").exists()


def test_what_cannot_be_given_back_stays_in_the_record(system, tmp_path):
    home = tmp_path / "home"
    left_by_another(system, home)
    governor = system.root / CPUFREQ / "policy0/scaling_governor"
    governor.unlink()
    governor.mkdir()  # nobody can write it
    (problem,) = Stabiliser(home, system.root).restore()
    assert "policy0/scaling_governor could not be set back to schedutil" in problem
    stabiliser = Stabiliser(home, system.root)
    assert stabiliser.set(None) == {"done": [], "problems": [problem]}
    governor.rmdir()
    governor.write_text("performance\n")
    assert stabiliser.restore() == []
    assert system.is_free()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"token": 1, "mode": null, "boot": 1}'])
def test_a_record_of_no_use_keeps_nobody_from_the_lease(serve, system, bench, text):
    record = bench.home / "board/stabilised.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    with serve() as service:
        (problem,) = service.left
        assert "nothing of use" in problem and str(record) in problem
        assert service.ask("stabilise", power_mode=None) == {
            "done": [],
            "problems": [problem],
            "id": service.number,
        }
    assert system.is_free()


def test_nothing_is_changed_without_a_record(system, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "stabilised.new").mkdir()  # where the record is written first
    stabiliser = Stabiliser(home, system.root)
    stabiliser._guard = lambda token: None
    answer = stabiliser.set(None)
    assert answer["done"] == [] and "no way to give them back" in answer["problems"][0]
    assert system.is_free()


def test_sudo_writes_what_is_not_ours(system, tmp_path, monkeypatch):
    """Root may write everything: the kernel's refusal and the other user are made up."""
    system.bin.mkdir(parents=True)
    (system.bin / "sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (system.bin / "tee").write_text('#!/bin/sh\nexec /usr/bin/tee "$@"\n')
    for name in ("sudo", "tee"):
        (system.bin / name).chmod(0o755)
    monkeypatch.setattr("wherry_devices.agent.stabilise.os.geteuid", lambda: 1000)

    def refuse(path, mode="r", **options):
        if "w" in mode and CPUFREQ in str(path):
            raise PermissionError(13, "Permission denied", path)
        return Path(path).open(mode, **options)

    monkeypatch.setattr("wherry_devices.agent.stabilise.open", refuse, raising=False)
    home = tmp_path / "home"
    assert left_by_another(system, home)["problems"] == []
    assert system.is_fixed()
    (system.bin / "sudo").write_text('#!/bin/sh\necho "sudo: a password is required"\nexit 1\n')
    problems = Stabiliser(home, system.root).restore()
    assert len(problems) == 4
    assert "sudo says: sudo: a password is required" in problems[0]


def test_a_session_fixes_the_clocks_of_this_machine_or_says_why_not(bench, monkeypatch):
    """Through the host's own words; this machine's /sys stays as it is."""
    from wherry_devices.board import Board

    told = []
    monkeypatch.setattr(Board, "stabilise", lambda self, mode: (["all"], [f"not mode {mode}"]))
    monkeypatch.setattr(Board, "restore", lambda self: told.append("restored") or ["stuck"])
    with bench.device().session() as session:
        with session.stabilise(3) as stabilised:
            assert stabilised.done == ("all",) and stabilised.problems == ["not mode 3"]
        assert stabilised.problems == ["not mode 3", "stuck"]
        with pytest.raises(RuntimeError), session.stabilise(None):
            raise RuntimeError
    assert told == ["restored"] * 2
