"""Names that strangers choose: they are kept, found and shown as they are, and change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from wherry.records.rows import rows_of, target_key
from wherry.reports import RunRecord

NAMES = [
    "'; DROP TABLE wherry_run; --",
    "\" OR ''='",
    "%_\\%",
    ":tag %(tag)s $1 ? {0}",
    "a\0b",
    "caf\udce9",  # a path that is not UTF-8
    "\u202eabc \U0001f6a2 Größe",
    "x" * 5000,
    " ",
    "\n\t",
]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_only_names(make, records, name, rows_left):
    result = make.result(name, name, name, name, options={name: name})
    result |= {"name": name, "metrics": {name: 0.5}}
    result["latency"]["timed_by"] = name
    record = make.record(result, tag=name, manifest=name, manifest_text=name, run_id="a")
    record.values["host"]["hostname"] = name
    assert records.save(record)
    assert records.save(make.record(make.result(), run_id="b"))
    again = records.load("a")
    assert again.values == record.values
    assert again.manifest == name
    assert records.find(name) == "a"
    assert [each.run_id for each in records.runs(tag=name)] == ["a"]
    assert [each.run_id for each in records.runs(manifest=name)] == ["a"]
    assert [each.run_id for each in records.runs(device=name)] == ["a"]
    (target,) = records.targets(device=name)
    assert target.target_key == target_key(result)
    (point,) = records.trend(target.target_key, name)
    assert point.value == 0.5
    assert target.name.replace("\N{REPLACEMENT CHARACTER}", "?") == "".join(
        "?" if each == "\0" or "\ud800" <= each <= "\udfff" else each for each in name
    )
    assert list(records.verify()) == [("a", None), ("b", None)]
    assert records.delete([name]) == 0
    assert rows_left()["run"] == 2


@pytest.mark.parametrize("run_id", ["", "../x", "a b", "a\n", "x" * 101, "a/b", "-rf", 5])
def test_an_id_is_a_plain_word(make, records, run_id):
    with pytest.raises((ValueError, TypeError)):
        records.save(make.record(make.result(), run_id=run_id))
    assert records.runs() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"size_bytes": 1 << 63},
        {"size_bytes": "many"},
        {"peak_memory_bytes": 1e300},
        {"energy_mj": "5"},
        {"energy_mj": 10**400},
        {"status": "fine"},
        {"status": []},
        {"latency": {"clean": "yes"}},
        {"latency": {"median_ms": [1]}},
        {"latency": 7},
        {"metrics": {"top1": "high"}},
        {"metrics": []},
        {"name": None},
        {"target": {}},
    ],
)
def test_a_value_of_another_kind_is_refused_before_the_database(make, records, changes):
    result = make.result()
    if isinstance(changes.get("latency"), dict):
        result["latency"] |= changes["latency"]
    else:
        result |= changes
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError, OverflowError)):
        records.save(make.record(result))
    assert records.runs() == []


def test_samples_of_more_results_than_there_are_are_refused(make):
    record = make.record(make.result())
    extra = RunRecord(record.values, (*record.samples, {"infer_ns": np.zeros(1, np.uint64)}))
    with pytest.raises(ValueError, match="1 results, and samples of 2"):
        rows_of(extra)


def test_a_target_is_the_same_in_all_runs_and_no_other(make):
    key = target_key(make.result())
    assert len(key) == 32
    assert key == target_key(make.result(ms=5.0, top1=0.1))
    others = [
        make.result("slim"),
        make.result(backend="ncnn"),
        make.result(precision="int8"),
        make.result(device="orin"),
        make.result(options={"threads": 2}),
    ]
    assert len({key, *map(target_key, others)}) == 6
