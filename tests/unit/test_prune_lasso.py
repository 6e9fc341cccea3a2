"""LASSO by coordinate descent: what it finds is the least, and leaves as many as were asked."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from prune_networks import job, plain

from wherry_compress.prune import filters, lasso
from wherry_compress.prune.passes import PruneFilters, PruneLasso
from wherry_compress.prune.runs import outputs


def problem(size: int, seed: int):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((4 * size, size)) + generator.standard_normal((4 * size, 1))
    x *= np.exp(generator.standard_normal(size) / 2)
    gram = x.T @ x / len(x)
    return gram, gram @ np.ones(size)


@pytest.mark.parametrize("seed", range(4))
def test_as_many_are_left_as_were_asked(seed) -> None:
    gram, target = problem(24, seed)
    for count in (6, 12, 23):
        found = lasso.lasso(gram, target, count)
        assert (found != 0).sum() == count


@pytest.mark.parametrize("seed", range(4))
def test_no_other_factors_are_better(seed) -> None:
    """The conditions of a least: the slope is the penalty where a factor is not zero, else less."""
    gram, target = problem(24, seed)
    penalty = 0.2 * np.abs(target).max()
    found = lasso._descended(gram, target, penalty, np.ones(24))
    slope = target - gram @ found
    left = found != 0
    assert 0 < left.sum() < 24
    assert slope[left] == pytest.approx(penalty * np.sign(found[left]), rel=1e-2)
    assert (np.abs(slope[~left]) <= penalty * 1.01).all()


def test_a_channel_that_gives_nothing_is_never_kept() -> None:
    gram, target = problem(8, 0)
    gram[3] = gram[:, 3] = target[3] = 0
    assert lasso.lasso(gram, target, 4)[3] == 0


def test_channels_that_say_nothing_new_go_and_the_rest_takes_their_part(tmp_path):
    """Half of the channels are dead, or faint copies of others: nothing is lost after the fit."""
    proto = plain()
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name in "wb":
            values[8:12] = values[:4] / 10
        if tensor.name == "b":
            values[12:] = -1000
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    given_ = job(tmp_path, proto, PruneLasso(ratios={"/a": 0.5}, places=16), samples=60)
    done = lasso.apply(given_)
    assert done.figures["units"] == {"/a": [16, 8]}
    assert done.figures["error_left"]["/a"] < 1e-3
    data = given_.data["calibration"]
    pairs = list(zip(outputs(done.model, data), outputs(proto, data), strict=True))
    error = sum(((o["y"] - r["y"]) ** 2).sum() for o, r in pairs)
    assert error < 1e-3 * sum((r["y"] ** 2).sum() for _, r in pairs)


def test_lasso_loses_less_than_cutting_alone(tmp_path):
    proto = plain(32, 32)
    errors_ = {}
    for module, about in (
        (lasso, PruneLasso(ratios={"/a": 0.5}, places=16)),
        (filters, PruneFilters(ratios={"/a": 0.5})),
        (filters, PruneFilters(ratios={"/a": 0.5}, compensate=False, criterion="random")),
    ):
        given_ = job(tmp_path, proto, about, samples=60)
        data = given_.data["calibration"]
        pairs = list(
            zip(outputs(module.apply(given_).model, data), outputs(proto, data), strict=True)
        )
        errors_[len(errors_)] = sum(((o["y"] - r["y"]) ** 2).sum() for o, r in pairs)
    assert errors_[0] < errors_[1] < errors_[2]
