"""The four ways to choose a range, each against a slow one that is easy to believe."""

from __future__ import annotations

import math
from typing import get_args

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from wherry.calibration import Method
from wherry_onnxruntime import ranges
from wherry_onnxruntime.ranges import BINS, LEVELS, METHODS, SYMMETRIC_LEVELS, Histogram, choose

fixed = settings(derandomize=True, deadline=None, max_examples=60, database=None)

values = st.one_of(
    st.just(0.0),
    st.floats(2**-20, 2**20, width=32),
    st.floats(-(2**20), -(2**-20), width=32),
    st.floats(-1, 1, width=32).filter(lambda value: value == 0 or abs(value) > 2**-20),
)
batches = st.lists(st.lists(values, max_size=8), min_size=1, max_size=6)
some = st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 3000)), max_size=30)


def histogram(*arrays) -> Histogram:
    made = Histogram()
    for array in arrays:
        made.add(np.asarray(array, np.float32))
    return made


def around_zero(below: list[int], above: list[int]) -> np.ndarray:
    counts = np.zeros(2 * BINS, np.int64)
    counts[BINS : BINS + len(above)] = above
    counts[BINS - len(below) : BINS] = below[::-1]
    return counts


def extent(counts: list[int]) -> int:
    return max((index + 1 for index, count in enumerate(counts) if count), default=0)


# --- histograms ----------------------------------------------------------------------------------


@fixed
@given(batches)
def test_bins_hold_what_lies_in_them_whatever_the_order(given_batches):
    every = np.array([v for batch in given_batches for v in batch], np.float32)
    made, turned = histogram(*given_batches), histogram(*given_batches[::-1])
    assert made.zeros == turned.zeros == int((every == 0).sum())
    assert made.exponent == turned.exponent
    np.testing.assert_array_equal(made.counts, turned.counts)
    if made.exponent is None:
        assert not every.any()
        return
    width = 2.0**made.exponent
    expected = np.zeros(2 * BINS, np.int64)
    for value in every[every != 0].tolist():
        expected[BINS + math.floor(value / width)] += 1
    np.testing.assert_array_equal(made.counts, expected)
    assert BINS / 2 <= np.abs(every).max() / width <= BINS, "more than half of a side is used"


def test_a_much_larger_value_leaves_one_bin_for_each_sign():
    made = histogram([1e-20, -1e-20, -1e-20], [3e30])
    assert (made.counts[BINS - 1], made.counts[BINS], made.counts.sum()) == (2, 1, 4)


@pytest.mark.parametrize("values", [[1e-45], [-1e-40, 1e-41], [3.4e38, -3.4e38], [3.4e38, 1e-45]])
@pytest.mark.parametrize("method", METHODS)
def test_the_ends_of_float32(values, method):
    low, high, threshold = choose(histogram(values), method, 99.99)
    least, greatest = (float(np.float32(end)) for end in (min(values), max(values)))
    assert least <= low <= high <= greatest
    assert threshold <= max(abs(least), abs(greatest))


def test_memory_is_the_same_after_every_batch():
    made = histogram(np.ones(10))
    size = made.counts.nbytes
    for scale in range(20):
        made.add(np.full(10_000, 2.0**scale, np.float32))
    assert made.counts.nbytes == size == 16 * BINS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_never_forgotten(bad):
    assert not histogram([1], [2, bad], [3]).finite
    assert histogram([1], [], [3]).finite


@fixed
@given(some, some, st.integers(0, 6))
def test_pooling_keeps_every_count(below, above, times):
    counts = around_zero(below, above)
    pooled = ranges.pooled(counts, times)
    expected = np.zeros_like(counts)
    for place in np.flatnonzero(counts):
        expected[BINS + ((place - BINS) >> times)] += counts[place]
    np.testing.assert_array_equal(pooled, expected)


# --- what holds for all --------------------------------------------------------------------------


def test_the_manifest_offers_what_there_is():
    assert get_args(Method) == METHODS


@fixed
@given(st.lists(values, min_size=1, max_size=30), st.sampled_from(METHODS))
def test_a_range_lies_within_what_was_seen(given_values, method):
    low, high, threshold = choose(histogram(given_values), method, 90.0)
    assert min(given_values) <= low <= high <= max(given_values)
    assert 0 <= threshold <= max(map(abs, given_values))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.3, -3.3])
def test_constants(method, value):
    value = float(np.float32(value))
    assert choose(histogram([value] * 100), method, 99.99) == (value, value, abs(value))


@pytest.mark.parametrize("method", METHODS)
def test_few_values_far_apart_are_all_kept(method):
    """Each has a level of its own, and nothing is gained by less."""
    low, high, threshold = choose(histogram(np.repeat(np.arange(7), 100)), method, 99.99)
    assert (low, high, threshold) == pytest.approx((0, 6, 6), rel=0.01)


# --- percentile ----------------------------------------------------------------------------------


@fixed
@given(st.lists(values, min_size=1, max_size=60), st.sampled_from([60.0, 75.0, 90.0, 99.0, 100.0]))
def test_percentile_is_that_of_the_sorted_values(given_values, percentile):
    """Up to the upper edge of the value's bin."""
    made = histogram(given_values)
    if made.exponent is None:
        return
    width = 2.0**made.exponent
    every = [float(np.float32(value)) for value in given_values]
    outside = len(every) * (1 - percentile / 100)
    signed = min(every) < 0 < max(every) or (min(every) < 0 and made.counts[BINS:].any())

    def end(numbers: list[float], allowed: float) -> float:
        enough = [v for v in numbers if sum(w > v for w in numbers) <= allowed]
        return (math.floor(min(enough) / width) + 1) * width

    low, high, threshold = choose(made, "percentile", percentile)
    if max(every) > 0:
        wanted = end(every, outside / 2 if signed else outside)
        assert high == pytest.approx(max(min(wanted, max(every)), min(every)))
    assert threshold == pytest.approx(
        min(end([abs(v) for v in every], outside), max(map(abs, every))), abs=1.01 * width
    )
    cut = sum(not low - width <= v <= high + width for v in every)
    assert cut <= outside + 1e-9


# --- entropy -------------------------------------------------------------------------------------


def slow_divergence(counts: list[int], low: int, high: int, levels: int) -> float:
    """Piece by piece: the parts of bins that lie in a level."""
    if high - low < levels:
        return math.inf
    p = [count / sum(counts) for count in counts]
    inside = p[low:high]
    step = (high - low) / levels

    def overlap(bin_: int, level: int) -> float:
        part = min(bin_ + 1, (level + 1) * step) - max(bin_, level * step)
        return part if part > 1e-9 else 0.0

    tails = [0.0] * len(inside)
    tails[0] += sum(p[:low])
    tails[-1] += sum(p[high:])
    total = 0.0
    for index, share in enumerate(inside):
        for level in range(levels):
            part = overlap(index, level)
            if not part or not share:
                continue
            mass = sum(inside[b] * overlap(b, level) for b in range(len(inside)))
            spread = sum(overlap(b, level) for b in range(len(inside)) if inside[b])
            p_here = (share + 1e-4) * math.log((share + 1e-4) / (mass / spread + 1e-4))
            total += part * p_here
    for index, level in ((0, 0), (len(inside) - 1, levels - 1)):  # what the tails add to the ends
        own, tail = inside[index], tails[index]
        mass = sum(inside[b] * overlap(b, level) for b in range(len(inside)))
        spread = sum(overlap(b, level) for b in range(len(inside)) if inside[b])
        q = mass / spread + 1e-4 if own else 1e-4
        before = (own + 1e-4) * math.log((own + 1e-4) / q)
        total += (own + tail + 1e-4) * math.log((own + tail + 1e-4) / q) - before
    return total


@fixed
@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=24).filter(any),
    st.integers(2, 6),
    st.data(),
)
def test_divergence(counts, levels, data):
    low = data.draw(st.integers(0, len(counts) - 2))
    high = data.draw(st.integers(low + 1, len(counts)))
    found = ranges.divergence(np.array(counts), np.array([low]), np.array([high]), levels)
    assert found[0] == pytest.approx(slow_divergence(counts, low, high, levels), abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_does_not_clip_what_stands_out_from_a_plain_background(sign):
    """Seven values of ten are the background's; without a bound, the range would end there."""
    others = np.random.default_rng(1).normal(0, 2, 30_000)
    numbers = sign * np.concatenate([np.full(70_000, 0.66), others])
    low, high, threshold = choose(histogram(numbers), "entropy", 99.99)
    assert np.mean((numbers < low) | (numbers > high)) <= 0.011
    assert np.mean(np.abs(numbers) > threshold) <= 0.011
    assert threshold > 4


def test_entropy_keeps_the_levels_of_a_distribution_that_fits_them():
    """Flat within every level: nothing is lost at the full range."""
    flat = around_zero([], [7] * 4096)
    assert ranges.by_entropy(flat) == (0, BINS, BINS)
    both = around_zero([7] * 4096, [7] * 4096)
    assert ranges.by_entropy(both) == (-BINS, BINS, BINS)


# --- mean-squared error --------------------------------------------------------------------------


def slow_error(counts: np.ndarray, low: int, high: int, levels: int) -> float:
    """Bin by bin and level by level; Simpson's rule is exact for squares."""
    scale = (high - low) / (levels - 1)
    zero = round(-low / scale)
    points = [(level - zero) * scale for level in range(levels)]
    total = 0.0
    for place in np.flatnonzero(counts):
        first = int(place) - BINS
        for level, point in enumerate(points):
            start = first if level == 0 else max(first, point - scale / 2)
            end = first + 1 if level == levels - 1 else min(first + 1, point + scale / 2)
            if end > start:
                middle = (start + end) / 2
                squares = [(x - point) ** 2 for x in (start, middle, end)]
                mean = (squares[0] + 4 * squares[1] + squares[2]) / 6
                total += counts[place] * (end - start) * mean
    return total


@fixed
@given(some, some, st.integers(-40, 0), st.integers(1, 40), st.sampled_from([3, 7, 16, 255, 256]))
def test_squared_error(below, above, low, high, levels):
    counts = around_zero(below, above)
    found = ranges.squared_error(counts)(np.array([low]), np.array([high]), levels)
    expected = slow_error(counts, low, high, levels)
    assert found[0] == pytest.approx(expected, rel=1e-6, abs=1e-6)


# --- the search ----------------------------------------------------------------------------------


@fixed
@given(some.filter(any))
def test_one_end_is_the_best_of_all(above):
    counts = around_zero([], above)
    error = ranges.squared_error(counts)
    highs = np.arange(1, extent(above) + 1)
    low, high, threshold = ranges.by_mse(counts)
    assert low == 0
    costs = error(0 * highs, highs, LEVELS)
    assert error(np.array([0]), np.array([high]), LEVELS)[0] == costs.min()
    costs = error(-highs, highs, SYMMETRIC_LEVELS)
    assert error(np.array([-threshold]), np.array([threshold]), SYMMETRIC_LEVELS)[0] == costs.min()


@fixed
@given(some.filter(any), some.filter(any))
def test_of_two_ends_neither_can_be_bettered_alone(below, above):
    counts = around_zero(below, above)
    error = ranges.squared_error(counts)
    low, high, _ = ranges.by_mse(counts)

    def cost(pairs: list[tuple[int, int]]) -> np.ndarray:
        return error(*(np.array(side) for side in zip(*pairs, strict=True)), LEVELS)

    (found,) = cost([(low, high)])
    lows, highs = range(-extent(below), 0), range(1, extent(above) + 1)
    others = [(low, h) for h in highs] + [(v, high) for v in lows]
    others += [(max(-t, lows[0]), min(t, highs[-1])) for t in highs]
    tolerance = 1e-9 * max(found, 1)
    assert found <= cost([(v, h) for v, h in others if h > v]).min() + tolerance


@pytest.mark.parametrize("wanted", [(-5, 3000), (-900, 2), (-17, 17), (-4096, 1)])
def test_both_ends_are_found_each_for_itself(wanted):
    counts = np.ones(BINS, np.int64)

    def cost(lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        return abs(lows - wanted[0]) + abs(highs - wanted[1])

    assert ranges.search(cost, counts, counts) == wanted


def test_a_window_is_found_where_only_both_ends_together_help():
    """Alone, neither helps: both outliers have to go at once."""
    wanted = (-3, 3)

    def cost(lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        inside = (lows >= wanted[0]) & (highs <= wanted[1])
        return np.where(inside, 10.0 - highs + lows, 20.0)

    counts = np.ones(100, np.int64)
    assert ranges.search(cost, counts, counts) == wanted


# --- what is known of distributions --------------------------------------------------------------

QUANTILES = (np.arange(200_000) + 0.5) / 200_000


def gaussian() -> np.ndarray:
    return np.random.default_rng(0).normal(size=400_000)


def test_gaussian():
    """8 bits and no zero point: clipping at 3.92 to 4.05 standard deviations loses least."""
    low, high, threshold = choose(histogram(gaussian()), "mse", 99.99)
    assert 3.85 < threshold < 4.15
    assert 3.8 < high < 4.2
    assert -4.2 < low < -3.8
    low, high, threshold = choose(histogram(gaussian()), "percentile", 99.99)
    assert (low, high, threshold) == pytest.approx((-3.89, 3.89, 3.89), abs=0.1)
    low, high, threshold = choose(histogram(gaussian()), "entropy", 99.99)
    assert threshold == pytest.approx(4.4, abs=0.4)
    assert (low, high) == pytest.approx((-4.4, 4.4), abs=0.4)


@pytest.mark.parametrize("method", ["minmax", "entropy", "mse"])
def test_uniform(method):
    """Nothing is to be gained by clipping."""
    for sign in (1, -1):
        low, high, threshold = choose(histogram(sign * QUANTILES), method, 99.99)
        assert high - low == pytest.approx(1, abs=0.01)
        assert threshold == pytest.approx(1, abs=0.01)
    low, high, threshold = choose(histogram(2 * QUANTILES - 1), method, 99.99)
    assert (low, high, threshold) == pytest.approx((-1, 1, 1), abs=0.01)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("signs", [(1,), (1, -1)])
@pytest.mark.parametrize("method", METHODS)
def test_an_outlier_of_1000_among_unit_values(method, signs, relu):
    numbers = np.maximum(gaussian(), 0) if relu else gaussian()
    outliers = [1000.0 * sign for sign in signs if sign > 0 or not relu]
    many = [numbers] * 10  # 4 million: among fewer, its own error is the greater part
    low, high, threshold = choose(histogram(*many, outliers), method, 99.99)
    if method == "minmax":
        assert (high, threshold) == (1000, 1000)
        assert low == (-1000 if -1000 in outliers else numbers.astype(np.float32).min())
        return
    most = {"percentile": 4.5, "entropy": 130, "mse": 400}[method]
    assert 3 < high < most
    assert 3 < threshold < most
    assert (low == 0) if relu else (-most < low < -2.5)


def test_many_samples_are_those_of_one_batch():
    whole = gaussian()
    for method in METHODS:
        one = choose(histogram(whole), method, 99.99)
        assert choose(histogram(*np.array_split(whole, 50)), method, 99.99) == one
        assert choose(histogram(*np.array_split(whole[::-1], 7)), method, 99.99) == one
