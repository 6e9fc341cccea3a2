"""Dependencies of a board's packages: markers, Python and glibc are the board's, by a real pip."""

from __future__ import annotations

import pytest
from wheel_folder import put_wheel, use_only, wheels_of

from wherry.artifact import hash_file
from wherry.device import Platform
from wherry.errors import EnvironmentError_, UnfitError
from wherry.requirements import Requirements

pytestmark = pytest.mark.index  # once, for pip's own environment

XAVIER = Platform("aarch64", "3.8.10", "2.31")
PI32 = Platform("armv7l", "3.9.2", "2.31")
PC = Platform("x86_64", "3.14.0", "2.41")
TRIXIE = Platform("aarch64", "3.13.5", "2.41")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    made.mkdir()
    return made


@pytest.fixture
def pins(tmp_path, folder, wherry_home, monkeypatch):
    """``pins(platform, packages...)``: of the lock, in order."""
    wheels = wheels_of(tmp_path / "home", wherry_home)
    use_only(folder, monkeypatch)

    def lock(platform, *packages):
        text = wheels.lock(Requirements(packages), platform).text
        return [line.split()[0] for line in text.splitlines()]

    return lock


def pure(folder, name, version="1.0", **about):
    put_wheel(folder, f"{name}-{version}-py3-none-any.whl", **about)


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        (XAVIER, {"wold", "warm", "wext", "wfast", "wdeep"}),
        (PI32, {"w32", "wext", "wfast"}),
        (PC, {"wpc", "wext"}),
        (TRIXIE, {"warm", "wext", "wdeep"}),
    ],
)
def test_markers_of_dependencies_are_decided_for_the_board(folder, pins, platform, expected):
    pure(
        folder,
        "wtop",
        requires=[
            'wold; python_version < "3.9"',
            'warm; platform_machine == "aarch64"',
            'w32; platform_machine == "armv7l"',
            'wpc; platform_machine == "x86_64" and python_full_version >= "3.14"',
            'wabsent; sys_platform == "win32" or implementation_name == "pypy"',
            'wabsent; sys_platform == "darwin" and platform_release >= "20"',
            "wext[fast]",
        ],
    )
    pure(
        folder,
        "wext",
        requires=['wfast; extra == "fast" and python_version < "3.11"'],
        extras="fast",
    )
    pure(folder, "warm", requires=['wdeep; platform_machine != "armv7l"'])
    for name in ("wold", "w32", "wpc", "wfast", "wdeep"):
        pure(folder, name)
    assert set(pins(platform, "wtop")) == {f"{name}==1.0" for name in expected | {"wtop"}}


def test_the_newest_for_the_boards_python_and_not_for_ours(folder, pins):
    pure(folder, "wnew", "1.0", python=">=3.8")
    pure(folder, "wnew", "2.0", python=">=3.10")
    pure(folder, "wnew", "3.0", python=">=3.14")
    assert pins(XAVIER, "wnew") == ["wnew==1.0"]
    assert pins(TRIXIE, "wnew") == ["wnew==2.0"]
    assert pins(PC, "wnew") == ["wnew==3.0"]


@pytest.mark.parametrize("asked", ["wnew==2.0", "wneeds"])
def test_a_package_that_needs_another_python_is_refused(folder, pins, asked):
    pure(folder, "wnew", "2.0", python=">=3.10")
    pure(folder, "wneeds", requires=["wnew"])
    with pytest.raises(UnfitError) as caught:
        pins(XAVIER, asked)
    assert caught.value.message == "wnew needs Python >=3.10, and the board has 3.8.10"
    assert "wnew==2.0" in pins(TRIXIE, asked)


def test_a_dependency_without_a_wheel_is_named_with_what_fits(folder, pins):
    put_wheel(folder, "wbin-1.0-cp38-cp38-manylinux_2_17_aarch64.manylinux2014_aarch64.whl")
    put_wheel(folder, "wbin-2.0-cp38-cp38-manylinux_2_34_aarch64.whl")
    pure(folder, "wtop", requires=["wbin>=2"])
    with pytest.raises(UnfitError) as caught:
        pins(XAVIER, "wtop")
    assert caught.value.message == (
        "wbin>=2 (from wtop) has no wheel for Python 3.8.10, glibc 2.31, aarch64; 1.0 is the "
        "newest that fits"
    )
    assert pins(Platform("aarch64", "3.8.10", "2.34"), "wtop") == ["wbin==2.0", "wtop==1.0"]


def test_packages_that_cannot_go_together_do_not_fit(folder, pins):
    for version in ("1.0", "2.0"):
        pure(folder, "wbase", version)
    pure(folder, "wone", requires=["wbase<2"])
    pure(folder, "wtwo", requires=["wbase>=2"])
    with pytest.raises(UnfitError, match=r"no set of wheels for Python 3\.8\.10"):
        pins(XAVIER, "wone", "wtwo")


def test_offline_only_folders_are_looked_into(folder, pins, monkeypatch):
    pure(folder, "where")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{folder} http://127.0.0.1:9/links")
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert pins(XAVIER, "where") == ["where==1.0"]
    with pytest.raises(EnvironmentError_, match="are not here, and UV_OFFLINE is set") as caught:
        pins(XAVIER, "wthere")
    assert not isinstance(caught.value, UnfitError)  # no other runtime is chosen for it
    assert "Unset UV_OFFLINE" in str(caught.value)


def test_a_limit_that_pip_does_not_know_is_refused_and_what_is_locked_stays(
    folder, pins, monkeypatch
):
    pure(folder, "whad")
    found = pins(XAVIER, "whad")
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2026-01-01")
    assert pins(XAVIER, "whad") == found
    with pytest.raises(EnvironmentError_, match="UV_EXCLUDE_NEWER is 2026-01-01, and pip"):
        pins(PC, "whad")


def test_a_wheel_that_is_not_the_one_that_was_tried_is_refused(tmp_path, wherry_home, monkeypatch):
    folder = tmp_path / "hashes"
    folder.mkdir()
    put_wheel(folder, "pinned-1.0-py3-none-any.whl")
    wheels = wheels_of(tmp_path / "home", wherry_home)
    use_only(folder, monkeypatch)
    digest = hash_file(folder / "pinned-1.0-py3-none-any.whl")
    board = Platform("aarch64", "3.10.0", "2.17")
    right = Requirements(no_deps=("pinned==1.0",), hashes=(digest,))
    assert wheels.lock(right, board).text == f"pinned==1.0 --hash=sha256:{digest}\n"
    wrong = Requirements(no_deps=("pinned==1.0",), hashes=("0" * 64,))
    with pytest.raises(EnvironmentError_, match="0" * 64):
        wheels.lock(wrong, board)
