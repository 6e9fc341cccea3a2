"""Models that come with Q/DQ: the float model and the ranges that they say."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from wherry.errors import UnsupportedError
from wherry.model import Model
from wherry.quantize.given import METHOD, float_model, is_quantised, read_qdq

X = np.linspace(-4, 4, 12, dtype=np.float32).reshape(1, 3, 4)


def network(
    body: str, *, domains: str = "", types: str = "float float", **weights
) -> onnx.ModelProto:
    taken, given = types.split()
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21{domains}]> '
        f"net ({taken}[1,3,4] x) => ({given}[1,3,4] y) {{ {body} }}"
    )
    constants = {"s": np.float32(0.02), "z": np.uint8(128), "zero": np.uint8(0), **weights}
    for name, values in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}/{index}"
    return proto


def run(proto: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, {"x": x})[0]


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_pairs_go_and_leave_their_ranges():
    proto = network(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) t = Tanh(d) "
        "u = QuantizeLinear(t, r, k) v = DequantizeLinear(u, r, k) y = Neg(v)",
        r=np.float32(0.01), k=np.int8(0),
    )  # fmt: skip
    read, found = read_qdq(proto)
    assert [(n.op_type, list(n.input), list(n.output)) for n in read.graph.node] == [
        ("Tanh", ["x"], ["t"]),
        ("Neg", ["t"], ["y"]),
    ]
    assert found.method == METHOD
    assert found.ranges["x"] == pytest.approx((-2.56, 2.54))
    assert found.ranges["t"] == pytest.approx((-1.28, 1.27))
    assert found.threshold("t") == pytest.approx(1.27)  # 127 steps, as the author's scale is
    assert found.threshold("x") == pytest.approx(2.56)
    assert not read.graph.initializer
    np.testing.assert_allclose(run(read), -np.tanh(X), rtol=1e-6)


def test_weights_are_what_they_stand_for_along_their_axis():
    whole = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    proto = network(
        "w = DequantizeLinear <axis = 1> (k, ks, kz) y0 = MatMul(x, w) y = MatMul(y0, w2)",
        k=whole, ks=np.array([0.1, 0.2, 0.3], np.float32), kz=np.array([0, 1, -1], np.int8),
        w2=np.ones((3, 4), np.float32),
    )  # fmt: skip
    read, found = read_qdq(proto)
    stored = {t.name: numpy_helper.to_array(t) for t in read.graph.initializer}
    expected = (whole - np.array([0, 1, -1])) * np.array([0.1, 0.2, 0.3], np.float32)
    np.testing.assert_array_equal(stored["w"], expected.astype(np.float32))
    assert found.ranges == {}
    np.testing.assert_array_equal(run(read), run(proto))


def test_weights_that_are_stored_in_float_are_rounded():
    proto = network(
        "q = QuantizeLinear(k, s, z) w = DequantizeLinear(q, s, z) y = Add(x, w)",
        k=np.linspace(-3, 3, 4, dtype=np.float32),
    )
    read, _ = read_qdq(proto)
    assert kinds(read) == ["Add"]
    np.testing.assert_array_equal(run(read), run(proto))


def test_blocks_of_weights():
    proto = network(
        "w = DequantizeLinear <axis = 0, block_size = 2> (k, ks) y = Add(x, w)",
        k=np.array([[1] * 4, [2] * 4, [3] * 4], np.int8),
        ks=np.array([[0.5] * 4, [2.0] * 4], np.float32),
    )
    read, _ = read_qdq(proto)
    np.testing.assert_array_equal(run(read), X + np.array([[0.5], [1], [6]], np.float32))


@pytest.mark.parametrize(
    ("scale", "kind", "expected"),
    [(6 / 255, "Clip", np.clip(X + 3, 0, 6)), (0.01, "Relu", np.maximum(X + 3, 0))],
)
def test_the_activation_that_a_quantiser_dropped_comes_back(scale, kind, expected):
    proto = network(
        "a = Add(x, three) q = QuantizeLinear(a, r, zero) y0 = DequantizeLinear(q, r, zero) "
        "y = Neg(y0)",
        r=np.float32(scale), three=np.float32(3),
    )  # fmt: skip
    read, found = read_qdq(proto)
    assert kinds(read) == ["Add", kind, "Neg"]
    assert read.graph.node[1].name == "QuantizeLinear/1"
    assert found.ranges["q"] == pytest.approx((0, 255 * scale))
    np.testing.assert_allclose(run(read), -expected, atol=1e-6)


@pytest.mark.parametrize(
    "before", ["a = Relu(x)", "a0 = Sigmoid(x) a = Flatten <axis = 2> (a0)", "a = Clip(x, three)"]
)
def test_no_activation_is_added_where_nothing_is_negative(before):
    shape = np.array([1, 3, 4], np.int64)
    proto = network(
        f"{before} q = QuantizeLinear(a, s, zero) d = DequantizeLinear(q, s, zero) "
        "y = Reshape(d, shape)",
        three=np.float32(3), shape=shape,
    )  # fmt: skip
    assert "QuantizeLinear/1" not in [node.name for node in read_qdq(proto)[0].graph.node]
    added = [n for n in read_qdq(proto)[0].graph.node if n.name.startswith("QuantizeLinear")]
    assert added == []


def test_whole_numbers_may_be_moved():
    proto = network(
        "q = QuantizeLinear(x, s, z) t = Transpose <perm = [0, 2, 1]> (q) "
        "d = DequantizeLinear(t, s, z) e = Transpose <perm = [0, 2, 1]> (d) y = Neg(e)"
    )
    read, found = read_qdq(proto)
    assert kinds(read) == ["Transpose", "Transpose", "Neg"]
    assert found.ranges["t"] == found.ranges["x"]
    np.testing.assert_array_equal(run(read), -X)


def test_outputs_keep_their_names():
    proto = network("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)")
    read, found = read_qdq(proto)
    assert [(n.op_type, n.name) for n in read.graph.node] == [("Identity", "DequantizeLinear/1")]
    assert found.ranges["y"] == found.ranges["x"]
    np.testing.assert_array_equal(run(read), X)


def test_the_widest_range_holds():
    proto = network(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "p = QuantizeLinear(x, r, z) e = DequantizeLinear(p, r, z) y = Add(d, e)",
        r=np.float32(0.1),
    )
    assert read_qdq(proto)[1].ranges["x"] == pytest.approx((-12.8, 12.7))


INNER = (
    "c = Constant <value = bool {1}> () "
    "y = If <then_branch = g () => (float[1,3,4] o) { q = QuantizeLinear(x, s, z) "
    "o = DequantizeLinear(q, s, z) }, else_branch = h () => (float[1,3,4] p) { p = Neg(x) }> (c)"
)


@pytest.mark.parametrize(
    ("body", "node", "words"),
    [
        ("q = QuantizeLinear(x, s, z) m = MatMulInteger(q, k) y = Cast <to = 1> (m)",
         "MatMulInteger/1", "computes in whole numbers"),
        ("q = QuantizeLinear(x, s, z) m = Cast <to = 1> (q) y = Neg(m)",
         "Cast/1", "computes on the whole numbers 'q'"),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, zero)",
         "DequantizeLinear/1", "another scale"),
        ("t = ReduceMax <keepdims = 0> (x) q = QuantizeLinear(x, t, z) y = Cast <to = 1> (q)",
         "QuantizeLinear/1", "at run time"),
        ("c = Cast <to = 2> (x) y = DequantizeLinear(c, s, z)",
         "DequantizeLinear/1", "nothing quantised"),
        (INNER, "", "inside of a node"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_refused_by_its_node(body, node, words):
    proto = network(body, k=np.ones((4, 4), np.int8))
    with pytest.raises(UnsupportedError, match=words) as caught:
        read_qdq(proto)
    assert node in str(caught.value)
    assert "onnxruntime" in caught.value.remedy


def test_outputs_of_whole_numbers_are_refused():
    proto = network("y = QuantizeLinear(x, s, z)", types="float uint8")
    with pytest.raises(UnsupportedError, match="output 'y' is of quantised whole numbers"):
        read_qdq(proto)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Neg(x)", False),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", True),
        ("q = QuantizeLinear(x, s, z) m = MatMulInteger(q, k) y = Cast <to = 1> (m)", True),
    ],
)
def test_whether_a_model_is_quantised(tmp_path, body, expected):
    onnx.save(network(body, k=np.ones((4, 4), np.int8)), tmp_path / "m.onnx")
    assert is_quantised(Model.load(tmp_path / "m.onnx")) is expected


def test_the_float_model_is_a_file(tmp_path):
    proto = network("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Neg(d)")
    onnx.save(proto, tmp_path / "m.onnx")
    model, found = float_model(Model.load(tmp_path / "m.onnx"), tmp_path)
    assert model.operators() == {"Neg": ("Neg/2",)}
    assert "x" in found.ranges
