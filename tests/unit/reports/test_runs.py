"""Runs on disk: what is saved is loaded, found by each of its names, and never half."""

from __future__ import annotations

import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from wherry.errors import StoreError, UsageError
from wherry.records.runs import (
    MANIFEST_FILE,
    REPORT_FILE,
    SAMPLES_FILE,
    check_tag,
    list_runs,
    load_run,
    new_run_id,
    save_run,
)


@pytest.fixture
def keep(make, tmp_path):
    """Save a run under an id."""

    def save(run_id: str, tag: str | None = None, **changes) -> Path:
        record = make.record(make.result(), run_id=run_id, tag=tag, **changes)
        directory = tmp_path / "runs" / run_id
        save_run(record, directory)
        return directory

    return save


def loaded(home: Path, name: str) -> str:
    return load_run(home, name).values["run_id"]


def test_what_is_saved_is_loaded(make, tmp_path):
    record = make.rich()
    record = type(record)(record.values, record.samples, "wherry: 1\r\n# Größe: 5 µs\n")
    save_run(record, tmp_path / "runs" / record.values["run_id"])
    again = load_run(tmp_path)
    assert again.values == record.values
    assert again.manifest == record.manifest
    assert len(again.samples) == len(record.samples) == 10
    for ours, theirs in zip(again.samples, record.samples, strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            assert ours[name].dtype == np.uint64
            assert np.array_equal(ours[name], array)
    assert [path.name for path in (tmp_path / "runs").rglob("*.part")] == []


def test_a_run_without_samples_is_a_run(make, tmp_path):
    record = make.record(make.result(ms=None))
    save_run(record, tmp_path / "runs" / record.values["run_id"])
    assert load_run(tmp_path).samples == ({},)


def test_an_id_sorts_by_time_and_is_not_given_twice():
    moment = datetime(2026, 11, 24, 4, 5, 0, tzinfo=UTC)
    assert re.fullmatch(r"20261124-040500-[0-9a-f]{4}", new_run_id(moment))
    assert new_run_id(moment) < new_run_id(moment.replace(second=1))
    assert len({new_run_id(moment) for _ in range(20)}) > 15


def test_a_run_is_found_by_all_its_names(keep, tmp_path):
    first, second, third = (f"20261124-04050{i}-abcd" for i in range(3))
    keep(second, "nightly")
    keep(first, "nightly")
    keep(third)
    assert [path.name for path in list_runs(tmp_path)] == [first, second, third]
    for name, run in {
        "last": third,
        "last~0": third,
        "last~1": second,
        "last~2": first,
        first: first,
        "nightly": second,  # the newest with the tag
        "20261124-040502": third,
    }.items():
        assert loaded(tmp_path, name) == run, name


def test_runs_of_one_second_are_in_the_order_of_their_ends(keep, tmp_path):
    for age, run in enumerate(["20261124-040500-ffff", "20261124-040500-0000"]):
        os.utime(keep(run) / REPORT_FILE, ns=(age, age))
    assert loaded(tmp_path, "last") == "20261124-040500-0000"
    assert loaded(tmp_path, "last~1") == "20261124-040500-ffff"


def test_a_tag_is_found_before_the_beginning_of_an_id(keep, tmp_path):
    keep("20261124-040500-aaaa")
    keep("20261124-040501-bbbb", "2026")
    keep("20261124-040502-cccc")
    assert loaded(tmp_path, "2026") == "20261124-040501-bbbb"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("last~2", "there are only 2 runs"),
        ("last~99999999999999999999", "there is no run named"),
        ("last~-1", "there is no run named"),
        ("2026", "could be any of 20261124-040500-aaaa, 20261124-040501-bbbb"),
        ("nightly", "there is no run named 'nightly'"),
        ("", "there is no run named ''"),
        ("../runs/20261124-040500-aaaa", "there is no run named"),
    ],
)
def test_a_name_of_no_run_or_of_several_is_a_usage_error(keep, tmp_path, name, words):
    keep("20261124-040500-aaaa")
    keep("20261124-040501-bbbb")
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        load_run(tmp_path, name)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("folder", [None, "runs", "runs/20261124-040500-aaaa/logs"])
def test_without_a_whole_run_there_is_none(tmp_path, folder):
    if folder:
        (tmp_path / folder).mkdir(parents=True)
    assert list_runs(tmp_path) == []
    with pytest.raises(UsageError, match="there is no run yet"):
        load_run(tmp_path)


def damage(directory: Path, kind: str) -> None:
    report, samples = directory / REPORT_FILE, directory / SAMPLES_FILE
    if kind == "report cut":
        report.write_bytes(report.read_bytes()[:100])
    elif kind == "report empty":
        report.write_bytes(b"")
    elif kind == "report not text":
        report.write_bytes(b"\xff\xfe\x00")
    elif kind == "report a list":
        report.write_text("[1]")
    elif kind == "report without results":
        report.write_text('{"schema_version": 1}')
    elif kind == "report of tomorrow":
        report.write_text(report.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    elif kind == "samples gone":
        samples.unlink()
    elif kind == "samples cut":
        samples.write_bytes(samples.read_bytes()[:-30])
    elif kind == "samples empty":
        samples.write_bytes(b"")
    elif kind == "samples turned":
        data = samples.read_bytes()
        samples.write_bytes(data[:90] + b"\xff" * 60 + data[150:])
    elif kind == "samples of another run":
        with samples.open("wb") as stream:
            np.savez_compressed(stream, **{"7.infer_ns": np.zeros(1)})
    elif kind == "samples with code":
        with samples.open("wb") as stream:
            np.savez(stream, **{"0.infer_ns": np.array([print], dtype=object)})
    elif kind == "samples with a strange name":
        with samples.open("wb") as stream:
            np.savez(stream, strange=np.zeros(1))
    elif kind == "manifest gone":
        (directory / MANIFEST_FILE).unlink()
    else:
        (directory / MANIFEST_FILE).write_bytes(b"\xff")


@pytest.mark.parametrize(
    "kind",
    [
        *("report cut", "report empty", "report not text", "report a list"),
        *("report without results", "report of tomorrow", "samples gone", "samples cut"),
        *("samples empty", "samples turned", "samples of another run", "samples with code"),
        *("samples with a strange name", "manifest gone", "manifest not text"),
    ],
)
def test_a_damaged_run_is_named_and_stops_no_other(keep, tmp_path, kind):
    bad = keep("20261124-040500-aaaa", "nightly")
    keep("20261124-040501-bbbb", "weekly")
    damage(bad, kind)
    with pytest.raises(StoreError, match="the run cannot be read") as caught:
        load_run(tmp_path, "last~1")
    assert caught.value.where == str(bad)
    assert caught.value.remedy
    assert loaded(tmp_path, "weekly") == loaded(tmp_path, "last") == "20261124-040501-bbbb"


def test_a_report_that_json_cannot_say_leaves_no_run(make, tmp_path):
    record = make.record(make.result(speedup_vs_fp32=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        save_run(record, tmp_path / "runs" / "x")
    assert list_runs(tmp_path) == []


def test_runs_that_end_at_once_are_all_kept_and_whole(make, tmp_path):
    start = threading.Barrier(8)

    def run(number: int) -> None:
        record = make.record(
            *(make.result(str(i)) for i in range(20)), run_id=f"20261124-040500-{number:04x}"
        )
        start.wait()
        for _ in range(3):
            save_run(record, tmp_path / "runs" / record.values["run_id"])

    def read() -> None:
        for path in list_runs(tmp_path):
            assert len(json.loads((path / REPORT_FILE).read_text())["results"]) == 20

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(run, number) for number in range(8)]
        while not all(future.done() for future in running):
            read()
        for future in running:
            future.result()
    assert len(list_runs(tmp_path)) == 8
    assert {loaded(tmp_path, f"last~{i}") for i in range(8)} == {
        f"20261124-040500-{number:04x}" for number in range(8)
    }


@pytest.mark.parametrize("tag", ["", "last", "last~3"])
def test_a_tag_that_names_another_run_is_refused(tag: str) -> None:
    with pytest.raises(UsageError, match="cannot be a tag"):
        check_tag(tag)
    check_tag("last-good")
