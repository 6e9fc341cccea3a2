"""Statistics: figures against numpy's, intervals against simulations with known truths."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import UsageError
from wherry.stats import median_interval, outliers, pareto, ratio_interval, summarise

rounds_of_samples = st.lists(
    st.lists(st.integers(1, 10**10), min_size=0, max_size=30), min_size=1, max_size=6
).filter(any)


@given(rounds_of_samples, st.integers(0, 9))
@settings(deadline=None)
def test_a_summary_holds_what_numpy_says(rounds, seed):
    samples = np.array([value for one in rounds for value in one], np.uint64)
    sizes = [len(one) for one in rounds]
    summary = summarise(samples, sizes, seed)
    exact = samples / 1e6
    assert summary.median_ms == pytest.approx(np.median(exact))
    assert summary.mean_ms == pytest.approx(exact.mean())
    assert summary.min_ms == exact.min()
    assert summary.samples == len(samples)
    low, high = summary.ci95_ms
    assert exact.min() <= low <= high <= exact.max()
    assert summary == summarise(samples, sizes, seed)


@given(st.lists(st.integers(10**5, 10**7), min_size=2, max_size=200), st.integers(2, 1000))
@settings(deadline=None)
def test_another_unit_changes_nothing_but_the_unit(values, factor):
    samples = np.array(values, float)
    low, high = median_interval(samples, [len(values)])
    assert median_interval(samples * factor, [len(values)]) == pytest.approx(
        (low * factor, high * factor)
    )


@pytest.mark.parametrize(
    ("count", "p90", "p99"),
    [(63, False, False), (64, True, False), (661, True, False), (662, True, True)],
)
def test_a_tail_is_given_from_its_floor_up(count, p90, p99):
    samples = np.arange(1, count + 1, dtype=np.uint64) * 1_000_000
    summary = summarise(samples, [count])
    assert (summary.p90_ms is not None, summary.p99_ms is not None) == (p90, p99)
    if p90:
        assert summary.p90_ms == pytest.approx(1 + 0.9 * (count - 1))
    if p99:
        assert summary.p99_ms == pytest.approx(1 + 0.99 * (count - 1))


@pytest.mark.parametrize(("samples", "sizes"), [([], []), ([1, 2], [1]), ([], [0]), ([5], [2])])
def test_samples_that_are_no_rounds(samples, sizes):
    with pytest.raises(UsageError, match="cannot be split"):
        summarise(np.array(samples, np.uint64), sizes)


def coverage(draw, sizes, truth, repetitions=400):
    """How often the interval of drawn samples holds the true median."""
    hits = 0
    for repetition in range(repetitions):
        low, high = median_interval(draw(np.random.default_rng(repetition)), sizes, repetition)
        hits += low <= truth <= high
    return hits / repetitions


def test_independent_samples_of_one_round_are_covered_as_promised():
    """400 repetitions: two standard errors of 95 % are 2.2 points."""
    found = coverage(lambda rng: rng.lognormal(0, 0.2, 200), [200], 1.0)
    assert 0.928 <= found <= 0.975


def test_independent_samples_of_several_rounds_are_covered_at_least_as_promised():
    found = coverage(lambda rng: rng.lognormal(0, 0.2, 300), [100] * 3, 1.0)
    assert 0.95 <= found <= 1


def autoregressive(rng, count, likeness):
    noise = rng.standard_normal(count) * math.sqrt(1 - likeness**2)
    values = itertools.accumulate(noise, lambda last, new: likeness * last + new)
    return 10 + np.fromiter(values, float, count)


def test_samples_that_are_like_their_neighbours_are_covered_nearly_as_promised():
    found = coverage(lambda rng: autoregressive(rng, 400, 0.5), [400], 10.0)
    assert 0.90 <= found <= 0.975


def with_effects(rng, rounds, size):
    """Rounds that differ by as much as their samples do: N(0, 1) each."""
    return np.repeat(rng.standard_normal(rounds), size) + rng.standard_normal(rounds * size)


def test_rounds_that_differ_widen_the_interval():
    respected = coverage(lambda rng: with_effects(rng, 10, 50), [50] * 10, 0.0)
    ignored = coverage(lambda rng: with_effects(rng, 10, 50), [500], 0.0)
    assert respected >= 0.88  # docs/statistics.md gives the table
    assert ignored < respected - 0.1


def test_an_interval_of_many_samples_takes_no_time():
    samples = np.random.default_rng(0).lognormal(0, 0.1, 60_000) * 1e6
    best = math.inf
    for _ in range(5):
        begun = time.process_time()
        summarise(samples, [20_000] * 3)
        best = min(best, time.process_time() - begun)
    assert best < 0.05 * 4  # a fraction of that, on a loaded machine too


def test_outliers_are_flagged():
    samples = np.concatenate([np.random.default_rng(0).normal(10, 0.1, 100), [12.0, 8.0]])
    assert np.flatnonzero(outliers(samples)).tolist() == [100, 101]


def test_outliers_of_a_coarse_clock():
    samples = np.array([10.0] * 60 + [11.0] * 30 + [30.0])
    assert np.flatnonzero(outliers(samples)).tolist() == [90]
    assert not outliers(np.full(9, 3.0)).any()


def test_a_ratio_of_pairs_loses_what_disturbed_both():
    rng = np.random.default_rng(1)
    drift = rng.uniform(1, 3, 20)
    found = ratio_interval(1.02 * drift * rng.normal(1, 0.001, 20), drift)
    assert found.median == pytest.approx(1.02, rel=1e-3)
    low, high = found.ci95
    assert low <= found.median <= high
    assert high - low < 0.003
    assert found.pairs == 20


def test_a_ratio_turned_round_is_its_inverse():
    rng = np.random.default_rng(2)
    over, under = rng.uniform(1, 2, (2, 21))
    found, turned = ratio_interval(over, under), ratio_interval(under, over)
    assert turned.median == pytest.approx(1 / found.median)
    assert turned.ci95 == pytest.approx((1 / found.ci95[1], 1 / found.ci95[0]), rel=0.05)


@pytest.mark.parametrize(
    ("over", "under"), [([], []), ([1], [1, 2]), ([1], [0]), ([-1, 1], [1, 1])]
)
def test_numbers_that_make_no_ratio(over, under):
    with pytest.raises(UsageError, match="no ratios"):
        ratio_interval(over, under)


maybe = st.one_of(st.none(), st.just(math.nan), st.integers(0, 6).map(float))


@given(st.lists(st.tuples(maybe, maybe), max_size=12))
def test_the_front_is_what_no_point_beats(points):
    def known(point):
        return all(value is not None and math.isfinite(value) for value in point)

    def beaten(point):
        return any(
            other[0] <= point[0] and other[1] >= point[1] and other != point
            for other in filter(known, points)
        )

    assert pareto(points) == [known(point) and not beaten(point) for point in points]
