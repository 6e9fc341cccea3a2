"""Differences: the test against all orders, intervals and verdicts against drawn truths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry import difference
from wherry.difference import (
    Rounds,
    is_count,
    latency_difference,
    mann_whitney,
    share_difference,
    shift_interval,
    signed_rank,
)
from wherry.errors import UsageError

few = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def of_all_orders(first, second):
    """The share of ways to deal the values out whose rank sum is as far from its mean."""
    both = [*first, *second]
    ranks = [
        sum(other < value for other in both) + (sum(other == value for other in both) + 1) / 2
        for value in both
    ]
    expected = len(first) * (len(both) + 1) / 2
    found = abs(sum(ranks[: len(first)]) - expected)
    sums = [abs(sum(c) - expected) for c in itertools.combinations(ranks, len(first))]
    return sum(distance >= found - 1e-9 for distance in sums) / len(sums)


@given(few, few)
@settings(deadline=None)
def test_p_is_the_share_of_all_orders_also_with_ties(first, second):
    assert mann_whitney(first, second) == pytest.approx(of_all_orders(first, second))
    assert mann_whitney(second, first) == pytest.approx(mann_whitney(first, second))


@pytest.mark.parametrize("digits", [9, 0], ids=["without ties", "with ties"])
def test_p_of_many_values_is_nearly_that_of_all_orders(monkeypatch, digits):
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 40).round(digits), rng.normal(0, 1, 41).round(digits)
    normal = mann_whitney(first, second)
    monkeypatch.setattr(difference, "_EXACT", 100)
    assert mann_whitney(first, second) == pytest.approx(normal, abs=0.003)


def test_p_of_what_is_equal_and_of_what_is_apart():
    assert mann_whitney(np.zeros(50), np.zeros(50)) == 1
    assert mann_whitney(np.arange(50), np.arange(50) + 60) < 1e-15


def of_all_signs(differences):
    """The share of ways to give signs whose rank sum is as far from its mean."""
    sizes = [abs(value) for value in differences if value]
    ranks = [
        sum(o < size for o in sizes) + (sum(o == size for o in sizes) + 1) / 2 for size in sizes
    ]
    found = sum(math.copysign(r, d) for r, d in zip(ranks, filter(None, differences), strict=True))
    signs = list(itertools.product((-1, 1), repeat=len(ranks)))
    sums = [abs(sum(s * r for s, r in zip(each, ranks, strict=True))) for each in signs]
    return sum(distance >= abs(found) - 1e-9 for distance in sums) / len(signs)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
@settings(deadline=None)
def test_p_of_pairs_is_the_share_of_all_signs_also_with_ties(differences):
    assert signed_rank(differences) == pytest.approx(of_all_signs(differences))
    assert signed_rank([-value for value in differences]) == pytest.approx(signed_rank(differences))


def test_p_of_many_pairs_is_nearly_that_of_all_signs(monkeypatch):
    differences = np.random.default_rng(0).normal(0.15, 1, 81).tolist()
    normal = signed_rank(differences)
    monkeypatch.setattr(difference, "_EXACT", 100)
    assert signed_rank(differences) == pytest.approx(normal, abs=0.003)
    assert 0.02 < normal < 0.9


def side(logs):
    medians = np.exp(np.asarray(logs))
    return Rounds(float(np.median(medians)), medians.tolist())


def run(rng, scatter, shift=0.0, *, rounds=5, heavy=False, drift=0.0, slower=0.0):
    """A run's rounds around 5 ms: they scatter, the whole is shifted, and it drifts."""
    noise = rng.standard_t(3, rounds) / math.sqrt(3) if heavy else rng.normal(0, 1, rounds)
    trend = drift * rng.choice([-1, 1]) * np.linspace(-0.5, 0.5, rounds)
    return side(math.log(5 * (1 + slower)) + shift * rng.normal() + scatter * noise + trend)


def rate(verdict, *, slower=0.0, count=400, **noise):
    rng = np.random.default_rng(1)
    found = [
        latency_difference(run(rng, **noise), run(rng, **noise, slower=slower)).verdict
        for _ in range(count)
    ]
    return sum(one in verdict for one in found) / count


@pytest.mark.parametrize(
    "noise",
    [
        {"scatter": 0.01},
        {"scatter": 0.005, "shift": 0.005},
        {"scatter": 0.025, "shift": 0.028},  # as on a machine that was busy with other work
        {"scatter": 0.02, "shift": 0.02, "heavy": True},
        {"scatter": 0.005, "shift": 0.005, "drift": 0.02},
        {"scatter": 0.01, "shift": 0.01, "rounds": 10},
        {"scatter": 0.01, "shift": 0.01, "rounds": 4},
        {"scatter": 1e-6, "shift": 0.004},  # rounds that agree say nothing of the run
    ],
    ids=str,
)
def test_what_is_equal_is_flagged_at_most_in_5_percent(noise):
    """400 comparisons: two standard errors at 5 % are 2.2 points."""
    assert rate({"better", "worse"}, **noise) <= 0.05 + 0.022


def test_five_percent_more_is_found_where_rounds_agree_to_half_a_percent():
    assert rate({"worse"}, slower=0.05, scatter=0.005, shift=0.005) >= 0.9
    assert rate({"better"}, slower=-0.05, scatter=0.005, shift=0.005) >= 0.9
    assert rate({"worse"}, slower=0.2, scatter=0.02, shift=0.02) >= 0.9


def test_an_interval_holds_the_truth():
    rng = np.random.default_rng(2)
    noise = {"scatter": 0.01, "shift": 0.01}
    held = 0
    for _ in range(300):
        found = latency_difference(run(rng, **noise), run(rng, **noise, slower=0.1))
        held += found.ci95[0] <= 0.1 <= found.ci95[1]
        assert found.ci95[0] <= found.change <= found.ci95[1]
    assert held / 300 >= 0.95 - 0.025


def test_in_turns_there_is_no_shift_between_runs():
    rng = np.random.default_rng(3)
    one, other = run(rng, 0.005), run(rng, 0.005, slower=0.02)
    inside = latency_difference(one, other, in_turns=True)
    across = latency_difference(one, other)
    assert inside.change == across.change
    assert np.diff(inside.ci95) < np.diff(across.ci95) / 2
    assert (inside.verdict, across.verdict) == ("worse", "same")


def drifting(rng, rounds=10):
    """What a machine does over the rounds of all that take turns."""
    return np.cumsum(rng.normal(0, 0.02, rounds))


def test_in_turns_pairs_find_what_drift_hides_and_flag_no_more_than_they_may():
    rng = np.random.default_rng(4)

    def rates(slower):
        verdicts = []
        for _ in range(400):
            both = drifting(rng)
            logs = [both + rng.normal(0, 0.02, 10) for _ in range(2)]
            sides = [side(logs[0]), side(logs[1] + slower)]
            found = latency_difference(*sides, in_turns=True)
            verdicts.append(found.verdict)
            assert found.change == pytest.approx(sides[1].median / sides[0].median - 1)
        return np.mean([v == "worse" for v in verdicts]), np.mean([v != "same" for v in verdicts])

    assert rates(0.0)[1] <= 0.05 + 0.022, "the level, and two standard deviations of 400"
    assert rates(0.05)[0] >= 0.9


@given(
    st.lists(st.floats(-1, 1), min_size=7, max_size=12),
    st.floats(-1, 1),
)
@settings(deadline=None, max_examples=60)
def test_the_interval_of_pairs_holds_the_shifts_that_the_test_does_not_reject(values, shift):
    values = np.asarray(values)
    low, high = shift_interval(values)
    assert low <= high
    apart = np.min(np.abs([shift - low, shift - high]))
    ties = len(np.unique(np.abs(values - shift))) < len(values)
    if apart > 1e-6 and not ties:
        assert (low <= shift <= high) == (signed_rank((values - shift).tolist()) > 0.05)


def test_of_five_pairs_nothing_is_known_and_of_many_nearly_what_is_counted(monkeypatch):
    assert shift_interval(np.arange(5.0)) == (-math.inf, math.inf)
    values = np.random.default_rng(0).normal(0.15, 1, 81)
    normal = shift_interval(values)
    monkeypatch.setattr(difference, "_EXACT", 100)
    assert shift_interval(values) == pytest.approx(normal, abs=0.01)


def test_few_rounds_in_turns_are_compared_as_groups():
    base, new = (
        Rounds(5.0, [5.0, 5.01, 5.02, 5.03, 5.04]),
        Rounds(6.0, [6.0, 6.01, 6.02, 6.03, 6.04]),
    )
    assert latency_difference(base, new, in_turns=True).verdict == "worse"


def test_the_change_is_that_of_the_medians_which_reports_show():
    found = latency_difference(Rounds(5.0, [4.9, 5.0, 5.1, 5.0]), Rounds(6.0, [6.1, 5.9, 6.0, 6.0]))
    assert found.change == pytest.approx(0.2)
    assert found.verdict == "worse"
    assert found == latency_difference(
        Rounds(5.0, [4.9, 5.0, 5.1, 5.0]), Rounds(6.0, [6.1, 5.9, 6.0, 6.0])
    )


@given(
    st.lists(st.floats(1e-3, 1e6), min_size=4, max_size=12),
    st.lists(st.floats(1e-3, 1e6), min_size=4, max_size=12),
)
@settings(deadline=None, max_examples=50)
def test_a_verdict_agrees_with_its_interval_and_its_test(first, second):
    base, new = (Rounds(float(np.median(v)), v) for v in (first, second))
    found = latency_difference(base, new)
    excluded = not found.ci95[0] <= 0 <= found.ci95[1]
    assert (found.verdict != "same") == (excluded and found.p <= 0.05)
    turned = latency_difference(new, base)
    assert turned.p == pytest.approx(found.p)
    assert turned.change == pytest.approx(1 / (1 + found.change) - 1)


@pytest.mark.parametrize(
    "bad", [Rounds(1.0, [1.0, 1.0, 1.0]), Rounds(0.0, [1.0] * 5), Rounds(1.0, [1, 1, 1, 0.0])]
)
def test_what_cannot_be_compared(bad):
    good = Rounds(1.0, [1.0] * 5)
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(UsageError, match="cannot be compared"):
            latency_difference(*pair)


def test_shares_have_newcombes_interval():
    """56 of 70 against 48 of 80: an example of his paper."""
    found = share_difference(48 / 80, 56 / 70, 80, 70)
    assert found.ci95 == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert found.verdict == "higher"
    assert share_difference(56 / 70, 48 / 80, 70, 80).verdict == "lower"
    assert share_difference(0.98, 0.979, 1000, 1000).verdict == "same"


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_an_interval_of_shares_holds_what_was_found(first, second, data):
    base = data.draw(st.integers(0, first)) / first
    new = data.draw(st.integers(0, second)) / second
    found = share_difference(base, new, first, second)
    low, high = found.ci95
    assert -1 - 1e-9 <= low <= found.change + 1e-9
    assert found.change - 1e-9 <= high <= 1 + 1e-9


def test_a_share_is_told_from_another_number():
    assert is_count(4751 / 4800, 4800)
    assert is_count(1.0, 3)
    assert not is_count(0.98765432, 4800)
    assert not is_count(1.5, 2)
    assert not is_count(-1.0, 2)
    assert not is_count(0.5, 0)
