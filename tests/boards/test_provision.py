"""Runtimes on a bare board, the whole way: chosen, shipped, and made by a real agent."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

import wherry_ncnn.plugin
from wherry.engine import uv
from wherry.engine.environments import Environments
from wherry.engine.lending import Lending
from wherry.errors import DeviceError, EnvironmentError_, UnfitError
from wherry.requirements import Requirements
from wherry_devices import provision
from wherry_devices.agent.environments import MARKER
from wherry_devices.board import Board
from wherry_devices.provision import Provisioner
from wherry_devices.transport.local import LocalConnection

NUMPY = Requirements(("numpy==1.0",))  # of the shelf


class Bare(LocalConnection):
    """This machine as a board that has nothing but Python."""

    def __init__(self, services, provisioner=None):
        super().__init__(services)
        self.provisioner = provisioner or Provisioner(services)

    def provide(self, board, alternatives, progress=None):
        return self.provisioner.provide(board, alternatives, progress)

    def runtime_lock(self, board, alternatives):
        return self.provisioner.lock(board, alternatives)


@dataclasses.dataclass
class Shelf:
    """`wherry.device.DeviceServices` that have wheels made here: no package index is asked.

    Its uv is a script that counts how often it runs, and then is the host's. Its pip is none.
    """

    home: Path
    folder: Path
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)
    asked: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.folder.mkdir()
        self.runs = self.folder / "runs"
        self.uv(f'#!/bin/sh\necho "$1 $2" >> "{self.runs}"\nexec "{uv.binary()}" "$@"\n')
        self.pip = self._wheel("pip", "25.0.1", {"pip/__main__.py": "raise SystemExit('no pip')"})
        for name in ("numpy", "wdemo"):
            self._wheel(name, "1.0", {f"{name}.py": f"NAME = {name!r}\n"})

    def uv(self, text):
        self._wheel("uv", "1.0", {"uv-1.0.data/scripts/uv": text})

    def made(self):
        """How many environments uv was asked for."""
        text = self.runs.read_text() if self.runs.exists() else ""
        return text.count("venv ")

    def wheels_lock(self, requirements, platform):
        del platform
        for name in _names(requirements):
            if not self._find(name):
                raise UnfitError(f"{name} has no wheel", remedy="None.")
        return hashlib.sha256(repr(requirements).encode()).hexdigest()

    def wheels(self, requirements, platform, progress=None):
        self.wheels_lock(requirements, platform)
        self.asked += _names(requirements)
        if progress is not None:
            progress("fetching wheels")
        return tuple(self._find(name)[0] for name in _names(requirements))

    def _find(self, name):
        return list(self.folder.glob(f"{name}-*.whl"))

    def _wheel(self, name, version, files):
        info = f"{name}-{version}.dist-info"
        files = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
        path = self.folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, text in {**files, f"{info}/RECORD": record}.items():
                archive.writestr(member, text)
        return path


def _names(requirements):
    packages = (*requirements.packages, *requirements.no_deps)
    return [package.partition("==")[0] for package in packages]


class Services(Lending):
    """Those of a run, with the real wheels."""

    def __init__(self, home):
        self.home = home
        self.environments = Environments(home)
        self.cancelled = threading.Event()


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "home", tmp_path / "shelf")


@pytest.fixture
def connect():
    """A board of some services: ``board, connection = connect(services)``."""
    boards = []

    def make(services, provisioner=None):
        connection = Bare(services, provisioner)
        boards.append(Board(connection, "bare"))
        return boards[-1], connection

    yield make
    for board in boards:
        board.close()


def directories(home):
    return sorted(path for path in (home / "board" / "environments").iterdir() if path.is_dir())


def output(python, code):
    command = [python, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# --- of wheels made here -----------------------------------------------------------------------


def test_a_runtime_is_made_once_and_its_second_call_asks_nothing(shelf, connect):
    said = []
    board, connection = connect(shelf)
    wanted = [Requirements(("numpy==1.0",), ("wdemo==1.0",))]
    lock = connection.runtime_lock(board, wanted)
    assert shelf.asked == [] and shelf.made() == 0  # a lock makes nothing
    python = connection.provide(board, wanted, said.append)
    assert output(python, "import numpy, wdemo; print(numpy.NAME, wdemo.NAME)") == "numpy wdemo"
    assert said == [
        "fetching wheels",
        "sending 2 wheels to bare",
        "making the environment of numpy==1.0, wdemo==1.0 on bare",
    ]
    (directory,) = directories(shelf.home)
    assert directory.name == lock[:32] and (directory / MARKER).read_text() == lock

    del said[:], shelf.asked[:]
    other, again = connect(shelf)  # another run, which knows nothing of the first
    assert again.provide(other, wanted, said.append) == python
    assert again.runtime_lock(other, wanted) == lock
    assert said == shelf.asked == [] and shelf.made() == 1


def test_an_environment_sees_nothing_of_the_boards_own_packages(shelf, connect):
    board, connection = connect(shelf)
    python = connection.provide(board, [NUMPY])
    assert output(python, "import numpy; print(numpy.NAME)") == "numpy"
    text = (directories(shelf.home)[0] / "pyvenv.cfg").read_text()
    assert "include-system-site-packages = false" in text


def test_the_boards_numpy_is_used_where_no_wheel_brings_one(shelf, connect):
    board, connection = connect(shelf)
    wanted = [Requirements((), ("wdemo==1.0",))]
    facts = dict(board.probe())
    board._probed = {**facts, "facts": {**facts["facts"], "numpy": None}}
    with pytest.raises(EnvironmentError_, match="the board's own Python has no numpy") as caught:
        connection.provide(board, wanted)
    assert "python3-numpy" in str(caught.value)

    board._probed = {**facts, "facts": {**facts["facts"], "numpy": "1.2"}}
    lock = connection.runtime_lock(board, wanted)
    python = connection.provide(board, wanted)
    text = (Path(python).parent.parent / "pyvenv.cfg").read_text()
    assert "include-system-site-packages = true" in text
    board._probed = {**facts, "facts": {**facts["facts"], "numpy": "1.3"}}
    assert connection.runtime_lock(board, wanted) != lock  # another numpy is another runtime


def test_the_first_alternative_that_fits_is_taken(shelf, connect):
    board, connection = connect(shelf)
    wanted = [Requirements(("numpy==1.0", "wabsent==1.0")), NUMPY, Requirements(("numpy==9",))]
    python = connection.provide(board, wanted)
    assert output(python, "import numpy; print(numpy.NAME)") == "numpy"
    assert connection.runtime_lock(board, wanted) == connection.runtime_lock(board, [NUMPY])
    shelf._wheel("wabsent", "1.0", {})  # what has come since changes nothing within a run
    assert connection.runtime_lock(board, wanted) == connection.runtime_lock(board, [NUMPY])


def test_where_no_alternative_fits_all_reasons_are_told(shelf, connect):
    board, connection = connect(shelf)
    wanted = [Requirements(("wone",)), Requirements(("wtwo",)), Requirements(("wone",))]
    with pytest.raises(EnvironmentError_) as caught:
        connection.provide(board, wanted)
    assert caught.value.message == (
        "no alternative of the runtime can be provided: wone has no wheel; wtwo has no wheel"
    )


def test_a_board_without_libstdcxx_is_told(shelf, connect):
    board, connection = connect(shelf)
    facts = dict(board.probe())
    board._probed = {
        **facts,
        "facts": {**facts["facts"], "libstdc++": False},
    }
    with pytest.raises(EnvironmentError_, match="apt install libstdc"):
        connection.provide(board, [NUMPY])


def test_a_python_that_is_not_cpython_is_refused(shelf, connect):
    board, connection = connect(shelf)
    facts = dict(board.probe())
    board._probed = {
        **facts,
        "facts": {**facts["facts"], "implementation": "PyPy"},
    }
    with pytest.raises(EnvironmentError_, match="Python is PyPy"):
        connection.provide(board, [NUMPY])


def test_a_half_made_environment_is_made_anew(shelf, connect):
    board, connection = connect(shelf)
    python = connection.provide(board, [NUMPY])
    (directory,) = directories(shelf.home)
    (directory / MARKER).unlink()
    (directory / "left-over").touch()
    next(directory.glob("lib/python*/site-packages/numpy.py")).unlink()
    assert connection.provide(board, [NUMPY]) == python
    assert output(python, "import numpy; print(numpy.NAME)") == "numpy"
    assert not (directory / "left-over").exists() and shelf.made() == 2


def test_two_makers_at_once_make_it_once(shelf, connect):
    makers = [connect(shelf) for _ in range(2)]
    started = threading.Barrier(len(makers))
    found = []

    def provide(board, connection):
        started.wait(30)
        found.append(connection.provide(board, [NUMPY]))

    threads = [threading.Thread(target=provide, args=maker) for maker in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(set(found)) == 1
    assert shelf.made() == 1


@pytest.fixture
def taken(shelf, connect):
    """A board on which another host makes the environment of NUMPY, and the file that it holds."""
    board, connection = connect(shelf)
    folder = shelf.home / "board" / "environments"
    folder.mkdir(parents=True)
    name = connection.runtime_lock(board, [NUMPY])[:32]
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield board, connection, file


def test_another_host_that_makes_it_is_waited_for_and_told(taken, shelf):
    board, connection, file = taken
    said = []

    def say(text):
        said.append(text)
        if "waiting" in text:
            fcntl.flock(file, fcntl.LOCK_UN)

    python = connection.provide(board, [NUMPY], say)
    assert output(python, "import numpy; print(numpy.NAME)") == "numpy"
    waiting = "waiting for another host that makes the environment of numpy==1.0 on bare"
    assert said[-1] == waiting and said.count(waiting) == 1
    assert shelf.made() == 1


def test_another_host_that_takes_too_long_is_told(taken, monkeypatch, shelf):
    monkeypatch.setattr(provision, "_OTHER_S", 0.0)
    board, connection, _ = taken
    with pytest.raises(EnvironmentError_, match="another host has been making") as caught:
        connection.provide(board, [NUMPY])
    assert caught.value.where == "bare" and shelf.made() == 0


def test_a_host_that_goes_away_while_it_waits_leaves_nothing(taken, shelf, processes, eventually):
    board, connection, _ = taken
    waits = threading.Event()
    ended = []

    def provide():
        try:
            connection.provide(board, [NUMPY], lambda text: "waiting" in text and waits.set())
        except DeviceError as error:
            ended.append(error)

    thread = threading.Thread(target=provide)
    thread.start()
    assert waits.wait(60)
    board._channel.kill("the host is gone")
    thread.join()
    assert len(ended) == 1
    assert eventually(lambda: not processes(shelf.home)), processes(shelf.home)
    assert directories(shelf.home) == []


SLOW = '#!/bin/sh\necho $$ > "{told}.new"; mv "{told}.new" "{told}"; exec sleep 600\n'


def test_an_agent_that_is_killed_while_it_makes_one(
    shelf, connect, tmp_path, processes, eventually
):
    told = tmp_path / "maker"
    shelf.uv(SLOW.format(told=told))
    board, connection = connect(shelf)
    ended = []

    def provide():
        try:
            connection.provide(board, [NUMPY])
        except DeviceError as error:
            ended.append(error)

    thread = threading.Thread(target=provide)
    thread.start()
    assert eventually(told.exists, 60)
    os.kill(board.pid, signal.SIGKILL)
    thread.join()
    assert "SIGKILL" in str(ended[0]) or "-9" in str(ended[0])
    maker = Path("/proc", told.read_text().strip())
    assert eventually(lambda: not maker.exists())
    assert eventually(lambda: not processes(shelf.home)), processes(shelf.home)

    shelf.uv(f'#!/bin/sh\nexec "{uv.binary()}" "$@"\n')
    other, again = connect(shelf)
    python = again.provide(other, [NUMPY])
    assert output(python, "import numpy; print(numpy.NAME)") == "numpy"
    (directory,) = directories(shelf.home)
    assert (directory / MARKER).is_file()


def test_a_damaged_environment_is_made_again_and_told(shelf, connect, caplog):
    board, connection = connect(shelf)
    python = connection.provide(board, [NUMPY])
    (directory,) = directories(shelf.home)
    next(directory.glob("lib/python*/site-packages/numpy.py")).unlink()
    other, again = connect(shelf)
    with caplog.at_level(logging.WARNING):
        assert again.provide(other, [NUMPY]) == python
    assert output(python, "import numpy; print(numpy.NAME)") == "numpy"
    assert "numpy.py is missing) and is made again" in caplog.text
    assert shelf.made() == 2


def test_where_both_ways_fail_both_reasons_are_told_and_nothing_is_left(shelf, connect):
    shelf.uv("#!/bin/sh\necho 'uv has a bad day'; exit 7\n")
    board, connection = connect(shelf)
    with pytest.raises(EnvironmentError_) as caught:
        connection.provide(board, [NUMPY])
    assert "uv ended with status 7: uv has a bad day" in caught.value.message
    assert "pip ended with status 1: no pip" in caught.value.message
    assert caught.value.where == "bare" and "python3-venv" in str(caught.value)
    assert directories(shelf.home) == []


def test_what_does_not_fit_on_the_disk_is_not_begun(shelf, connect, monkeypatch):
    monkeypatch.setattr(provision, "_unpacked_bytes", lambda _wheel: 1 << 60)
    board, connection = connect(shelf)
    with pytest.raises(EnvironmentError_, match=r"takes 1099511627776 MiB, and \d+ MiB are free"):
        connection.provide(board, [NUMPY])
    assert directories(shelf.home) == [] and shelf.made() == 0


def test_what_nobody_used_is_removed_and_what_is_made_now_is_not(shelf, connect):
    board, connection = connect(shelf)
    python = connection.provide(board, [NUMPY])
    (directory,) = directories(shelf.home)
    half = directory.with_name("a" * 32)
    half.mkdir()
    made = directory.with_name("b" * 32)
    made.mkdir()
    with made.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        gone, removed = board.clean(3600)
        assert (
            removed == 0
            and gone == ["a" * 32]
            and directories(shelf.home) == sorted([directory, made])
        )
        gone, removed = board.clean(0)
    assert gone == [directory.name] and directories(shelf.home) == [made]
    assert removed > 0  # the wheels, which no folder has any more
    assert not Path(python).exists()
    assert connection.provide(board, [NUMPY]) == python  # and it is made again
    assert output(python, "import numpy; print(numpy.NAME)") == "numpy"


@pytest.mark.parametrize("lock", ["", "../../x", "A" * 64])
def test_only_hashes_name_environments(shelf, connect, lock):
    board, _ = connect(shelf)
    with pytest.raises(DeviceError, match="not a lock"):
        board.call("environment", lock=lock)


# --- of the index ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory, shared_environments):
    """The services of a run; wheels are fetched once for all tests here."""
    home = tmp_path_factory.mktemp("provision")
    (home / "environments").symlink_to(shared_environments)
    return Services(home)


@pytest.fixture
def no_folder_of_wheels(monkeypatch):
    """What this machine's settings offer beside the index is not for boards."""
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.index
@pytest.mark.usefixtures("no_folder_of_wheels")
@pytest.mark.parametrize(
    ("alternatives", "code"),
    [
        ((), "import numpy as np; print(np.add(1, 1))"),
        (
            wherry_ncnn.plugin.RUNTIMES,
            "import ncnn, numpy as np; print(int(np.array(ncnn.Mat(np.ones(2, 'f4'))).sum()))",
        ),
    ],
    ids=["numpy", "ncnn"],
)
def test_this_machine_as_a_bare_board(real, connect, alternatives, code):
    board, connection = connect(real)
    lock = connection.runtime_lock(board, alternatives)
    python = connection.provide(board, alternatives)
    assert output(python, code) == "2"
    assert Path(python).parent.parent.name == lock[:32]
    other, again = connect(real)
    said = []
    assert again.runtime_lock(other, alternatives) == lock
    assert again.provide(other, alternatives, said.append) == python
    assert said == []


@pytest.mark.index
@pytest.mark.usefixtures("no_folder_of_wheels")
def test_where_uv_does_not_run_venv_and_pip_make_it(real, shelf, connect):
    board, connection = connect(shelf)
    (pip,) = real.wheels(provision._PIP, provision.platform_of(board.probe()))
    shutil.copyfile(pip, shelf.pip)
    shelf.uv("no program")
    python = connection.provide(board, [NUMPY])
    assert output(python, "import numpy; print(numpy.NAME)") == "numpy"
    (directory,) = directories(shelf.home)
    assert (directory / MARKER).is_file()
    assert "uv" not in (directory / "pyvenv.cfg").read_text().split()
