"""Wheels for boards: what pip is asked, what is kept, what is refused; pip is a script here."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.device import Platform
from wherry.engine.wheels import Wheels
from wherry.errors import EnvironmentError_
from wherry.requirements import Requirements

_PI = Platform("aarch64", "3.9.2", "2.31")
_REPORT = {
    "install": [
        {
            "metadata": {"name": "numpy", "version": "2.0.2"},
            "download_info": {"archive_info": {"hashes": {"sha256": "0" * 64}}},
        }
    ]
}


def _wheels(tmp_path: Path, last: str) -> Wheels:
    """With a pip that writes its arguments down, leaves the report, and ends as told."""
    (tmp_path / "report.json").write_text(json.dumps(_REPORT), encoding="utf-8")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nwhile [ $# -gt 1 ]; do\n'
        f'[ "$1" = --report ] && cp {tmp_path}/report.json "$2"\n'
        f'[ "$1" = -r ] && cat "$2" >> {tmp_path}/asked\nshift; done\n{last}\n',
        encoding="utf-8",
    )
    python.chmod(0o700)
    environments: Any = SimpleNamespace(root=tmp_path / "e", ensure=lambda _asked: python)
    return Wheels(tmp_path, environments, threading.Event())


def test_the_board_decides_tags_and_markers_and_the_lock_is_kept(tmp_path: Path) -> None:
    wanted = Requirements(packages=("numpy; platform_machine == 'aarch64'", "x; os_name == 'nt'"))
    wheels = _wheels(tmp_path, "exit 0")
    lock = wheels.lock(wanted, _PI)
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert lock.text == f"numpy==2.0.2 --hash=sha256:{'0' * 64}\n"
    assert "manylinux_2_31_aarch64" in asked and "manylinux2014_aarch64" in asked
    assert "manylinux_2_32" not in asked and "--abi cp39" in asked
    assert asked.splitlines()[1:] == ["numpy"]
    assert wheels.lock(wanted, _PI) == lock
    assert (tmp_path / "asked").read_text(encoding="utf-8") == asked  # pip was not asked again


def test_pip_is_told_the_files_that_the_author_names(tmp_path: Path) -> None:
    wanted = Requirements(no_deps=("numpy",), hashes=("a" * 64, "b" * 64))
    _wheels(tmp_path, "exit 0").lock(wanted, _PI)
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert asked[1:] == [f"numpy --hash=sha256:{'a' * 64} --hash=sha256:{'b' * 64}"]


def test_what_has_no_wheel_is_named_with_the_board_and_what_fits(tmp_path: Path) -> None:
    words = "satisfies the requirement a==9 (from versions: 1.0, 1.2)"
    wheels = _wheels(tmp_path, f'echo "{words}"; exit 1')
    with pytest.raises(EnvironmentError_) as caught:
        wheels.lock(Requirements(packages=("a==9",)), _PI)
    told = "a==9 has no wheel for Python 3.9.2, glibc 2.31, aarch64; 1.2 is the newest that fits"
    assert caught.value.message == told
    assert not list((tmp_path / "e/locks").glob("*.txt"))


@pytest.mark.parametrize(
    ("platform", "told"),
    [
        (Platform("aarch64", "3.8.1", "2.31"), "needs Python >=3.9"),
        (Platform("aarch64", "3.9.1", None), "without glibc"),
    ],
)
def test_boards_that_cannot_fit_are_refused(tmp_path: Path, platform: Platform, told: str) -> None:
    with pytest.raises(EnvironmentError_, match=told):
        _wheels(tmp_path, "exit 9").lock(Requirements(("a",), python=">=3.9"), platform)
    assert not (tmp_path / "asked").exists()
