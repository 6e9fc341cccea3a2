"""Statistics of latencies: medians with intervals that respect rounds, tails, outliers, Pareto.

``docs/statistics.md`` says how well the intervals cover, and where they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wherry.errors import UsageError

RESAMPLES = 2000
TAILS = (2.5, 97.5)
"""Percentiles of the resampled medians: a 95 % interval."""

P90_SAMPLES, P99_SAMPLES = 64, 662
"""The least samples for these percentiles: MLPerf Inference's floors of queries (single stream)."""

OUTLIER_SCORE = 3.5
"""Of the modified z-score; Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993."""


@dataclass(frozen=True)
class LatencySummary:
    """The measured runs of one target, over all its rounds.

    Attributes:
        median_ms: of all samples.
        ci95_ms: 95 % interval of the median.
        p90_ms: None below 64 samples.
        p99_ms: None below 662 samples.
        min_ms: of all samples.
        mean_ms: of all samples.
        samples: how many there are; outliers count.
        outliers: how many lie far from the median; they are kept in every figure.
    """

    median_ms: float
    ci95_ms: tuple[float, float]
    p90_ms: float | None
    p99_ms: float | None
    min_ms: float
    mean_ms: float
    samples: int
    outliers: int


def summarise(infer_ns: np.ndarray, round_sizes: Sequence[int], seed: int = 0) -> LatencySummary:
    """Summarise the samples of one target.

    Args:
        infer_ns: [samples], nanoseconds, round after round.
        round_sizes: how many samples each round gave; their sum is the number of samples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        UsageError: there are no samples, or the sizes do not sum up to them.
    """
    if not len(infer_ns) or sum(round_sizes) != len(infer_ns):
        raise UsageError(
            f"{len(infer_ns)} samples cannot be split into rounds of {list(round_sizes)}",
            remedy="Give at least one sample, and the size of every round.",
        )
    milliseconds = np.asarray(infer_ns, np.float64) / 1e6
    low, high = median_interval(milliseconds, round_sizes, seed)
    count = len(milliseconds)
    return LatencySummary(
        median_ms=float(np.median(milliseconds)),
        ci95_ms=(low, high),
        p90_ms=float(np.percentile(milliseconds, 90)) if count >= P90_SAMPLES else None,
        p99_ms=float(np.percentile(milliseconds, 99)) if count >= P99_SAMPLES else None,
        min_ms=float(milliseconds.min()),
        mean_ms=float(milliseconds.mean()),
        samples=count,
        outliers=int(outliers(milliseconds).sum()),
    )


def median_interval(
    samples: np.ndarray, round_sizes: Sequence[int], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the median by a hierarchical bootstrap (percentile method).

    Samples of one process are more alike than those of two, so that resampling them all alike would
    claim too much. Rounds are drawn with replacement, then samples within each drawn round (Davison
    and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). The second draw is not
    made: the median of N draws from a distribution is its quantile at a Beta((N+1)/2, (N+1)/2)
    variable, so that one random number and a binary search stand for N draws. N is divided by the
    inflation that neighbours' likeness causes (`_inflation`).

    Args:
        samples: [samples], round after round.
        round_sizes: sizes of the rounds; empty rounds are left out.
        seed: of the random numbers.
    """
    sizes = np.array([size for size in round_sizes if size])
    generator = np.random.default_rng(seed)
    rounds = len(sizes)
    order = np.argsort(samples)
    ordered = np.asarray(samples)[order]
    owner = np.repeat(np.arange(rounds), sizes)[order]
    # below[r, i]: samples of round r among the i + 1 least of all.
    below = np.cumsum(owner == np.arange(rounds)[:, np.newaxis], axis=1, dtype=np.int32)
    drawn = generator.multinomial(rounds, np.full(rounds, 1 / rounds), RESAMPLES)
    total = drawn @ sizes
    shape = (total / _inflation(samples, sizes) + 1) / 2
    wanted = generator.beta(shape, shape) * total
    low, high = np.zeros(RESAMPLES, np.int64), np.full(RESAMPLES, len(ordered) - 1)
    while (low < high).any():
        middle = (low + high) // 2
        enough = (below[:, middle].T * drawn).sum(axis=1) >= wanted
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    least, greatest = np.percentile(ordered[high], TAILS)
    return float(least), float(greatest)


def _inflation(samples: np.ndarray, sizes: np.ndarray) -> float:
    """How much the variance of a median grows because neighbouring samples are alike; at least 1.

    The variance of a quantile of a sequence follows from that of the mean of "is it below?"
    (Heidelberger and Lewis, Quantile Estimation in Dependent Sequences, Operations Research 32,
    1984), which is found here from the means of batches, as long as they are many, in each round.
    """
    variances = []
    for one in np.split(np.asarray(samples), np.cumsum(sizes)[:-1]):
        length = math.isqrt(len(one))
        if length < 4:
            continue
        below = one[: len(one) // length * length] < np.median(one)
        spread = below.var()
        if spread > 0:
            means = below.reshape(-1, length).mean(axis=1)
            variances.append(float(means.var(ddof=1)) * length / float(spread))
    return max(1.0, float(np.mean(variances))) if variances else 1.0


def outliers(samples: np.ndarray) -> np.ndarray:
    """Which samples lie far from the median: modified z-score beyond 3.5.

    The scale is the median absolute deviation; the mean one where more than half of the samples are
    equal, as with a coarse clock. To be flagged, never to be dropped.
    """
    distance = np.abs(samples - np.median(samples))
    scale = float(np.median(distance)) * 1.482602
    if scale == 0:
        scale = float(distance.mean()) * 1.253314
    far: np.ndarray = distance > OUTLIER_SCORE * scale
    return far


@dataclass(frozen=True)
class Ratio:
    """How many times the one takes what the other takes.

    Attributes:
        median: of the pairs' ratios.
        ci95: 95 % interval of that median.
        pairs: how many there are.
    """

    median: float
    ci95: tuple[float, float]
    pairs: int


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> Ratio:
    """The median ratio of pairs that were measured side by side, with its 95 % interval.

    What disturbs both of a pair alike, as drift does, falls out of their ratio. Pairs are resampled
    (percentile bootstrap); give one figure a round, such as its median, for rounds are what is
    independent. With fewer than six pairs no interval of their order can cover 95 %.

    Args:
        numerators: [pairs], positive.
        denominators: [pairs], positive.
        seed: of the resampling.

    Raises:
        UsageError: the numbers of both differ, there are none, or one is not positive.
    """
    over, under = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if over.shape != under.shape or not over.size or min(over.min(), under.min()) <= 0:
        raise UsageError(
            f"{over.size} and {under.size} values make no ratios",
            remedy="Give pairs of positive numbers.",
        )
    ratios = over / under
    return Ratio(
        median=float(np.median(ratios)),
        ci95=median_interval(ratios, [len(ratios)], seed),
        pairs=len(ratios),
    )


def pareto(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Which points (cost, worth) no other point beats: none is as good in both and better in one.

    Args:
        points: the less cost (latency) and the more worth (accuracy), the better; a point that
            lacks one of them is never marked.
    """
    known = [
        (cost, worth)
        for cost, worth in points
        if cost is not None and worth is not None and math.isfinite(cost) and math.isfinite(worth)
    ]
    front: set[tuple[float, float]] = set()
    best = -math.inf
    for cost, worth in sorted(known, key=lambda point: (point[0], -point[1])):
        if worth > best:
            best = worth
            front.add((cost, worth))
    return [point in front for point in points]
