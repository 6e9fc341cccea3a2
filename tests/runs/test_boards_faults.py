"""Whole runs on boards over SSH that fail in the middle: what is reported, kept and given back."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from own_runtime import OwnRuntime
from small_disks import small_disk
from wired_boards import Lab, When, Wired

from wherry import api

MANIFEST = """
wherry: 1
model: {path: net.onnx}
data: {evaluation: {source: npz, path: data.npz}}
metrics: [checksum]
targets:
  - {backend: moody, device: DEVICES, moody: {hook: heavy, run: [well, slow]}}
  - {backend: moody, device: DEVICES, moody: {run: MOOD}}
measure: {rounds: 2, duration_s: 0.2, warmup_s: WARMUP}
"""
ROWS, EVALUATED = 3, 24
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
LOST = "pi was lost ("
PROGRAM = Path(__file__).parents[1] / "support" / "own_runtime.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """One for all tests of this file: the conversions and what was measured before are there."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _settings(moody: Path, home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WHERRY_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path / "workstation"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("wherry_devices.provision.Provisioner", OwnRuntime)
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", PAUSES_S)
    monkeypatch.setattr("wherry_devices.board._END_S", 2.0)  # for an agent that is stopped


@pytest.fixture
def lab(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Lab(tmp_path, stack, silence_s=2, wait_s=30, limit_s=30)


@pytest.fixture
def write(tmp_path, request):
    """Writes the manifest: ``write("pi", mood="late hang")``.

    It shares the conversions with those of other tests, and no measurement.
    """
    warmup_s = 0.02 + zlib.crc32(request.node.name.encode()) * 1e-12

    def text(*devices: str, mood: str = "well", to: str = "m.yaml") -> None:
        values = {"DEVICES": json.dumps(devices), "MOOD": mood, "WARMUP": str(warmup_s)}
        text = MANIFEST
        for word, value in values.items():
            text = text.replace(word, value)
        (tmp_path / to).write_text(text)

    return text


@pytest.fixture
def pi(lab, write) -> Wired:
    """The board of most tests."""
    write("pi")
    return lab.add("pi")


@pytest.fixture(scope="module")
def calm() -> dict:
    """The metrics of a run without faults, once it is done."""
    return {}


@pytest.fixture
def right(calm, tmp_path, write):
    """Checks that every row that is reported done is whole, and as on this machine."""
    if not calm:
        write("local", to="calm.yaml")
        for result in api.run(tmp_path / "calm.yaml").values["results"]:
            assert calm.setdefault("checksum", result["metrics"]["checksum"]) != 0
            assert result["metrics"] == calm

    def check(values: dict) -> None:
        for result in values["results"]:
            if result["status"] == "ok":
                assert result["metrics"] == calm
                assert result["evaluated"] == EVALUATED
                assert result["latency"]["samples"] >= 20
            else:
                assert result["error"]
                assert result["latency"] is None

    return check


def statuses(values: dict, device: str = "pi") -> list[str]:
    return [r["status"] for r in values["results"] if r["target"]["device"] == device]


def errors(values: dict, device: str = "pi") -> list[str]:
    return [r["error"] for r in values["results"]
            if r["target"]["device"] == device and r["error"]]  # fmt: skip


def rounds(home: Path) -> dict[str, str]:
    """Each round that the store has, and when it was measured."""
    return {
        path.parent.name: json.loads(path.read_text())["created"]
        for path in (home / "store/round").glob("*/*/entry.json")
    }


def restarted(pi: Wired) -> None:
    """All processes die, and nobody answers for a moment."""
    pi.link.down()
    pi.signal("", signal.SIGKILL)
    time.sleep(0.3)
    pi.link.up()


FAULTS = {
    "cut in a put": lambda pi: When("pi", "1/6", lambda: pi.link.cut_after(sent=1 << 20)),
    "cut in a measurement": lambda pi: When("pi", "timing", pi.link.cut, nth=2, after_s=0.1),
    "cut in an answer": lambda pi: When(
        "pi", "timing", lambda: pi.link.cut_after(received=3000), nth=3
    ),
    "agent killed": lambda pi: When(
        "pi", "timing", lambda: pi.signal("service", signal.SIGKILL), nth=2, after_s=0.1
    ),
    "agent stopped": lambda pi: When(
        "pi", "timing", lambda: pi.signal("service", signal.SIGSTOP), nth=2, after_s=0.1
    ),
    "link frozen": lambda pi: When("pi", "timing", pi.link.freeze, nth=2),
    "board restarted": lambda pi: When("pi", "timing", lambda: restarted(pi), nth=4, after_s=0.1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_board_that_is_lost_once_costs_no_result(lab, pi, right, fault) -> None:
    trigger, back = FAULTS[fault](pi), When("pi", LOST, pi.link.thaw)
    values = lab.run(trigger, back)
    assert trigger.join()
    assert any(text.startswith(LOST) for text in lab.told), "nothing was lost"
    assert statuses(values) == ["ok"] * ROWS
    right(values)
    pi.check_free()


def test_a_board_that_is_away_fails_its_own_rows_and_is_taken_up_later(
    lab, write, right, home
) -> None:
    write("pi", "pj", "local", mood="late held")
    pi, pj = lab.add("pi"), lab.add("pj")
    away = When("pi", "timing", pi.link.down, nth=ROWS + 1, hold=pi)  # in the last round
    values = lab.run(away)
    assert away.join()
    assert statuses(values, "pj") == statuses(values, "local") == ["ok"] * ROWS
    missing = statuses(values).count("failed")  # the round's rows from the one that was held on
    assert statuses(values)[-1] == "failed"
    assert missing + statuses(values).count("ok") == ROWS
    words = f"refused; given up after {len(PAUSES_S) + 1} tries in a row"
    assert all(words in error.lower() for error in errors(values))
    right(values)
    kept = rounds(home)
    pi.check_free()
    pi.link.up()
    right(lab.goes_on(values))
    now = rounds(home)
    assert kept.items() <= now.items()
    assert len(now) == len(kept) + missing, "only the rounds that were missing were measured"
    pi.check_free()
    pj.check_free()


REFUSALS = {
    "another host key": (lambda pi: pi.board.new_host_key(), "is not the known one"),
    "key refused": (lambda pi: setattr(pi.board, "refuse", True), "id_ed25519: refused"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_board_that_does_not_know_us_any_more_is_not_asked_again(
    lab, pi, right, write, refusal
) -> None:
    write("pi", "local")
    change, words = REFUSALS[refusal]
    known = lab.workstation.known_hosts.read_text()

    def replaced() -> None:
        change(pi)
        pi.link.cut()

    values = lab.run(trigger := When("pi", "timing", replaced, nth=2, after_s=0.1))
    assert trigger.join()
    assert statuses(values) == ["failed"] * ROWS
    assert all(words in error for error in errors(values))
    assert statuses(values, "local") == ["ok"] * ROWS
    assert len([text for text in lab.told if text.startswith(LOST)]) == 1
    assert lab.workstation.known_hosts.read_text() == known
    right(values)
    pi.check_free()
    pi.board.refuse = False
    lab.workstation.known_hosts.unlink()
    lab.workstation.trust(pi.board, port=pi.link.port)
    right(lab.goes_on(values))
    pi.check_free()


def test_a_runner_that_crashes_fails_alone(lab, pi, right, write) -> None:
    write("pi", mood="late segfault")
    values = lab.run()
    assert statuses(values) == ["ok", "ok", "failed"]
    (error,) = errors(values)
    assert "the runner crashed with SIGSEGV (command 'time')" in error
    right(values)
    pi.check_free()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "the runner crashed with SIGKILL"),
        (signal.SIGSTOP, "the runner gave no answer within"),
    ],
)
def test_a_runner_that_is_killed_or_stopped_is_run_again_later(
    lab, pi, right, write, number, words
) -> None:
    write("pi", mood="late held")
    lab.set(limit_s=2)
    trigger = When("pi", "timing", lambda: pi.signal("run", number), hold=pi)
    values = lab.run(trigger)
    assert trigger.join()
    (error,) = errors(values)
    assert words in error
    assert sorted(statuses(values)) == ["failed", "ok", "ok"]
    right(values)
    pi.check_free()
    right(lab.goes_on(values))
    pi.check_free()


def test_a_file_that_the_board_does_not_take_fails_its_own_rows(
    lab, write, right, tmp_path
) -> None:
    """The login's limit on the size of files: what needs no rights."""
    shell = tmp_path / "limited"
    shell.write_text('#!/bin/sh\nulimit -f 2000\nexec /bin/sh "$@"\n')  # of 512 bytes
    shell.chmod(0o755)
    write("pi")
    pi = lab.add("pi", shell=[str(shell)])
    values = lab.run()
    assert statuses(values) == ["failed", "failed", "ok"]
    assert all("File too large" in error for error in errors(values))
    right(values)
    pi.check_free()
    pi.board._shell = ("/bin/sh",)
    right(lab.goes_on(values))
    pi.check_free()


@pytest.mark.openssh  # as root
def test_a_disk_that_is_full_fails_the_rows_that_do_not_fit(lab, pi, right) -> None:
    with small_disk(pi.board.home / ".wherry", "17m") as folder:
        values = lab.run()
        assert statuses(values) == ["failed", "failed", "ok"]
        assert all("do not fit on the board's disk" in error for error in errors(values))
        right(values)
        pi.check_free()
        subprocess.run(["mount", "-o", "remount,size=40m", folder], check=True)
        right(lab.goes_on(values))
        pi.check_free()


def host(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """``wherry`` as a process of its own, on this workstation."""
    return subprocess.Popen(
        [sys.executable, PROGRAM, *arguments],
        env=dict(os.environ, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_host_that_is_killed_leaves_the_board_free(lab, pi, right, home, tmp_path) -> None:
    before = rounds(home)
    process = host("run", "m.yaml")
    deadline = time.monotonic() + 60
    while len(rounds(home)) < len(before) + 2 or not pi.agents("run"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    pi.check_free()
    kept = rounds(home)
    process = host("run", "--continue", "--json", "out.json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    values = json.loads((tmp_path / "out.json").read_text())
    assert statuses(values) == ["ok"] * ROWS
    assert kept.items() <= rounds(home).items()
    assert len(rounds(home)) == len(before) + 2 * ROWS
    right(values)
    pi.check_free()


def test_a_second_host_waits_until_the_board_is_free(lab, pi, right, tmp_path) -> None:
    other = tmp_path / "other"
    process, said = [], []

    def ask() -> None:
        process.append(host("run", "m.yaml", "--json", "other.json", WHERRY_HOME=str(other)))
        while not (said and "is in use by" in said[-1]):
            said.append(process[0].stderr.readline())
            assert said[-1], said

    values = lab.run(When("pi", "timing", ask))
    assert f"(process {os.getpid()})" in said[-1]
    assert statuses(values) == ["ok"] * ROWS
    out, err = process[0].communicate(timeout=60)
    assert process[0].returncode == 0, out + err
    theirs = json.loads((tmp_path / "other.json").read_text())
    assert statuses(theirs) == ["ok"] * ROWS
    right(values)
    right(theirs)
    pi.check_free()


@pytest.mark.parametrize("seed", range(20))
def test_a_fault_at_any_moment(seed, lab, pi, right, home) -> None:
    """Nothing is wrong, nothing that was reported done is lost, and the board is free."""
    chance = random.Random(seed)

    def away() -> None:
        pi.link.down()
        time.sleep(chance.uniform(0.1, 0.8))
        pi.link.up()

    def frozen() -> None:
        pi.link.freeze()
        time.sleep(chance.uniform(0.1, 3.0))
        pi.link.thaw()

    faults = [
        pi.link.cut,
        lambda: pi.link.cut_after(sent=chance.randrange(2 << 20)),
        lambda: pi.link.cut_after(received=chance.randrange(400_000)),
        away,
        frozen,
        lambda: restarted(pi),
        lambda: pi.signal("service", signal.SIGKILL),
        lambda: pi.signal("service", signal.SIGSTOP),
        lambda: pi.signal("run", signal.SIGKILL),
    ]
    manifest = lab.folder / "m.yaml"
    manifest.write_text(manifest.read_text().replace("[well, slow]", "slow"))  # two rows: quick
    # it tells that it starts, of each row of each round, and of each of these measurements
    moment = {"nth": chance.randrange(9) + 1, "after_s": chance.uniform(0.001, 0.5)}
    trigger = When("pi", "", faults[seed % len(faults)], **moment)
    values = lab.run(trigger, sets=["measure.duration_s=0.05"])
    assert trigger.join()
    pi.link.cut_no_more()  # a fault that came too late
    right(values)
    kept = rounds(home)
    pi.signal("service", signal.SIGCONT)  # one that was stopped as its session ended holds nothing
    pi.check_free()
    right(lab.goes_on(values))
    assert kept.items() <= rounds(home).items(), "a round that was kept was measured again"
    pi.check_free()
