"""Which range of a tensor's values eight bits shall span: four ways to choose, from a histogram.

Runs alone, beside ``calibrate.py``: numpy and nothing else. A histogram is filled in one pass and
has a fixed number of bins. A bin is a power of two wide and zero is an edge, so that bins merge
in pairs, exactly, when a larger value comes: the order of the samples changes nothing, and the
range need not be known first, for which every inference would run twice.

The range is meant for 8 bits with a zero point (256 levels, zero is one of them), the threshold
on |x| for 8 bits without (-127 to 127). Edges and costs are in bins, counted from zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

METHODS = ("minmax", "percentile", "entropy", "mse")

BINS_LOG2 = 12
BINS = 1 << BINS_LOG2  # to each side of zero; of those of the larger side, more than half are used
LEVELS = 256  # of the range
SYMMETRIC_LEVELS = 255  # -127 to 127
ENTROPY_LEVELS = 128  # those of |x| with 8 bits and a sign

_LEAST_EXPONENT = -100  # of a bin's width; 2**100 and its inverse are ordinary float32 numbers
_CANDIDATES = 256  # edges that are tried at each end before the neighbours of the best one
_AT_ONCE = 1 << 18  # values whose bins are worked out together: what fits in a cache
_ROUNDS = 8  # of the search, each over both ends; the quickstart's tensors take three at most
_MOST_CLIPPED = 0.01  # by entropy, as a share of the values that are not zero
_EPSILON = 1e-4  # ncnn's, added to every share before divergences are taken

Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""What windows [lows, highs) of bins cost, for arrays of edges; less is better."""


class Choice(NamedTuple):
    """What was chosen for one tensor.

    Attributes:
        low: the least value of the range.
        high: its greatest.
        threshold: the greatest |x| for those who take no zero point.
    """

    low: float
    high: float
    threshold: float


class Histogram:
    """Counts of the values of one tensor; all that a method may look at.

    Args:
        counted: whether bins are kept; the least and the greatest value always are.

    Attributes:
        least: the least value, inf before the first; NaN if one was among them.
        greatest: the greatest value, likewise.
        zeros: values that are zero; they are in no bin.
        exponent: bins are 2**exponent wide; None before the first value that is not zero.
        counts: int64 [2 * BINS]; bin ``BINS + i`` holds what lies in [i, i + 1) bins.
    """

    def __init__(self, *, counted: bool = True) -> None:
        self.least = np.float32(np.inf)
        self.greatest = np.float32(-np.inf)
        self.zeros = 0
        self.exponent: int | None = None
        self.counts = np.zeros(2 * BINS if counted else 0, np.int64)

    @property
    def empty(self) -> bool:
        """Whether there was no value yet."""
        return bool(self.least > self.greatest)

    @property
    def finite(self) -> bool:
        """Whether there were neither infinite values nor NaN."""
        return bool(np.isfinite(self.least) and np.isfinite(self.greatest))

    def add(self, values: np.ndarray) -> None:
        """Count float32 values; after a value that is not finite the bins are left as they are."""
        if not values.size:
            return
        # NaN must survive, so numpy's minimum and not min()
        self.least = np.minimum(self.least, values.min())
        self.greatest = np.maximum(self.greatest, values.max())
        if not self.counts.size or not self.finite:
            return
        zeros = values.size - int(np.count_nonzero(values))
        self.zeros += zeros
        if zeros == values.size:
            return
        exponent = self._grow(max(-float(self.least), float(self.greatest)))
        flat = values.reshape(-1)
        for start in range(0, flat.size, _AT_ONCE):
            places = np.floor(flat[start : start + _AT_ONCE] * np.float32(2.0**-exponent))
            self.counts += np.bincount(places.astype(np.int64) + BINS, minlength=2 * BINS)
        self.counts[BINS] -= zeros

    def _grow(self, peak: float) -> int:
        """Merge bins until ``peak`` fits in; returns the exponent of their width."""
        needed = max(math.frexp(peak)[1] - BINS_LOG2, _LEAST_EXPONENT)
        if self.exponent is not None and needed > self.exponent:
            self.counts = pooled(self.counts, min(needed - self.exponent, BINS_LOG2))
        if self.exponent is None or needed > self.exponent:
            self.exponent = needed
        return self.exponent


def pooled(counts: np.ndarray, times: int) -> np.ndarray:
    """Neighbours merged in pairs ``times`` times; zero stays in the middle, the length the same."""
    merged = counts.reshape(-1, 1 << times).sum(axis=1)
    grown = np.zeros_like(counts)
    first = (len(counts) - len(merged)) // 2
    grown[first : first + len(merged)] = merged
    return grown


def choose(histogram: Histogram, method: str, percentile: float) -> Choice:
    """The range and the threshold of one tensor.

    Both lie within the values that were seen: a range of values above zero need not hold zero.

    Args:
        histogram: of at least one value, all of them finite; with bins unless ``minmax``.
        method: one of `METHODS`.
        percentile: how many of the values stay inside, percent; for ``percentile`` alone.
    """
    least, greatest = float(histogram.least), float(histogram.greatest)
    peak = max(-least, greatest)
    if method == "minmax" or histogram.exponent is None:
        return Choice(least, greatest, peak)
    chosen = {
        "percentile": lambda: by_percentile(histogram.counts, histogram.zeros, percentile),
        "entropy": lambda: by_entropy(histogram.counts),
        "mse": lambda: by_mse(histogram.counts),
    }[method]()
    low, high, threshold = (edge * 2.0**histogram.exponent for edge in chosen)
    return Choice(
        min(max(low, least), greatest), max(min(high, greatest), least), min(threshold, peak)
    )


# --- percentile ----------------------------------------------------------------------------------


def by_percentile(counts: np.ndarray, zeros: int, percentile: float) -> tuple[int, int, int]:
    """The narrowest window of bins that holds so many of the values, zeros among them.

    What is cut is cut in halves at both ends where there are values on both sides of zero, and at
    the far end alone where there are not. The threshold holds as many of all |x|. (Li et al.,
    "Fully Quantized Network for Object Detection", CVPR 2019; TensorRT's and ONNX Runtime's
    percentile calibrators.)
    """
    values = counts.copy()
    values[BINS] += zeros
    outside = values.sum() * (1 - percentile / 100)
    below, above = counts[:BINS].any(), counts[BINS:].any()
    each = outside / 2 if below and above else outside
    high = _first(values, each) - BINS if above else 0
    low = BINS - _first(values[::-1], each) if below else 0
    magnitudes = folded(counts)
    magnitudes[0] += zeros
    return low, high, _first(magnitudes, outside)


def _first(counts: np.ndarray, outside: float) -> int:
    """The first edge beyond which there are no more than ``outside`` values."""
    beyond = counts.sum() - np.cumsum(counts)
    return int(np.argmax(beyond <= outside)) + 1


def folded(counts: np.ndarray) -> np.ndarray:
    """Counts of |x|."""
    magnitudes: np.ndarray = counts[BINS:] + counts[:BINS][::-1]
    return magnitudes


# --- entropy -------------------------------------------------------------------------------------


def by_entropy(counts: np.ndarray) -> tuple[int, int, int]:
    """The window whose quantised distribution tells most of the true one.

    Least Kullback-Leibler divergence of the distribution, its tails in its last bins, from the
    same without tails at the resolution of the levels. (Migacz, "8-bit inference with TensorRT",
    GTC 2017, and ncnn's ``ncnn2table``, whose epsilon is taken.) Both fold the values to |x| and
    know no zero point. The threshold is theirs; for the range the same divergence is taken over
    the values as they are, at 256 levels, and both ends are searched. Zeros are skipped, as there:
    every level of quantisation keeps them. Windows have a bin for each level at the least.

    One thing is not in those: no window clips more than a hundredth of the values. Where many
    values are the same (a plain background), the divergence wants that place to itself, whatever
    it costs elsewhere: on digits on black, the threshold of the first convolution became a tenth
    of its greatest value, and ncnn's rule clipped every bright pixel.
    """
    magnitudes = folded(pooled(counts, 1))  # 2048 bins, as there
    _, threshold = search(
        _bounded(magnitudes, 0, ENTROPY_LEVELS), np.zeros_like(magnitudes), magnitudes
    )
    low, high = search(_bounded(counts, BINS, LEVELS), counts[:BINS][::-1], counts[BINS:])
    return low, high, 2 * threshold


def _bounded(counts: np.ndarray, zero: int, levels: int) -> Cost:
    """The divergence of windows around the edge ``zero`` that do not clip too much."""
    total = np.append(0.0, np.cumsum(counts)) / counts.sum()

    def cost(lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        outside = total[lows + zero] + 1 - total[highs + zero]
        found = divergence(counts, lows + zero, highs + zero, levels)
        return np.where(outside > _MOST_CLIPPED, np.inf, found)

    return cost


def divergence(counts: np.ndarray, lows: np.ndarray, highs: np.ndarray, levels: int) -> np.ndarray:
    """Divergence for each window; infinite for those of fewer bins than levels.

    With ``p`` the shares of all values in the window's bins, what lies outside in the first and
    the last one, and ``q`` those of a level's values inside, spread over its bins that are not
    empty: the sum of ``(p + e) * log((p + e) / (q + e))``. A bin on a level's edge counts in both,
    in proportion. Sums over bins are differences of running sums, so that a window costs as much
    as it has levels.
    """
    shares = counts / counts.sum()
    filled = counts > 0
    total = np.append(0.0, np.cumsum(shares))
    support = np.append(0.0, np.cumsum(filled))
    own = np.append(0.0, np.cumsum(np.where(filled, _xlogx(shares + _EPSILON), 0.0)))
    edges = lows[:, None] + (highs - lows)[:, None] * (np.arange(levels + 1) / levels)
    places = np.arange(len(total))
    inside = np.diff(np.interp(edges, places, total))
    spread = np.diff(np.interp(edges, places, support))
    even = spread > 1e-9  # less is what rounding leaves of an empty level
    level = np.divide(inside, spread, out=np.zeros_like(inside), where=even) + _EPSILON
    cost = own[highs] - own[lows]
    cost -= ((inside + spread * _EPSILON) * np.log(level)).sum(axis=1)
    ends = ((highs - 1, level[:, -1], 1 - total[highs]), (lows, level[:, 0], total[lows]))
    for bins, last, tail in ends:
        kept = np.where(filled[bins], shares[bins], 0.0) + _EPSILON
        to = np.where(filled[bins], last, _EPSILON)
        cost += _xlogx(kept + tail) - _xlogx(kept) - tail * np.log(to)
    return np.where(highs - lows < levels, np.inf, cost)


def _xlogx(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = values * np.log(values)
    return result


# --- mean-squared error --------------------------------------------------------------------------


def by_mse(counts: np.ndarray) -> tuple[int, int, int]:
    """The window with the least mean-squared error between the values and what 8 bits keep.

    (Sung et al., "Resiliency of Deep Neural Networks under Quantization", 2015; Banner et al.,
    "Post training 4-bit quantization of convolutional networks", NeurIPS 2019; PyTorch's
    ``HistogramObserver``.) Rounding and clipping are both in it, with the zero point rounded as
    backends round it.
    """
    error = squared_error(counts)
    below, above = counts[:BINS][::-1], counts[BINS:]
    low, high = search(lambda lows, highs: error(lows, highs, LEVELS), below, above)
    magnitudes = folded(counts)
    _, threshold = search(
        lambda _, highs: error(-highs, highs, SYMMETRIC_LEVELS),
        np.zeros_like(magnitudes),
        magnitudes,
    )
    return low, high, threshold


def squared_error(
    counts: np.ndarray,
) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """A function of (lows, highs, levels): the sum of all values' squared errors, bins squared.

    The values of a bin count as spread evenly over it. What lies nearest to a level's point g
    gives ``sum x^2 - 2 g sum x + g^2 n`` over it, and these sums are differences of running ones.
    """
    start = np.arange(-BINS, BINS, dtype=np.float64)
    moments = [
        np.append(0.0, np.cumsum(counts * ((start + 1) ** k - start**k) / k)) for k in (1, 2, 3)
    ]

    def upto(places: np.ndarray) -> list[np.ndarray]:
        """Number, sum and sum of squares of the values below each place."""
        index = np.clip(np.floor(places).astype(np.int64), -BINS, BINS - 1)
        density = counts[index + BINS]
        first = index.astype(np.float64)
        return [
            running[index + BINS] + density * (places**k - first**k) / k
            for k, running in enumerate(moments, start=1)
        ]

    def error(lows: np.ndarray, highs: np.ndarray, levels: int) -> np.ndarray:
        scale = (highs - lows) / (levels - 1)
        zero = np.rint(-lows / scale)
        points = (np.arange(levels) - zero[:, None]) * scale[:, None]
        halves = points[:, :-1] + scale[:, None] / 2
        ends = np.full((len(lows), 1), float(BINS))
        edges = np.clip(np.hstack([-ends, halves, ends]), -BINS, BINS)
        number, first, second = (np.diff(sums) for sums in upto(edges))
        total: np.ndarray = (second - 2 * points * first + points**2 * number).sum(axis=1)
        return total

    return error


# --- the search ----------------------------------------------------------------------------------


def search(cost: Cost, below: np.ndarray, above: np.ndarray) -> tuple[int, int]:
    """The window of least cost around zero, as edges in bins: (at or below 0, at or above 0).

    First both ends shrink together, or an outlier at one end would hide what is to be gained at
    the other; then each alone, as long as it helps; then over all edges near the best. Of windows
    that cost the same, the widest is taken.

    Args:
        cost: of windows.
        below: counts of the values below zero, from zero downwards.
        above: counts of those above.
    """
    lowest, highest = _extent(below), _extent(above)
    far = _candidates(max(lowest, highest))
    low, high = -np.minimum(far, lowest), np.minimum(far, highest)
    costs = cost(low, high)
    best = int(np.argmin(costs))
    least, window = costs[best], (int(low[best]), int(high[best]))
    ends = (_candidates(lowest), _candidates(highest))
    for _ in range(_ROUNDS):
        before = least
        for end in (1, 0):
            least, window = _along(cost, end, ends[end], least, window)
        if least >= before:
            break
    for end in (1, 0):
        tried = ends[end]
        place = int(np.searchsorted(-tried, -abs(window[end])))
        near = np.arange(tried[max(place - 1, 0)], tried[min(place + 1, len(tried) - 1)] - 1, -1)
        least, window = _along(cost, end, near, least, window)
    return window


def _along(
    cost: Cost, end: int, tried: np.ndarray, least: float, window: tuple[int, int]
) -> tuple[float, tuple[int, int]]:
    """The best of the windows with that end moved, or the window as it is."""
    moved = tried if end else -tried
    fixed = np.full_like(moved, window[1 - end])
    pairs = (fixed, moved) if end else (moved, fixed)
    wide = pairs[1] > pairs[0]
    if not wide.any():
        return least, window
    lows, highs = pairs[0][wide], pairs[1][wide]
    costs = cost(lows, highs)
    best = int(np.argmin(costs))
    if costs[best] >= least:
        return least, window
    return float(costs[best]), (int(lows[best]), int(highs[best]))


def _extent(counts: np.ndarray) -> int:
    """Bins up to the last that is not empty."""
    filled = np.flatnonzero(counts)
    return int(filled[-1]) + 1 if filled.size else 0


def _candidates(extent: int) -> np.ndarray:
    """Edges from ``extent`` down to 1, denser towards zero; 0 where there is nothing to choose."""
    if not extent:
        return np.zeros(1, np.int64)
    spaced = np.geomspace(1, extent, _CANDIDATES)
    return np.unique(np.rint(spaced).astype(np.int64))[::-1]
