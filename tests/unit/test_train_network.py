"""ONNX graphs as torch modules: batches, weights of their own, operators, refusals."""

# ruff: noqa: E402, E501 -- torch is looked for first; graphs are read best in one line
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import load
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

from wherry.model import Model
from wherry.normalise import normalise
from wherry.reference import open_session, run_session
from wherry_compress.job import Refusal
from wherry_compress.train.network import Network, unshare
from wherry_compress.train.node import stacked_shape

NETWORKS = load(Path(__file__).parents[1] / "conformance" / "networks.py")
REFUSED = {"gru": "GRU", "conditional": "single number"}
BATCH = 3


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def prepared(proto, tmp_path):
    onnx.save(proto, tmp_path / "given.onnx")
    model = Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path)
    (tmp_path / "normal").mkdir()
    return normalise(model, tmp_path / "normal", {"keep batch norm"}).model.proto()


def asked(network, samples):
    network.eval()
    given = {
        name: torch.from_numpy(np.concatenate([sample[name] for sample in samples]))
        for name in samples[0]
    }
    with torch.no_grad():
        return {name: value.numpy() for name, value in network(given).items()}


def wanted(proto, samples):
    session = open_session(proto.SerializeToString(), threads=1, where="")
    made = [run_session(session, sample, where="") for sample in samples]
    return {name: np.stack([each[name] for each in made]) for name in made[0]}


def check(proto, network, samples, close=1e-5):
    found = asked(network, samples)
    for name, theirs in wanted(proto, samples).items():
        assert found[name].shape == theirs.shape
        scale = max(float(np.sqrt(np.mean(theirs.astype(np.float64) ** 2))), 1e-6)
        np.testing.assert_allclose(found[name], theirs, rtol=0, atol=close * scale)


@pytest.mark.parametrize("name", sorted(NETWORKS.NETWORKS))
def test_batches_of_every_network(name, tmp_path):
    proto = prepared(NETWORKS.NETWORKS[name](), tmp_path)
    if name in REFUSED:
        with pytest.raises(Refusal, match=REFUSED[name]) as caught:
            Network(proto)
        assert caught.value.where in {node.name for node in proto.graph.node}
        return
    samples = [NETWORKS.sample(proto, seed) for seed in range(BATCH)]
    network = Network(proto)
    check(proto, network, samples)
    exported = network.proto()
    onnx.checker.check_model(exported, full_check=True)
    for output, theirs in wanted(proto, samples).items():
        np.testing.assert_allclose(wanted(exported, samples)[output], theirs, atol=1e-5, rtol=1e-5)


def one(body, weights=(), shape="1, 4, 7, 9", opset=17, opens=""):
    """A graph from x to y."""
    graph = onnx.parser.parse_graph(f"g (float[{shape}] x) => (float[{opens}] y) {{ {body} }}")
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v), k) for k, v in dict(weights).items()
    )
    del graph.output[0].type.tensor_type.shape.dim[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
    )
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def ints(*values):
    return np.array(values, np.int64)


R = np.random.default_rng(0)
W = R.normal(size=(6, 4, 3, 3)).astype(np.float32)
FORMS = {
    "conv with odd pads": ("y = Conv <pads = [0, 2, 1, 0]> (x, w)", {"w": W}),
    "conv, dilated": ("y = Conv <dilations = [2, 1], pads = [1, 1, 1, 1]> (x, w)", {"w": W}),
    "transposed": (
        "y = ConvTranspose <strides = [2, 3], pads = [1, 0, 0, 2], output_padding = [1, 2]> (x, w, b)",
        {"w": W.transpose(1, 0, 2, 3).copy(), "b": np.arange(6, dtype=np.float32)},
    ),
    "max pool, odd": ("y = MaxPool <kernel_shape = [3, 2], pads = [2, 0, 1, 1], strides = [2, 1]> (x)", {}),
    "max pool, up": ("y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, pads = [1, 1, 1, 1]> (x)", {}),
    "average, odd": ("y = AveragePool <kernel_shape = [3, 2], pads = [1, 0, 0, 1]> (x)", {}),
    "average, counted": ("y = AveragePool <kernel_shape = [3, 2], pads = [1, 0, 0, 1], count_include_pad = 1> (x)", {}),
    "average, up": ("y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)", {}),
    "lrn": ("y = LRN <size = 3, alpha = 0.1, beta = 0.6, bias = 2.0> (x)", {}),
    "resize, nearest": ("y = Resize <mode = \"nearest\", coordinate_transformation_mode = \"half_pixel\"> (x, , s)", {"s": np.float32([1, 1, 1.7, 0.5])}),
    "resize, corners": ("y = Resize <mode = \"linear\", coordinate_transformation_mode = \"align_corners\"> (x, , , s)", {"s": ints(1, 4, 13, 5)}),
    "resize, cubic": ("y = Resize <mode = \"cubic\"> (x, , s)", {"s": np.float32([1, 1, 2, 1.5])}),
    "pad, reflected": ("y = Pad <mode = \"reflect\"> (x, p)", {"p": ints(0, 0, 1, 2, 0, 0, 2, 1)}),
    "pad, edges": ("y = Pad <mode = \"edge\"> (x, p)", {"p": ints(0, 1, 0, 2, 0, 0, 2, 1)}),
    "pad, cut": ("y = Pad <mode = \"constant\"> (x, p, v)", {"p": ints(0, 0, -1, 2, 0, 0, 2, -3), "v": np.float32(0.5)}),
    "slice, backwards": ("y = Slice (x, a, b, c, d)", {"a": ints(-1, 2), "b": ints(-100, 100), "c": ints(2, 3), "d": ints(-2, 3)}),
    "gather, negative": ("y = Gather <axis = 1> (x, i)", {"i": ints(-1, 0, 2).reshape(1, 3)}),
    "gather, one": ("y = Gather <axis = 2> (x, i)", {"i": np.int64(3)}),
    "prelu": ("y = PRelu (x, a)", {"a": R.uniform(size=(4, 1, 1)).astype(np.float32)}),
    "shuffle": (
        "a = Reshape (x, s) b = Transpose <perm = [0, 2, 1, 3, 4]> (a) y = Reshape (b, t)",
        {"s": ints(1, 2, 2, 7, 9), "t": ints(1, 4, 7, 9)},
    ),
    "windows": (  # the batch becomes part of another axis, and comes back
        "a = Reshape (x, s) b = Transpose <perm = [1, 0, 2]> (a) c = Softmax <axis = -1> (b) y = Reshape (c, t)",
        {"s": ints(4, 7, 9), "t": ints(7, 36)},
    ),
    "over the batch": ("a = ReduceMean <axes = [0, 1]> (x) y = Add (x, a)", {}),
    "joined along the batch": ("a = Mul (x, x) y = Concat <axis = 0> (x, a)", {}),
    "a constant joins": ("y = Concat <axis = 1> (x, k)", {"k": np.ones((1, 2, 7, 9), np.float32)}),
    "expand": ("y = Expand (x, s)", {"s": ints(3, 1, 4, 7, 9)}),
    "heads": (
        "a = Reshape (x, s) b = Transpose <perm = [0, 2, 1, 3]> (a) c = Transpose <perm = [0, 2, 3, 1]> (a) y = MatMul (b, c)",
        {"s": ints(1, 12, 3, 7)},
    ),
    "left matmul": ("a = Reshape (x, s) y = MatMul (k, a)", {"s": ints(1, 12, 21), "k": np.ones((2, 12), np.float32)}),
    "gemm": (
        "a = Flatten (x) y = Gemm <alpha = 0.5, beta = 2.0> (a, w, b)",
        {"w": R.normal(size=(252, 5)).astype(np.float32), "b": R.normal(size=(1, 5)).astype(np.float32)},
    ),
    "squeezed": ("a = ReduceMax <axes = [2, 3], keepdims = 1> (x) b = Squeeze (a, i) y = Unsqueeze (b, i)", {"i": ints(2, 3)}),
    "where": ("a = Greater (x, k) y = Where (a, x, k)", {"k": np.float32(0.1)}),
    "depth to space": ("y = DepthToSpace <blocksize = 2, mode = \"DCR\"> (x)", {}),
    "layer norm": (
        "y = LayerNormalization <axis = 2> (x, s, t)",
        {"s": R.normal(size=(7, 9)).astype(np.float32), "t": R.normal(size=(7, 9)).astype(np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_an_operator(name):
    body, weights = FORMS[name]
    proto = one(body, weights)
    samples = [{"x": R.normal(size=(1, 4, 7, 9)).astype(np.float32)} for _ in range(BATCH)]
    check(proto, Network(proto), samples)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_reshape_keeps_the_inferences_apart(data):
    """Whatever the shapes: stacked and reshaped is reshaped and stacked, or it is refused."""
    factors = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))
    made = data.draw(st.permutations(factors)) if data.draw(st.booleans()) else list(factors)
    cut = data.draw(st.integers(1, len(made)))
    made = [*made[: cut - 1], int(np.prod(made[cut - 1 :]))]
    axis = data.draw(st.integers(0, len(factors) - 1))
    found = stacked_shape(factors, axis, made)
    if found is None:
        return
    place, shape = found
    parts = [R.normal(size=factors) for _ in range(BATCH)]
    stacked = np.concatenate(parts, axis)
    whole = stacked.reshape([s * BATCH if i == place else s for i, s in enumerate(shape)])
    each = np.concatenate([part.reshape(shape) for part in parts], place)
    np.testing.assert_array_equal(whole, each)


def test_weights_that_exporters_put_together_become_each_nodes_own():
    zero = np.zeros(4, np.float32)
    w, v = (R.normal(size=(4, 4, 1, 1)).astype(np.float32) for _ in range(2))
    proto = one("a = Conv (x, w, b) c = Relu (a) d = Conv (c, v, b) y = Add (d, b2)",
                {"w": w, "v": v, "b": zero, "b2": np.float32(1)})  # fmt: skip
    network = Network(proto)
    biases = [name for name in network.weights if name.startswith("b")]
    assert len(biases) == 2
    network.load({biases[0]: np.full(4, 3, np.float32)})
    stored = {t.name: numpy_helper.to_array(t) for t in network.proto().graph.initializer}
    assert sorted(float(stored[name][0]) for name in biases) == [0.0, 3.0]
    assert [node.name for node in network.proto().graph.node] == ["/a", "/c", "/d", "/y"]


def test_a_kernel_that_two_nodes_share_stays_shared():
    w = R.normal(size=(4, 4, 1, 1)).astype(np.float32)
    network = Network(one("a = Conv (x, w) c = Relu (a) y = Conv (c, w)", {"w": w}))
    assert list(network.weights) == ["w"]


def test_a_constant_that_is_a_weight_elsewhere_stays_as_it_is():
    k = np.ones(9, np.float32)
    proto = one("a = Add (x, k) b = Flatten (a) c = MatMul (b, w) y = Add (c, k)",
                {"k": k, "w": R.normal(size=(252, 9)).astype(np.float32)})  # fmt: skip
    trained, statistics = unshare(proto)
    assert trained == {"w", "k//y/1"} and not statistics
    assert proto.graph.node[0].input[1] == "k"


def test_batch_norms_learn_their_statistics_and_give_them_back():
    weights = {
        "s": np.float32([1, 2, 1, 1]), "b": np.zeros(4, np.float32),
        "m": np.zeros(4, np.float32), "v": np.ones(4, np.float32),
    }  # fmt: skip
    network = Network(one("y = BatchNormalization (x, s, b, m, v)", weights), momentum=1.0).train()
    x = torch.from_numpy(R.normal(3, 2, (8, 4, 7, 9)).astype(np.float32))
    made = network({"x": x})["y"]
    assert made.shape == (8, 1, 4, 7, 9)
    assert abs(float(made.mean().detach())) < 1e-4
    stored = {t.name: numpy_helper.to_array(t) for t in network.proto().graph.initializer}
    np.testing.assert_allclose(stored["m"], x.mean((0, 2, 3)), rtol=1e-5)
    fixed = Network(one("y = BatchNormalization (x, s, b, m, v)", weights), fixed=True).train()
    assert float(fixed({"x": x})["y"].mean().detach()) > 2


@pytest.mark.parametrize(
    ("body", "weights", "text"),
    [
        ("y = Hardmax (x)", {}, "Hardmax.*not known"),
        ("s = Shape (x) y = Reshape (x, s)", {}, "Shape"),
        ("y, i = MaxPool <kernel_shape = [2, 2]> (x) z = Cast <to = 1> (i)", {}, "second output"),
        ("y = ReduceSum <keepdims = 0> (x)", {}, "single number"),
    ],
)
def test_what_is_refused_is_named(body, weights, text):
    with pytest.raises(Refusal, match=text) as caught:
        Network(one(body, weights))
    assert caught.value.where.startswith("/")
    assert caught.value.remedy
