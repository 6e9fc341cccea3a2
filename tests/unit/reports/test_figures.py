"""What the page's charts are drawn from, and what is told of passes and sensors."""

from __future__ import annotations

import json

import numpy as np
import page_records
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.reports import figures, passes, results, sensors


def by_title(record) -> dict[str, dict]:
    return {group["title"]: group for group in figures.figures(record)["groups"]}


def test_the_first_front_is_the_records_own(make):
    record = page_records.rich()
    marked = [i for i, r in enumerate(record.values["results"]) if r["pareto"]]
    assert by_title(record)["pi4"]["fronts"]["latency|metric.top1"] == marked


def test_other_axes_have_the_front_of_their_own_figures(make):
    record = make.record(
        make.result("small", size_bytes=1000, top1=0.9, pareto=True),
        make.result("large", size_bytes=9000, top1=0.95, ms=0.5),
        make.result("worse", size_bytes=9500, top1=0.94),
        make.result("bare", size_bytes=500, metrics={}),
    )
    fronts = by_title(record)["pi4"]["fronts"]
    assert fronts["size|metric.top1"] == [0, 1]
    assert fronts["latency|size"] == [1, 3], "less of both is better"
    assert "size|size" not in fronts and "energy|metric.top1" not in fronts


def test_a_metric_of_which_less_is_better_is_ranked_so(make):
    metrics = [
        {"name": "top1", "better": "higher", "unit": ""},
        {"name": "mae", "better": "lower", "unit": "px"},
    ]
    record = make.record(
        make.result("a", size_bytes=1000, metrics={"top1": 0.9, "mae": 5.0}),
        make.result("b", size_bytes=2000, metrics={"top1": 0.9, "mae": 2.0}),
        make.result("c", size_bytes=3000, metrics={"top1": 0.9, "mae": 4.0}),
        metrics=metrics,
    )  # fmt: skip
    assert by_title(record)["pi4"]["fronts"]["size|metric.mae"] == [0, 1]
    assert figures.figures(record)["worths"]["metric.mae"]["title"] == "mae, px"


def test_unlike_clocks_and_emulated_boards_are_never_in_one_picture(make):
    record = make.record(
        make.result("a"),
        make.result("b", "tensorrt", latency={"timed_by": "trtexec"}),
        make.result("c", device="qemu", latency={"emulated": True}),
    )
    groups = by_title(record)
    assert {title: group["results"] for title, group in groups.items()} == {
        "pi4, timed by agent": [0],
        "pi4, timed by trtexec": [1],
        "qemu, timed by agent (emulated: no times)": [2],
    }
    emulated = groups["qemu, timed by agent (emulated: no times)"]
    assert emulated["costs"] == ["size"], "an emulator falsifies time, energy and memory"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=400), st.integers(1, 50))
def test_a_distribution_loses_no_sample(samples, windows):
    found = figures.distribution(np.array(samples, dtype=np.uint64), windows)
    histogram = found["histogram"]
    assert sum(histogram["counts"]) + histogram["beyond"] == len(samples)
    assert len(histogram["counts"]) == figures.BINS and histogram["step"] > 0
    assert found["box"] == sorted(found["box"])
    assert len(found["order"]) == min(windows, len(samples))
    assert all(low <= middle <= high for low, middle, high in found["order"])
    json.dumps(found, allow_nan=False)


def test_sensors_are_told_in_units_that_people_read():
    told = {s.name: s.said for s in sensors.over(page_records.sensors(10))}
    assert told == {
        "temperature_c.cpu": "45 °C to 75 °C",
        "frequency_khz.policy0": "1500 MHz to 1800 MHz",
        "governor.policy0": "performance",
        "throttled": "0 to 4",
        "load_1m": "0.2",
        "cpu_busy_s": "rose by 9 s",
    }


def test_a_boards_curves_leave_out_counters_words_and_other_runs(make):
    first = make.result("a", sensors=page_records.sensors(5))
    kept = make.result("b", sensors=page_records.sensors(5, 9e6), cached=True)
    curves = figures.boards([first, kept])["pi4"]
    assert set(curves) == {"temperature cpu, °C", "frequency policy0, MHz", "throttled", "load 1m"}
    assert curves["frequency policy0, MHz"][0] == [0.0, 1800.0]
    assert curves["frequency policy0, MHz"][-1] == [12.0, 1500.0]


def test_a_pass_is_told_by_its_figures_and_by_layer():
    prune, lowrank, fit = passes.variants(page_records.rich().values["results"])["slim"]
    assert prune.figures == (("macs", "2,400,000 to 1,200,000 (50.0 %)"), ("reached", "0.5"))
    (units,) = prune.tables
    assert units.heads == ("", "before", "after", "kept")
    assert units.rows == (("conv1", "16", "8", "50.0 %"), ("conv2", "32", "20", "62.5 %"))
    layers, left = lowrank.tables
    assert layers.rows == (("conv3", "4", "0.97"),) and left.rows == (("fc", "too small"),)
    assert fit.figures[1:] == (("held_out before", "0.93"), ("held_out after", "0.981"))


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
            max_leaves=12,
        ),
        max_size=6,
    )
)
def test_whatever_a_pass_records_can_be_shown(record):
    found = passes.shown({**record, "pass": "a.strangers"})
    for table in found.tables:
        assert {len(row) for row in table.rows} <= {len(table.heads)}
    assert all(isinstance(text, str) for pair in found.figures for text in pair)
    assert all(isinstance(text, str) for pair in passes.flat(record) for text in pair)


def test_results_that_were_not_measured_are_rows_too(make):
    record = page_records.rich()
    table = results.table(record.values["results"], record.values["metrics"])
    assert sorted(row.index for row in table.rows) == list(range(10))
    last = table.rows[-1]
    assert last.badges == (("bad", "failed"),) and last.cells[0].text == "slim"
    assert last.cells[-1].text == "-" and last.cells[-1].value == ""
    assert dict(table.facets[4].counts) == {"ok": 8, "skipped": 1, "failed": 1}


@pytest.mark.parametrize("count", [1, 30, 500])
def test_many_results_share_the_points_of_a_page(count):
    spread = figures.Spread(count, count)
    assert spread.windows * count <= max(figures.WINDOWS, 12 * count)
    assert 12 <= spread.windows <= 150
