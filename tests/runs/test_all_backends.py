"""manifests/all-backends.yaml: what this machine has runs; what it lacks is skipped, never ok."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from wherry import api

MANIFEST = Path(__file__).parents[2] / "manifests" / "all-backends.yaml"
QUICK = ("measure.rounds=1", "measure.duration_s=0.1", "data.evaluation.slice=200:1200")

pytestmark = [pytest.mark.backend, pytest.mark.timeout(1200)]


@pytest.mark.usefixtures("wherry_home")
def test_six_backends_in_fp32_and_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MACE_RUN", "TRTEXEC", "LIBTORCH"):
        monkeypatch.delenv(name, raising=False)
    results = api.run(MANIFEST, sets=QUICK).values["results"]
    by_backend: dict[str, list[dict]] = {}
    for result in results:
        by_backend.setdefault(result["target"]["backend"], []).append(result)
    assert set(by_backend) == {"onnxruntime", "tflite", "ncnn", "tensorrt", "mace", "caffe2"}
    assert all(len(rows) == 2 for rows in by_backend.values())

    here = {"onnxruntime", "tflite", "ncnn"}
    here |= {"caffe2"} if shutil.which("g++") or shutil.which("c++") else set()
    here |= {"tensorrt"} if shutil.which("trtexec") else set()
    here |= {"mace"} if shutil.which("mace_run") else set()
    assert here >= {"caffe2"} or os.environ.get("WHERRY_TEST_REQUIRE") != "all"
    for backend, rows in by_backend.items():
        assert {row["status"] for row in rows} == {"ok" if backend in here else "skipped"}, rows
    measured = [row for row in results if row["status"] == "ok"]
    fp32 = [row for row in measured if row["target"]["precision"] == "fp32"]
    assert all(row["parity"]["sqnr_db"] > 60 for row in fp32)
    assert max(row["metrics"]["top1"] for row in measured) - 0.01 < min(
        row["metrics"]["top1"] for row in measured
    )
    skipped = {row["target"]["backend"]: row for row in results if row["status"] == "skipped"}
    for backend, tool in (("tensorrt", "trtexec"), ("mace", "mace_run")):
        if backend in skipped:
            row = skipped[backend]
            assert f"tools: {{{tool}: PATH}}" in row["error"] and row["latency"] is None
            assert row["size_bytes"] > 0, "it was converted all the same"
