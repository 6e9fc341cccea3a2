"""Gates: each rule, and that none passes on nothing."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.manifest.sections import Drop, Gate, Selector
from wherry.records.gates import evaluate, with_gates


def gate(metric="top1", *, max_drop=None, least=None, most=None, **where):
    selector = Selector(**{key: frozenset(values) for key, values in where.items()})
    drop = max_drop if max_drop is None or isinstance(max_drop, Drop) else Drop(max_drop)
    return Gate(metric, selector, drop, least, most, f"{metric} gate", "m.yaml:7:5")


@pytest.fixture
def judge(make):
    """Judge one gate on results."""

    def judge_results(asked, *results, **changes):
        (found,) = evaluate([asked], make.record(*results, **changes).values)
        assert set(found) == {
            "gate", "passed", "value", "result", "reason", "location", "against", "base", "allowed",
        }  # fmt: skip
        assert (found["gate"], found["location"]) == (asked.text, "m.yaml:7:5")
        return found

    return judge_results


@pytest.mark.parametrize(
    ("asked", "value", "passed"),
    [
        (gate("size_bytes", most=400_000), 400_000, True),
        (gate("size_bytes", most=400_000), 400_001, False),
        (gate("size_bytes", least=400_000), 400_000, True),
        (gate("size_bytes", least=400_000), 399_999, False),
        (gate("size_bytes", least=1, most=2), 2, True),
        (gate("size_bytes", least=1, most=2), 3, False),
        (gate("size_bytes", least=1, most=2), 0, False),
    ],
)
def test_bounds_hold_at_the_bound(judge, make, asked, value, passed):
    found = judge(asked, make.result(size_bytes=value))
    assert (found["passed"], found["value"]) == (passed, value)
    assert str(value) in found["reason"], "bytes are written in full"


@pytest.mark.parametrize(
    ("drop", "top1", "passed", "words"),
    [
        (Drop(0.01), 0.975, True, "a drop of 0.01, at most 0.01"),  # equal in decimal
        (Drop(0.01), 0.9749, False, "a drop of 0.0101, at most 0.01"),
        (Drop(0.01), 0.99, True, "top1 0.99 against 0.985, no drop, at most 0.01"),
        (Drop(0.0), 0.985, True, "no drop, at most 0"),
        (Drop(0.0), 0.98499, False, "a drop of 1e-05"),
        (Drop(0.02, relative=True), 0.9653, True, "at most 0.0197"),
        (Drop(0.02, relative=True), 0.9652, False, "at most 0.0197"),
    ],
)
def test_a_drop_is_against_the_original(judge, make, drop, top1, passed, words):
    found = judge(gate(max_drop=drop), make.result(top1=top1))
    assert found["passed"] is passed
    assert words in found["reason"]


@pytest.mark.parametrize(("value", "passed"), [(0.02, True), (0.05, True), (0.051, False)])
def test_where_lower_is_better_a_rise_counts(judge, make, value, passed):
    found = judge(
        gate("mae", max_drop=0.04),
        make.result(metrics={"mae": value}),
        metrics=[{"name": "mae", "better": "lower", "unit": ""}],
        reference={"metrics": {"mae": 0.01}, "data": "evaluation"},
    )
    assert found["passed"] is passed
    assert "rise of" in found["reason"]


def test_a_metric_of_one_output_has_its_own_name(judge, make):
    changes = {
        "metrics": [{"name": "sqnr.boxes", "better": "higher", "unit": "dB"}],
        "reference": {"metrics": {"sqnr.boxes": 40.0}, "data": "evaluation"},
    }
    result = make.result(metrics={"sqnr.boxes": 35.0})
    assert judge(gate("sqnr.boxes", max_drop=5), result, **changes)["passed"]
    assert not judge(gate("sqnr.boxes", max_drop=4.9), result, **changes)["passed"]
    assert judge(gate("sqnr.boxes", least=35), result, **changes)["value"] == 35.0


def test_a_metric_that_is_named_like_a_part_of_the_latency_is_the_metric(judge, make):
    metrics = [{"name": "latency.boxes", "better": "lower", "unit": ""}]
    result = make.result(metrics={"latency.boxes": 3.0})
    assert judge(gate("latency.boxes", most=3), result, metrics=metrics)["passed"]
    result = make.result(metrics={})
    assert not judge(gate("latency.boxes", most=3), result, metrics=metrics)["passed"]


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("latency.median_ms", 2.0),
        ("latency.p90_ms", 2.2),
        ("latency.mean_ms", 2.0),
        ("load_ms", 12.5),
        ("peak_memory_bytes", 13_529_088),
        ("size_bytes", 388_190),
        ("parity.sqnr_db", 120.0),
        ("top1", 0.985),
    ],
)
def test_each_word_finds_its_value(judge, make, metric, value):
    assert judge(gate(metric, least=0), make.result(ms=2.0))["value"] == pytest.approx(value)


def test_a_gate_looks_only_where_it_says(judge, make):
    results = [
        make.result("original", "ncnn", "fp32", "pi4", ms=9.0),
        make.result("slim", "ncnn", "int8", "pi4", ms=3.0, options={"threads": 4}),
        make.result("slim", "tflite", "int8", "orin", ms=1.0),
    ]

    def passes(**where):
        return judge(gate("latency.median_ms", most=5, **where), *results)["passed"]

    assert not passes()
    assert not passes(variant={"original"})
    assert passes(variant={"slim"})
    assert passes(backend={"tflite"})
    assert passes(precision={"int8"})
    assert not passes(precision={"int8", "fp32"})
    assert passes(device={"orin"})
    assert passes(threads={4})
    assert not passes(threads={1})
    assert passes(variant={"slim"}, device={"pi4"})


def test_the_result_that_fails_worst_is_named_and_the_others_counted(judge, make):
    results = [make.result(str(ms), ms=ms) for ms in (1.0, 7.0, 9.0, 6.0)]
    found = judge(gate("latency.median_ms", most=5), *results)
    assert found["value"] == 9.0
    assert found["result"] == "9.0, onnxruntime fp32 on pi4"
    assert "9.0, onnxruntime fp32 on pi4: latency.median_ms 9, at most 5" in found["reason"]
    assert found["reason"].endswith("; 2 more do not hold it")
    found = judge(gate("latency.median_ms", most=6.5), *results)
    assert found["reason"].endswith("; 1 more does not hold it")


def test_where_all_hold_the_closest_is_named(judge, make):
    found = judge(gate("latency.median_ms", most=10), *(make.result(ms=ms) for ms in (1, 8, 3)))
    assert (found["passed"], found["value"]) == (True, 8.0)
    assert "more" not in found["reason"]


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_what_was_not_measured_fails_with_its_reason(judge, make, status):
    broken = make.result("slim", ms=None, status=status, error="node 7: no GRU in int8")
    found = judge(gate("latency.median_ms", most=5), make.result(), broken)
    assert (found["passed"], found["value"], found["result"]) == (False, None, broken["name"])
    assert found["reason"] == f"{broken['name']} was not measured: node 7: no GRU in int8"


def test_an_error_without_a_word_is_one(judge, make):
    broken = make.result("slim", ms=None, error="")
    assert judge(gate("latency.median_ms", most=5), broken)["reason"].endswith("not measured: ")


def test_an_artifact_is_no_measurement(judge, make):
    """A row that failed on the board has a size: its gate fails all the same."""
    broken = make.result(ms=None, size_bytes=10, error="the board was lost")
    assert not judge(gate("size_bytes", most=100), broken)["passed"]


@pytest.mark.parametrize("metric", ["latency.median_ms", "latency.p90_ms", "load_ms"])
def test_a_latency_of_an_emulated_board_fails(judge, make, metric):
    result = make.result(ms=1.0, latency={"emulated": True})
    found = judge(gate(metric, most=1000), result)
    assert not found["passed"]
    assert f"on an emulated board, where {metric} means nothing" in found["reason"]


def test_accuracy_counts_on_an_emulated_board(judge, make):
    result = make.result(latency={"emulated": True})
    assert judge(gate("top1", least=0.9), result)["passed"]
    assert judge(gate("size_bytes", most=10**9), result)["passed"]


def test_what_is_not_clean_is_said(judge, make):
    result = make.result(latency={"clean": False})
    assert "not clean" in judge(gate("latency.median_ms", most=5), result)["reason"]
    assert "not clean" in judge(gate("load_ms", most=1), result)["reason"]
    assert "not clean" not in judge(gate("top1", least=0), result)["reason"]
    assert "not clean" not in judge(gate("load_ms", most=99), make.result())["reason"]


@pytest.mark.parametrize(
    ("bounds", "passed", "noise"),
    [
        ({"most": 1.02}, True, True),
        ({"most": 0.99}, False, True),
        ({"most": 1.031}, True, False),
        ({"most": 0.5}, False, False),
        ({"least": 1.01}, False, True),
        ({"least": 0.5}, True, False),
    ],
)
def test_what_is_within_the_noise_is_said(judge, make, bounds, passed, noise):
    found = judge(gate("latency.median_ms", **bounds), make.result(ms=1.0))  # 0.98 to 1.03
    assert (found["passed"], "within noise" in found["reason"]) == (passed, noise)


def test_no_gate_passes_on_nothing(judge, make):
    found = judge(gate("top1", least=0, device={"elsewhere"}), make.result())
    assert (found["passed"], found["value"], found["result"]) == (False, None, "")
    assert "no result is like its `where:`" in found["reason"]
    assert not judge(gate("top1", least=0))["passed"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_no_gate_passes_on_what_is_no_number(judge, make, value):
    good, bad = make.result(), make.result("bad", metrics={"top1": value})
    for results in ((good, bad), (bad, good)):
        found = judge(gate("top1", least=-1), *results)
        assert (found["passed"], found["result"]) == (False, bad["name"])
        assert found["reason"] == f"{bad['name']} has no top1"


def test_why_there_is_no_p90_is_said(judge, make):
    result = make.result(latency={"p90_ms": None, "samples": 30})
    reason = judge(gate("latency.p90_ms", most=5), result)["reason"]
    assert "has no latency.p90_ms: there are 30 samples, and it takes 64" in reason


def test_without_parity_or_memory_their_gates_fail(judge, make):
    result = make.result(parity=None, peak_memory_bytes=None)
    assert not judge(gate("parity.sqnr_db", least=0), result)["passed"]
    assert not judge(gate("peak_memory_bytes", most=10**12), result)["passed"]


@pytest.mark.parametrize(
    "reference", [None, {"metrics": {}, "data": "evaluation"}, {"metrics": {"top1": None}}]
)
def test_without_the_original_no_drop_holds(judge, make, reference):
    found = judge(gate(max_drop=0.5), make.result(), reference=reference)
    assert not found["passed"]
    assert "there is no top1 of the original to compare" in found["reason"]


def test_a_drop_of_what_the_original_has_not_fails(judge, make):
    assert not judge(gate("latency.median_ms", max_drop=0.5), make.result())["passed"]


def test_gates_go_into_the_record_as_the_schema_says(make, undeclared):
    record = make.record(make.result(), make.result(ms=None))
    gates = [gate(least=0), gate("load_ms", most=1), gate(least=0, device={"none"})]
    judged = with_gates(record, evaluate(gates, record.values))
    assert undeclared(judged.values) == []
    assert json.loads(json.dumps(judged.values, allow_nan=False)) == judged.values
    assert record.values["gates"] == []


@given(
    values=st.lists(st.floats(0, 100), min_size=1, max_size=6),
    least=st.none() | st.floats(0, 100),
    most=st.floats(0, 100),
)
def test_a_gate_holds_exactly_where_all_values_are_within(make, values, least, most):
    results = [make.result(metrics={"top1": value}) for value in values]
    record = make.record(*results)
    (found,) = evaluate([gate(least=least, most=most)], record.values)
    assert found["passed"] == all((least or 0) <= value <= most for value in values)
    assert found["value"] in values
