"""Whole runs of TensorRT on boards over SSH, whose trtexec is a program of ours that behaves so."""

from __future__ import annotations

import contextlib
import json

import fake_trtexec
import numpy as np
import onnx
import pytest
from own_runtime import OwnRuntime
from ruamel.yaml import YAML
from wired_boards import Lab

from wherry.testing.networks import build

MANIFEST = """
wherry: 1
model: {path: net.onnx}
data:
  evaluation: {source: npz, path: data.npz, slice: "0:2"}
  calibration: {source: npz, path: data.npz}
metrics: [agreement]
targets: [{backend: tensorrt, device: [orin], PRECISIONS}]
measure: {rounds: 1, duration_s: 0.01, warmup_s: 0.01, layers: LAYERS}
parity: {samples: 2}
"""
PRECISIONS = "precision: [fp16, int8]"


@pytest.fixture
def lab(wherry_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "workstation"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("wherry_devices.provision.Provisioner", OwnRuntime)
    build("convnet", tmp_path / "net.onnx")
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "data.npz", image=rng.normal(0.3, 1, (8, 3, 17, 22)).astype(np.float32))
    with contextlib.ExitStack() as stack:
        yield Lab(tmp_path, stack)


def board(lab, version: str, **settings):
    """A board with a trtexec of that version; "": with none."""
    wired = lab.add("orin")
    program = lab.folder / "trtexec"
    if version:
        fake_trtexec.install(program, version, **settings)
    inventory = lab.folder / "devices.yaml"
    entries = YAML(typ="safe").load(inventory)
    entries["devices"]["orin"]["tools"] = {"trtexec": str(program)} if version else {}
    YAML(typ="safe").dump(entries, inventory)
    return wired


def manifest(lab, precisions: str = PRECISIONS, *, layers: bool = False) -> None:
    text = MANIFEST.replace("PRECISIONS", precisions).replace("LAYERS", str(layers).lower())
    (lab.folder / "m.yaml").write_text(text)


def rows(values) -> dict[str, dict]:
    return {row["target"]["precision"]: row for row in values["results"]}


@pytest.mark.parametrize("version", ["8.5", "10.3", "11.1"])
def test_a_whole_run(lab, version):
    """Engines are built, measured by trtexec, scored sample by sample, and kept on the board."""
    wired = board(lab, version)
    manifest(lab, layers=version == "10.3")
    found = rows(lab.run())
    for precision, row in found.items():
        assert row["status"] == "ok", (precision, row["error"])
        assert row["latency"]["timed_by"] == "trtexec"
        assert row["latency"]["median_ms"] == pytest.approx(2, abs=0.01)
        assert row["metrics"]["agreement"] == 1
        (told,) = (w for w in row["warnings"] if "this host cannot run it" in w)
        assert "the file that the board starts from has" in told
    assert found["fp16"]["parity"]["sqnr_db"] > 50  # on the board
    assert 15 < found["int8"]["parity"]["sqnr_db"] < 70
    engines = sorted((wired.board.home / ".wherry/cache/tensorrt/engines").iterdir())
    names = {"about.json", "build.log", "engine.plan", "layers.json"}
    assert [{path.name for path in each.iterdir()} for each in engines] == [names] * 2
    heads = [(each / "engine.plan").read_bytes()[12:].split(b"\n")[0] for each in engines]
    types = {json.loads(head)["typed"] for head in heads}
    assert types == ({"float16"} if version == "11.1" else {"weak"})
    if version == "10.3":
        layers = {layer["name"]: layer for layer in found["fp16"]["layers"]}
        timed = {name for name, layer in layers.items() if layer["median_ms"]}
        assert "/Conv/c0" in timed
        assert "/Relu/r0" not in timed, "the convolution does it"
        assert layers["/Conv/c0"]["nodes"] == ["/Conv/c0"]
    if version == "11.1":
        again = rows(lab.run(remeasure=True))
        assert all(row["status"] == "ok" for row in again.values())
        assert sorted((wired.board.home / ".wherry/cache/tensorrt/engines").iterdir()) == engines
    wired.check_free()


def test_what_a_board_cannot_do_is_skipped_with_the_reason(lab):
    board(lab, "8.5")
    manifest(lab, "precision: [bf16, fp16], tensorrt: {optimization_level: [null, 5]}")
    values = lab.run()
    said = {
        (row["target"]["precision"], row["target"]["options"].get("optimization_level")): (
            row["status"], row["error"],
        )
        for row in values["results"]
    }  # fmt: skip
    assert said["fp16", None][0] == "ok"
    status, error = said["fp16", 5]
    assert status == "skipped"
    assert "--builderOptimizationLevel" in error
    assert "Leave optimization_level out" in error
    assert said["bf16", None][0] == "skipped"
    assert "--bf16" in said["bf16", None][1]


@pytest.mark.parametrize(
    ("version", "settings", "words"),
    [("", {}, "no trtexec"), ("10.3", {"gpu": ""}, "no GPU")],
)
def test_a_board_without_tensorrt_or_gpu_is_skipped(lab, version, settings, words):
    board(lab, version, **settings)
    manifest(lab, "precision: fp32")
    (row,) = lab.run()["results"]
    assert row["status"] == "skipped"
    assert words in row["error"]
    assert "trtexec" in row["error"]


def test_trtexecs_own_words_are_told(lab):
    proto = onnx.load(lab.folder / "net.onnx")
    proto.graph.node[0].name = "unbuildable"
    onnx.save(proto, lab.folder / "net.onnx")
    wired = board(lab, "10.16")
    manifest(lab, "precision: fp16")
    (row,) = lab.run()["results"]
    assert row["status"] == "failed"
    assert "Could not find any implementation for node unbuildable" in row["error"]
    assert not list((wired.board.home / ".wherry/cache/tensorrt/engines").iterdir())
    wired.check_free()
