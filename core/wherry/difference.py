"""Whether two measurements differ: of latencies by their rounds, of shares by their counts.

``docs/compare.md`` says how often these flag what is equal, and find what is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from wherry.errors import UsageError

RESAMPLES = 2000
LEAST_ROUNDS = 4
"""Of each side. With three, no order of the rounds is rarer than one in ten."""

RUN_SHARE, LEAST_SHIFT = 1.75, 0.005
"""What whole runs are taken to differ by beyond their rounds, as a standard deviation: so many
times what the rounds of a run differ by, and at least so much (relative). No run can tell its own
shift; but noise of machines is not white, and one whose rounds scatter has runs that do. Both
figures are from runs on a virtual machine, see ``docs/compare.md``."""

LEAST_PAIRS = 7
"""From so many rounds on those that took turns are compared in pairs. With five no signs of the
differences are rarer than one in sixteen; and rounds that scatter alone are too few to tell."""

LEAST_APART = 0.0075
"""What two files of one network may differ by in turns, relative: for as long as they are where
they are in memory, no number of rounds shows it."""

LEVEL = 0.05
_Z = NormalDist().inv_cdf(1 - LEVEL / 2)
_EXACT = 80
"""Up to so many values their orders are counted; beyond, a normal distribution stands for them."""


@dataclass(frozen=True)
class Difference:
    """By how much a latency has changed.

    Attributes:
        change: new over base, less 1.
        ci95: 95 % interval of the change, with what runs differ by.
        p: two-sided, over the rounds' medians: of Mann and Whitney's test, in pairs of Wilcoxon's.
        verdict: ``better``, ``worse`` or ``same``.
    """

    change: float
    ci95: tuple[float, float]
    p: float
    verdict: str


@dataclass(frozen=True)
class Rounds:
    """One side: a target that was measured.

    Attributes:
        median: of all samples, positive.
        medians: [rounds], of each round, positive, in the same unit.
    """

    median: float
    medians: Sequence[float]


def latency_difference(
    base: Rounds, new: Rounds, *, in_turns: bool = False, seed: int = 0
) -> Difference:
    """Compare two targets, or one before and after.

    Samples of one process are alike, so that what is resampled and ranked is the round. A change is
    called one only where its interval excludes none, and the order of the rounds is as rare as 5 %.

    The interval is made on logarithms, for noise is relative: the variances of both medians by a
    bootstrap over the rounds, those of both runs' shifts (`RUN_SHARE`), and Student's quantile, for
    rounds are few.

    Where the rounds of both took turns, the n-th of the one and the n-th of the other ran at about
    the same time: with enough of them test and interval are those of their differences, in which
    little is left of what the machine did over the rounds. Both are by ranks: what disturbs a round
    disturbs it much. `LEAST_APART` is added on both sides.

    Args:
        base: what was there.
        new: what is to be judged.
        in_turns: the rounds of both took turns, in their order: what the machine did meanwhile hit
            both, and there are no shifts.
        seed: of the bootstrap.

    Raises:
        UsageError: a side has fewer than 4 rounds, or a median that is not positive.
    """
    for side in (base, new):
        if len(side.medians) < LEAST_ROUNDS or min(side.median, *side.medians) <= 0:
            raise UsageError(
                f"a median of {side.median:g} in {len(side.medians)} rounds cannot be compared",
                remedy=f"Give positive medians, and of {LEAST_ROUNDS} rounds at least.",
            )
    centre = math.log(new.median / base.median)
    logs = [np.log(np.asarray(side.medians, np.float64)) for side in (base, new)]
    if in_turns and makes_pairs(base.medians, new.medians):
        apart = logs[1] - logs[0]
        low, high = shift_interval(apart)
        interval = (low - LEAST_APART, high + LEAST_APART)
        return _judged(centre, interval, signed_rank(apart.tolist()))
    generator = np.random.default_rng(seed)
    variance = sum(_median_variance(side, generator) for side in logs)
    freedom = sum(len(side) - 1 for side in logs)
    if not in_turns:
        within = sum(float(((side - side.mean()) ** 2).sum()) for side in logs) / freedom
        variance += 2 * max(LEAST_SHIFT, RUN_SHARE * math.sqrt(within)) ** 2
    half = _student(freedom) * math.sqrt(variance)
    p = mann_whitney(base.medians, new.medians)
    return _judged(centre, (centre - half, centre + half), p)


def makes_pairs(base: Sequence[float], new: Sequence[float]) -> bool:
    """Whether rounds that took turns are enough to be compared in pairs."""
    return len(base) == len(new) >= LEAST_PAIRS


def _judged(centre: float, interval: tuple[float, float], p: float) -> Difference:
    """Of the logarithm of the change, and its interval."""
    low, high = map(math.expm1, interval)
    verdict = "same"
    if p <= LEVEL and not low <= 0 <= high:
        verdict = "worse" if low > 0 else "better"
    return Difference(math.expm1(centre), (low, high), p, verdict)


def _median_variance(values: np.ndarray, generator: np.random.Generator) -> float:
    """Of the median of independent values, by the bootstrap."""
    count = len(values)
    medians = np.median(values[generator.integers(0, count, (RESAMPLES, count))], axis=1)
    # the bootstrap's world has a variance that is too small by (n - 1) / n
    return float(medians.var()) * count / (count - 1)


def _student(freedom: int) -> float:
    """The 97.5 % quantile, to a thousandth from 6 degrees of freedom on.

    By the expansion of Fisher and Cornish (The Percentile Points of Distributions Having Known
    Cumulants, Technometrics 2, 1960).
    """
    z, n = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of Mann and Whitney's test, ties at the mean of their ranks.

    The distribution of the ranks' sum over all ways to deal the values out is counted, also with
    ties; for more than 80 values it is taken as normal, its variance less what ties take (Mann and
    Whitney, On a Test of Whether one of Two Random Variables is Stochastically Larger than the
    Other, Annals of Mathematical Statistics 18, 1947; Lehmann, Nonparametrics, 1975, section 1.2).

    Args:
        first: [values], at least one.
        second: [values], at least one.
    """
    both = np.concatenate([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    doubled = (2 * ends - counts + 1)[place]  # twice the ranks: whole numbers
    few, total = len(first), len(both)
    found, expected = int(doubled[:few].sum()), few * (total + 1)
    distance = abs(found - expected)
    if total > _EXACT:
        ties = float((counts**3 - counts).sum()) / (total * (total - 1))
        variance = few * (total - few) / 12 * (total + 1 - ties)
        if variance <= 0:
            return 1.0
        score = max(distance / 2 - 0.5, 0) / math.sqrt(variance)
        return math.erfc(score / math.sqrt(2))
    # ways[k, s]: to choose k of the values with doubled ranks of sum s
    ways = np.zeros((few + 1, int(doubled.sum()) + 1))
    ways[0, 0] = 1
    for rank in map(int, doubled):
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    sums = np.arange(ways.shape[1])
    rare = ways[few][np.abs(sums - expected) >= distance].sum()
    return min(1.0, float(rare / ways[few].sum()))


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's test of pairs, ties at the mean of their ranks.

    Pairs without a difference are left out. The distribution of the sum of the ranks with a plus is
    counted over all signs; for more than 80 pairs it is taken as normal (Wilcoxon, Individual
    Comparisons by Ranking Methods, Biometrics Bulletin 1, 1945; Lehmann, Nonparametrics, 1975,
    section 3.2).

    Args:
        differences: [pairs].
    """
    values = np.asarray([value for value in differences if value], np.float64)
    if not len(values):
        return 1.0
    _, place, counts = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    doubled = (2 * ends - counts + 1)[place]  # twice the ranks: whole numbers
    found, total = int(doubled[values > 0].sum()), int(doubled.sum())
    distance = abs(2 * found - total)
    if len(values) > _EXACT:
        score = distance / math.sqrt(float((doubled.astype(np.float64) ** 2).sum()))
        return math.erfc(score / math.sqrt(2))
    shares = _sums(doubled)
    rare = shares[np.abs(2 * np.arange(total + 1) - total) >= distance].sum()
    return min(1.0, float(rare))


def shift_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of what pairs differ by: all shifts that `signed_rank` would not reject.

    By the means of all pairs of differences, in their order (Lehmann, Nonparametrics, 1975, section
    4.3). Infinite where there are fewer than six.

    Args:
        differences: [pairs].
    """
    count = len(differences)
    first, second = np.triu_indices(count)
    means = np.sort((differences[first] + differences[second]) / 2)
    if count > _EXACT:
        spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
        out = int(len(means) / 2 - _Z * spread)
    else:
        below = np.cumsum(_sums(np.arange(1, count + 1)))
        out = int(np.searchsorted(below, LEVEL / 2, side="right"))
    if not out:
        return -math.inf, math.inf
    return float(means[out - 1]), float(means[len(means) - out])


def _sums(ranks: np.ndarray) -> np.ndarray:
    """How often each sum of ranks comes, from 0 on, where each is taken or not at even chances."""
    shares = np.zeros(int(ranks.sum()) + 1)
    shares[0] = 1
    for rank in map(int, ranks):
        shares[rank:] += shares[: len(shares) - rank].copy()
    shares /= shares.sum()
    return shares


@dataclass(frozen=True)
class ShareDifference:
    """By how much a share (of samples that are right) has changed.

    Attributes:
        change: new less base.
        ci95: 95 % interval.
        verdict: ``higher``, ``lower`` or ``same``.
    """

    change: float
    ci95: tuple[float, float]
    verdict: str


def share_difference(base: float, new: float, base_count: int, new_count: int) -> ShareDifference:
    """Compare two shares of independent samples.

    Newcombe's interval of a difference (method 10 of Interval Estimation for the Difference Between
    Independent Proportions, Statistics in Medicine 17, 1998), made of Wilson's of each share. Where
    both were found on the same samples, their differences are fewer than it takes them for, so that
    it is on the safe side.

    Args:
        base: from 0 to 1.
        new: from 0 to 1.
        base_count: how many samples the first is over, at least 1.
        new_count: likewise.
    """
    (low1, high1), (low2, high2) = _wilson(base, base_count), _wilson(new, new_count)
    change = new - base
    low = change - math.hypot(new - low2, high1 - base)
    high = change + math.hypot(high2 - new, base - low1)
    verdict = "same" if low <= 0 <= high else ("higher" if change > 0 else "lower")
    return ShareDifference(change, (low, high), verdict)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    square = _Z**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return middle - half, middle + half


def is_count(share: float, count: int) -> bool:
    """Whether a value can be a share of so many samples."""
    number = share * count
    return count > 0 and 0 <= share <= 1 and abs(number - round(number)) <= 1e-9 * count
