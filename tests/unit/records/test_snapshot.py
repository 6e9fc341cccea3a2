"""Baseline files: what is in them, and that none that was touched is taken."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_makers import result_of
from run_makers import measured, run_of

from wherry.errors import StoreError, UsageError
from wherry.records import snapshot as module
from wherry.records.snapshot import read_baseline, render, snapshot


@pytest.fixture
def record():
    return run_of(
        measured(5.0),
        measured(3.0, "original", "ncnn", "int8", energy_mj=2.5),
        result_of("slim", ms=None, error="no GRU\nin int8"),
        tag="nightly",
    )


@pytest.fixture
def file(record, tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(render(record))
    return path


def test_a_snapshot_has_what_comparing_needs(record):
    found = snapshot(record)
    assert (found.source, found.tag) == ("run 20261124-040500-3f9a (nightly)", "nightly")
    assert found.manifest == "quickstart.yaml", "no path of the machine"
    first, _, failed = found.targets
    assert first.timing.median_ms == pytest.approx(5.0, rel=1e-3)
    assert first.timing.round_ms == pytest.approx([5.0, 5.01, 4.99, 5.005, 4.995], rel=1e-6)
    assert first.board.clocks == {"governor.policy0": "performance", "stabilised": "yes"}
    assert first.scores["top1"].value == 0.985
    assert (failed.error, failed.timing, failed.scores) == ("no GRU", None, {})


def test_a_file_gives_back_what_was_measured(record, file):
    found, whole = read_baseline(file), snapshot(record)
    kept = sorted((t for t in whole.targets if t.error is None), key=lambda t: t.name)
    assert found.targets == kept
    assert found.source == "baseline baseline.json"
    assert found.run_id == whole.run_id


def test_a_file_is_the_same_whatever_the_order_and_changes_only_where_values_do(record):
    turned = run_of(measured(3.0, "original", "ncnn", "int8", energy_mj=2.5), measured(5.0),
                    tag="nightly")  # fmt: skip
    assert render(turned) == render(record)
    other = run_of(measured(5.0), measured(3.1, "original", "ncnn", "int8", energy_mj=2.5),
                   tag="nightly")  # fmt: skip
    changed = [
        pair for pair in zip(render(record).splitlines(), render(other).splitlines(), strict=True)
        if pair[0] != pair[1]
    ]  # fmt: skip
    assert len(changed) == 1 + 1 + 5, "the checksum, the median, five rounds"
    assert render(record).isascii()


def test_two_hundred_targets_stay_small():
    record = run_of(*(measured(5.0, f"v{number}") for number in range(200)))
    assert len(render(record)) < 500_000


def test_nothing_makes_no_baseline():
    with pytest.raises(UsageError, match="nothing was measured"):
        render(run_of(result_of(ms=None)))


def test_a_record_that_does_not_tell_its_rounds_has_none(record):
    values = copy.deepcopy(dict(record.values))
    del values["results"][0]["latency"]["round_sizes"]
    del values["measure"]["convention"]
    for result in values["results"]:
        del result["measured_in"], result["fp32"]
    found = snapshot(type(record)(values, record.samples))
    assert found.targets[0].timing.round_ms == []
    assert found.targets[0].timing.convention == 1
    assert snapshot(type(record)(values)).targets[1].timing.round_ms == []


def test_a_coarse_clock_gives_no_latency(make):
    result = make.result(ms=0.0)
    assert snapshot(make.record(result)).targets[0].timing is None


def places(node, path=()):
    if isinstance(node, dict):
        for key, inner in node.items():
            yield from places(inner, (*path, key))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from places(inner, (*path, index))
    else:
        yield path


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_no_value_can_be_changed(tmp_path_factory, data):
    form = json.loads(render(run_of(measured(5.0))))
    path = data.draw(st.sampled_from(list(places(form))))
    node = form
    for key in path[:-1]:
        node = node[key]
    old = node[path[-1]]
    node[path[-1]] = data.draw(
        (st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5)).filter(
            lambda new: not (type(new) is type(old) and new == old)
        )
    )
    file = tmp_path_factory.mktemp("baseline") / "b.json"
    file.write_text(json.dumps(form))
    with pytest.raises(StoreError) as caught:
        read_baseline(file)
    assert str(file) in str(caught.value)
    assert "Write it anew" in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@settings(max_examples=40, deadline=None)
def test_nothing_else_is_taken_for_a_baseline(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("baseline") / "b.json"
    file.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be used"):
        read_baseline(file)


def signed(form: dict) -> str:
    """With the checksum that fits: whoever forges a file can do that."""
    body = {key: value for key, value in form.items() if key not in {"wherry_baseline", "sha256"}}
    return json.dumps({**form, "sha256": module._checksum(body)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda form: form["targets"][0].pop("timing"), None),
        (lambda form: form["targets"][0]["timing"].update(median_ms=-1.0), "greater than 0"),
        (lambda form: form["targets"][0]["timing"].update(round_ms=[1.0] * 1001), "at most 1000"),
        (lambda form: form["targets"][0]["timing"].update(clean="yes"), "valid boolean"),
        (lambda form: form["targets"][0].update(extra=1), "not permitted"),
        (lambda form: form.update(targets={}), "valid list"),
        (lambda form: form.update(run_id="x" * 5000), "at most 4096"),
        (lambda form: form.update(wherry_baseline=2), "its version is 2"),
    ],
)
def test_a_forged_file_says_what_is_wrong(file, change, words):
    form = json.loads(file.read_text())
    change(form)
    file.write_text(signed(form))
    if words is None:  # a target that was not timed is one
        assert read_baseline(file).targets[0].timing is None
        return
    with pytest.raises(StoreError, match=words):
        read_baseline(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "no JSON"),
        ('{"wherry_baseline": 1, "sha256": "", "targets": NaN}', "checksum"),
        ('{"schema_version": 1}', "no baseline of wherry"),
        ("\xff", "no JSON"),
    ],
)
def test_hostile_content(tmp_path, content, words):
    file = tmp_path / "b.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=words):
        read_baseline(file)


def test_a_file_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 20)
    file = tmp_path / "b.json"
    file.write_bytes(b"{" + b" " * (1 << 20))
    with pytest.raises(StoreError, match="larger than 1 MiB"):
        read_baseline(file)
    with pytest.raises(StoreError, match="No such file"):
        read_baseline(tmp_path / "none.json")


def test_numbers_of_files_are_finite(file):
    form = json.loads(file.read_text())
    form["targets"][0]["energy_mj"] = math.inf
    file.write_text(json.dumps(form))
    with pytest.raises(StoreError):
        read_baseline(file)
