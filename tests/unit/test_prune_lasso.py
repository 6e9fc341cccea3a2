"""LASSO by coordinate descent: what it finds is the least, and leaves as many as were asked."""

from __future__ import annotations

import numpy as np
import pytest

from wherry_compress.prune import lasso


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
