"""The database of records: what is saved is loaded, found by each of its names, and never half."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from wherry.errors import StoreError, UsageError
from wherry.records.naming import check_tag, new_run_id
from wherry.records.rows import target_key
from wherry.reports import RunRecord


def same(ours: RunRecord, theirs: RunRecord) -> bool:
    """To the key's order and the array's kind."""
    return (
        repr(ours.values) == repr(theirs.values)
        and ours.manifest == theirs.manifest
        and [list(arrays) for arrays in ours.samples] == [list(a) for a in theirs.samples]
        and all(
            ours_array.dtype == np.uint64 and np.array_equal(ours_array, their_arrays[name])
            for our_arrays, their_arrays in zip(ours.samples, theirs.samples, strict=True)
            for name, ours_array in our_arrays.items()
        )
    )


@pytest.fixture
def keep(make, records):
    """Save a run under an id, that began when the id says."""

    def save(run_id: str, tag: str | None = None, *results, **changes) -> RunRecord:
        started = datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        made = make.record(
            *(results or [make.result()]),
            run_id=run_id,
            tag=tag,
            **{"started": started.isoformat(), **changes},
        )
        assert records.save(made)
        return made

    return save


def test_what_is_saved_is_loaded(make, records):
    record = make.rich()
    record = RunRecord(record.values, record.samples, "wherry: 1\r\n# Größe: 5 µs\n")
    assert records.save(record) is True
    assert same(records.load(), record)
    assert len(records.load().samples) == 10


def test_a_run_without_samples_is_a_run(make, records):
    record = make.record(make.result(ms=None))
    records.save(record)
    assert records.load().samples == ({},)


def test_the_same_run_is_kept_once_and_another_of_its_id_not(make, records):
    record = make.rich()
    assert records.save(record) is True
    assert records.save(record) is False
    other = make.record(make.result(), run_id=record.values["run_id"])
    with pytest.raises(StoreError, match="there is another run of the id") as caught:
        records.save(other)
    assert caught.value.remedy
    assert len(records.runs()) == 1
    assert same(records.load(), record)


def test_an_id_sorts_by_time_and_is_not_given_twice():
    moment = datetime(2026, 11, 24, 4, 5, 0, tzinfo=UTC)
    assert re.fullmatch(r"20261124-040500-[0-9a-f]{4}", new_run_id(moment))
    assert new_run_id(moment) < new_run_id(moment.replace(second=1))
    assert len({new_run_id(moment) for _ in range(20)}) > 15


def test_a_run_is_found_by_all_its_names(keep, records):
    first, second, third = (f"20261124-04050{i}-abcd" for i in range(3))
    keep(second, "nightly")
    keep(first, "nightly")
    keep(third)
    assert [each.run_id for each in records.runs()] == [third, second, first]
    for name, run in {
        "last": third,
        "last~0": third,
        "last~1": second,
        "last~2": first,
        first: first,
        "nightly": second,  # the newest with the tag
        "20261124-040502": third,
    }.items():
        assert records.find(name) == records.load(name).values["run_id"] == run, name


def test_runs_of_one_second_are_in_the_order_of_their_ends(keep, records):
    keep("20261124-040500-ffff")
    keep("20261124-040500-0000")
    assert records.find("last") == "20261124-040500-0000"
    assert records.find("last~1") == "20261124-040500-ffff"


def test_a_tag_is_found_before_the_beginning_of_an_id(keep, records):
    keep("20261124-040500-aaaa")
    keep("20261124-040501-bbbb", "2026")
    keep("20261124-040502-cccc")
    assert records.find("2026") == "20261124-040501-bbbb"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("last~2", "there are only 2 runs"),
        ("last~99999999999999999999", "there is no run named"),
        ("last~999999999", "there are only 2 runs"),
        ("last~-1", "there is no run named"),
        ("2026", "could be any of 20261124-040500-aaaa, 20261124-040501-bbbb"),
        ("nightly", "there is no run named 'nightly'"),
        ("", "there is no run named ''"),
        ("2026%", "there is no run named"),
        ("20261124_040500", "there is no run named"),
        ("20261124-040500-AAAA", "there is no run named"),
        ("' OR 1=1 --", "there is no run named"),
        ("a\0b\ud800", "there is no run named"),
    ],
)
def test_a_name_of_no_run_or_of_several_is_a_usage_error(keep, records, name, words):
    keep("20261124-040500-aaaa")
    keep("20261124-040501-bbbb")
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        records.load(name)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_without_a_run_there_is_none(records):
    assert records.runs() == []
    assert records.targets() == []
    assert records.trend("0" * 32) == []
    with pytest.raises(UsageError, match="there is no run yet in "):
        records.load()


def test_a_report_that_json_cannot_say_leaves_no_run(make, records):
    with pytest.raises(ValueError, match="JSON"):
        records.save(make.record(make.result(speedup_vs_fp32=float("nan"))))
    assert records.runs() == []


@pytest.mark.parametrize("tag", ["", "last", "last~3"])
def test_a_tag_that_names_another_run_is_refused(tag):
    with pytest.raises(UsageError, match="cannot be a tag"):
        check_tag(tag)
    check_tag("last-good")


def test_the_list_says_what_stands_in_the_report(make, records):
    record = make.rich()
    records.save(record)
    (found,) = records.runs()
    moment = datetime(2026, 11, 24, 4, 5, tzinfo=UTC)
    assert (found.started, found.finished) == (moment, moment + timedelta(minutes=1))
    assert (found.ok, found.failed, found.skipped, found.gates, found.gates_failed) == (
        8, 1, 1, 2, 1,
    )  # fmt: skip
    assert (found.tag, found.manifest, found.host) == (
        "nightly", "manifests/quickstart.yaml", "desk",
    )  # fmt: skip
    assert (found.model, found.wherry) == ("cd" * 32, "0.1.0")


def test_the_list_comes_in_pages_and_of_what_is_asked(make, keep, records):
    ids = [f"20261124-0405{i:02}-abcd" for i in range(10)]
    for i, run_id in enumerate(ids):
        keep(
            run_id,
            "even" if i % 2 == 0 else None,
            make.result(device="pi4" if i < 3 else "orin"),
            manifest="/ci/a/net.yaml" if i < 5 else "/ci/b/other_net.yaml",
        )

    def names(*arguments, **named) -> list[int]:
        return [ids.index(each.run_id) for each in records.runs(*arguments, **named)]

    assert names() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert names(3) == [9, 8, 7]
    assert names(3, before=ids[7]) == [6, 5, 4]
    assert names(before=ids[0]) == []
    assert names(tag="even") == [8, 6, 4, 2, 0]
    assert names(2, tag="even", before=ids[4]) == [2, 0]
    assert names(device="pi4") == [2, 1, 0]
    assert names(manifest="net.yaml") == names(manifest="/ci/a/net.yaml") == [4, 3, 2, 1, 0]
    assert names(manifest="a/net.yaml", device="pi4", tag="even") == [2, 0]
    assert names(manifest="NET.yaml") == names(manifest="et.yaml") == names(device="%") == []
    assert names(since=datetime(2026, 11, 24, 4, 5, 8, tzinfo=UTC)) == [9, 8]
    with pytest.raises(UsageError, match="there is no run named"):
        records.runs(before="20271124")


def test_targets_and_their_trends(make, keep, records):
    for i, ms in enumerate([1.0, 1.1, None, 1.3]):
        keep(
            f"20261124-04050{i}-abcd",
            "base" if i == 0 else None,
            make.result(ms=ms, top1=0.98 - i / 100, size_bytes=100 + i, energy_mj=None),
            make.result("slim", options={"threads": 4}),
        )
    keep("20261124-040509-abcd", None, make.result("wide", device="orin"), manifest="b.yaml")
    targets = records.targets()
    assert [(each.variant, each.device, each.runs, each.run_id[9:15]) for each in targets] == [
        ("wide", "orin", 1, "040509"),
        ("original", "pi4", 4, "040503"),
        ("slim", "pi4", 4, "040503"),
    ]
    assert records.targets(device="orin") == records.targets(manifest="b.yaml") == targets[:1]
    key = target_key(make.result())
    assert targets[1].target_key == key != targets[2].target_key

    points = records.trend(key)
    assert [point.value for point in points] == [1.0, 1.1, None, 1.3]
    assert [point.status for point in points] == ["ok", "ok", "failed", "ok"]
    assert (points[0].low, points[0].high) == (0.98, 1.03)
    first = points[0]
    assert (first.tag, first.timed_by, first.clean, first.emulated) == (
        "base",
        "agent",
        True,
        False,
    )
    assert (first.board, first.model) == ("ab" * 32, "cd" * 32)
    assert first.manifest == "manifests/quickstart.yaml"
    assert first.started == datetime(2026, 11, 24, 4, 5, tzinfo=UTC)
    assert [point.value for point in records.trend(key, limit=2)] == [None, 1.3]
    assert [point.value for point in records.trend(key, "top1")] == [0.98, 0.97, None, 0.95]
    assert [point.value for point in records.trend(key, "size_bytes")] == [100, 101, 102, 103]
    assert {point.value for point in records.trend(key, "energy_mj")} == {None}
    assert {point.low for point in records.trend(key, "top1")} == {None}
    assert records.trend(key, manifest="b.yaml") == []


def test_deleted_runs_leave_nothing(make, keep, records, rows_left):
    kept = keep("20261124-040500-abcd")
    keep("20261124-040501-abcd")
    keep("20261124-040502-abcd")
    assert records.delete(["20261124-040501-abcd", "20261124-040502-abcd", "nothing"]) == 2
    assert same(records.load(), kept)
    assert rows_left() == {"run": 1, "result": 1, "detail": 1, "samples": 2}
    assert records.delete([]) == 0
