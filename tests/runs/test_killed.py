"""A run that is killed at any moment goes on where it was; two runs share a store."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DIGITS = Path(__file__).parents[2] / "manifests" / "digits.onnx"
MANIFEST = """
wherry: 1
model:
  path: {digits}
  inputs:
    input: {{preprocess: {{scale: 0.00392156862745098, mean: [0.1307], std: [0.3081]}}}}
data:
  evaluation: {{source: mnist5k, slice: "0:300"}}
metrics: [top1]
variants:
  original: []
  simplified: [simplify]
targets:
  - {{backend: onnxruntime, precision: [fp32, fp16], threads: [1, 2]}}
measure: {{rounds: 2, duration_s: 0.1, warmup_s: 0.05}}
"""

pytestmark = [pytest.mark.backend, pytest.mark.timeout(1200)]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "killed.yaml"
    path.write_text(MANIFEST.format(digits=DIGITS))
    return path


def start(manifest: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wherry", "run", str(manifest), "--json", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # a shell starts what runs behind it with Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def entries(home: Path) -> dict[str, str]:
    """Each finished entry of the store and when it was made."""
    return {
        str(path): json.loads(path.read_text())["created"]
        for path in (home / "store").glob("*/*/*/entry.json")
    }


def verify(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wherry", "cache", "verify"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{home}: {done.stdout}{done.stderr}"


def test_killed_at_ten_random_moments(wherry_home: Path, manifest: Path, tmp_path: Path) -> None:
    chance = random.Random(20261124)
    out = tmp_path / "out.json"
    kept: dict[str, str] = {}
    for _ in range(10):
        process = start(manifest, out)
        time.sleep(chance.uniform(0.3, 4.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now = entries(wherry_home)
        assert kept.items() <= now.items(), "a finished step was done twice, or lost"
        kept = now

    process = start(manifest, out)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    now = entries(wherry_home)
    assert kept.items() <= now.items()
    report = json.loads(out.read_text())
    assert [r["status"] for r in report["results"]] == ["ok"] * 8
    verify(wherry_home)
    assert not list((wherry_home / "store" / ".tmp").glob("*")), "what a killed run left is swept"
    assert not _processes("wherry-agent"), "a killed run leaves no process"


def test_two_runs_at_once_share_a_store(wherry_home: Path, manifest: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "a.json", tmp_path / "b.json"]
    processes = [start(manifest, out) for out in outs]
    for process in processes:
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text
    reports = [json.loads(out.read_text()) for out in outs]
    assert all(r["status"] == "ok" for report in reports for r in report["results"])
    pairs = zip(reports[0]["results"], reports[1]["results"], strict=True)
    assert all(a["metrics"] == b["metrics"] and a["artifact"] == b["artifact"] for a, b in pairs)
    both = [
        {s["id"]: s["state"] for s in report["steps"] if s["kind"] == "convert"}
        for report in reports
    ]
    assert all("cached" in {both[0][step], both[1][step]} for step in both[0]), (
        "done once, not twice"
    )
    verify(wherry_home)


def test_ctrl_c_keeps_what_is_done(wherry_home: Path, manifest: Path, tmp_path: Path) -> None:
    process = start(manifest, tmp_path / "out.json")
    deadline = time.monotonic() + 120
    while not any("/convert/" in path for path in entries(wherry_home)):
        assert time.monotonic() < deadline, "nothing was converted"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert entries(wherry_home)
    assert not _processes("wherry-agent")


def _processes(name: str) -> list[str]:
    """Command lines of processes of this name; those of other homes do not count."""
    import psutil

    home = os.environ["WHERRY_HOME"]
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        line = " ".join(process.info["cmdline"] or [])
        if (name in line or process.info["name"] == name) and home in line:
            found.append(line)
    return found
