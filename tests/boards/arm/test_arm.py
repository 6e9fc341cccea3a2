"""The whole journey on emulated ARM boards: real sshd, real aarch64 and armv7l wheels."""

from __future__ import annotations

import pytest

from wherry import api
from wherry.cli.devices import devices_probe, devices_setup

pytestmark = [pytest.mark.arm, pytest.mark.backend, pytest.mark.timeout(600)]

QUICK = ["measure.rounds=1", "measure.duration_s=0.1", "measure.warmup_s=0.05"]
SAMPLES = 200


def test_an_arm64_board_runs_what_this_machine_runs(arm64_board, project, monkeypatch):
    folder = project(arm64_board)
    monkeypatch.chdir(folder)
    board = devices_probe(["board"])["board"]
    assert (board["machine"], board["emulated"]) == ("aarch64", True)

    overrides = [f"data.evaluation.slice=200:{200 + SAMPLES}", *QUICK]
    record = api.run(folder / "boards.yaml", sets=overrides)

    results = {(r["target"]["device"], r["target"]["backend"]): r for r in record.values["results"]}
    assert len(results) == 6
    for (device, backend), result in results.items():
        assert result["status"] == "ok", result["error"]
        assert result["latency"]["emulated"] == (device == "board")
        assert result["metrics"]["agreement"] == 1.0
        here = results["local", backend]
        assert result["metrics"]["top1"] == here["metrics"]["top1"] > 0.95


def test_an_armhf_board_gets_what_has_wheels(armhf_board, project, monkeypatch):
    folder = project(armhf_board)
    monkeypatch.chdir(folder)
    board = devices_probe(["board"])["board"]
    assert board["facts"]["python_machine"] == "armv7l"
    assert board["facts"]["numpy"]
    rows = {row["backend"]: row for row in devices_setup(["board"])}
    assert rows["ncnn"]["python"].endswith("/bin/python")
    assert "numpy" in rows["onnxruntime"]["error"]
    assert "armv7l" in rows["onnxruntime"]["error"]
