"""The agent makes environments of shipped wheels: fallback, failures, cleaning; no network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from wherry_devices.agent.environments import MARKER, Environments, EnvironmentsError

_LOCK = "ab" * 32


def _request(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    made = {"lock": _LOCK, "python": sys.executable, "wheels": str(tmp_path), "pins": []}
    return made | {"system": False, "bytes": 0, "uv": "", "pip": str(tmp_path / "no.whl")} | changes


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    return str(path)


def _environments(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "root", subprocess.Popen)


def test_without_uv_the_boards_own_venv_makes_it(tmp_path: Path) -> None:
    environments = _environments(tmp_path)
    assert environments.find(_LOCK) is None
    python = environments.make(_request(tmp_path))
    ran = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], stdout=-1, check=True)
    assert Path(ran.stdout.decode().strip()) == Path(python).parent.parent
    assert environments.find(_LOCK) == python


def test_a_uv_that_fails_leads_to_the_fallback(tmp_path: Path) -> None:
    uv = _script(tmp_path / "uv", "exit 3")
    python = _environments(tmp_path).make(_request(tmp_path, uv=uv))
    assert Path(python).exists()


def test_both_reasons_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    uv = _script(tmp_path / "uv", "echo no such thing; exit 3")
    environments = _environments(tmp_path)
    request = _request(tmp_path, uv=uv, python=_script(tmp_path / "python", "exit 4"))
    (tmp_path / "python").chmod(0o700)
    with pytest.raises(EnvironmentsError, match=r"uv ended.*3: no such thing; venv ended.*4"):
        environments.make(request)
    assert environments.find(_LOCK) is None
    assert not [path for path in (tmp_path / "root/environments").iterdir() if path.is_dir()]


def test_a_full_disk_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentsError, match="MiB are free"):
        _environments(tmp_path).make(_request(tmp_path, bytes=1 << 60))


def test_a_half_made_one_is_made_again(tmp_path: Path) -> None:
    environments = _environments(tmp_path)
    half = tmp_path / "root/environments" / _LOCK[:32]
    half.mkdir(parents=True)
    (half / "rest").touch()
    environments.make(_request(tmp_path))
    assert not (half / "rest").exists()
    assert (half / MARKER).is_file()


def test_forget_takes_the_unused_and_half_made_and_passes_other_files(tmp_path: Path) -> None:
    environments = _environments(tmp_path)
    environments.make(_request(tmp_path))
    (tmp_path / "root/environments" / ("cd" * 16)).mkdir()
    assert (tmp_path / "root/environments/venv.log").is_file()
    assert environments.forget(3600) == ["cd" * 16]
    assert environments.forget(-1) == [_LOCK[:32]]
    assert environments.find(_LOCK) is None


def test_names_that_are_no_locks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentsError, match="not a lock"):
        _environments(tmp_path).find("../../etc")


def test_uv_is_taken_out_of_its_wheel(tmp_path: Path) -> None:
    from wherry_devices.provision import _take_uv

    with zipfile.ZipFile(tmp_path / "uv.whl", "w") as wheel:
        wheel.writestr("uv-1.data/scripts/uv", b"binary")
        wheel.writestr("uv-1.data/scripts/uvx", b"other")
    assert _take_uv(tmp_path / "uv.whl", tmp_path).read_bytes() == b"binary"
