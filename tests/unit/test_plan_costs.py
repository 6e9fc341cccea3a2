"""What ``wherry plan`` says of the model's costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from wherry import api
from wherry.cli import main
from wherry.cli.plan import _short

QUICKSTART = Path(__file__).parents[2] / "manifests/quickstart.yaml"

pytestmark = pytest.mark.usefixtures("wherry_home")


def test_a_line_for_the_model_and_a_row_for_each_node(capsys):
    costs = api.plan(QUICKSTART)["costs"]
    assert sum(node["macs"] for node in costs["nodes"]) == costs["macs"]
    assert costs["peak_node"] in {node["node"] for node in costs["nodes"]}
    assert main(["plan", str(QUICKSTART)]) == 0
    out = capsys.readouterr().out
    assert "model: 5.25 M multiply-accumulates, 91.3 k parameters, at most " in out
    assert "/classifier/Gemm" not in out
    assert main(["plan", str(QUICKSTART), "--nodes"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "/classifier/Gemm" in line)
    assert [each.strip() for each in row.strip("│").split("│")] == [
        "/classifier/Gemm", "Gemm", "1.28 k", "0.0%", "1.29 k", "40 B",
    ]  # fmt: skip
    assert "Constant" not in out


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (91_204, "91.2 k"),
        (999_600, "1 M"),
        (1.5e12, "1.5 T"),
    ],
)
def test_short_numbers(count, text):
    assert _short(count) == text


def test_what_cannot_be_counted_is_said(tmp_path, capsys):
    """The length of an If's results is not known before it runs."""
    branches = {}
    for name, rows in (("then_branch", 2), ("else_branch", 3)):
        value = onnx.numpy_helper.from_array(np.ones((rows, 4), np.float32), f"{name}.v")
        made = helper.make_tensor_value_info(f"{name}.o", TensorProto.FLOAT, [rows, 4])
        node = helper.make_node("Identity", [f"{name}.v"], [f"{name}.o"], name=f"{name}.i")
        branches[name] = helper.make_graph([node], name, [], [made], [value])
    graph = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["r"], name="/if", **branches),
            helper.make_node("MatMul", ["r", "w"], ["y"], name="/matmul"),
        ],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])],
        [onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "if.onnx")
    manifest = tmp_path / "m.yaml"
    manifest.write_text("wherry: 1\nmodel: {path: if.onnx}\ntargets: [{backend: onnxruntime}]\n")
    assert "'/if', a If" in api.plan(manifest)["costs"]["problem"]
    assert main(["plan", str(manifest), "--nodes"]) == 0
    assert "model: node '/matmul': the shape of the tensor 'r' is not" in capsys.readouterr().out
