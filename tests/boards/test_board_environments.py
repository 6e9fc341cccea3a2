"""The agent makes environments of shipped wheels: fallback, failures, cleaning; no network."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from wherry_devices.agent import environments as module
from wherry_devices.agent.environments import FILES, MARKER, Environments, EnvironmentsError

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
    assert environments.find(_LOCK) == (None, "")
    python = environments.make(_request(tmp_path))
    ran = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], stdout=-1, check=True)
    assert Path(ran.stdout.decode().strip()) == Path(python).parent.parent
    assert environments.find(_LOCK) == (python, "")


def test_a_uv_that_fails_leads_to_the_fallback(tmp_path: Path) -> None:
    uv = _script(tmp_path / "uv", "exit 3")
    python = _environments(tmp_path).make(_request(tmp_path, uv=uv))
    assert Path(python).exists()


def test_what_was_installed_is_compiled_at_once(tmp_path: Path) -> None:
    uv = _script(
        tmp_path / "uv",
        f"""
if [ "$1" = venv ]; then
  for folder; do :; done  # the last argument
  exec '{sys.executable}' -m venv --without-pip "$folder"
fi
cd "$(dirname "$(dirname "${{11}}")")"/lib/python*/site-packages
mkdir good bad
echo 'import good.part' >good/__init__.py
echo >good/part.py
echo 'import os; os.kill(os.getpid(), 9)' >bad/__init__.py
mv bad zbad""",
    )
    python = _environments(tmp_path).make(_request(tmp_path, uv=uv, pins=["good==1"]))
    (packages,) = Path(str(python)).parent.parent.glob("lib/python*/site-packages")
    compiled = sorted(path.name.partition(".")[0] for path in packages.glob("good/*/*.pyc"))
    assert compiled == ["__init__", "part"]


def test_both_reasons_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    uv = _script(tmp_path / "uv", "echo no such thing; exit 3")
    environments = _environments(tmp_path)
    request = _request(tmp_path, uv=uv, python=_script(tmp_path / "python", "exit 4"))
    (tmp_path / "python").chmod(0o700)
    with pytest.raises(EnvironmentsError, match=r"uv ended.*3: no such thing; venv ended.*4"):
        environments.make(request)
    assert environments.find(_LOCK) == (None, "")
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
    assert environments.find(_LOCK) == (None, "")


def _made(tmp_path: Path) -> Path:
    """An environment, whole."""
    _environments(tmp_path).make(_request(tmp_path))
    return tmp_path / "root/environments" / _LOCK[:32]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda made: (made / "pyvenv.cfg").unlink(), "pyvenv.cfg is missing"),
        (lambda made: (made / "bin/activate").write_text(""), "bin/activate was changed"),
        (lambda made: (made / FILES).unlink(), f"{FILES} is missing"),
        (lambda made: (made / FILES).write_text("{"), f"{FILES} is missing"),
        (lambda made: shutil.rmtree(made / "bin"), "is missing"),
    ],
    ids=["a file", "a truncated file", "the list", "half of the list", "a folder"],
)
def test_a_damaged_one_is_told_and_made_again(tmp_path: Path, harm: Any, told: str) -> None:
    harm(_made(tmp_path))
    environments = _environments(tmp_path)
    python, damage = environments.find(_LOCK)
    assert python is None and told in damage
    python = environments.make(_request(tmp_path))
    assert subprocess.run([python, "-c", ""], check=True).returncode == 0
    assert environments.find(_LOCK) == (python, "")
    assert _environments(tmp_path).find(_LOCK) == (python, "")


def test_an_interpreter_that_is_gone_is_damage(tmp_path: Path) -> None:
    made = _made(tmp_path)
    link = made / "bin/python"
    sizes = json.loads((made / FILES).read_text(encoding="utf-8"))
    nowhere = "x" * sizes["bin/python"]  # a link of the same size
    link.unlink()
    link.symlink_to(nowhere)
    assert _environments(tmp_path).find(_LOCK) == (None, "its Python is missing")


def test_bytecode_and_files_that_came_later_are_no_damage(tmp_path: Path) -> None:
    made = _made(tmp_path)
    packages = next(made.glob("lib/python*/site-packages"))
    (packages / "__pycache__").mkdir(exist_ok=True)
    (packages / "__pycache__/more.pyc").write_bytes(b"x")
    (packages / "cache-of-a-runtime").touch()
    assert _environments(tmp_path).find(_LOCK)[1] == ""


def test_one_that_another_makes_is_waited_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.0)
    environments = _environments(tmp_path)
    folder = tmp_path / "root/environments"
    folder.mkdir(parents=True)
    with (folder / f"{_LOCK[:32]}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert environments.make(_request(tmp_path)) is None
    assert environments.make(_request(tmp_path)) is not None


def test_temporary_files_are_beside_it_and_go_with_their_maker(tmp_path: Path) -> None:
    uv = _script(tmp_path / "uv", 'echo "$TMPDIR" > "$0.told"; touch "$TMPDIR/left"; exit 3')
    folder = tmp_path / "root/environments"
    half = folder / f"{'cd' * 16}.tmp"  # of a maker that was killed
    half.mkdir(parents=True)
    _environments(tmp_path).make(_request(tmp_path, uv=uv))
    scratch = Path((tmp_path / "uv.told").read_text(encoding="utf-8").strip())
    assert scratch == folder / f"{_LOCK[:32]}.tmp" and not scratch.exists()
    assert _environments(tmp_path).forget(3600) == [] and not half.exists()


def test_a_maker_ends_with_the_agent_however_that_ends(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    uv = _script(
        tmp_path / "uv", f'echo $$ > "{told}.new"; mv "{told}.new" "{told}"; exec sleep 60'
    )
    code = (
        "import subprocess, sys, threading\n"
        "from pathlib import Path\n"
        "from wherry_devices.agent.environments import Environments\n"
        f"made = Environments(Path({str(tmp_path / 'root')!r}), subprocess.Popen)\n"
        f"threading.Thread(target=made.make, args=({_request(tmp_path, uv=uv)!r},)).start()\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    _until(told.exists)
    maker = int(told.read_text(encoding="ascii"))
    assert os.getpgid(maker) != os.getpgid(agent.pid)  # it does not die by our signal
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    _until(lambda: _is_gone(maker))
    python = _environments(tmp_path).make(_request(tmp_path))
    assert subprocess.run([python, "-c", ""], check=True).returncode == 0


def _is_gone(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] == "Z"  # nobody has asked for its status yet


def _until(condition: Any, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_names_that_are_no_locks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentsError, match="not a lock"):
        _environments(tmp_path).find("../../etc")


def test_uv_is_taken_out_of_its_wheel(tmp_path: Path) -> None:
    from wherry_devices.provision import _take_uv

    with zipfile.ZipFile(tmp_path / "uv.whl", "w") as wheel:
        wheel.writestr("uv-1.data/scripts/uv", b"binary")
        wheel.writestr("uv-1.data/scripts/uvx", b"other")
    assert _take_uv(tmp_path / "uv.whl", tmp_path).read_bytes() == b"binary"
