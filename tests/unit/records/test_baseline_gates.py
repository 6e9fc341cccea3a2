"""Gates against other runs, files and fp32: none passes on nothing, nor on what is unlike."""

from __future__ import annotations

from pathlib import Path

import pytest
from record_makers import result_of
from run_makers import measured, run_of

from wherry.manifest.sections import Drop, Gate, Selector
from wherry.records.baselines import Baselines
from wherry.records.database import Records
from wherry.records.gates import evaluate
from wherry.records.snapshot import render

PERCENT, HALF_MS = Drop(0.05, relative=True), Drop(0.5)
NEW = "20261125-000000-0001"


def gate(against, metric="latency.median_ms", *, drop=None, allow=(), where=None, **bounds):
    return Gate(metric, where or Selector(), drop, None, None, f"{metric} gate", "m.yaml:7:5",
                against=against, allow=frozenset(allow), **bounds)  # fmt: skip


def judge(asked, *results, **changes):
    record = run_of(*results, run_id=NEW, **changes)
    (found,) = evaluate([asked], record.values, Baselines(record))
    return found


@pytest.fixture
def database(tmp_path, monkeypatch):
    """Empty; SQLite's alone: what is asked of it is tested with both elsewhere."""
    monkeypatch.setenv("WHERRY_RECORDS", f"sqlite:///{tmp_path}/records.db")
    return Records.open


@pytest.fixture
def file(tmp_path, database):
    path = tmp_path / "baseline.json"
    path.write_text(render(run_of(measured(5.0, size_bytes=1000))))
    return str(path)


@pytest.mark.parametrize(
    ("ms", "bound", "passed", "words"),
    [
        (5.6, PERCENT, False, "+12.0 %"),
        (5.6, Drop(0.15, relative=True), True, "at most 15 %"),
        (5.6, HALF_MS, False, "at most 0.5"),
        (5.4, HALF_MS, True, "at most 0.5"),
        (4.0, PERCENT, True, "-20.0 %"),
        (5.05, Drop(0.005, relative=True), True, "at most 0.5 %: more, but within noise"),
        (5.0, Drop(0.0), True, "at most 0"),
    ],
)
def test_an_increase_in_percent_and_in_milliseconds(file, ms, bound, passed, words):
    found = judge(gate(file, max_increase=bound), measured(ms))
    assert (found["passed"], found["against"]) == (passed, file)
    assert words in found["reason"]
    assert "(95 %: " in found["reason"]
    assert found["base"] == pytest.approx(5.0, rel=1e-3)
    assert found["value"] == pytest.approx(ms, rel=1e-3)


def test_a_size_is_exact(file):
    nothing = gate(file, "size_bytes", max_increase=Drop(0.0))
    assert judge(nothing, measured(size_bytes=1000))["passed"]
    assert not judge(nothing, measured(size_bytes=1001))["passed"]
    assert judge(gate(file, "size_bytes", max_increase=Drop(1)), measured(size_bytes=1001))[
        "passed"
    ]


def test_a_drop_against_a_file(file):
    assert judge(gate(file, "top1", drop=Drop(0.01)), measured(top1=0.98))["passed"]
    found = judge(gate(file, "top1", drop=Drop(0.001)), measured(top1=0.98))
    assert not found["passed"]
    assert "top1 0.98 against 0.985, a drop of 0.005, at most 0.001" in found["reason"]


def test_a_speed_up_against_a_file(file):
    assert judge(gate(file, min_speedup=1.9), measured(2.5))["passed"]
    found = judge(gate(file, min_speedup=2.1), measured(2.5))
    assert not found["passed"]
    assert "x2.00" in found["reason"]


def test_a_missing_baseline_fails_and_says_what_to_do(database, tmp_path):
    found = judge(gate(str(tmp_path / "none.json"), max_increase=PERCENT), measured())
    assert (found["passed"], found["base"]) == (False, None)
    assert "there is nothing to compare with" in found["reason"]
    assert "`wherry report RUN --output NAME.baseline.json`" in found["reason"]
    for against, words in (
        ("last", "there is no earlier run of manifests/quickstart.yaml"),
        ("tag:release", "no other run has the tag 'release'"),
        ("best", "no other run of manifests/quickstart.yaml has a clean measurement"),
    ):
        found = judge(gate(against, max_increase=PERCENT), measured())
        assert not found["passed"]
        assert words in found["reason"]


def test_no_gate_compares_without_a_way_to():
    record = run_of(measured())
    (found,) = evaluate([gate("last", max_increase=PERCENT)], record.values)
    assert not found["passed"]
    assert "there is no last to compare with" in found["reason"]


def test_a_damaged_baseline_fails(file):
    Path(file).write_text(Path(file).read_text() + " x")
    assert not judge(gate(file, max_increase=PERCENT), measured())["passed"]


def test_a_target_that_the_baseline_has_not_fails(file):
    found = judge(gate(file, max_increase=PERCENT), measured(5.0, "slim"))
    assert not found["passed"]
    assert "the base has no such target" in found["reason"]
    assert "wherry report --output NAME.baseline.json" in found["reason"]


def test_what_is_unlike_fails_with_its_reason_unless_it_is_allowed(file):
    busy = {"clean": False}
    found = judge(gate(file, max_increase=PERCENT), measured(latency=busy))
    assert not found["passed"]
    assert "not-clean: the new one" in found["reason"]
    found = judge(gate(file, max_increase=PERCENT, allow=["not-clean"]), measured(latency=busy))
    assert (found["passed"], found["allowed"]) == (True, ["not-clean"])
    assert "unlike measurements are allowed: not-clean" in found["reason"]
    found = judge(gate(file, max_increase=PERCENT), measured(options={"threads": 4}))
    assert "options: threads 1 against 4" in found["reason"]


def test_too_few_rounds_fail(file):
    found = judge(gate(file, max_increase=PERCENT), measured(rounds=(1.0, 1.0)))
    assert not found["passed"]
    assert "it takes 4" in found["reason"]


def test_what_was_not_measured_fails(file):
    assert not judge(gate(file, max_increase=PERCENT), result_of(ms=None))["passed"]


def test_against_runs_in_the_database(database):
    with database() as records:
        records.save(run_of(measured(4.0), run_id="20261120-000000-0001", tag="release"))
        records.save(run_of(measured(5.0), run_id="20261121-000000-0001"))
        records.save(run_of(measured(9.0), run_id="20261122-000000-0001", manifest="other.yaml"))
    for against, base in (("last", 5.0), ("tag:release", 4.0), ("best", 4.0)):
        found = judge(gate(against, max_increase=PERCENT), measured(5.0))
        assert found["base"] == pytest.approx(base, rel=1e-3), against
        assert found["passed"] == (base == 5.0)
    found = judge(gate("tag:20261120", max_increase=PERCENT), measured(5.0))
    assert "no other run has the tag '20261120'" in found["reason"]


def test_a_run_that_is_kept_is_compared_with_those_before_it(database):
    mine = run_of(measured(5.0), run_id=NEW, tag="release")
    with database() as records:
        records.save(run_of(measured(4.0), run_id="20261120-000000-0001", tag="release"))
        records.save(mine)
        records.save(run_of(measured(9.0), run_id="20261126-000000-0001",
                            started="2026-11-26T00:00:00+00:00"))  # fmt: skip
    for against in ("last", "tag:release", "best"):
        asked = gate(against, max_increase=PERCENT)
        (found,) = evaluate([asked], mine.values, Baselines(mine))
        assert found["base"] == pytest.approx(4.0, rel=1e-3), against


def test_another_network_is_no_best_and_another_model_is_told(database, file):
    with database() as records:
        records.save(run_of(measured(4.0), run_id="20261120-000000-0001"))
        records.save(run_of(measured(1.0), run_id="20261121-000000-0001", manifest="/ci/tiny.yaml"))
    retrained = {"model": {"digest": "ff" * 32}}
    found = judge(gate("best", max_increase=PERCENT), measured(4.0), **retrained)
    assert found["passed"] and found["base"] == pytest.approx(4.0, rel=1e-3)
    assert "at most 5 %; the model is another" in found["reason"]
    assert "another" not in judge(gate("best", max_increase=PERCENT), measured(4.0))["reason"]
    unlike = judge(
        gate(file, max_increase=PERCENT), measured(latency={"clean": False}), **retrained
    )
    assert not unlike["passed"]
    assert "not-clean: the new one; the model is another" in unlike["reason"]


def fp32_and(int8_ms, *, fp32="original, onnxruntime fp32 on pi4", **changes):
    return [
        measured(5.0, fp32=fp32),
        measured(int8_ms, "original", "onnxruntime", "int8", fp32=fp32, **changes),
    ]


@pytest.mark.parametrize(("ms", "passed"), [(2.5, True), (4.9, False)])
def test_a_speed_up_against_fp32(ms, passed):
    only = Selector(precision=frozenset({"int8"}))
    found = judge(
        gate("fp32", min_speedup=1.5, where=only), *fp32_and(ms, latency={"clean": False})
    )
    assert found["passed"] is passed
    assert found["base"] == pytest.approx(5.0, rel=1e-3)
    found = judge(gate("fp32", max_increase=PERCENT, where=only), *fp32_and(5.6))
    assert not found["passed"]


def pruned(ms, **changes):
    return [measured(5.0, **changes), measured(ms, "slim", **changes)]


@pytest.mark.parametrize(
    ("ms", "bounds", "passed", "words"),
    [
        (4.0, {"min_speedup": 1.2}, True, "x1.25"),
        (4.5, {"min_speedup": 1.2}, False, "x1.11"),
        (5.5, {"max_increase": PERCENT}, False, "+10.0 %"),
        (5.01, {"max_increase": Drop(0.0)}, True, "more, but within noise"),
    ],
)
def test_the_latency_against_the_original_on_the_same_target(ms, bounds, passed, words):
    found = judge(gate("original", **bounds), *pruned(ms))
    assert found["passed"] is passed, found["reason"]
    assert words in found["reason"]
    assert found["result"].startswith("slim"), "the original is not compared with itself"
    assert found["base"] == pytest.approx(5.0, rel=1e-3)
    busy = judge(gate("original", **bounds), *pruned(ms, latency={"clean": False}))
    assert busy["passed"] is passed
    assert "the measurement is not clean" in busy["reason"]


@pytest.mark.parametrize("metric", ["size_bytes", "peak_memory_bytes", "energy_mj"])
def test_what_else_is_compared_with_the_original(metric):
    less = Drop(0.0)
    sides = measured(**{metric: 1000}), measured(5.0, "slim", **{metric: 1200})
    found = judge(gate("original", metric, max_increase=less), *sides)
    assert not found["passed"] and "1200 against 1000, +20.0 %" in found["reason"]
    assert judge(gate("original", metric, max_increase=Drop(0.3, relative=True)), *sides)["passed"]


def test_without_an_original_on_the_target_it_fails():
    asked = gate("original", max_increase=PERCENT)
    found = judge(asked, measured(), measured(5.0, "slim", "ncnn"))
    assert "has no original on the same target" in found["reason"] and not found["passed"]
    broken = judge(asked, result_of(ms=None), measured(5.0, "slim"))
    assert not broken["passed"]
    assert broken["reason"].endswith("the base was not measured: it broke")


def test_without_a_peer_in_fp32_it_fails():
    found = judge(gate("fp32", min_speedup=0.1), *fp32_and(2.5, fp32=None))
    assert not found["passed"]
    assert "has no peer in fp32" in found["reason"]
