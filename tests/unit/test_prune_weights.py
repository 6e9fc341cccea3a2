"""Pruning single weights: patterns, shares, and which nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from prune_networks import job, network, normal, plain

from wherry_compress.job import Refusal
from wherry_compress.prune import weights
from wherry_compress.prune.passes import PruneWeights


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 11), st.integers(0, 99))
def test_patterns(keep, of, width, seed):
    if keep >= of:
        return
    array = np.random.default_rng(seed).normal(size=(3, width, 2, 2)).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    found = weights.patterned(weights.Weights(node, array), keep, of)
    whole = width // of * of
    blocks, old = (a[:, :whole].reshape(3, -1, of, 2, 2) for a in (found, array))
    assert ((blocks != 0).sum(axis=2) == keep).all()
    largest, left = (np.sort(np.abs(each), axis=2)[:, :, of - keep :] for each in (old, blocks))
    assert np.array_equal(largest, left)
    assert np.array_equal(found[:, whole:], array[:, whole:])
    assert np.array_equal(found[found != 0], array[found != 0])


@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
def test_as_many_zeros_as_were_asked_for(tmp_path, allocation):
    proto = plain()
    samples = {"samples": 4} if allocation == "sensitivity" else {}
    about = PruneWeights(sparsity=0.5, allocation=allocation, **samples)
    done = weights.apply(job(tmp_path, proto, about))
    assert done.figures["sparsity"] == pytest.approx(0.5, abs=0.02)
    values = {t.name: numpy_helper.to_array(t) for t in done.model.graph.initializer}
    zeros = sum((values[name] == 0).sum() for name in "wvm")
    assert zeros == done.figures["zeros"]
    assert (values["b"] != 0).all()
    if allocation == "uniform":
        assert all(
            share == pytest.approx(0.5, abs=0.01) for share in done.figures["nodes"].values()
        )


def test_as_many_zeros_as_were_asked_for_of_weights_that_are_alike(tmp_path):
    proto = plain()
    for tensor in proto.graph.initializer:
        if tensor.name in "wvm":
            signs = np.sign(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(signs, tensor.name))
    done = weights.apply(job(tmp_path, proto, PruneWeights(sparsity=0.3)))
    assert done.figures["sparsity"] == pytest.approx(0.3, abs=1e-3)


def test_only_1x1_lists_and_excludes(tmp_path):
    proto = network(
        "a = Conv (x, w) c = Conv (a, v) y = Conv (c, u)",
        {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 1, 1), "u": normal(4, 8, 1, 1)},
        "1, 4, 4, 4",
    )
    done = weights.apply(job(tmp_path, proto, PruneWeights(sparsity=0.5, only="1x1")))
    assert set(done.figures["nodes"]) == {"/c", "/y"}
    about = PruneWeights(ratios={"/c": 0.25, "*": 0.75}, exclude=("/y",))
    done = weights.apply(job(tmp_path, proto, about))
    assert done.figures["nodes"] == {"/a": 0.75, "/c": 0.25}
    with pytest.raises(Refusal, match=r"exclude names '/z', and .* no node with weights"):
        weights.apply(job(tmp_path, proto, PruneWeights(sparsity=0.5, exclude=("/z",))))
    with pytest.raises(Refusal, match="no constant weights to make zero in convolutions of 1x1"):
        about = PruneWeights(sparsity=0.5, only="1x1", exclude=("/c", "/y"))
        weights.apply(job(tmp_path, proto, about))
