"""Weights that share vectors: codewords, where they pay, and the correction of errors."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from share_networks import apply, error, network, normal, weights

from wherry_compress.job import Refusal
from wherry_compress.share import vectors
from wherry_compress.share.books import assembled
from wherry_compress.share.layers import Layer


@st.composite
def layers(draw):
    kind = draw(st.sampled_from(["Conv", "Gemm", "MatMul"]))
    sizes = [draw(st.integers(1, 6)) for _ in range(4 if kind == "Conv" else 2)]
    attributes = {"transB": draw(st.integers(0, 1))} if kind == "Gemm" else {}
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], name="n", **attributes)
    return Layer(node, "w", normal(*sizes))


@given(layers())
def test_a_matrix_and_back(layer):
    matrix = vectors.as_matrix(layer)
    assert matrix.size == layer.values.size
    assert np.array_equal(vectors.from_matrix(layer, matrix), layer.values)


def test_a_row_of_a_matrix_is_what_one_output_takes_of_the_channels():
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="n")
    layer = Layer(node, "w", normal(5, 3, 2, 2))
    assert np.array_equal(vectors.as_matrix(layer)[1], layer.values[0, :, 0, 1].astype(float))


@pytest.mark.parametrize("kind", ["vq", "pq", "rq"])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 11), st.integers(2, 5), st.integers(1, 4))
def test_vectors(kind, rows, columns, length, bits):
    matrix = normal(rows, columns).astype(np.float64)
    books = vectors.quantised(matrix, kind, length, bits, 2, np.random.default_rng(0))
    made = assembled(books, matrix.shape)
    groups = [made[:, at : at + length] for at in range(0, columns, length)]
    most = 1 << bits * (2 if kind == "rq" else 1)
    assert all(len(np.unique(group, axis=0)) <= most for group in groups)
    assert error(made, matrix) <= 1.001 * float(np.sum(matrix**2))


def test_more_codebooks_are_nearer():
    matrix = normal(400, 12).astype(np.float64)
    errors = {}
    for kind in ("vq", "pq", "rq"):
        books = vectors.quantised(matrix, kind, 4, 5, 2, np.random.default_rng(0))
        errors[kind] = error(assembled(books, matrix.shape), matrix)
    assert errors["rq"] < 0.6 * errors["vq"] and errors["pq"] < errors["vq"]


def test_only_layers_where_it_pays(tmp_path):
    proto = network()
    before = weights(proto)
    done = apply(tmp_path, "share.vq", proto, bits=5, length=2, biases=0)
    after = weights(done.model)
    assert set(done.figures["layers"]) == {"/a", "/y"}
    done = apply(tmp_path, "share.vq", proto, bits=6, length=2, layers={"/a": 0}, biases=0)
    assert done.figures["left"] == {"/a": "as asked for"}
    after = weights(done.model)
    assert np.array_equal(after["w"], before["w"]) and not np.array_equal(after["v"], before["v"])
    with pytest.raises(Refusal, match=r"no layer was shared.*an error of") as caught:
        apply(tmp_path, "share.vq", proto, bits=2, most_error=0.01)
    assert "`most_error`, or take more bits" in caught.value.remedy
    with pytest.raises(Refusal, match="codebooks and indices would be") as caught:
        apply(tmp_path, "share.pq", proto, bits=12)
    assert "fewer `bits`" in caught.value.remedy and "more" not in caught.value.remedy


RESIDUAL = (
    "a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b) r = Relu(a) "
    "d = Conv <group = 2, dilations = [2, 2], pads = [2, 2, 2, 2]> (r, g, e) "
    "q = Relu(d) f = Flatten(q) y = Gemm <transB = 1> (f, v, c)"
)


@pytest.mark.parametrize("kind", ["vq", "pq", "rq"])
def test_errors_are_corrected_by_what_layers_give(tmp_path, kind):
    """Strides, dilations, groups and dense layers, each after the ones before it."""
    proto = network(RESIDUAL, {
        "w": normal(16, 4, 3, 3), "b": normal(16), "g": normal(8, 8, 3, 3) / 8, "e": normal(8),
        "v": normal(10, 72), "c": normal(10),
    })  # fmt: skip
    mixed = normal(4, 4)
    x = np.einsum("nbchw,cd->nbdhw", normal(64, 1, 4, 6, 6), mixed).astype(np.float32)
    given = {"bits": 3, "length": 2, "most_error": 1, "biases": 0}
    if kind == "rq":
        given["stages"] = 2
    runs = []
    for correct in (False, True):
        done = apply(tmp_path, f"share.{kind}", proto, samples=x, correct=correct, **given)
        session = onnxruntime.InferenceSession(done.model.SerializeToString())
        runs.append([session.run(None, {"x": sample})[0] for sample in x])
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    wanted = [session.run(None, {"x": sample})[0] for sample in x]
    plain, corrected = (sum(error(a, b) for a, b in zip(run, wanted, strict=True)) for run in runs)
    assert corrected < 0.7 * plain
    told = done.figures["responses"]
    assert set(told) == {"/a", "/d", "/y"}
    assert all(each["after"] < each["before"] for each in told.values())
    # the last layer's: its own weights and whatever came before, on these very samples
    relative = corrected / sum(error(each, np.zeros_like(each)) for each in wanted)
    spread = np.mean([each**2 for each in wanted]) / np.mean(
        [(each - weights(proto)["c"]) ** 2 for each in wanted]
    )
    assert told["/y"]["after"] == pytest.approx(relative * spread, rel=0.05)


def test_what_cannot_be_corrected(tmp_path):
    proto = network()
    bad = normal(8, 1, 4, 6, 6)
    bad[3] = np.inf
    with pytest.raises(Refusal, match="'x' becomes infinite or NaN"):
        apply(tmp_path, "share.vq", proto, samples=bad, correct=True, bits=5, length=2)
    with pytest.raises(Refusal, match="no sample to correct by"):
        apply(tmp_path, "share.vq", proto, samples=bad[:0], correct=True, bits=5, length=2)
