"""A home that cannot be used, in whole runs: words, exit code 1, and nothing half done."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wherry.cli import main

MANIFEST = """
wherry: 1
model: {path: net.onnx}
data: {evaluation: {source: npz, path: data.npz}}
metrics: [cosine]
targets: [{backend: moody}]
measure: {rounds: 1, duration_s: 0.05, warmup_s: 0.02, warmup_runs: 5}
"""
RUN = [sys.executable, "-m", "wherry", "run", "m.yaml", "--json", "out.json"]


@pytest.fixture(autouse=True)
def _manifest(moody: Path) -> None:
    Path("m.yaml").write_text(MANIFEST)


@pytest.fixture
def home(moody: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, not the tests' shared one."""
    path = moody / "home"
    path.mkdir()
    monkeypatch.setenv("WHERRY_HOME", str(path))
    return path


def check_words(out: str, err: str, words: str) -> None:
    """They stand in the report, or in the one error where there is none; no trace of Python."""
    text = out + err
    assert "Traceback" not in text
    assert "bug of wherry" not in text
    assert words in (out or err), text
    assert len([line for line in err.splitlines() if line.startswith("Error: ")]) == 1


def check_report() -> None:
    """Where there is one, it is whole and says that nothing was measured."""
    assert not Path("out.json.part").exists()
    if Path("out.json").exists():
        (result,) = json.loads(Path("out.json").read_text())["results"]
        assert result["status"] == "failed"
        assert result["latency"] is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "home/runs"),
        ("runs", "home/runs"),
        ("store", "home/store"),
        ("store/.locks", "home/store/.locks"),
        ("store/convert", "home/store/convert"),
        ("board", "home/board"),
    ],
)
def test_a_file_lies_where_a_folder_has_to_be(home: Path, capsys, name: str, words: str) -> None:
    if name == ".":
        home.rmdir()
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    (home / name).write_text("a file\n")
    assert main(["run", "m.yaml", "--json", "out.json"]) == 1
    check_words(*capsys.readouterr(), words)
    check_report()
    assert (home / name).read_text() == "a file\n"


def test_a_file_larger_than_the_system_allows(home: Path) -> None:
    """What needs no rights: a limit on the size of files, which the reference goes beyond."""
    np.savez("data.npz", x=np.zeros((4096, 4, 4), np.float32))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, 100 << 10))

    done = subprocess.run(RUN, check=False, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    check_words(done.stdout, done.stderr, "File too large")
    check_report()
    assert main(["cache", "verify"]) == 0
    assert not list(home.glob("store/reference/*"))
    assert not list(home.glob("store/.tmp/*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=40k", "Make room on its disk"),
        ("size=800k", "do not fit on the board's disk"),
        ("ro", "the store is on a file system that can only be read. Set WHERRY_HOME"),
    ],
)
def test_a_disk_that_takes_no_more(home: Path, options: str, words: str) -> None:
    mounted = in_a_mount(home, options, 'exec "$@"', "true")
    if mounted.returncode:
        pytest.skip(f"this machine mounts no tmpfs for us: {mounted.stderr.strip()}")
    script = """
        "$@"; code=$?
        find "$WHERRY_HOME" -name "*.part" -o -path "*/.tmp/?*" -o -name scratch > left.txt
        "$1" -m wherry cache verify > verified.txt 2>&1; echo "code $?" >> verified.txt
        exit $code
    """
    done = in_a_mount(home, options, script, *RUN)
    assert done.returncode == 1, done.stderr
    check_words(done.stdout, done.stderr, words)
    check_report()
    assert Path("left.txt").read_text() == ""
    assert Path("verified.txt").read_text().splitlines()[-1] == "code 0"


def in_a_mount(home: Path, options: str, script: str, *command: str) -> subprocess.CompletedProcess:
    """Run a command where the home is a tmpfs of its own, gone when the command ends."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = f'mount -t tmpfs -o {options} none "{home}" || exit 8; {script}'
    return subprocess.run(
        ["unshare", *user, "--mount", "sh", "-c", mount, "sh", *command],
        check=False,
        capture_output=True,
        text=True,
    )
