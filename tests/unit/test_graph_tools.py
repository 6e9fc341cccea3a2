"""The graph tools of wherry_compress: costs, sharing, ties and the index arithmetic of Reshape."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from wherry_compress.graph import costs, sharing
from wherry_compress.graph.channels import trace
from wherry_compress.graph.ties import FIXED, Along, Reason, Ties, reshaped
from wherry_compress.job import Refusal

WHY = Reason("here", "because")


def network(text: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(f"net {text}")
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_costs_by_hand():
    model = network(
        """(float[1, 4, 8, 6] x) => (float[1, 5] y) {
            a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)
            d = Conv <group = 8> (a, u)
            t = ConvTranspose <strides = [2, 2]> (d, v)
            r = Relu (t)
            g = GlobalAveragePool (r)
            f = Flatten (g)
            y = Gemm <transB = 1> (f, m, c)
        }""",
        {
            "w": ones(8, 4, 3, 3),
            "b": ones(8),
            "u": ones(8, 1, 1, 1),
            "v": ones(8, 3, 2, 2),
            "m": ones(5, 3),
            "c": ones(5),
        },
    )
    found = costs.measure(model)
    assert {name: node.macs for name, node in found.nodes.items()} == {
        "/a": 4 * 3 * 8 * 4 * 9,
        "/d": 4 * 3 * 8,
        "/t": 4 * 3 * 8 * 3 * 4,
        "/r": 0,
        "/g": 0,
        "/f": 0,
        "/y": 15,
    }
    assert found.macs == 3456 + 96 + 1152 + 15
    assert found.parameters == 288 + 8 + 8 + 96 + 15 + 5
    assert found.nodes["/a"].parameters == 296
    # x: 768 bytes, a and d: 384, t and r: 576
    assert (found.peak_bytes, found.peak_node) == (768 + 384, "/a")
    assert found.nodes["/t"].output_bytes == 576


def test_costs_of_products_and_recurrent_networks():
    model = network(
        """(float[2, 3, 4] x) => (float[2, 3, 3] y, float[2, 1, 3, 5] h) {
            z = MatMul (x, w)
            t = Transpose <perm = [0, 2, 1]> (z)
            y = MatMul (z, t)
            h, l = LSTM <hidden_size = 5> (x, i, r)
        }""",
        {"w": ones(4, 6), "i": ones(1, 20, 4), "r": ones(1, 20, 5)},
    )
    nodes = costs.measure(model).nodes
    assert nodes["/z"].macs == 2 * 3 * 4 * 6
    assert nodes["/y"].macs == 2 * 3 * 3 * 6
    assert nodes["/h"].macs == 2 * 3 * (20 * 4 + 20 * 5)


def test_a_shared_constant_counts_once_and_lives_on_through_a_cut():
    model = network(
        """(float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y) {
            a = Conv (x, w) b = Conv (a, w) c = Add (b, s) d = Add (c, s) y = Conv (d, w)
        }""",
        {"w": ones(4, 4, 1, 1), "s": ones(1)},
    )
    assert costs.measure(model).parameters == 17
    copies = sharing.unshare(model)
    assert sorted(copies.values()) == ["s", "w", "w"]
    assert [node.input[1] for node in model.graph.node] == [
        "w",
        "w/of//b",
        "s",
        "s/of//d",
        "w/of//y",
    ]
    assert costs.measure(model).parameters == 3 * 16 + 2
    for name in ("w/of//b", "w/of//y"):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(ones(4, 4, 1, 1) * 2, name))
    sharing.reshare(model, copies)
    assert [node.input[1] for node in model.graph.node] == ["w", "w/of//b", "s", "s", "w/of//b"]
    assert sorted(t.name for t in model.graph.initializer) == ["s", "w", "w/of//b"]


def test_costs_of_constant_nodes_and_of_weights_in_whole_numbers():
    """They cost what they do as initializers, and what is made of them is no activation."""
    model = network(
        """(float[1, 4, 5, 5] x) => (float[1, 8, 5, 5] y) {
            w = DequantizeLinear (q, s)
            y = Conv (x, w)
        }""",
        {"q": np.ones((8, 4, 1, 1), np.int8), "s": np.float32(0.1)},
    )
    found = costs.measure(model)
    assert (found.macs, found.parameters) == (8 * 4 * 25, 8 * 4 + 1)
    assert (found.peak_bytes, found.uncounted) == (4 * (100 + 200), {})
    whole = network(
        """(int8[1, 4, 5, 5] x) => (int8[1, 8, 5, 5] y) {
            y = QLinearConv (x, s, z, q, s, z, s, z)
        }""",
        {"q": np.ones((8, 4, 1, 1), np.int8), "s": np.float32(0.1), "z": np.int8(0)},
    )
    found = costs.measure(whole)
    assert (found.macs, found.parameters, found.peak_bytes) == (8 * 4 * 25, 8 * 4 + 1, 300)
    text = "(float[1, 40] x) => (float[1, 50] y) { y = MatMul (x, w) }"
    plain = network(text, {"w": ones(40, 50)})
    weight = plain.graph.initializer.pop()
    constant = onnx.helper.make_node("Constant", [], ["w"], name="/w", value=weight)
    plain.graph.node.insert(0, constant)
    found = costs.measure(plain)
    assert (found.macs, found.parameters, found.peak_bytes) == (2000, 2000, 4 * 90)


def test_costs_of_sums_of_products_and_what_is_not_counted():
    body = """(float[2, 3, 4] x, float[4, 5] w) => (float[2, 3, 5] y) {
        y = Einsum <equation = EQ> (x, w)
    }"""
    found = costs.measure(network(body.replace("EQ", '"bij, jk -> bik"'), {}))
    assert (found.macs, found.uncounted) == (2 * 3 * 4 * 5, {})
    found = costs.measure(network(body.replace("EQ", '"...j, jk -> ...k"'), {}))
    assert (found.macs, found.uncounted) == (0, {"Einsum": 1})


def test_a_shape_that_is_not_known_is_said():
    model = network("(float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", {"w": ones(4, 4)})
    with pytest.raises(Refusal, match="the shape of the tensor 'x' is not known") as caught:
        costs.measure(model)
    assert caught.value.where == "node '/y'"


def test_the_outputs_and_what_nothing_makes_stay():
    model = network(
        """(float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y) {
            a = Conv (x, w) s = Add (a, x) b = Conv (s, v) y = Conv (b, u)
        }""",
        {"w": ones(4, 4, 1, 1), "v": ones(3, 4, 1, 1), "u": ones(4, 3, 1, 1)},
    )
    channels = trace(model)
    assert [group.name for group in channels.groups] == ["/b"]
    assert "'x'" in channels.frozen["/a"].why
    assert channels.frozen["/y"] == Reason("output 'y'", "are the model's outputs")
    with pytest.raises(Refusal, match="no channel of a tensor would be left"):
        channels.slice(channels.groups[0].units.tolist())


@st.composite
def reshapes(draw):
    """A shape, an axis of it that is longer than 1, and another shape of as many elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3, 4, 5]), min_size=1, max_size=6))

    def grouped():
        shape, rest = [], list(factors)
        while rest:
            count = draw(st.integers(1, len(rest)))
            shape.append(math.prod(rest[:count]))
            rest = rest[count:]
        return shape

    before = grouped()
    after = draw(st.one_of(st.builds(grouped), st.permutations(before))) if before else before
    axes = [axis for axis, size in enumerate(before) if size > 1]
    return before, draw(st.sampled_from(axes)) if axes else None, list(after)


@settings(deadline=None)
@given(reshapes(), st.integers(0, 2**32 - 1))
def test_channels_that_are_cut_before_and_after_a_reshape_leave_the_same(case, seed):
    before, axis, after = case
    if axis is None:
        return
    ties = Ties()
    ids = ties.fresh(before[axis])
    new_axis, table = reshaped(Along(axis, ids), before, after)
    new = ties.tie_rows(table, WHY)
    assert len(new) == after[new_axis]
    roots = ties.roots()
    cut = np.random.default_rng(seed).random(len(roots)) < 0.4
    kept = ~cut[roots]
    whole = np.arange(math.prod(before)).reshape(before)
    short = whole.compress(kept[ids], axis=axis)
    wanted = whole.reshape(after).compress(kept[new], axis=new_axis)
    assert short.size == wanted.size
    np.testing.assert_array_equal(short.reshape(wanted.shape), wanted)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=15))
def test_ties_are_an_equivalence_and_what_is_tied_to_fixed_is_frozen(pairs):
    ties = Ties()
    ties.fresh(12)
    sets = [{label} for label in range(13)]
    for one, other in pairs:
        ties.tie(np.array([one]), np.array([other]), WHY)
        merged = sets[one] | sets[other]
        if other != FIXED:
            for label in merged:
                sets[label] = merged
    roots = ties.roots()
    assert all((roots[a] == roots[b]) == (b in sets[a]) for a in range(1, 13) for b in range(1, 13))
    frozen = {one for one, other in pairs if other == FIXED}
    assert set(ties.reasons()) == {int(roots[label]) for label in frozen}
