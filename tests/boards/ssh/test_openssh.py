"""Boards of real sshd: the agent over it, and faults of a server, a network and a disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_disks

from wherry.artifact import hash_file
from wherry.errors import DeviceError, DeviceLostError, ToolError

pytestmark = pytest.mark.openssh


@pytest.fixture
def sshd(openssh):
    return openssh()


def test_samples_stream(device, sshd, hosted, free, samples):
    with device(sshd).session() as session, hosted(session) as runner:
        found = [float(outputs["y"].max()) for outputs in runner.infer(samples(300))]
    assert found == [2.0 * index for index in range(300)]
    assert free(sshd)


def test_a_crash_is_told_by_its_signal(device, sshd, hosted, agents, free, samples):
    with device(sshd).session() as session:
        with pytest.raises(ToolError, match="SIGKILL"), hosted(session) as runner:
            (pid,) = set(agents(sshd)) - {session._board.pid}
            os.kill(pid, signal.SIGKILL)
            list(runner.infer(samples(1)))
        with hosted(session) as runner:
            assert len(list(runner.infer(samples(3)))) == 3
    assert free(sshd)


def test_the_agent_is_killed(device, sshd, hosted, free, samples):
    with (
        pytest.raises(DeviceLostError, match=r"status -9|SIGKILL"),
        device(sshd).session() as session,
        hosted(session) as runner,
    ):
        os.kill(session._board.pid, signal.SIGKILL)
        list(runner.infer(samples(100_000)))
        session._board.check()
    with device(sshd).session():
        pass
    assert free(sshd)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_servers_session_dies_or_hangs(device, sshd, hosted, free, number, samples):
    with (
        pytest.raises(DeviceLostError),
        device(sshd, silence_s=2).session() as session,
        hosted(session) as runner,
    ):
        for count, _ in enumerate(runner.infer(samples(200_000))):
            if count == 50:
                sshd.signal_sessions(number)
    if number == signal.SIGSTOP:
        sshd.signal_sessions(signal.SIGKILL)
    assert free(sshd)
    assert device(sshd).probe().machine


def test_the_agent_is_stopped(device, sshd, free):
    with (
        pytest.raises(DeviceLostError, match="silent"),
        device(sshd, silence_s=2).session() as session,
    ):
        os.kill(session._board.pid, signal.SIGSTOP)
        session._board.call("ping", answer_s=30)
    assert device(sshd, wait_s=0).unlock() is not None, "a stopped agent goes on holding the lease"
    assert free(sshd)


def test_sshd_is_stopped_and_started(device, sshd):
    sshd.stop()
    with pytest.raises(DeviceLostError, match="refused"):
        device(sshd).probe()
    sshd.start()
    assert device(sshd).probe().machine


@pytest.fixture
def small_disk(sshd):
    """The board's folder of ours on a disk of 40 MiB."""
    with small_disks.small_disk(sshd.home / ".wherry", "40m") as folder:
        yield folder


def test_a_full_disk(tmp_path, device, sshd, small_disk, free):
    path = tmp_path / "big"
    path.write_bytes(os.urandom(30 << 20))
    with device(sshd).session() as session:
        with pytest.raises(DeviceError, match="do not fit on the board's disk") as error:
            session._board.ship({"big": (hash_file(path), path)})
        assert not isinstance(error.value, DeviceLostError)
        small = tmp_path / "small"
        small.write_bytes(b"fits")
        folder = Path(session._board.ship({"small": (hash_file(small), small)}))
        assert (folder / "small").read_bytes() == b"fits"
    assert not (small_disk / "store/blobs" / hash_file(path)).exists()
    assert free(sshd)


def test_a_read_only_file_system(device, sshd, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DeviceError, match="Read-only file system") as error:
        device(sshd).probe()
    assert not isinstance(error.value, DeviceLostError)


def test_a_folder_without_permission(device, sshd):
    (sshd.home / ".wherry").write_text("a file")
    with pytest.raises(DeviceError, match="cannot install the agent") as error:
        device(sshd).probe()
    assert not isinstance(error.value, DeviceLostError)


def test_a_bashrc_that_prints_and_dawdles(device, sshd):
    (sshd.home / ".bashrc").write_text("echo Welcome; echo wherry-bootstrap; sleep 0.5\n")
    assert device(sshd).probe().python == sys.version.split()[0]


def test_twenty_boards_at_once(device, openssh, hosted, free, samples):
    from concurrent.futures import ThreadPoolExecutor

    boards = [openssh() for _ in range(20)]
    devices = [device(board) for board in boards]

    def work(one):
        with one.session() as session, hosted(session) as runner:
            return [float(outputs["y"].max()) for outputs in runner.infer(samples(50))]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(work, devices)) == [[2.0 * n for n in range(50)]] * 20
    assert all(map(free, boards))
