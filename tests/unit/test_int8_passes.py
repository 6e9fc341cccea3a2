"""The passes before int8: biases that make up for rounding, and weights that are rounded well."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from wherry.normalise.graph import Graph
from wherry.quantize.weights import quantise_weight, weight_scales
from wherry.reference import open_session
from wherry_compress.int8 import adaround, bias
from wherry_compress.int8.weighted import Weighted, find, set_constant
from wherry_compress.job import Data, Job, Refusal

RANDOM = np.random.default_rng(0)
BODY = (
    "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) c = Clip(a, zero, six)"
    " d = Conv <group = 8, pads = [1, 1, 1, 1]> (c, u) e = Relu(d)"
    " f = Conv <group = 2> (e, g, o) p = GlobalAveragePool(f) q = Flatten(p)"
    " h = Gemm <transB = 1> (q, v, k) y = MatMul(h, m)"
)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


WEIGHTS = {
    "w": normal(8, 3, 3, 3),
    "b": normal(8),
    "zero": np.float32(0),
    "six": np.float32(6),
    "u": normal(8, 1, 3, 3),
    "g": normal(4, 4, 1, 1),
    "o": normal(4),
    "v": normal(12, 4),
    "k": normal(12),
    "m": normal(12, 5),
}


def network(body: str = BODY, weights=WEIGHTS) -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(f"net (float[1, 3, 9, 7] x) => (float[?] y) {{ {body} }}")
    graph.output[0].CopyFrom(onnx.helper.make_empty_tensor_value_info("y"))
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


@pytest.fixture
def run(tmp_path):
    def give(proto, function, count=24, **parameters):
        onnx.save(proto, tmp_path / "in.onnx")
        np.save(tmp_path / "x.npy", np.abs(RANDOM.normal(size=(count, 1, 3, 9, 7))).astype("f4"))
        data = {"calibration": Data({"x": tmp_path / "x.npy"})}
        done = function(Job(tmp_path / "in.onnx", parameters, tmp_path, data, seed=1))
        onnx.checker.check_model(done.model, full_check=True)
        return done

    return give


def rounded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With the weights that a writer of int8 makes."""
    graph = Graph(proto, {})
    for layer in find(graph)[0]:
        set_constant(graph, layer.tensor, layer.real(layer.whole()))
    return graph.proto


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    return made


def tensors(proto: onnx.ModelProto, names: list[str], samples: np.ndarray) -> list[np.ndarray]:
    tapped = copy(proto)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n != "y")
    session = open_session(tapped.SerializeToString(), threads=1, where="")
    runs = [session.run(names, {"x": sample}) for sample in samples]
    return [np.concatenate(values).astype(np.float64) for values in zip(*runs, strict=True)]


def off(proto: onnx.ModelProto, changed: onnx.ModelProto, samples: np.ndarray) -> float:
    (wanted,), (found,) = (tensors(each, ["y"], samples) for each in (proto, changed))
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


# --- bias correction ---------------------------------------------------------------------------


def test_means_are_brought_back(run, tmp_path):
    proto = network()
    done = run(proto, bias.apply, samples=24)
    samples = np.load(tmp_path / "x.npy")
    names = ["a", "d", "f", "h"]
    wanted, before, after = (
        tensors(each, names, samples)
        for each in (proto, rounded(copy(proto)), rounded(copy(done.model)))
    )
    for theirs, plain, corrected in zip(wanted, before, after, strict=True):
        axes = tuple(axis for axis in range(theirs.ndim) if axis != 1)
        was = np.abs((plain - theirs).mean(axis=axes)).max()
        assert np.abs((corrected - theirs).mean(axis=axes)).max() < max(1e-5, 0.02 * was)
    assert done.figures["corrected"] == 4
    assert done.figures["left"] == [{"node": "/y", "why": "a MatMul has no bias"}]


def test_weights_stay_and_missing_biases_are_added(run):
    proto = network()
    done = run(proto, bias.apply, samples=4)
    stored = {t.name: numpy_helper.to_array(t) for t in done.model.graph.initializer}
    assert all(np.array_equal(stored[name], WEIGHTS[name]) for name in "wugvm")
    nodes = {node.name: node for node in done.model.graph.node}
    assert len(nodes["/d"].input) == 3 and stored[nodes["/d"].input[2]].shape == (8,)
    assert list(nodes["/a"].input) == ["x", "w", "b"]


def test_a_bias_of_two_nodes_becomes_one_of_each(run):
    body = "a = Conv (x, w, b) c = Conv (x, u, b) y = Add(a, c)"
    proto = network(body, {"w": normal(4, 3, 1, 1), "u": normal(4, 3, 1, 1), "b": normal(4)})
    done = run(proto, bias.apply, samples=4)
    names = [node.input[2] for node in done.model.graph.node if node.op_type == "Conv"]
    assert len(set(names)) == 2 and done.figures["corrected"] == 2


@pytest.mark.parametrize("function", [bias.apply, adaround.apply])
def test_nothing_to_do_and_no_data_are_refused(run, function):
    parameters = {"samples": 4, "iterations": 10}
    with pytest.raises(Refusal, match="there is no layer"):
        run(network("y = Relu(x)", {}), function, **parameters)
    with pytest.raises(Refusal, match="there is no sample"):
        run(network(), function, count=0, **parameters)


@pytest.mark.parametrize("function", [bias.apply, adaround.apply])
def test_values_that_are_not_finite_are_said(run, function):
    weights = WEIGHTS | {"w": np.full((8, 3, 3, 3), 3e38, np.float32)}
    body = "a = Conv (x, w, b) y = Conv <group = 8> (a, u)"
    with pytest.raises(Refusal, match="becomes infinite or NaN"):
        run(network(body, weights), function, samples=4, iterations=10)


# --- AdaRound ----------------------------------------------------------------------------------


def test_results_are_nearer_than_by_the_writers_own_rounding(run):
    weights = WEIGHTS | {"w": normal(8, 3, 3, 3), "v": normal(12, 4)}
    proto = network(weights=weights)
    done = run(proto, adaround.apply, samples=24, iterations=200)
    others = np.abs(normal(12, 1, 3, 9, 7))
    assert done.figures["rounded"] >= 3
    assert all(row["error"] < 1 for row in done.figures["layers"])
    plain = off(proto, rounded(copy(proto)), others)
    assert off(proto, rounded(copy(done.model)), others) < 0.7 * plain
    # what is written is what the writers make of it
    assert off(done.model, rounded(copy(done.model)), others) < 0.2 * plain
    why = {entry["node"]: entry["why"] for entry in done.figures["left"]}
    assert "ncnn has one scale" in why["/f"]


def test_weights_lie_on_the_grid_and_are_kept_by_the_writers(run):
    proto = network()
    done = run(proto, adaround.apply, samples=8, iterations=60)
    written = {layer.name: layer for layer in find(Graph(done.model, {}))[0]}
    original = {layer.name: layer for layer in find(Graph(proto, {}))[0]}
    changed = 0
    for row in done.figures["layers"]:
        ours, theirs = written[row["node"]], original[row["node"]]
        np.testing.assert_allclose(ours.scales(), theirs.scales(), rtol=1e-6)
        np.testing.assert_array_equal(ours.real(ours.whole()), ours.weights)
        steps = np.abs(ours.weights - theirs.weights) / np.moveaxis(
            ours.scales().reshape(-1, *[1] * (ours.weights.ndim - 1)), 0, ours.axis
        )
        assert steps.max() < 1 + 1e-3  # up or down, and no further
        changed += int((ours.whole() != theirs.whole()).sum())
    assert changed > 10


def test_the_same_every_time(run, tmp_path):
    proto = network()
    first = run(proto, adaround.apply, samples=8, iterations=30)
    data = {"calibration": Data({"x": tmp_path / "x.npy"})}
    again = adaround.apply(
        Job(tmp_path / "in.onnx", {"samples": 8, "iterations": 30}, tmp_path, data, seed=1)
    )
    assert first.model.SerializeToString(deterministic=True) == again.model.SerializeToString(
        deterministic=True
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_any_whole_numbers_on_the_grid_are_found_again(outputs, inputs, axis, seed):
    """As long as each channel's greatest weight stays at 127 steps."""
    random = np.random.default_rng(seed)
    shape = (outputs, inputs) if axis == 0 else (inputs, outputs)
    weights = (random.normal(size=shape) * 10.0 ** random.uniform(-4, 4)).astype(np.float32)
    layer = Weighted("n", "Gemm", "w", weights, axis, 1, "x", "y")
    whole = random.integers(-127, 128, shape).astype(np.int8)
    greatest = np.abs(weights) == np.abs(weights).max(axis=1 - axis, keepdims=True)
    whole[greatest] = (127 * np.sign(weights[greatest])).astype(np.int8)
    real = layer.real(whole)
    scales = weight_scales(real, axis)
    np.testing.assert_array_equal(quantise_weight(real, scales, axis), whole)


def test_the_slope_of_the_penalty():
    h = np.linspace(0.02, 0.98, 33)
    for sharp in (2.0, 5.0):
        numeric = np.gradient(1 - np.abs(2 * h - 1) ** sharp, h)
        np.testing.assert_allclose(adaround._penalty_slope(h, sharp)[1:-1], numeric[1:-1], atol=0.4)
    assert (
        adaround._penalty_slope(np.array([0.2]), 2.0)
        > 0
        > adaround._penalty_slope(np.array([0.8]), 2.0)
    )
