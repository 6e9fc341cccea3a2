"""The main job: manifests/quickstart.yaml on the three backends, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import look_at_report

MANIFEST = Path(__file__).parents[2] / "manifests" / "quickstart.yaml"
QUICK = ("--set", "measure.rounds=1", "--set", "measure.duration_s=0.1")

pytestmark = [pytest.mark.backend, pytest.mark.timeout(1200)]


def run(out: Path, *options: str) -> dict:
    command = [sys.executable, "-m", "wherry", "run", str(MANIFEST), "--json", str(out)]
    done = subprocess.run([*command, *QUICK, *options], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(out.read_text())


def states(report: dict) -> dict[str, str]:
    return {step["id"]: step["state"] for step in report["steps"]}


@pytest.fixture(scope="module")
def first(kept_home: Path) -> dict:
    """The report of a run from nothing; its HTML is beside it."""
    return run(kept_home / "first.json", "--html", str(kept_home / "first.html"))


def test_quickstart_then_from_the_store_then_other_threads(first: dict, tmp_path: Path) -> None:
    report = first
    results = report["results"]
    assert len(results) == 18
    assert {r["status"] for r in results} == {"ok"}
    assert {r["evaluated"] for r in results} == {4800}
    fp32 = [r for r in results if r["target"]["precision"] == "fp32"]
    top1 = [r["metrics"]["top1"] for r in fp32]
    assert min(top1) > 0.98
    assert max(top1) - min(top1) <= 0.001, "top-1 in fp32 is the same on all backends"
    assert all(r["parity"]["sqnr_db"] > 60 for r in fp32)
    assert all(r["parity"]["sqnr_db"] > 30 for r in results)
    assert all(gate["passed"] for gate in report["gates"])
    int8 = [r for r in results if r["target"]["precision"] == "int8"]
    assert min(r["metrics"]["top1"] for r in int8) > max(top1) - 0.005
    assert {r["calibration"]["method"] for r in int8} == {"minmax"}
    assert all(r["size_bytes"] < 0.6 * f["size_bytes"] for r, f in zip(int8, fp32, strict=True))
    assert any(r["pareto"] for r in results)
    assert all(r["latency"]["samples"] >= 10 for r in results)
    assert {step["state"] for step in report["steps"] if step["kind"] == "convert"} == {"done"}

    again = run(tmp_path / "again.json")
    assert {step["state"] for step in again["steps"]} == {"cached"}
    assert [r["latency"] for r in again["results"]] == [r["latency"] for r in results]

    two = ("--set", "targets.0.backend=tflite", "--set", "targets.0.threads=2")
    threads = run(tmp_path / "threads.json", *two)
    by_kind = {(s["kind"], s["state"]) for s in threads["steps"]}
    assert ("profile", "done") in by_kind
    assert {kind for kind, state in by_kind if state != "cached"} == {"profile"}
    assert all(r["target"]["options"]["threads"] == 2 for r in threads["results"])

    measured = run(tmp_path / "remeasured.json", "--remeasure", "--set", "targets.0.backend=ncnn")
    by_kind = {(s["kind"], s["state"]) for s in measured["steps"]}
    assert {kind for kind, state in by_kind if state != "cached"} == {"profile"}
    before = [r for r in results if r["target"]["backend"] == "ncnn"]
    assert len(measured["results"]) == len(before) == 6
    for one, earlier in zip(measured["results"], before, strict=True):
        assert one["latency"] != earlier["latency"]
        assert one["metrics"] == earlier["metrics"]


@pytest.mark.browser
def test_its_report_in_chromium(first: dict, kept_home: Path, opened) -> None:
    look_at_report(opened, kept_home / "first.html", first)
