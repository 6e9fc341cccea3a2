"""Wheels for boards with a real pip: which fit where, what is told, and files that are whole."""

from __future__ import annotations

import hashlib
import itertools
import os
import platform as here
import re
import socket
import threading
import time
from datetime import timedelta

import pytest
from packaging import tags

import wherry_ncnn.plugin
import wherry_onnxruntime.plugin
import wherry_tflite.plugin
from wherry.device import Platform
from wherry.engine import wheels as module
from wherry.engine.environments import Environments, Lock
from wherry.engine.wheels import Wheels, describe
from wherry.errors import EnvironmentError_, Interrupted, PluginError
from wherry.filelock import hold
from wherry.requirements import Requirements

JETSON = Platform("aarch64", "3.8.10", "2.31")  # Ubuntu 20.04
UBUNTU_18 = Platform("aarch64", "3.10.12", "2.27")
PI = Platform("armv7l", "3.11.2", "2.36")  # Debian 12
PC = Platform("x86_64", "3.11.2", "2.36")
PIP = Requirements(no_deps=("pip==25.0.1",))  # a small wheel for every platform


@pytest.fixture(autouse=True)
def no_folder_of_wheels(monkeypatch):
    """What this machine's settings offer beside the index is not for boards."""
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def wheels(wherry_home):
    return Wheels(wherry_home, Environments(wherry_home), threading.Event())


@pytest.fixture
def closed(wherry_home, monkeypatch):
    """Wheels of a home whose pip must not be asked."""
    wheels = Wheels(wherry_home, Environments(wherry_home), threading.Event())

    def refuse(arguments, what, platform):
        raise AssertionError(f"pip was asked for {what} on {platform}: {arguments}")

    monkeypatch.setattr(wheels, "_pip", refuse)
    return wheels


def first_that_fits(wheels, alternatives, platform):
    """The pins of the first alternative that can be locked; name to version."""
    refusals = []
    for requirements in alternatives:
        try:
            text = wheels.lock(requirements, platform).text
        except EnvironmentError_ as error:
            refusals.append(error.message)
        else:
            assert all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in _lines(text))
            return dict(line.split()[0].split("==") for line in _lines(text))
    raise AssertionError(refusals)


def _lines(text):
    return text.splitlines()


# --- which wheels fit, of the index ------------------------------------------------------------


@pytest.mark.index
@pytest.mark.parametrize(
    ("plugin", "platform", "expected"),
    [
        (wherry_onnxruntime, JETSON, {"numpy": "1.24.4", "onnxruntime": "1.19.2"}),
        (wherry_onnxruntime, UBUNTU_18, {"numpy": "2.2.6", "onnxruntime": "1.23.2"}),
        (wherry_tflite, JETSON, {"numpy": "1.24.4", "tflite-runtime": "2.13.0"}),
        (wherry_ncnn, PI, {"ncnn": "1.0.20261020"}),  # numpy has no wheel there
    ],
    ids=lambda value: value.__name__ if hasattr(value, "__name__") else None,
)
def test_the_backends_runtimes_on(wheels, plugin, platform, expected):
    assert first_that_fits(wheels, plugin.plugin.RUNTIMES, platform) == expected


@pytest.mark.index
@pytest.mark.parametrize(
    ("package", "platform", "words"),
    [
        (
            "onnxruntime==1.23.2",
            JETSON,
            (
                "onnxruntime==1.23.2 has no wheel for Python 3.8.10, glibc 2.31, aarch64; 1.19.2 "
                "is the newest that fits"
            ),
        ),
        (
            "numpy==2.4.6",
            PI,
            (
                "numpy==2.4.6 has no wheel for Python 3.11.2, glibc 2.36, armv7l; no version of it "
                "fits"
            ),
        ),
    ],
)
def test_a_package_without_a_wheel_names_the_newest_that_fits(wheels, package, platform, words):
    with pytest.raises(EnvironmentError_) as caught:
        wheels.lock(Requirements(no_deps=(package,)), platform)
    assert caught.value.message == words
    assert "another backend" in str(caught.value)


@pytest.mark.index
def test_what_is_fetched_is_what_was_locked_and_comes_once(wheels, wherry_home, monkeypatch):
    said = []
    (wheel,) = wheels.fetch(PIP, JETSON, said.append)
    assert said == ["fetching wheels for Python 3.8.10, glibc 2.31, aarch64"]
    assert wheel.name == "pip-25.0.1-py3-none-any.whl"
    lock = wheels.lock(PIP, JETSON)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert lock.text == f"pip==25.0.1 --hash=sha256:{digest}\n"
    assert lock.sha256 == hashlib.sha256(lock.text.encode()).hexdigest() == wheel.parent.name
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]

    others = Wheels(wherry_home, Environments(wherry_home), threading.Event())
    monkeypatch.setattr(others, "_pip", lambda *_: pytest.fail("pip was asked again"))
    assert others.fetch(PIP, JETSON, said.append) == (wheel,)
    assert len(said) == 1
    assert [path.name for path in (wherry_home / "wheels").iterdir()] == [lock.sha256]


@pytest.mark.index
def test_a_wheel_that_was_damaged_later_is_fetched_again(wheels):
    (wheel,) = wheels.fetch(PIP, JETSON)
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1])
    assert wheels.fetch(PIP, JETSON) == (wheel,)
    assert wheel.read_bytes() == whole


@pytest.mark.index
def test_a_wheel_that_is_not_the_locked_one_is_refused_and_leaves_nothing(
    wheels, wherry_home, monkeypatch
):
    text = wheels.lock(PIP, PC).text[:-65] + "0" * 64 + "\n"
    with monkeypatch.context() as patch:
        patch.setattr(wheels, "lock", lambda *_: Lock(text, "0" * 64))
        with pytest.raises(EnvironmentError_, match=r"wheels of pip==25.0.1 .*cannot be had"):
            wheels.fetch(PIP, PC)
    assert list((wherry_home / "wheels").iterdir()) == []
    assert len(wheels.fetch(PIP, PC)) == 1


@pytest.mark.index
def test_an_index_that_does_not_answer(wheels, monkeypatch):
    wheels._environments.ensure(Requirements(packages=(module.PIP,)))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(EnvironmentError_, match=r"cannot be had.*Connection refused") as caught:
        wheels.lock(Requirements(("wabsent==1",)), PC)
    assert "Check the network" in str(caught.value)


@pytest.mark.index
def test_a_run_that_is_stopped_does_not_wait_for_pip(wherry_home, monkeypatch):
    cancelled = threading.Event()
    environments = Environments(wherry_home)
    environments.ensure(Requirements(packages=(module.PIP,)))
    with socket.create_server(("127.0.0.1", 0)) as index:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.getsockname()[1]}/simple")
        stopped = threading.Event()

        def stop() -> None:
            with index.accept()[0]:
                cancelled.set()
                stopped.wait(60)

        thread = threading.Thread(target=stop)
        thread.start()
        began = time.monotonic()
        with pytest.raises(Interrupted, match="not fetched"):
            Wheels(wherry_home, environments, cancelled).lock(Requirements(("wabsent",)), PC)
        assert time.monotonic() - began < 60
        stopped.set()
        thread.join()
    assert list((wherry_home / "environments" / "locks").glob("*.part")) == []


# --- without the index -------------------------------------------------------------------------


def test_a_board_with_another_python_is_refused(closed):
    wanted = Requirements(("numpy==2.4.6",), ("onnxruntime==1.32.0",), python=">=3.11")
    with pytest.raises(EnvironmentError_) as caught:
        closed.lock(wanted, JETSON)
    assert caught.value.message == (
        "numpy==2.4.6, onnxruntime==1.32.0 needs Python >=3.11, and the board has 3.8.10"
    )
    assert "`python:` in devices.yaml" in str(caught.value)


def test_a_malformed_range_is_the_plugins_fault(closed):
    with pytest.raises(PluginError, match="newest"):
        closed.lock(Requirements(python="newest"), PC)


def test_a_board_without_glibc_is_refused(closed):
    musl = Platform("aarch64", "3.11.2", None)
    with pytest.raises(EnvironmentError_, match="no wheels for a board without glibc"):
        closed.lock(Requirements(("numpy",)), musl)
    assert describe(musl) == "Python 3.11.2, another libc than glibc, aarch64"


def test_an_empty_set_asks_nothing_and_has_no_wheels(closed, wherry_home):
    assert closed.fetch(Requirements(), PC) == ()
    assert closed.lock(Requirements(("x; platform_machine == 'mips'",)), PC).text == ""
    assert len(list((wherry_home / "wheels").iterdir())) == 1


def test_a_fetch_that_fails_leaves_nothing(wheels, wherry_home, monkeypatch):
    monkeypatch.setattr(wheels, "lock", lambda *_: Lock("wdemo==1 --hash=sha256:00\n", "0" * 64))

    def fail(arguments, what, platform):
        (folder,) = (wherry_home / "wheels").glob("*.part")
        (folder / "wdemo-1-py3-none-any.whl").write_bytes(b"half")
        raise EnvironmentError_(f"{what.strip()} broke off on {describe(platform)}", remedy="None.")

    monkeypatch.setattr(wheels, "_pip", fail)
    with pytest.raises(EnvironmentError_, match="broke off"):
        wheels.fetch(PIP, PC)
    assert list((wherry_home / "wheels").iterdir()) == []


def test_a_package_without_dependencies_comes_over_one_with(wheels, monkeypatch):
    """As on the host."""

    def answer(arguments, what, platform):
        del platform
        report = arguments[arguments.index("--report") + 1]
        items = ", ".join(
            f'{{"metadata": {{"name": "{name}", "version": "{version}"}}, '
            f'"download_info": {{"archive_info": {{"hashes": {{"sha256": "{version}"}}}}}}}}'
            for name, version in (word.split("==") for word in what.split(", "))
        )
        with open(report, "w", encoding="utf-8") as stream:  # noqa: PTH123 -- a path as pip has it
            stream.write(f'{{"install": [{items}]}}')

    monkeypatch.setattr(wheels, "_pip", answer)
    found = wheels._resolve(Requirements(("wdemo==1", "wdep==1"), ("wdemo==2",)), PC)
    assert found == "wdemo==2 --hash=sha256:2\nwdep==1 --hash=sha256:1\n"


@pytest.mark.parametrize(
    ("marker", "platforms"),
    [
        ("platform_machine != 'armv7l'", {JETSON, PC}),
        ("python_version < '3.10'", {JETSON}),
        ("python_full_version >= '3.11.2' and sys_platform == 'linux'", {PI, PC}),
        ("platform_system == 'Windows'", set()),
        ("implementation_name == 'cpython'", {JETSON, PI, PC}),
    ],
)
def test_markers_are_the_boards(marker, platforms):
    for platform in (JETSON, PI, PC):
        found = module.for_platform((f"numpy==1.0; {marker}",), platform)
        assert found == (["numpy==1.0"] if platform in platforms else [])


def options(platform, name):
    found = module._tags(platform)
    return [value for option, value in itertools.pairwise(found) if option == name]


def test_tags_reach_from_the_boards_glibc_down():
    assert options(PI, "--python-version") == ["3.11.2"]
    assert options(PI, "--abi") == ["cp311", "abi3", "none"]
    names = options(JETSON, "--platform")
    assert names[0] == "manylinux_2_31_aarch64" and names[-1] == "linux_aarch64"
    assert names[-3:-1] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert len(names) == len(set(names)) == 31 - 17 + 1 + 2


def test_tags_of_older_names_are_those_of_x86_64():
    names = options(PC, "--platform")
    assert {"manylinux2010_x86_64", "manylinux1_x86_64"} <= set(names)
    assert not [name for name in options(PI, "--platform") if re.search("linux(1|2010)_", name)]


def test_tags_are_those_that_packaging_finds_on_this_machine():
    """For another machine nobody can tell us; for this one `packaging` can."""
    libc, version = here.libc_ver()
    if libc != "glibc":
        pytest.skip("this machine has another libc than glibc")
    ours = Platform(os.uname().machine, here.python_version(), version)
    minor = int(version.split(".")[1])
    found = {f"{tag.platform}" for tag in tags.sys_tags() if tag.interpreter.startswith("cp")}
    expected = {
        name
        for name in found
        if not (match := re.match(r"manylinux_2_(\d+)_", name)) or 17 <= int(match[1]) <= minor
    }
    assert set(options(ours, "--platform")) >= {n for n in expected if "manylinux_" in n}
    assert set(options(ours, "--platform")) <= found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            (
                "ERROR: Could not find a version that satisfies the requirement x==2 "
                "(from versions: 1.0, 1.1)\nERROR: No matching distribution found for x==2"
            ),
            "x==2 has no wheel for Python 3.11.2, glibc 2.36, x86_64; 1.1 is the newest that fits",
        ),
        (
            (
                "ERROR: Could not find a version that satisfies the requirement x==2 "
                "(from versions: none)"
            ),
            "x==2 has no wheel for Python 3.11.2, glibc 2.36, x86_64; no version of it fits",
        ),
        (
            "one\n\ntwo\nthree\nERROR: the disk is full",
            (
                "the wheels of x==2 for Python 3.11.2, glibc 2.36, x86_64 cannot be had: two three "
                "ERROR: the disk is full"
            ),
        ),
        (
            "\n",
            (
                "the wheels of x==2 for Python 3.11.2, glibc 2.36, x86_64 cannot be had: pip said "
                "nothing"
            ),
        ),
    ],
)
def test_pips_words_in_ours(text, words):
    assert module._error(text, "x==2\ny==3", PC).message == words


def shelf(home, digit, days, *, half=False):
    """A folder of wheels that was used so many days ago."""
    folder = home / "wheels" / (digit * 64 + (".part" if half else ""))
    folder.mkdir(parents=True)
    (folder / "tflite_runtime-2.14.0-cp311-cp311-linux_armv7l.whl").write_bytes(bytes(4096))
    moment = time.time() - days * 86400
    os.utime(folder, (moment, moment))
    return folder


def test_wheels_that_no_board_asked_for_lately_go(closed, wherry_home):
    assert list(closed) == closed.remove() == []  # of a home without any
    old, new = shelf(wherry_home, "a", 40), shelf(wherry_home, "b", 20)
    half = shelf(wherry_home, "c", 0, half=True)
    found = {each.directory: each for each in closed}
    assert list(found) == [old, new]
    assert found[old].packages == ("tflite-runtime==2.14.0",)
    assert found[old].size_bytes >= 4096
    assert found[new].last_used - found[old].last_used > timedelta(days=19)

    month = timedelta(days=30)
    assert [each.directory for each in closed.remove(month, dry_run=True)] == [half, old]
    assert old.exists() and half.exists()
    with hold(half.with_suffix(".lock")):  # it is being fetched
        assert [each.directory for each in closed.remove(month)] == [old]
    assert [each.directory for each in closed.remove()] == [half]
    assert [path.name for path in (wherry_home / "wheels").iterdir()] == [new.name]


def test_what_a_board_asks_for_is_used(closed, wherry_home):
    closed.fetch(Requirements(), PC)
    folder = wherry_home / "wheels" / closed.lock(Requirements(), PC).sha256
    os.utime(folder, (0, 0))
    closed.fetch(Requirements(), PC)
    assert closed.remove(timedelta(days=1)) == []


def test_what_a_killed_fetch_left_is_no_hindrance(wheels, wherry_home, monkeypatch):
    lock = Lock("wdemo==1 --hash=sha256:00\n", "c" * 64)
    left = shelf(wherry_home, "c", 0, half=True)
    seen = []

    def look(arguments, what, platform):
        seen.extend(path.name for path in left.iterdir())
        raise EnvironmentError_("broke off", remedy="None.")

    monkeypatch.setattr(wheels, "lock", lambda *_: lock)
    monkeypatch.setattr(wheels, "_pip", look)
    with pytest.raises(EnvironmentError_, match="broke off"):
        wheels.fetch(PIP, PC)
    assert seen == ["lock.txt"] and not left.exists()
