"""A board's files, commands, lease and processes, over the local transport."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from wherry.artifact import hash_file
from wherry.errors import DeviceError, EnvironmentError_, ToolError, UnfitError
from wherry.measurement import MeasureSettings
from wherry.requirements import Requirements
from wherry_devices.alternatives import Alternatives
from wherry_devices.board import Board
from wherry_devices.channel import AgentEnded, Channel
from wherry_devices.transport.local import LocalConnection, LocalProcess

pytestmark = pytest.mark.usefixtures("nothing_is_left")

QUICK = MeasureSettings(warmup_s=0.02, warmup_runs=2, duration_s=0.05, min_runs=5, max_runs=2000)
SAMPLE = {"x": np.arange(12, dtype=np.float32).reshape(1, 3, 4)}


def test_files_are_sent_once(bench):
    blobs = bench.home / "board" / "store" / "blobs"
    with bench.device().session(lease=False) as session:
        with session.host(bench.artifact(), bench.target(), bench.backend, {}):
            before = {path.name: path.stat().st_mtime_ns for path in blobs.iterdir()}
        with session.host(bench.artifact(factor=3.0), bench.target(), bench.backend, {}) as runner:
            (output,) = runner.infer([SAMPLE])
            assert np.array_equal(output["y"], 3 * SAMPLE["x"])
    after = {path.name: path.stat().st_mtime_ns for path in blobs.iterdir()}
    assert len(after) == len(before) + 1 == 5
    assert before.items() <= after.items()


def test_large_files_arrive_whole(bench, tmp_path):
    import hashlib

    data = np.random.default_rng(0).bytes((3 << 20) + 17)
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    files = {
        f"sub folder/{name}": (hashlib.sha256(content).hexdigest(), tmp_path / name)
        for name, content in (("large", data), ("empty", b""))
    }
    board = Board(LocalConnection(bench.services()), "bench")
    try:
        folder = Path(board.ship(files))
    finally:
        board.close()
    assert (folder / "sub folder" / "large").read_bytes() == data
    assert (folder / "sub folder" / "empty").read_bytes() == b""


def test_a_board_that_stops_while_it_is_sent_a_file_is_given_up(bench, tmp_path):
    (tmp_path / "file").write_bytes(bytes(20 << 20))
    board = Board(LocalConnection(bench.services()), "bench", silence_s=1.0)
    try:
        os.kill(board.pid, signal.SIGSTOP)
        with pytest.raises(DeviceError, match=r"the device was lost: it (took nothing|was silent)"):
            board.ship({"file": ("0" * 64, tmp_path / "file")})
    finally:
        board.close()


def test_a_file_that_the_disk_has_damaged_is_sent_again(bench, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"whole")
    files = {"file": (hash_file(path), path)}
    with bench.device().session(lease=False) as session:
        first = Path(session.ship(files))
    for found in (bench.home / "board/store").glob("checked/*"):
        found.write_text("another start of the board")
    (first / "file").chmod(0o600)
    (first / "file").write_bytes(b"hole")
    with bench.device().session(lease=False) as session:
        assert (Path(session.ship(files)) / "file").read_bytes() == b"whole"


def test_a_file_that_is_not_what_it_says_is_refused(bench, tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    board = Board(LocalConnection(bench.services()), "bench")
    try:
        with pytest.raises(DeviceError, match="what arrived has the sha256"):
            board.ship({"file": ("0" * 64, tmp_path / "file")})
    finally:
        board.close()


def test_commands_run_on_the_board(bench):
    board = Board(LocalConnection(bench.services()), "bench")
    try:
        argv = ["/bin/sh", "-c", 'echo "$1 $GREETING"; exit 3', "sh", "a; 'b' $(c)"]
        answer = board.execute(argv, limit_s=30, environment={"GREETING": "hello"})
        assert answer["output"] == "a; 'b' $(c) hello\n" and answer["status"] == 3
        slow = board.execute(["/bin/sh", "-c", "sleep 600 & wait"], limit_s=0.2)
        assert slow["timed_out"] and slow["status"] == -signal.SIGKILL
        with pytest.raises(DeviceError, match="No such file"):
            board.execute(["/no/such/program"], limit_s=5)
        assert board.sensors().values["memory_available_bytes"] > 0
    finally:
        board.close()


def test_two_sessions_contend_for_the_lease(bench):
    said = []
    with bench.device().session() as first:
        assert f"(process {os.getpid()})" in first.info.facts["in_use_by"]
        assert bench.device().probe().facts["in_use_by"] is not None
        with (
            pytest.raises(DeviceError, match=rf"in use by .*process {os.getpid()}.*waited 0.3 s"),
            bench.device(wait_s=0.3).session(report=said.append),
        ):
            pass
        with bench.device().session(lease=False):  # parity needs no lease
            pass
    assert len(said) == 1 and "waiting" in said[0]
    with bench.device(wait_s=0).session():
        pass


def test_a_lease_is_waited_for(bench):
    waiting, had = threading.Event(), []

    def second():
        with bench.device().session(report=lambda _: waiting.set()):
            had.append(time.monotonic())

    with bench.device().session():
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(15)
        released = time.monotonic()
    thread.join(15)
    assert had and had[0] >= released


HOST = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from conftest import Bench
    import numpy as np
    bench = Bench(Path({home!r}))
    with bench.device().session() as session:
        with session.host(
            bench.artifact(), bench.target(behaviour={behaviour!r}), bench.backend, {{}}
        ) as runner:
            print("ready", flush=True)
            sample = {{"x": np.zeros((1, 3, 4), np.float32)}}
            while True:
                list(runner.infer([sample] * 1000))
"""


@pytest.mark.parametrize("behaviour", ["", "hang"])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_host_leaves_no_process_and_no_lock(
    bench, behaviour, ending, processes, eventually
):
    code = HOST.format(tests=str(Path(__file__).parent), home=str(bench.home), behaviour=behaviour)
    host = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert host.stdout.readline() == b"ready\n"
    agents = [name for pid, name in processes(bench.home).items() if pid != host.pid]
    assert agents == ["wherry-agent"] * 2
    host.send_signal(ending)
    host.wait()
    host.stdout.close()
    assert eventually(lambda: not processes(bench.home)), processes(bench.home)
    with bench.device(wait_s=0).session():
        pass


def test_a_service_agent_that_dies_ends_the_session(bench, agent_of):
    with (
        pytest.raises(DeviceError, match="the device was lost"),
        bench.device().session() as session,
        session.host(bench.artifact(), bench.target(), bench.backend, {}) as runner,
    ):
        os.kill(agent_of("service"), signal.SIGKILL)
        runner.time(SAMPLE, QUICK)


def test_what_a_dead_service_left_is_ended_by_the_next_holder(
    bench, processes, eventually, agent_of
):
    with bench.device().session() as session:
        hosting = session.host(bench.artifact(), bench.target(), bench.backend, {})
        hosting.__enter__()
        orphan = agent_of("run")
        os.kill(agent_of("service"), signal.SIGKILL)
        with bench.device(wait_s=10).session():
            assert eventually(lambda: orphan not in processes(bench.home))
        with pytest.raises(DeviceError, match="the device was lost"):
            hosting.__exit__(None, None, None)


def test_a_runner_whose_lease_was_lost_times_nothing(bench):
    """Also where the host has not noticed: the agent looks for itself."""
    with (
        bench.device().session() as session,
        session.host(bench.artifact(), bench.target(), bench.backend, {}) as runner,
    ):
        session._board.token = "stale"
        with pytest.raises(ToolError, match="lease of the board is no longer ours"):
            runner.time(SAMPLE, QUICK)


def test_a_silent_agent_is_given_up(bench):
    board = Board(LocalConnection(bench.services()), "bench", silence_s=0.6)
    try:
        os.kill(board.pid, signal.SIGSTOP)
        with pytest.raises(DeviceError, match=r"lost: it was silent for 0\.6 s"):
            board.sensors()
    finally:
        board.close()


def test_an_agent_whose_host_is_silent_ends(bench):
    connection = LocalConnection(bench.services())
    lease = str(bench.home / "board" / "lease")
    channel = Channel(connection, "", ["service", "--lease", lease, "--silence", "0.3"], 30)
    try:
        assert channel.receive(30).header["op"] == "hello"
        with pytest.raises(AgentEnded) as ended:
            channel.receive(30)
        assert ended.value.status == 1
        assert "the host was silent for 0.3 s" in ended.value.stderr
    finally:
        channel.close(0)


def test_what_is_no_frame_ends_the_agent(bench):
    connection = LocalConnection(bench.services())
    lease = str(bench.home / "board" / "lease")
    channel = Channel(connection, "", ["service", "--lease", lease, "--silence", "30"], 30)
    try:
        channel.receive(30)
        channel._process.write([memoryview(b"HTTP/1.1 400 Bad Request\r\n\r\n")], 30)
        with pytest.raises(AgentEnded) as ended:
            channel.receive(30)
        assert "expected a frame, found b'HTTP" in ended.value.stderr
    finally:
        channel.close(0)


class Dying(LocalConnection):
    """A board whose agent dies in the middle of a frame."""

    def start(self, script, arguments):
        shell = "echo wherry-bootstrap have; printf WHF; kill -SEGV $$"
        Path(self.root).mkdir(parents=True, exist_ok=True)
        return LocalProcess(["/bin/sh", "-c", shell], self.root)


def test_an_agent_that_dies_while_it_writes_is_told_by_its_status(bench):
    channel = Channel(Dying(bench.services()), "", [], 30)
    with pytest.raises(AgentEnded) as ended:
        channel.receive(30)
    channel.close(0)
    assert (ended.value.status, ended.value.reason) == (-signal.SIGSEGV, "")


class Noisy(LocalConnection):
    """A board whose login shell prints, and, on demand, nothing but that."""

    words = "Welcome to the board!\\nwherry-bootstrap is a word, too\\n"
    only = False

    def start(self, script, arguments):
        shell = f"printf '{self.words}'; " + ("" if self.only else 'exec "$@"')
        python = [sys.executable, "-I", "-S", "-c", script, *arguments]
        Path(self.root).mkdir(parents=True, exist_ok=True)
        return LocalProcess(["/bin/sh", "-c", shell, "sh", *python], self.root)


def test_what_a_login_shell_prints_is_skipped(bench):
    board = Board(Noisy(bench.services()), "bench")
    assert board.call("probe")["board"]["cores"] == os.cpu_count()
    board.close()


def test_a_board_without_python_is_told(bench):
    connection = Noisy(bench.services())
    connection.only = True
    with pytest.raises(DeviceError, match=r"the agent did not start; the board said '"):
        Board(connection, "bench")


def test_an_interpreter_that_cannot_be_started_is_told(bench):
    connection = LocalConnection(bench.services())
    connection._python = "/no/such/python3"
    with pytest.raises(DeviceError, match="cannot start /no/such/python3"):
        Board(connection, "bench")


def test_a_runtime_that_cannot_be_provided(bench):
    wanted = (Requirements(("nonsense==1",)), Requirements(("nonsense==2",)))
    backend = dataclasses.replace(bench.backend, runtime=wanted)
    with bench.device().session(lease=False) as session:
        with pytest.raises(EnvironmentError_, match=r"nonsense==1.*nonsense==2"):
            session.runtime_lock(backend)
        with (
            pytest.raises(EnvironmentError_, match=r"nonsense==1.*nonsense==2.*Do not try"),
            session.host(bench.artifact(), bench.target(), backend, {}),
        ):
            pass
        assert session.runtime_lock(bench.backend) == session.runtime_lock(bench.backend)
    with pytest.raises(EnvironmentError_):
        bench.device().provision(wanted[:1])


class Fickle:
    """Services whose first answers for a set of packages are refusals."""

    def __init__(self, **refusals: int) -> None:
        self.refusals = refusals
        self.made = []

    def environment_lock(self, requirements):
        (name,) = requirements.packages
        self.refusals[name] = self.refusals.get(name, 0) - 1
        if self.refusals[name] >= 0:
            raise UnfitError(f"no {name}")
        return f"lock of {name}"

    def environment(self, requirements, progress=None):
        if requirements.packages == ("broken",):
            raise EnvironmentError_("it cannot be built")
        self.made.append(requirements.packages)
        return Path("python")


def test_what_runs_is_what_the_key_names(bench):
    best, second = Requirements(("best",)), Requirements(("second",))
    services, chosen = Fickle(best=1), Alternatives()

    def connect():
        connection = LocalConnection(bench.services(), chosen)
        connection.services = services
        return connection

    assert connect().runtime_lock(None, (best, second)) == "lock of second"
    connect().provide(None, (best, second))  # the best could be had by now
    assert services.made == [("second",)]
    assert connect().runtime_lock(None, (best,)) == "lock of best"
    with pytest.raises(EnvironmentError_, match="cannot be built"):
        connect().provide(None, (Requirements(("broken",)), second))
    assert services.made == [("second",)], "nothing else runs under the name of what is broken"


def test_no_bytecode_is_left_beside_the_runner(bench):
    """A full disk would leave half of it, and no later start would get on."""
    with (
        bench.device().session() as session,
        session.host(bench.artifact(), bench.target(), bench.backend, {}) as runner,
    ):
        assert list(runner.infer([SAMPLE]))
    assert list((bench.home / "board" / "store").rglob("*.pyc")) == []


def test_the_agent_is_compiled_once(bench):
    """Small boards take long to compile it, and it is started for every round."""
    with bench.device().session(lease=False):
        pass
    (folder,) = (bench.home / "board/agent").iterdir()
    sources = sorted(path.stem for path in folder.rglob("*.py"))
    compiled = list(folder.rglob("*.pyc"))
    assert sorted(path.name.partition(".")[0] for path in compiled) == sources
    code = (
        "import sys, importlib.machinery\n"
        "importlib.machinery.SourceFileLoader.source_to_code = None  # nothing may be compiled\n"
        f"sys.path.insert(0, {str(folder / 'wherry-agent')!r})\n"
        "import wherry_agent.service, wherry_agent.hosting\n"
    )
    subprocess.run([sys.executable, "-B", "-c", code], check=True)
