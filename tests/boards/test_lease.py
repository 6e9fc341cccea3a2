"""The lease: one holder, freed by death alone; processes are ended with the service they serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from wherry_devices.agent.lease import Lease, Runs

SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
ADDER = """
    import pathlib, sys, time
    from wherry_devices.agent.lease import Runs
    Runs(pathlib.Path(sys.argv[1])).add(int(sys.argv[2]))
    print("ready", flush=True)
    time.sleep(600)
"""

HOLDER = """
    import pathlib, sys, time
    from wherry_devices.agent.lease import Lease
    lease = Lease(pathlib.Path(sys.argv[1]))
    lease.acquire({"owner": "anna", "token": "anna's"})
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start():
    """Start Python code that says when it is ready; it is ended with the test."""
    processes = []

    def run(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            stdout=subprocess.PIPE,
        )
        processes.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_one_holder_at_a_time(tmp_path):
    first, second = Lease(tmp_path / "deep" / "lease"), Lease(tmp_path / "deep" / "lease")
    assert first.holder() is None
    assert first.acquire({"owner": "anna"}) is None
    holder = second.acquire({"owner": "ben"})
    assert holder["owner"] == "anna" and holder["pid"] == os.getpid()
    assert 0 <= holder["held_s"] < 60
    assert first.holder()["owner"] == "anna"
    first.release()
    assert second.holder() is None
    assert second.acquire({"owner": "ben"}) is None
    assert first.holder()["owner"] == "ben"
    second.release()


def test_the_kernel_takes_the_lease_of_a_dead_holder(tmp_path, start):
    holder = start(HOLDER, tmp_path / "lease")
    lease = Lease(tmp_path / "lease")
    assert lease.holder()["pid"] == holder.pid
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / "lease").read_text())["owner"] == "anna"  # stale, and not trusted
    assert lease.holder() is None
    assert lease.acquire({"owner": "ben"}) is None
    lease.release()


def test_a_lease_file_that_says_nothing_is_still_held(tmp_path):
    first, second = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
    first.acquire({})
    (tmp_path / "lease").write_text("{")
    assert second.acquire({}) == {}
    first.release()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "lease").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lease"):
        Lease(tmp_path / "lease").acquire({})
    assert not (tmp_path / "elsewhere").exists()


def test_runs_end_with_their_service_and_with_dead_ones(tmp_path, start):
    ours, theirs, dead = (start(SLEEPER) for _ in range(3))
    of_ours, of_theirs, of_dead = (
        start(ADDER, tmp_path / "runs", service.pid) for service in (ours, theirs, dead)
    )
    dead.kill()
    dead.wait()
    Runs(tmp_path / "runs").end(ours.pid)
    assert of_ours.wait(10) == of_dead.wait(10) == -9
    assert of_theirs.poll() is None
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [str(of_theirs.pid)]


def test_a_reused_process_id_is_left_alone(tmp_path, start):
    service, stranger = start(SLEEPER), start(SLEEPER)
    record = {"started": 1, "service": service.pid, "service_started": 1}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / str(stranger.pid)).write_text(json.dumps(record))
    Runs(tmp_path / "runs").end(service.pid)
    assert stranger.poll() is None
    assert list((tmp_path / "runs").iterdir()) == []


def test_every_user_of_the_board_may_lock_the_file(tmp_path):
    old = os.umask(0o077)
    try:
        lease = Lease(tmp_path / "lease")
        assert lease.acquire({}) is None
    finally:
        os.umask(old)
    assert (tmp_path / "lease").stat().st_mode & 0o777 == 0o666
    lease.release()


def test_a_lock_on_a_file_that_was_removed_is_worth_nothing(tmp_path, monkeypatch):
    """The file goes away between its opening and its locking."""
    lease, another = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
    real, opened = lease._open, []

    def opening():
        opened.append(real())
        if len(opened) == 1:
            lease.path.unlink()
            assert another.acquire({"owner": "ben"}) is None  # a new file of that name
        return opened[-1]

    monkeypatch.setattr(lease, "_open", opening)
    assert lease.acquire({"owner": "anna"})["owner"] == "ben"
    assert len(opened) == 2 and not lease.is_held
    another.release()
    assert lease.acquire({"owner": "anna"}) is None
    assert another.holder()["owner"] == "anna"
    lease.release()


def test_an_agent_that_holds_the_lease_is_ended(tmp_path, start):
    lease = Lease(tmp_path / "lease")
    assert lease.evict() is None
    holder = start(HOLDER, tmp_path / "lease", "wherry-agent")
    found = lease.evict()
    assert (found["owner"], found["pid"]) == ("anna", holder.pid)
    assert holder.wait(10) == -9
    assert lease.acquire({}) is None
    lease.release()


def test_only_the_holder_that_is_meant_is_ended(tmp_path, start):
    lease = Lease(tmp_path / "lease")
    holder = start(HOLDER, tmp_path / "lease", "wherry-agent")
    assert lease.evict("an earlier one's") is None
    assert holder.poll() is None
    assert lease.evict("anna's")["pid"] == holder.pid
    assert holder.wait(10) == -9


def test_what_is_no_agent_is_not_ended(tmp_path, start):
    stranger = start(SLEEPER)
    first, second = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
    first.acquire({})
    for pid in (stranger.pid, 0, -1):
        (tmp_path / "lease").write_text(json.dumps({"pid": pid}))
        with pytest.raises(ValueError, match=f"process {pid} .* no wherry-agent"):
            second.evict()
    assert stranger.poll() is None
    first.release()
