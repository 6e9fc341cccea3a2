"""Weights that share values: how few they are, how near, and what is refused."""

from __future__ import annotations

import gzip
import sys
import types

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from pydantic import ValidationError
from share_networks import apply, error, network, normal, weights

from wherry.model import Model
from wherry.packing import MARK, pack
from wherry.packing.artifacts import travels_packed
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.plugin import MEMBERS
from wherry_compress.share import ecsq
from wherry_compress.share.importance import importances
from wherry_compress.share.kmeans import means, share
from wherry_compress.share.layers import Network, entropy_bits, short

RANDOM = np.random.default_rng(0)
STARTS = ("linear", "density", "random")


@pytest.mark.parametrize("start", STARTS)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=300), st.integers(2, 16))
def test_few_values_and_zeros_stay_zeros(start, numbers, count):
    given_weights = np.float32(numbers)
    made = share(given_weights, count, start, np.random.default_rng(0))
    assert made.dtype == np.float32 and made.shape == given_weights.shape
    assert len(np.unique(made)) <= max(count, 1)
    assert (made[given_weights == 0] == 0).all()
    if len(np.unique(given_weights)) <= count:
        assert np.array_equal(made, given_weights)


@pytest.mark.parametrize("start", STARTS)
def test_means_are_nearer_than_where_they_began(start):
    values = np.sort(RANDOM.normal(size=4000))
    linear = np.linspace(values[0], values[-1], 16)
    flat = error(linear[np.abs(values[:, None] - linear).argmin(1)], values)
    made = share(values.astype(np.float32), 16, start, np.random.default_rng(1))
    # Lloyd-Max of a Gaussian at 4 bits: 0.00950 of its variance
    assert error(made, values) < min(0.7 * flat, 0.0125 * float(np.sum(values**2)))


def test_means_of_masses():
    values, masses = np.array([0.0, 1.0, 10.0, 11.0]), np.array([1.0, 3.0, 1.0, 1.0])
    assert means(values, masses, np.array([0.0, 11.0])).tolist() == [0.75, 10.5]


def test_a_centre_that_nothing_is_near_is_moved():
    values = np.array([0.0, 0.1, 5.0, 9.0])
    assert len(means(values, np.ones(4), np.array([-9.0, 0.0, 5.0]))) == 3


def test_what_matters_more_is_met_better():
    values = RANDOM.uniform(-1, 1, 3000).astype(np.float32)
    heavy = np.where(values > 0, 100.0, 1.0)
    made = share(values, 8, "density", np.random.default_rng(0), heavy)
    plain = share(values, 8, "density", np.random.default_rng(0))
    assert error(made[values > 0], values[values > 0]) < error(
        plain[values > 0], values[values > 0]
    )


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_values_of_a_codebook_are_short(numbers):
    made = short(np.array(numbers))
    most = np.abs(numbers).max()
    assert np.abs(made - numbers).max() <= most / 2000 + 1e-45
    assert len(set(made.tolist())) <= len(numbers)


@pytest.mark.parametrize("start", STARTS)
def test_kmeans(tmp_path, start):
    proto = network()
    before = weights(proto)
    before["w"][0] = 0
    proto = network(weights=before)
    done = apply(tmp_path, "share.kmeans", proto, bits=3, start=start, layers={"/y": 5})
    after = weights(done.model)
    assert len(np.unique(after["w"])) <= 8 and not after["w"][0].any()
    assert 8 < len(np.unique(after["v"])) <= 32
    assert 0 < np.abs(after["b"] - before["b"]).max() < np.abs(before["b"]).max() / 100
    told = done.figures["layers"]
    assert told["/a"]["values"] == len(np.unique(after["w"]))
    assert told["/a"]["error"] == pytest.approx(
        error(after["w"], before["w"]) / float(np.sum(before["w"] ** 2)), rel=1e-3
    )
    again = apply(tmp_path, "share.kmeans", proto, bits=3, start=start, layers={"/y": 5})
    assert again.model.SerializeToString(deterministic=True) == done.model.SerializeToString(
        deterministic=True
    )


def test_layers_that_stay(tmp_path):
    proto = network()
    done = apply(tmp_path, "share.kmeans", proto, layers={"/a": 0}, biases=0)
    before, after = weights(proto), weights(done.model)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["v"]
    done = apply(tmp_path, "share.kmeans", proto, least=577)
    assert list(done.figures["layers"]) == ["/y"]


@pytest.mark.parametrize("name", ["share.kmeans", "share.ecsq", "share.pq"])
def test_refusals(tmp_path, name):
    target = {"step": 0.1} if name == "share.ecsq" else {}
    with pytest.raises(Refusal, match=r"names '/z', and .* no layer with weights") as refusal:
        apply(tmp_path, name, network(), layers={"/z": 1}, **target)
    assert "/y" in refusal.value.remedy or "/a" in refusal.value.remedy
    plain = network("r = Relu(x) y = Flatten(r)", {"unused": normal(3)}, 144)
    with pytest.raises(Refusal, match="no layer with float32 weights"):
        apply(tmp_path, name, plain, **target)


@pytest.mark.parametrize("name", ["share.kmeans", "share.ecsq", "share.vq"])
def test_layers_with_few_weights_stay_and_one_has_to_be_left(tmp_path, name):
    given = {"share.kmeans": {}, "share.ecsq": {"step": 0.1}, "share.vq": {"length": 2}}[name]
    if name == "share.vq":
        given |= {"bits": 4, "most_error": 1}
    done = apply(tmp_path, name, network(), least=577, **given)
    assert list(done.figures["layers"]) == ["/y"]
    for nothing in ({"least": 10_000}, {"layers": {"*": 0}}):
        with pytest.raises(Refusal, match=r"no layer (is left to be|was) shared"):
            apply(tmp_path, name, network(), **given, **nothing)


def test_a_layer_with_two_kinds_of_weights_is_told_of_twice(tmp_path):
    graph = onnx.parser.parse_graph(
        "net (float[3, 1, 4] x) => (float[3, 1, 1, 5] y) { y = GRU <hidden_size = 5> (x, w, r) }"
    )
    graph.node[0].name = "/y"
    values = {"w": normal(1, 15, 4), "r": normal(1, 15, 5)}
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    opset = onnx.helper.make_opsetid("", 17)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    done = apply(tmp_path, "share.kmeans", proto, bits=3, least=1)
    assert list(done.figures["layers"]) == ["/y, w", "/y, r"]
    assert done.figures["shared"] == 60 + 75


def test_parameters_that_are_none():
    parameters = MEMBERS["share.ecsq"].descriptor.parameters
    twice = {"step": 1, "fisher": True, "scope": "layer"}  # both choose the steps of layers
    parameters(**twice, method="iterative")
    for wrong in ({}, {"step": 0.1, "bits": 3}, {"step": 0}, {"bytes": 0}, twice):
        with pytest.raises(ValidationError):
            parameters(**wrong)


@pytest.mark.parametrize("method", ["uniform", "iterative"])
@pytest.mark.parametrize("scope", ["network", "layer"])
def test_ecsq_by_bits(tmp_path, method, scope):
    proto = network()
    before = weights(proto)
    before["w"][3] = 0
    proto = network(weights=before)
    done = apply(tmp_path, "share.ecsq", proto, bits=2.5, method=method, scope=scope)
    after = weights(done.model)
    bits = (entropy_bits(after["w"]) + entropy_bits(after["v"])) / (
        after["w"].size + after["v"].size
    )
    assert 2.3 < bits <= 2.5
    assert done.figures["bits_per_weight"] == pytest.approx(bits, abs=1e-3)
    assert not after["w"][3].any()
    steps = after["w"] / np.abs(after["w"][after["w"] != 0]).min()
    if method == "uniform":
        assert np.allclose(steps, np.rint(steps), atol=1e-4)


def test_iterative_is_nearer_at_the_same_entropy():
    values = RANDOM.laplace(size=20_000)
    levels = ecsq.ecsq(values / 0.5, np.ones(len(values))) * 0.5
    rate = entropy_bits(levels)
    steps = np.linspace(0.3, 1.5, 200)
    rates = [entropy_bits(np.rint(values / step)) for step in steps]
    step = steps[np.argmin(np.abs(np.array(rates) - rate))]
    assert error(levels, values) < 1.01 * error(np.rint(values / step) * step, values)


def test_ecsq_by_bytes(tmp_path):
    proto = network(weights={
        "w": normal(64, 4, 3, 3), "b": normal(64), "v": normal(1024, 10) / 16, "c": normal(10),
    })  # fmt: skip
    done = apply(tmp_path, "share.ecsq", proto, bytes=5000)
    packed = len(pack(done.model.SerializeToString(deterministic=True)))
    assert 4700 < packed <= 5000
    with pytest.raises(Refusal, match="cannot be reached"):
        apply(tmp_path, "share.ecsq", proto, bytes=200)


def test_importance_of_one_dense_layer(tmp_path):
    """Of y = x W the exact one is the mean of x^2, whatever the output."""
    scale = np.float32([1, 2, 0.5, 0.1])
    samples = (RANDOM.normal(size=(40, 1, 4)) * scale).astype(np.float32)
    graph = onnx.parser.parse_graph("net (float[1, 4] x) => (float[1, 30] y) { y = MatMul(x, w) }")
    graph.node[0].name = "/y"
    graph.initializer.append(numpy_helper.from_array(normal(4, 30), "w"))
    opset = onnx.helper.make_opsetid("", 17)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    np.save(tmp_path / "x.npy", samples)
    data = {"calibration": Data({"x": tmp_path / "x.npy"})}
    job = Job(tmp_path / "given.onnx", {}, tmp_path, data)
    found = importances(Network(proto), job)["w"]
    wanted = np.mean(samples[:32, 0] ** 2, axis=0)
    assert found.shape == (4, 30)
    # the part of the output is 1, measured with a noise of 32 * 30 numbers
    np.testing.assert_allclose(found[:, 0], wanted, rtol=0.2)
    np.testing.assert_allclose(found / found[:1], np.tile(wanted / wanted[0], (30, 1)).T, rtol=1e-6)


def test_importance_between_layers(tmp_path):
    """A layer behind which everything is multiplied by 10 matters 100 times as much."""
    body = "a = MatMul(x, w) s = Mul(a, ten) b = MatMul(x, v) t = Mul(b, one) y = Add(s, t)"
    graph = onnx.parser.parse_graph(f"net (float[1, 8] x) => (float[1, 20] y) {{ {body} }}")
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    values = {
        "w": normal(8, 20), "v": normal(8, 20), "ten": np.float32([10]), "one": np.float32([1]),
    }  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    opset = onnx.helper.make_opsetid("", 17)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    samples = normal(32, 1, 8)
    np.save(tmp_path / "x.npy", samples)
    job = Job(tmp_path, {}, tmp_path, {"calibration": Data({"x": tmp_path / "x.npy"})})
    found = importances(Network(proto), job)
    assert found["w"].mean() / found["v"].mean() == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("name", ["share.kmeans", "share.ecsq"])
def test_weighted_by_data(tmp_path, name):
    values = weights(network())
    values["w"][:, 0] *= 0.2  # where all count alike, these are met by few values
    proto = network(weights=values)
    samples = normal(16, 1, 4, 6, 6)
    samples[:, :, 1:] *= 0.01  # the weights of the first channel are what counts
    target = (
        {"bits": 2.5, "method": "iterative"} if "ecsq" in name else {"bits": 3, "start": "density"}
    )
    weighted, plain = (
        weights(apply(tmp_path, name, proto, samples=data, fisher=fisher, **target).model)["w"]
        for fisher, data in ((True, samples), (False, None))
    )
    before = weights(proto)["w"]
    shares = [error(made[:, 0], before[:, 0]) / error(made, before) for made in (weighted, plain)]
    assert shares[0] < 0.7 * shares[1]


def test_data_that_say_nothing(tmp_path):
    with pytest.raises(Refusal, match="say nothing"):
        zeros = np.zeros((4, 1, 4, 6, 6), np.float32)
        silent = weights(network())
        silent["b"] = np.zeros_like(silent["b"])
        apply(tmp_path, "share.kmeans", network(weights=silent), samples=zeros, fisher=True)


def test_what_is_needed_depends_on_the_parameters():
    def needed(name, **parameters):
        descriptor = MEMBERS[name].descriptor
        return descriptor.needed(descriptor.parameters(**parameters))

    assert needed("share.kmeans") == {"seed"}
    assert needed("share.kmeans", fisher=True) == {"seed", "calibration"}
    assert needed("share.kmeans", train={}) == {"seed", "training", "original", "torch"}
    assert needed("share.ecsq", step=1, fisher=True) == {"calibration"}
    assert needed("share.pq", correct=True) == {"seed", "calibration"}
    assert needed("share.rq") == {"seed"}


def test_pack_marks_and_changes_nothing(tmp_path):
    proto = network()
    proto.metadata_props.add(key="author", value="us")
    done = apply(tmp_path, "pack.huffman", proto)
    assert [(e.key, e.value) for e in done.model.metadata_props] == [("author", "us"), MARK]
    assert done.model.graph == proto.graph
    twice = apply(tmp_path, "pack.huffman", done.model)
    assert twice.model == done.model
    data = done.model.SerializeToString(deterministic=True)
    assert done.figures["packed_bytes"] > 0
    # of gzip's head the time and the system are others, no bytes more
    assert done.figures["gzip_bytes"] == len(gzip.compress(data, 6))
    onnx.save(done.model, tmp_path / "marked.onnx")
    onnx.save(proto, tmp_path / "plain.onnx")
    assert travels_packed(Model.load(tmp_path / "marked.onnx"))
    assert not travels_packed(Model.load(tmp_path / "plain.onnx"))


@pytest.mark.parametrize("name", ["compression.zstd", "zstandard"])
def test_zstd_is_told_where_it_is(tmp_path, monkeypatch, name):
    for each in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, each, None)  # not installed
    assert "zstd_bytes" not in apply(tmp_path, "pack.huffman", network()).figures
    asked = []
    known = types.SimpleNamespace(compress=lambda data, level: asked.append(level) or data[:77])
    monkeypatch.setitem(sys.modules, name, known)
    assert apply(tmp_path, "pack.huffman", network()).figures["zstd_bytes"] == 77
    assert asked == [19]


def test_what_is_shared_runs(tmp_path):
    proto = network()
    x = normal(1, 4, 6, 6)
    wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    done = apply(tmp_path, "share.kmeans", proto, bits=8)
    found = onnxruntime.InferenceSession(done.model.SerializeToString()).run(None, {"x": x})[0]
    assert error(found, wanted) < 0.01 * float(np.sum(wanted**2))
