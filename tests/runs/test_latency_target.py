"""A latency that pruning aims at, on a board over SSH: candidates are measured there."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from own_runtime import OwnRuntime
from wired_boards import Lab

MANIFEST = """
wherry: 1
model: {path: net.onnx}
variants:
  fast:
    - prune.filters:
        criterion: l1
        compensate: false
        latency: {backend: onnxruntime, device: board, fraction: 0.9, tries: 2}
targets: [{backend: onnxruntime, device: [local, board]}]
measure: {rounds: 1, duration_s: 0.05, warmup_s: 0.02}
"""


@pytest.fixture
def lab(wherry_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "workstation"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("wherry_devices.provision.Provisioner", OwnRuntime)
    with contextlib.ExitStack() as stack:
        yield Lab(tmp_path, stack, wait_s=60)


def network() -> onnx.ModelProto:
    """Wide enough that half the multiplications are faster whatever else runs here."""
    graph = onnx.parser.parse_graph(
        """net (float[1, 3, 40, 40] x) => (float[1, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, u) b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, v) d = Relu (c)
            g = GlobalAveragePool (d) f = Flatten (g) y = Gemm <transB = 1> (f, w)
        }"""
    )
    random = np.random.default_rng(1)
    for name, shape in {"u": (96, 3, 3, 3), "v": (96, 96, 3, 3), "w": (5, 96)}.items():
        values = random.normal(0, 0.05, shape).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, name))
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def test_candidates_are_measured_on_the_board_that_is_named(lab):
    onnx.save(network(), lab.folder / "net.onnx")
    (lab.folder / "m.yaml").write_text(MANIFEST)
    board = lab.add("board")
    values = lab.run()
    assert [(r["status"], r["error"]) for r in values["results"]] == [("ok", None)] * 2
    (told,) = values["results"][0]["passes"]
    found = told["latency"]
    assert found["reached_ms"] <= found["goal_ms"] == pytest.approx(0.9 * found["given_ms"])
    assert told["macs_after"] < told["macs_before"]
    trees = {path.name for path in board.store.glob("trees/*")}
    assert len(trees) >= len(found["tried"])  # each was another network, and was shipped
    board.check_free()
