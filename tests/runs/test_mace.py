"""A whole run with MACE on boards over SSH: one has a mace_run, one has none.

The mace_run is the stand-in of the tests, or the real one that MACE_RUN names.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import mace_tool
import numpy as np
import onnx
import pytest
from own_runtime import OwnRuntime
from ruamel.yaml import YAML
from wired_boards import Lab

MANIFEST = """
wherry: 1
model: {path: digits.onnx}
data:
  calibration: {source: npz, path: data.npz, slice: "0:8"}
  evaluation: {source: npz, path: data.npz, slice: "8:24"}
metrics: [agreement]
targets: [{backend: mace, precision: [fp32, int8], device: [phone, bare], threads: 2}]
measure: {rounds: 2, duration_s: 0.05, warmup_s: 0.01, min_runs: 3, max_runs: 6, layers: true}
"""


@pytest.fixture
def lab(tmp_path, wherry_home, monkeypatch):
    monkeypatch.delenv("MACE_RUN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "workstation"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("wherry_devices.provision.Provisioner", OwnRuntime)
    with contextlib.ExitStack() as stack:
        yield Lab(tmp_path, stack, wait_s=60)


def test_a_run_on_two_boards(lab, tmp_path, monkeypatch):
    tool = mace_tool.real() or mace_tool.stand_in(tmp_path)
    for name in ("phone", "bare"):
        lab.add(name)
    inventory = lab.folder / "devices.yaml"
    entries = YAML(typ="safe").load(inventory)
    entries["devices"]["phone"]["tools"] = {"mace_run": tool}
    YAML(typ="safe").dump(entries, inventory)
    source = Path(__file__).parents[2] / "manifests" / "digits.onnx"
    (lab.folder / "digits.onnx").write_bytes(source.read_bytes())
    shape = [d.dim_value or 24 for d in _input(source).type.tensor_type.shape.dim]
    rng = np.random.default_rng(3)
    data = rng.normal(size=(24, *shape[1:])).astype(np.float32)
    np.savez(lab.folder / "data.npz", input=data)
    (lab.folder / "m.yaml").write_text(MANIFEST)
    monkeypatch.chdir(lab.folder)
    values = lab.run()
    results = {
        (each["target"]["device"], each["target"]["precision"]): each for each in values["results"]
    }
    for precision, least in (("fp32", 60.0), ("int8", 10.0)):
        found = results["phone", precision]
        assert found["status"] == "ok", found["error"]
        assert found["latency"]["timed_by"] == "mace_run"
        assert found["latency"]["samples"] >= 6
        assert found["peak_memory_bytes"] > 0
        assert found["metrics"]["agreement"] > (0.99 if precision == "fp32" else 0.5)
        assert "parity" in found and least
        layers = found["layers"]
        assert layers and any(layer["nodes"] for layer in layers)
        skipped = results["bare", precision]
        assert skipped["status"] == "skipped"
        assert "no mace_run" in skipped["error"] and "tools: {mace_run: PATH}" in skipped["error"]


def _input(path: Path) -> onnx.ValueInfoProto:
    return onnx.load(path).graph.input[0]
