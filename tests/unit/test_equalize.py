"""The pass equalize: channels of a tensor span alike, and the network stays the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from wherry.errors import ToolError
from wherry.host import Host
from wherry.model import Model
from wherry.parity import compare
from wherry.passes import PassStep
from wherry.reference import Reference, open_session
from wherry.testing.workshop import Workshop
from wherry_compress import basic, equalize
from wherry_compress.job import Data, Job

RANDOM = np.random.default_rng(0)
WIDE = np.float32([1, 100, 1, 0.01])


def network(
    body: str, weights: dict[str, np.ndarray], output: str = "1, 4, 6, 6"
) -> onnx.ModelProto:
    text = f"net (float[1, 3, 6, 6] x) => (float[{output}] y) {{ {body} }}"
    graph = onnx.parser.parse_graph(text)
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def spread(*shape: int) -> np.ndarray:
    """Weights whose output channels span differently."""
    return normal(*shape) * WIDE.reshape(-1, *[1] * (len(shape) - 1))


CONV = {"w": spread(4, 3, 1, 1), "b": normal(4) * WIDE, "v": normal(4, 4, 1, 1)}
NETWORKS = {
    "in a row": ("a = Conv(x, w, b) y = Conv(a, v)", CONV, ["a"]),
    "relu": ("a = Conv(x, w, b) r = Relu(a) y = Conv(r, v)", CONV, ["a", "r"]),
    "clip": (
        "a = Conv(x, w, b) r = Clip(a, zero, six) y = Conv(r, v)",
        CONV | {"zero": np.float32(0), "six": np.float32(6)},
        [],
    ),
    "a residual": (
        "a = Conv(x, w, b) c = Conv(a, u) s = Add(a, c) y = Conv(s, v)",
        CONV | {"u": spread(4, 4, 1, 1) / 100},
        ["a", "c", "s"],
    ),
    "an output too": ("y = Conv(x, w, b) z = Conv(y, v)", CONV, []),
    "depthwise": (
        "a = Conv(x, w, b) d = Conv <group = 4, pads = [1, 1, 1, 1]> (a, u) y = Conv(d, v)",
        CONV | {"u": spread(4, 1, 3, 3)},
        ["a", "d"],
    ),
    "grouped": (
        "a = Conv(x, w, b) y = Conv <group = 2> (a, u)",
        CONV | {"u": normal(4, 2, 1, 1)},
        [],
    ),
    "pools": (
        (
            "a = Conv(x, w, b) p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)"
            " q = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p)"
            " r = LeakyRelu <alpha = 0.1> (q) y = Conv(r, v)"
        ),
        CONV,
        ["a", "p", "q", "r"],
    ),
    "batch norms are folded first": (
        "a = Conv(x, w, b) n = BatchNormalization(a, s, o, m, k) r = Relu(n) y = Conv(r, v)",
        CONV
        | {
            "s": np.float32([1, 2, 3, 4]),
            "o": WIDE * 2,
            "m": WIDE / 5,
            "k": np.ones(4, np.float32),
        },
        ["n", "r"],
    ),
    "a constant is added": (
        "a = Conv(x, w, b) c = Add(a, o) y = Conv(c, v)",
        CONV | {"o": normal(1, 4, 1, 1)},
        [],
    ),
    "weights of two": ("a = Conv(x, w, b) c = Conv(a, v) d = Conv(c, v) y = Add(c, d)", CONV, []),
    "a product": ("a = Conv(x, w, b) c = Sigmoid(a) y = Mul(a, c)", CONV, []),
}


@pytest.fixture(scope="module")
def host():
    return Host.load()


def run(host, tmp_path, proto, samples):
    onnx.save(proto, tmp_path / "given.onnx")
    model = Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path)
    step = PassStep("equalize", basic.Equalize())
    made, _ = Workshop(host, tmp_path).optimize(model, step, samples)
    return model, made


def spans(model, tensor, samples):
    """The greatest |x| of each channel."""
    proto = model.proto()
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = open_session(proto.SerializeToString(), threads=1, where="")
    values = [session.run([tensor], sample)[0] for sample in samples]
    return np.abs(np.concatenate(values)).max(axis=(0, 2, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_scaled(host, tmp_path, name):
    body, weights, scaled = NETWORKS[name]
    proto = network(body, weights)
    if name == "an output too":
        proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [1, 4, 6, 6]))
    samples = [{"x": normal(1, 3, 6, 6)} for _ in range(5)]
    before, after = run(host, tmp_path, proto, samples)
    reference = Reference(before)
    others = [{"x": normal(1, 3, 6, 6)} for _ in range(3)]
    parity = compare(map(Reference(after).run, others), map(reference.run, others))
    assert parity.sqnr_db > 100
    for tensor in scaled:
        was, now = spans(before, tensor, samples), spans(after, tensor, samples)
        live = was > 0
        assert now[live].max() / now[live].min() < was[live].max() / was[live].min() / 5
    narrow = [each for each in scaled if each in {"a", "n"}]
    for tensor in narrow:  # one alone in its group would be even; 1/32 is the least factor
        now = spans(after, tensor, samples)
        assert now.max() == pytest.approx(spans(before, tensor, samples).max(), rel=0.01)
    if not scaled:
        stored = {t.name: numpy_helper.to_array(t) for t in after.proto().graph.initializer}
        assert all(np.array_equal(stored[key], weights[key]) for key in weights if key in stored)


def test_a_channel_without_values_stays_finite(host, tmp_path):
    weights = dict(CONV, w=CONV["w"] * np.float32([1, 1, 0, 1]).reshape(4, 1, 1, 1))
    weights["b"] = CONV["b"] * np.float32([1, 1, 0, 1])
    samples = [{"x": normal(1, 3, 6, 6)} for _ in range(2)]
    _, after = run(host, tmp_path, network("a = Conv(x, w, b) y = Conv(a, v)", weights), samples)
    for tensor in after.proto().graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all()


def test_values_that_are_not_finite_are_said(host, tmp_path):
    weights = dict(CONV, w=np.full((4, 3, 1, 1), 3e38, np.float32))
    with pytest.raises(ToolError, match="'a' becomes infinite or NaN"):
        run(
            host, tmp_path, network("a = Conv(x, w, b) y = Conv(a, v)", weights),
            [{"x": normal(1, 3, 6, 6)}],
        )  # fmt: skip


def test_gemm(tmp_path):
    graph = onnx.parser.parse_graph(
        "net (float[1, 3] x) => (float[1, 2] y)"
        " { a = Gemm <transB = 1> (x, w, b) r = Relu(a) y = Gemm <transB = 1> (r, v) }"
    )
    weights = {"w": spread(4, 3), "b": normal(4) * WIDE, "v": normal(2, 4)}
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    proto = onnx.shape_inference.infer_shapes(proto)
    onnx.save(proto, tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", normal(6, 1, 3))
    data = {"calibration": Data({"x": tmp_path / "x.npy"})}
    done = equalize.apply(Job(tmp_path / "in.onnx", {}, tmp_path, data))
    assert done.figures == {"tensors": ["a", "r"]} and not done.warnings
