"""Layers are found in the model by their values, and not where these leave a doubt."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from wherry_ncnn import names
from wherry_ncnn.param import Layer

RNG = np.random.default_rng(0)


def graph(body: str) -> onnx.GraphProto:
    proto = onnx.parser.parse_graph(f"net (float[1,4,5] x) => (float[1,4,5] y) {{ {body} }}")
    for index, node in enumerate(proto.node):
        node.name = f"{node.op_type}/{index}"
    return proto


def layer(kind: str, inputs: str, outputs: str) -> Layer:
    taken, made = tuple(inputs.split()), tuple(outputs.split())
    return Layer(kind, f"{kind}_{made[0]}", taken, made, {})


def two(value: np.ndarray) -> list[np.ndarray]:
    """On two samples."""
    return [value, value * 0.75]


X, A, B = (RNG.normal(size=(1, 4, 5)).astype(np.float32) for _ in range(3))
IN = layer("Input", "", "in0")


def find(body, tensors, layers, blobs, most=1e-3):
    return names.match(
        graph(body),
        {name: two(value) for name, value in tensors.items()},
        [IN, *layers],
        {name: [each[0] for each in two(value)] for name, value in blobs.items()},
        most,
    )


def test_what_is_fused_belongs_to_one_layer():
    found = find(
        "c = Conv(x, w) r = Relu(c) y = Sigmoid(r)",
        {"x": X, "c": A - 9, "r": A, "y": B},
        [layer("Convolution", "in0", "1"), layer("Sigmoid", "1", "out0")],
        {"in0": X, "1": A * (1 + 1e-5), "out0": B},
    )
    assert found.nodes == {
        "Convolution_1": ("Conv/0", "Relu/1"),
        "Sigmoid_out0": ("Sigmoid/2",),
    }
    assert found.outputs == {"Convolution_1": {"r": "1"}, "Sigmoid_out0": {"y": "out0"}}
    assert found.tensors == {"in0": ("x",), "1": ("r",), "out0": ("y",)}


def test_copies_stand_for_the_same():
    found = find(
        "a = Relu(x) b = Exp(a) y = Add(a, b)",
        {"x": X, "a": A, "b": B, "y": A + B},
        [
            layer("ReLU", "in0", "1"),
            layer("Split", "1", "2 3"),
            layer("UnaryOp", "3", "4"),
            layer("BinaryOp", "2 4", "out0"),
        ],
        {"in0": X, "1": A, "2": A, "3": A, "4": B, "out0": A + B},
    )
    assert found.tensors["3"] == ("a",)
    assert found.nodes == {
        "ReLU_1": ("Relu/0",),
        "UnaryOp_4": ("Exp/1",),
        "BinaryOp_out0": ("Add/2",),
    }


def test_equal_values_one_after_the_other():
    """A Relu of what is positive changes nothing: the order tells."""
    found = find(
        "a = Conv(x, w) b = Relu(a) y = Exp(b)",
        {"x": X, "a": A, "b": A, "y": B},
        [layer("Convolution", "in0", "1"), layer("ReLU", "1", "2"), layer("UnaryOp", "2", "out0")],
        {"in0": X, "1": A, "2": A, "out0": B},
    )
    assert found.nodes["Convolution_1"] == ("Conv/0",)
    assert found.nodes["ReLU_2"] == ("Relu/1",)


@pytest.mark.parametrize(
    "blob",
    [
        A * 1.01,  # something else
        A[..., ::-1],  # in another order
        np.zeros_like(A),  # nothing that could tell
        A.reshape(1, 5, 4),
    ],
)
def test_a_layer_whose_result_is_no_tensor_has_no_name(blob):
    tensor = np.zeros_like(A) if not blob.any() else A
    found = find(
        "a = Relu(x) y = Exp(a)",
        {"x": X, "a": tensor, "y": B},
        [layer("ReLU", "in0", "1"), layer("UnaryOp", "1", "out0")],
        {"in0": X, "1": np.ascontiguousarray(blob), "out0": B},
    )
    assert "ReLU_1" not in found.nodes
    assert found.nodes["UnaryOp_out0"] == ("Relu/0", "Exp/1")
    assert "1" not in found.tensors


def test_infinite_values_count_by_their_places():
    masked, other = A.copy(), A.copy()
    masked[0, 0], other[0, 1] = -2e38, -np.inf
    same = masked.copy()
    same[0, 0] = -np.inf
    for blob, expected in ((same, {"y"}), (other, set())):
        found = find(
            "y = Relu(x)",
            {"x": X, "y": masked},
            [layer("ReLU", "in0", "out0")],
            {"in0": X, "out0": blob},
        )
        assert set(found.outputs.get("ReLU_out0", ())) == expected


def test_what_nobody_claims():
    proto = graph("a = Relu(x) k = Exp(w) y = Add(a, k)")
    claimed = names.Names(nodes={"l": ("Relu/0",)})
    assert [node.name for node in names.unclaimed(proto, claimed)] == ["Add/2"]
