"""Faults that need more than a process: packets, links, users, login shells, a clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from wherry.errors import DeviceError, DeviceLostError

pytestmark = pytest.mark.openssh

CLOCK = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, id, now);
  if (!failed && id == CLOCK_REALTIME) now->tv_sec += SHIFT;
  return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
  int failed = syscall(SYS_gettimeofday, now, zone);
  if (!failed) now->tv_sec += SHIFT;
  return failed;
}
time_t time(time_t *now) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (now) *now = found.tv_sec;
  return found.tv_sec;
}
"""
NETWORK = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
PYTHON = "/usr/bin/python3"


def need(**packages):
    """Skip where we are not root, or a program is missing; each with the package that has it."""
    if os.geteuid() != 0:
        pytest.skip("only root may make users, networks and other users' files")
    for program, package in packages.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt install {package}")


class Cable:
    """A pair of virtual interfaces; the board's end is in a network of its own."""

    def __init__(self):
        self.name = f"wherry{os.getpid() % 10**6}"
        self.host, self.board = f"{NETWORK}.1", f"{NETWORK}.2"

    def __enter__(self):
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.name, "type", "veth", "peer", "eth0", "netns", self.name)
        run("ip", "address", "add", f"{self.host}/30", "dev", self.name)
        run(*self.prefix, "ip", "address", "add", f"{self.board}/30", "dev", "eth0")
        run("ip", "link", "set", self.name, "up")
        self.up()
        return self

    def __exit__(self, *_):
        run("ip", "link", "del", self.name)
        run("ip", "netns", "del", self.name)

    @property
    def prefix(self):
        return ("ip", "netns", "exec", self.name)

    def up(self):
        run(*self.prefix, "ip", "link", "set", "eth0", "up")

    def down(self):
        """The board's end: this end's route stays, so that nothing takes another way."""
        run(*self.prefix, "ip", "link", "set", "eth0", "down")

    def lose(self, *rule):
        """Have the board drop packets that come in and match."""
        run(*self.prefix, "iptables", "-A", "INPUT", *rule, "-j", "DROP")


def run(*argv):
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)


@pytest.fixture
def cable(stack):
    need(ip="iproute2", iptables="iptables")
    try:
        return stack.enter_context(Cable())
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this root may not change the network: {error.stderr.decode().strip()}")


@pytest.fixture
def wired(cable, openssh):
    """A board at the end of the cable."""
    return openssh(cable.board, cable.prefix)


def test_one_packet_in_ten_is_lost(device, wired, cable, hosted, free, samples):
    cable.lose("-m", "statistic", "--mode", "random", "--probability", "0.1")
    with device(wired).session() as session, hosted(session) as runner:
        outputs = [float(output["y"].max()) for output in runner.infer(samples(1000))]
    assert outputs == [2.0 * index for index in range(1000)]
    assert free(wired)


def test_all_packets_are_dropped(device, wired, cable, hosted, free, samples):
    with (
        pytest.raises(DeviceLostError, match="silent"),
        device(wired, silence_s=2).session() as session,
        hosted(session) as runner,
    ):
        for index, _ in enumerate(runner.infer(samples(100_000))):
            if index == 50:
                cable.lose()
    assert free(wired), "the agent gave up its silent host"


def test_a_link_goes_down_and_comes_up(device, wired, cable, hosted, free, samples):
    outputs = []
    with device(wired, silence_s=20).session() as session, hosted(session) as runner:
        for output in runner.infer(samples(3000)):
            outputs.append(float(output["y"].max()))
            if len(outputs) == 100:
                cable.down()
                timer = threading.Timer(1.0, cable.up)
                timer.start()
        timer.join()
    assert outputs == [2.0 * index for index in range(3000)]
    with (
        pytest.raises(DeviceLostError),
        device(wired, silence_s=2).session() as session,
        hosted(session) as runner,
    ):
        for index, _ in enumerate(runner.infer(samples(100_000))):
            if index == 50:
                cable.down()
    assert free(wired), "the agent gave up its silent host"
    begun = time.monotonic()
    with pytest.raises(DeviceLostError, match="cannot be reached"):
        device(wired, connect_timeout_s=1).probe()
    assert time.monotonic() - begun < 15
    cable.up()
    deadline = time.monotonic() + 20
    while True:  # the kernel remembers for a while that nobody was there
        try:
            assert device(wired).probe().machine
            break
        except DeviceLostError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.parametrize(
    "shell",
    [["/bin/dash"], ["/bin/bash"], ["busybox", "sh"], ["fish"], ["zsh"], ["tcsh"]],
    ids=lambda words: Path(words[0]).name,
)
def test_login_shells(device, inprocess, workstation, hosted, free, shell, samples):
    need(**{shell[0]: Path(shell[0]).name})
    board = inprocess(
        shell=[shutil.which(shell[0]), *shell[1:]], home="Maße & 'Gewichte' $HOME 日本"
    )
    workstation.enter(board)
    with device(board).session() as session, hosted(session) as runner:
        assert len(list(runner.infer(samples(3)))) == 3
    assert free(board)


@pytest.fixture
def wrong_clock(tmp_path):
    """A login shell under which the clock is wrong: ``wrong_clock(seconds)`` is its path."""
    need(cc="gcc libc6-dev")
    source, library, shell = (tmp_path / name for name in ("clock.c", "clock.so", "shell"))

    def make(seconds):
        source.write_text(CLOCK)
        run("cc", "-shared", "-fPIC", f"-DSHIFT={seconds}", "-o", str(library), str(source))
        shell.write_text(f"#!/bin/sh\nexport LD_PRELOAD='{library}'\nexec /bin/sh \"$@\"\n")
        shell.chmod(0o755)
        return str(shell)

    return make


@pytest.mark.parametrize("years", [-1, 1])
def test_a_clock_that_is_wrong_by_a_year(
    device, inprocess, workstation, hosted, free, wrong_clock, years, samples
):
    board = inprocess(shell=[wrong_clock(years * 365 * 86400)])
    workstation.enter(board)
    wrong = device(board)
    with wrong.session() as session, hosted(session) as runner:
        now = int(session._board.execute(["date", "+%s"], limit_s=10)["output"])
        assert abs(now - time.time() - years * 365 * 86400) < 600, "the clock is not wrong"
        assert len(list(runner.infer(samples(3)))) == 3
        seen = wrong.probe().facts["in_use_by"]
        assert 0 <= float(seen.rpartition(" for ")[2].removesuffix(" s")) < 60
    board._shell = ("/bin/sh",)
    with wrong.session():  # now it is right: what it wrote before is no obstacle
        pass
    assert free(board)


@pytest.fixture
def nobody(inprocess, workstation, tmp_path):
    """A board whose user may do nothing in particular."""
    need(setpriv="util-linux", python3="python3")
    shell = tmp_path / "shell"
    shell.write_text(
        '#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups /bin/sh "$@"\n'
    )
    shell.chmod(0o755)
    made = inprocess(shell=[str(shell)])
    workstation.enter(made)
    return made


@pytest.fixture
def open_folder():
    """As /tmp is: all may write there, and nobody may touch what is another's."""
    with tempfile.TemporaryDirectory(prefix="wherry-test-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def test_a_folder_that_is_not_ours(device, nobody):
    with pytest.raises(DeviceError, match="Permission denied") as error:
        device(nobody, python=PYTHON).probe()
    assert not isinstance(error.value, DeviceLostError), "no retry will help"


def test_two_users_of_a_board_share_its_lease(device, board, nobody, open_folder):
    lease = str(open_folder / "lease")
    first = device(board, python=PYTHON, lease=lease, root=str(open_folder / "first"))
    second = device(nobody, python=PYTHON, lease=lease, root=str(open_folder / "second"), wait_s=0)
    hasty = device(board, python=PYTHON, lease=lease, wait_s=0)
    with first.session(), pytest.raises(DeviceError, match="in use by"), second.session():
        raise AssertionError("two hold one board")
    with second.session(), pytest.raises(DeviceError, match="in use by"), hasty.session():
        raise AssertionError("two hold one board")
    with first.session():
        pass
