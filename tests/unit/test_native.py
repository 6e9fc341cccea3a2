"""Machine code beside a runner: files out of wheels, and programs that are compiled."""

from __future__ import annotations

import os
import platform
import subprocess
import zipfile
from pathlib import Path

import pytest

from wherry.artifact import hash_file
from wherry.errors import EnvironmentError_, ToolError
from wherry.native import build, compiler, take


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "lib-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lib/one.so", b"one")
        archive.writestr("lib/two-abc.so.1", b"two")
        archive.writestr("lib/two-def.so.1", b"two")
    return path


def test_files_are_taken_once(wheel):
    files = take(wheel, {"one": "lib/one.so", "two": "lib/two-a*"})
    assert {name: path.read_bytes() for name, (_, path) in files.items()} == {
        "one": b"one",
        "two": b"two",
    }
    assert all(digest == hash_file(path) for digest, path in files.values())
    before = {name: path.stat().st_ino for name, (_, path) in files.items()}
    again = take(wheel, {"one": "lib/one.so", "two": "lib/two-a*"})
    assert before == {name: path.stat().st_ino for name, (_, path) in again.items()}


def test_what_was_taken_by_half_is_taken_again(wheel):
    half = wheel.with_suffix(".taken")
    half.mkdir()
    (half / "one").write_bytes(b"o")
    files = take(wheel, {"one": "lib/one.so"})
    assert files["one"][1].read_bytes() == b"one"


@pytest.mark.parametrize("member", ["lib/no.so", "lib/two*"])
def test_a_wheel_that_has_another_number_of_files_is_refused(wheel, member):
    with pytest.raises(EnvironmentError_, match="one is wanted"):
        take(wheel, {"it": member})


def test_a_machine_without_a_compiler_gets_nothing(tmp_path):
    source = tmp_path / "it.cc"
    source.write_text("int main() {}\n")
    assert compiler("m68k") is None
    assert build(source, "m68k", (), tmp_path) is None


@pytest.fixture
def cxx(tmp_path, monkeypatch):
    """A compiler of ours, which counts: its path and the file of its runs."""
    runs = tmp_path / "runs"
    program = tmp_path / "bin" / "g++"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "${VERSION:-1}"; exit; fi\n'
        f'echo "$*" >> {runs}\n'
        'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo made > "$2"; fi; shift; done\n'
        'if [ -n "$FAIL" ]; then echo "it.cc:1: wrong"; exit 1; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return runs


def test_a_program_is_compiled_once_for_its_source_flags_and_compiler(tmp_path, cxx, monkeypatch):
    source, here = tmp_path / "it.cc", platform.machine()
    source.write_text("one\n")
    first = build(source, here, ("-O2",), tmp_path)
    assert first is not None
    assert first.read_text() == "made\n"
    assert build(source, here, ("-O2",), tmp_path) == first
    assert len(cxx.read_text().splitlines()) == 1
    others = [build(source, here, ("-O1",), tmp_path)]
    monkeypatch.setenv("VERSION", "2")
    others.append(build(source, here, ("-O2",), tmp_path))
    source.write_text("two\n")
    others.append(build(source, here, ("-O2",), tmp_path))
    assert len({first, *others}) == 4


def test_what_the_compiler_says_is_told(tmp_path, cxx, monkeypatch):
    monkeypatch.setenv("FAIL", "1")
    source = tmp_path / "it.cc"
    source.write_text("wrong\n")
    with pytest.raises(ToolError, match=r"it.cc:1: wrong") as caught:
        build(source, platform.machine(), (), tmp_path)
    assert caught.value.remedy
    assert not list((tmp_path / "native").rglob("it")), "nothing is kept of it"


@pytest.mark.caffe2
def test_a_real_program_runs(tmp_path):
    if compiler(platform.machine()) is None:
        pytest.skip("no C++ compiler here: apt install g++")
    source = tmp_path / "it.cc"
    source.write_text(
        "#include <cmath>\nint main(int n, char**) { return int(std::cos(n - 1) * 7); }\n"
    )
    program = build(source, platform.machine(), ("-O1", "-lm"), tmp_path)
    assert program is not None
    assert subprocess.run([program], check=False).returncode == 7
    assert isinstance(program, Path)
