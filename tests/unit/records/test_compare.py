"""Comparisons: each verdict, each reason against comparing, and who belongs to whom."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from record_makers import BOARD, VALUES, result_of
from run_makers import QUIET, measured, run_of

from wherry.errors import UsageError
from wherry.manifest.schema import Reason
from wherry.records.compare import FailOn, compare, failures
from wherry.records.likeness import ENERGY, LATENCY, REASONS
from wherry.records.snapshot import snapshot


def compared(base, new, **options):
    return compare(snapshot(base), snapshot(new), **options)


def pair_of(base: dict, new: dict, *, base_run=None, new_run=None, allow=()):
    """The one result of two runs of one target."""
    first = run_of(base, **(base_run or {}))
    second = run_of(new, **{"run_id": "20261125-000000-0001", **(new_run or {})})
    (result,) = compared(first, second, allow=allow)["results"]
    return result


def figure(result: dict, name: str = "latency.median_ms") -> dict:
    (found,) = [each for each in result["figures"] if each["figure"] == name]
    return found


@pytest.mark.parametrize(
    ("ms", "verdict", "why"),
    [(5.5, "worse", ""), (4.5, "better", ""), (5.02, "same", "within noise")],
)
def test_latency_is_judged_by_its_rounds(ms, verdict, why):
    found = figure(pair_of(measured(5.0), measured(ms)))
    assert (found["verdict"], found["why"]) == (verdict, why)
    assert found["change"] == pytest.approx(ms / 5 - 1, abs=1e-4)
    low, high = found["ci95"]
    assert low < found["difference"] < high
    assert found["p"] is not None


def test_rounds_that_scatter_make_a_change_noise():
    wide = (1.0, 1.2, 0.8, 1.1, 0.9)
    found = figure(pair_of(measured(5.0, rounds=wide), measured(5.5, rounds=wide)))
    assert (found["verdict"], found["why"]) == ("same", "within noise")


@pytest.mark.parametrize(
    ("name", "base", "new", "verdict"),
    [
        ("size_bytes", 100_000, 100_050, "same"),
        ("size_bytes", 100_000, 101_000, "worse"),
        ("size_bytes", 100_000, 90_000, "better"),
        ("peak_memory_bytes", 1_000_000, 1_040_000, "same"),
        ("peak_memory_bytes", 1_000_000, 1_060_000, "worse"),
        ("energy_mj", 2.0, 1.0, "better"),
        ("energy_mj", 2.0, 2.05, "same"),
        ("energy_mj", None, 2.0, "not comparable"),
    ],
)
def test_what_is_read_once_has_a_margin(name, base, new, verdict):
    found = figure(pair_of(measured(**{name: base}), measured(**{name: new})), name)
    assert found["verdict"] == verdict
    assert found["why"] or verdict in {"worse", "better"}


@pytest.mark.parametrize(
    ("base", "new", "verdict"),
    [
        (4750 / 4800, 4700 / 4800, "worse"),
        (4700 / 4800, 4750 / 4800, "better"),
        (4750 / 4800, 4745 / 4800, "same"),  # five of 4800
        (4750 / 4800, 4750 / 4800, "same"),
        (0.98765, 0.98764, "worse"),  # no share of 4800 samples: no noise is known
        (0.98765, 0.98765, "same"),
    ],
)
def test_accuracy_is_judged_by_its_counts_where_it_has_some(base, new, verdict):
    found = figure(pair_of(measured(top1=base), measured(top1=new)), "top1")
    assert found["verdict"] == verdict
    assert found["difference"] == pytest.approx(new - base)


def test_where_less_is_better_more_is_worse():
    metrics = [{**VALUES["metrics"][0], "name": "mae", "better": "lower", "unit": "m"}]
    changes = {"base_run": {"metrics": metrics}, "new_run": {"metrics": metrics}}
    base, new = (measured(metrics={"mae": value}) for value in (0.1, 0.2))
    assert figure(pair_of(base, new, **changes), "mae")["verdict"] == "worse"


def other_board(**changes):
    return {"devices": {"pi4": {**BOARD, **changes}}}


GOVERNOR = [{"time_s": 1.0, "values": {"governor.policy0": "powersave"}}]
NEW_METRIC = [{**VALUES["metrics"][0], "definition": "34" * 32}, VALUES["metrics"][1]]
NEW_DATA = {"evaluation": {"source": "mnist5k", "samples": 4800, "digest": "00" * 32}}
UNLIKE = {
    "options": (measured(options={"threads": 4}), {}, "threads 1 against 4"),
    "board": (measured(), other_board(identity="00" * 32), "cdcdcdcd against pi4"),
    "system": (measured(), other_board(fingerprint="00" * 32, kernel="6.12"), "against Debian"),
    "clocks": (measured(sensors=GOVERNOR), {}, "performance against powersave"),
    "timer": (measured(latency={"timed_by": "trtexec"}), {}, "agent against trtexec"),
    "emulated": (measured(latency={"emulated": True}), {}, "the new one"),
    "not-clean": (measured(latency={"clean": False}), {}, "the new one"),
    "convention": (measured(), {"measure": {**VALUES["measure"], "convention": 2}}, "1 against 2"),
    "data": (measured(), {"data": NEW_DATA}, "other samples, as many"),
    "metric": (measured(), {"metrics": NEW_METRIC}, "is made by other code"),
    "original": (measured(), {"model": {**VALUES["model"], "digest": "00"}}, "own original"),
    "energy": (measured(energy_mj=2.0, extra={"energy": {"method": "counter", "source": "RAPL"}}),
               {}, "rail VDD_IN against counter RAPL"),
}  # fmt: skip
BASE = {"energy_mj": 2.0, "extra": {"energy": {"method": "rail", "source": "VDD_IN"}}}


def test_every_reason_is_a_word_of_manifests_and_has_a_case_here():
    assert set(REASONS) == set(get_args(Reason)) == set(UNLIKE)


@pytest.mark.parametrize("reason", UNLIKE)
def test_what_is_unlike_is_not_compared_unless_it_is_allowed(reason):
    new, changes, words = UNLIKE[reason]
    new = {**new, **(BASE if reason != "energy" else {})}
    refused = pair_of(measured(**BASE), new.copy(), new_run=changes)
    (told,) = [each for each in refused["unlike"] if each["reason"] == reason]
    assert words in told["text"]
    assert told["allowed"] is False
    hit = [each for each in refused["figures"] if each["why"].startswith(f"{reason}: ")]
    assert hit
    assert all(each["verdict"] == "not comparable" for each in hit)
    assert all(each["difference"] is None for each in hit)
    allowed = pair_of(measured(**BASE), new.copy(), new_run=changes, allow=[reason])
    (told,) = [each for each in allowed["unlike"] if each["reason"] == reason]
    assert told["allowed"] is True
    for each in hit:
        assert figure(allowed, each["figure"])["verdict"] != "not comparable"


def test_a_reason_counts_only_for_the_figures_that_it_touches():
    unclean = pair_of(measured(**BASE), measured(**BASE, latency={"clean": False}))
    verdicts = {each["figure"]: each["verdict"] for each in unclean["figures"]}
    assert verdicts == {
        "latency.median_ms": "not comparable", "top1": "same", "agreement": "same",
        "size_bytes": "same", "peak_memory_bytes": "same", "energy_mj": "not comparable",
    }  # fmt: skip
    moved = pair_of(measured(), measured(), new_run={"model": {**VALUES["model"], "digest": "00"}})
    assert figure(moved, "top1")["verdict"] == "same", "against labels"
    assert figure(moved, "agreement")["verdict"] == "not comparable"
    assert moved["differs"] == ["the model is another"]


def test_only_reasons_can_be_allowed():
    with pytest.raises(UsageError, match="'weather' is no reason"):
        compared(run_of(measured()), run_of(measured()), allow=["weather"])


@pytest.mark.parametrize("rounds", [QUIET[:3], QUIET[:1]])
def test_too_few_rounds_cannot_be_compared(rounds):
    found = figure(pair_of(measured(rounds=rounds), measured()))
    assert found["verdict"] == "not comparable"
    assert found["why"].startswith(f"rounds: {len(rounds)} of a side, and it takes 4")


def test_a_measurement_from_the_store_is_the_same_one():
    base, new = run_of(measured()), run_of(measured(), run_id="20261125-000000-0001")
    new.values["results"][0]["measured_in"] = base.values["run_id"]
    (result,) = compared(base, new)["results"]
    assert figure(result)["why"] == "it is the same measurement"


SEVEN = (*QUIET, 1.001, 0.999)
BUSY = {"clean": False}
IN_TURNS = {"base_run": {"turns": "one"}, "new_run": {"turns": "one"}}


@pytest.mark.parametrize("rounds", [QUIET, SEVEN])
def test_what_disturbed_both_in_turns_disturbed_them_alike(rounds):
    sides = [measured(ms, rounds=rounds, latency=BUSY, **BASE) for ms in (5.0, 6.0)]
    found = pair_of(*sides, **IN_TURNS)
    assert [figure(found, name)["verdict"] for name in (LATENCY, ENERGY)] == ["worse", "same"]
    assert found["unlike"] == []
    assert found["differs"] == [
        "neither is clean; they took turns, and what disturbed one disturbed the other"
    ]
    apart = pair_of(*(measured(ms, rounds=rounds, latency=BUSY) for ms in (5.0, 6.0)))
    assert figure(apart)["why"] == "not-clean: both"


def test_what_disturbed_one_in_turns_is_borne_by_pairs_alone():
    found = pair_of(
        measured(5.0, rounds=SEVEN, **BASE),
        measured(6.0, rounds=SEVEN, latency=BUSY, **BASE),
        **IN_TURNS,
    )
    assert figure(found)["verdict"] == "worse"
    assert figure(found, ENERGY)["why"] == "not-clean: the new one", "it is no matter of pairs"
    assert "the new one is not clean; they took turns" in found["differs"][0]
    few = pair_of(measured(5.0), measured(6.0, latency=BUSY), **IN_TURNS)
    assert figure(few)["why"] == "not-clean: the new one"
    other = {"base_run": {"turns": "one"}, "new_run": {"turns": "two"}}
    apart = pair_of(measured(rounds=SEVEN), measured(rounds=SEVEN, latency=BUSY), **other)
    assert figure(apart)["why"] == "not-clean: the new one"


def test_one_measurement_is_the_same_also_where_it_is_not_clean():
    base = run_of(measured(latency=BUSY))
    new = run_of(measured(latency=BUSY), run_id="20261125-000000-0001")
    new.values["results"][0]["measured_in"] = base.values["run_id"]
    (result,) = compared(base, new)["results"]
    assert (figure(result)["verdict"], result["differs"]) == ("same", [])


def test_who_belongs_to_whom():
    base = run_of(
        measured(1.0, "a"),
        measured(2.0, "b", options={"threads": 2}),
        measured(3.0, "gone"),
        measured(4.0, "moved", "ncnn", "fp32", "pi4"),
        result_of("broke", ms=None, error="no\nreason"),
    )
    new = run_of(
        measured(1.0, "a"),
        measured(2.0, "b", options={"threads": 4}),
        measured(3.0, "fresh"),
        measured(4.0, "moved", "ncnn", "fp32", "orin"),
        measured(5.0, "broke"),
        run_id="20261125-000000-0001",
    )
    found = compared(base, new)
    assert [(r["variant"], r["status"]) for r in found["results"]] == [
        ("a", "compared"), ("b", "compared"), ("fresh", "only new"), ("moved", "compared"),
        ("broke", "failed"), ("gone", "only base"),
    ]  # fmt: skip
    _, b, fresh, moved, broke, gone = found["results"]
    assert b["unlike"][0]["text"] == "threads 2 against 4"
    assert moved["unlike"] == [], "one board by two names"
    assert broke["why"] == "the base was not measured: no"
    assert fresh["figures"] == gone["figures"] == []
    assert found["summary"]["only new"] == 1
    json.dumps(found, allow_nan=False)


def test_two_that_could_belong_to_one_are_not_guessed():
    base = run_of(measured(options={"threads": 1}))
    new = run_of(measured(options={"threads": 2}), measured(options={"threads": 4}))
    statuses = [result["status"] for result in compared(base, new)["results"]]
    assert statuses == ["only new", "only new", "only base"]


def test_failing_on_what_is_worse():
    found = compared(
        run_of(measured(5.0, "a"), measured(5.0, "gone"), measured(5.0, "b")),
        run_of(measured(5.5, "a"), measured(5.0, "b", latency={"clean": False}), run_id="x"),
    )
    told = [(each["name"].split(",")[0], each["figure"]) for each in failures(found, FailOn())]
    assert told == [("a", "latency.median_ms"), ("b", "latency.median_ms"), ("gone", "")]
    told = [each["name"].split(",")[0] for each in failures(found, FailOn.parse("worse:11%"))]
    assert told == ["b", "gone"], "what is not compared is not known to be as good"


def test_comparing_nothing_fails():
    found = compared(run_of(measured(5.0, "a")), run_of(measured(5.0, "b")))
    assert failures(found, FailOn())[-1]["why"] == "no target is in both"


@pytest.mark.parametrize("text", ["", "better", "worse:", "worse:5", "worse:-5%", "worse:5%%"])
def test_nothing_else_can_be_failed_on(text):
    with pytest.raises(UsageError, match="nothing to fail on"):
        FailOn.parse(text)
