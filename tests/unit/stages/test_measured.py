"""Runs that fail, stop, measure anew or run at once: what is kept, and what is said."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from wherry.errors import EnvironmentError_, Interrupted, StoreError, ToolError, UnsupportedError
from wherry.execute import execute
from wherry.measurement import Measurement
from wherry.store import Store

# Parity


def test_an_artifact_that_fails_parity_is_not_kept(lab) -> None:
    lab.bench.error = 1.0
    values = lab.run()
    assert lab.statuses(values) == ["failed"] * 4
    assert "dB" in values["results"][0]["error"]
    assert lab.kept("convert") == lab.kept("accepted") == 0
    assert lab.bench.profiled == []
    lab.run()
    assert lab.made == {}, "it is converted anew, and known to fail"


@pytest.mark.parametrize("pins", ["[false, true]", "[true, false]"])
def test_an_artifact_that_passed_with_other_options_stays(lab, pins: str) -> None:
    lab.bench.error, lab.bench.broken_pin = 1.0, True
    lab.text = lab.MANIFEST.replace("precision: [fp32, int8]", f"copy: {{pin: {pins}}}")
    values = lab.run(jobs=1)
    by_pin = {r["target"]["options"]["pin"]: r["status"] for r in values["results"]}
    assert by_pin == {False: "ok", True: "failed"}
    assert lab.kept("convert") == 2
    lab.text = lab.MANIFEST.replace("precision: [fp32, int8]", "copy: {pin: true}")
    assert lab.statuses(lab.run()) == ["failed"] * 2
    assert lab.kept("convert") == 2, "another run may use it"


def test_an_artifact_stays_while_it_cannot_be_checked(lab) -> None:
    lab.bench.reached = StoreError("the disk is full")
    assert lab.statuses(lab.run()) == ["failed"] * 4
    assert (lab.kept("convert"), lab.kept("accepted")) == (4, 0)
    lab.bench.reached = EnvironmentError_("")
    assert lab.statuses(lab.run()) == ["ok"] * 4
    assert lab.made["convert"] == 0


def test_without_a_runtime_here_the_report_says_that_parity_was_not_checked(lab) -> None:
    lab.bench.runtime = EnvironmentError_("no wheel fits")
    values = lab.run()
    assert lab.statuses(values) == ["failed"] * 4, "here it cannot be measured either"
    assert "no wheel fits" in values["results"][0]["error"]
    assert any("parity was not checked" in text for text in values["results"][0]["warnings"])


def test_what_no_host_runs_is_compared_on_the_board(lab) -> None:
    lab.bench.runs_on_host = False
    values = lab.run()
    assert lab.statuses(values) == ["ok"] * 4
    assert {result["parity"]["sqnr_db"] for result in values["results"]} == {300.0}
    warnings = values["results"][0]["warnings"]
    assert any("no host runs onnx artifacts" in text for text in warnings)
    assert "parity was checked on local instead" in warnings
    assert lab.made["parity"] == 4
    again = lab.run()
    assert lab.made == {} and again["results"][0]["parity"] == values["results"][0]["parity"]
    assert again["results"][0]["warnings"] == warnings


def test_what_is_another_network_on_the_board_is_not_measured(lab) -> None:
    lab.bench.runs_on_host, lab.bench.error = False, 1.0
    values = lab.run()
    assert lab.statuses(values) == ["failed"] * 4 and lab.bench.profiled == []
    assert "dB" in values["results"][0]["error"] and values["results"][0]["latency"] is None
    lab.text += "parity: {samples: 0}\n"
    values = lab.run()
    assert lab.statuses(values) == ["ok"] * 4 and values["results"][0]["parity"] is None


def test_a_board_that_lacks_what_a_runtime_needs_is_skipped(lab) -> None:
    lab.bench.reached = UnsupportedError("there is no mace_run", remedy="Build one.")
    values = lab.run()
    assert lab.statuses(values) == ["skipped"] * 4
    assert "Build one" in values["results"][0]["error"]
    assert any("this host cannot run it" in text for text in values["results"][0]["warnings"])
    assert lab.kept("convert") == 4


# Rounds


@pytest.mark.parametrize("error", [Interrupted("stopped"), ToolError("crashed")], ids=str)
def test_a_broken_measurement_goes_on_with_the_missing_rounds(lab, error) -> None:
    lab.bench.broken_at, lab.bench.breaks = 6, error
    values = lab.run(jobs=1)
    assert lab.statuses(values).count("failed") == (4 if isinstance(error, Interrupted) else 1)
    done = lab.made["round"]
    assert done == (5 if isinstance(error, Interrupted) else 7)
    lab.bench.profiled.clear()
    values = lab.run()
    assert lab.statuses(values) == ["ok"] * 4
    assert len(lab.bench.profiled) == 8 - done
    assert not all(result["cached"] for result in values["results"])


def test_a_measurement_of_kept_rounds_alone_counts_as_kept(used) -> None:
    store = Store(used.home / "store")
    for entry in store.entries("measure"):
        store.remove(entry.key)
    values = used.run()
    assert all(result["cached"] for result in values["results"])
    assert used.made == {"measure": 4}


@pytest.mark.parametrize("remeasure", [False, True])
def test_rows_with_one_artifact_are_measured_once(lab, remeasure: bool) -> None:
    lab.text = lab.MANIFEST.replace("rewritten: [rewrite]", "same: []")
    results = lab.run(remeasure=remeasure)["results"]
    assert len(lab.bench.profiled) == 4
    assert not any(result["cached"] for result in results)
    assert [r["latency"] for r in results[:2]] == [r["latency"] for r in results[2:]]
    assert all(result["cached"] for result in lab.run()["results"])


def test_the_order_is_another_in_each_round_and_the_same_in_each_run(lab) -> None:
    lab.text = lab.MANIFEST.replace("int8]", "int8], threads: [1, 2, 3]").replace(
        "rounds: 2", "rounds: 3"
    )
    lab.run()
    order = lab.bench.profiled.copy()
    rounds = [[target for target, number in order if number == n] for n in range(3)]
    assert [number for _, number in order] == sorted(number for _, number in order)
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(rounds[2])
    assert rounds[0] != rounds[1] != rounds[2]
    lab.bench.profiled.clear()
    lab.run(remeasure=True)
    assert lab.bench.profiled == order


def test_to_remeasure_takes_all_but_the_measurements(used, first) -> None:
    anew = used.run(remeasure=True)
    assert used.made == {}, "the same keys"
    assert len(used.bench.profiled) == 8
    assert {step["kind"] for step in anew["steps"] if step["state"] == "done"} == {"profile"}
    latencies = [[r["latency"]["mean_ms"] for r in run["results"]] for run in (first[1], anew)]
    assert latencies[0] != latencies[1]
    kept = used.run()
    assert [r["latency"]["mean_ms"] for r in kept["results"]] == latencies[1]


def test_a_measurement_stays_until_another_is_whole(used, first) -> None:
    used.bench.broken_at, used.bench.breaks = 5, Interrupted("stopped")
    used.run(remeasure=True, jobs=1)
    kept = used.run()
    assert [r["latency"] for r in kept["results"]] == [r["latency"] for r in first[1]["results"]]


def test_a_speed_up_over_two_runs_says_so(lab) -> None:
    word = "`--remeasure`"
    lab.text = lab.MANIFEST.replace("[fp32, int8]", "fp32")
    lab.run()
    lab.text = lab.MANIFEST
    for _ in range(2):
        results = lab.run()["results"]
        told = {r["target"]["precision"]: word in " ".join(r["warnings"]) for r in results}
        assert told == {"fp32": False, "int8": True}
    results = lab.run(remeasure=True)["results"]
    assert not any(word in " ".join(r["warnings"]) for r in results)


def spoilt(**changes):
    def spoil(measured: Measurement) -> Measurement:
        return Measurement(**{**vars(measured), **changes})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (spoilt(infer_ns=np.zeros(0, np.uint64)), "no samples"),
        (spoilt(total_ns=np.zeros(3, np.uint64)), "20 and 3 samples in rounds of [20]"),
        (spoilt(round_sizes=(10,)), "20 and 20 samples in rounds of [10]"),
        (spoilt(load_ms=()), "load_ms"),
        (spoilt(extra={"what": object()}), "JSON"),
        (spoilt(metrics={"first": "good"}), "good"),
    ],
    ids=["none", "copies", "sizes", "load", "extra", "metric"],
)
def test_what_a_hook_returns_is_checked_before_it_is_kept(lab, spoil, word: str) -> None:
    def once(measured: Measurement) -> Measurement:
        return spoil(measured) if len(lab.bench.profiled) == 2 else measured

    lab.bench.spoil = once
    values = lab.run()
    assert sorted(lab.statuses(values)) == ["failed", "ok", "ok", "ok"]
    (error,) = (r["error"] for r in values["results"] if r["error"])
    assert "the profile hook for copy" in error
    assert word in error


# Two runs


def test_two_runs_at_once_do_each_step_once(lab) -> None:
    records: list[dict] = []
    prepared = [lab.prepare() for _ in range(2)]
    threads = [
        threading.Thread(target=lambda p=p: records.append(execute(p, jobs=2).values))
        for p in prepared
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [lab.statuses(values) for values in records] == [["ok"] * 4] * 2
    assert len(lab.bench.profiled) == 8
    assert (lab.kept("convert"), lab.kept("round"), lab.kept("measure")) == (4, 8, 4)
    one, other = ([r["latency"] for r in values["results"]] for values in records)
    assert one == other
