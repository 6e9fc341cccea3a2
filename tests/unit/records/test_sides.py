"""Sides of a comparison by their names, on both databases."""

from __future__ import annotations

import pytest
from record_makers import BOARD
from run_makers import measured, run_of

from wherry.errors import StoreError, UsageError
from wherry.records.sides import best, is_file, last_of, side, sides
from wherry.records.snapshot import render, snapshot


@pytest.fixture
def filled(records):
    busy, four = {"clean": False}, {"options": {"threads": 4}}
    for number, (ms, changes) in enumerate(
        [
            (5.0, {}),
            (4.0, {}),
            (3.0, {"latency": busy}),
            (2.0, {"latency": {"timed_by": "trtexec"}}),
            (1.0, four),
            (0.5, {"rounds": (1.0, 1.0)}),
        ]
    ):
        run_id = f"2026112{number}-000000-000{number}"
        started = f"2026-11-2{number}T00:00:00+00:00"
        tag = "release" if number == 1 else None
        records.save(run_of(measured(ms, **changes), run_id=run_id, tag=tag, started=started))
    return records


def test_runs_and_files_by_their_names(filled, tmp_path):
    file = tmp_path / "b.json"
    file.write_text(render(filled.load("release")))
    assert side(filled, "release").run_id == "20261121-000000-0001"
    assert side(filled, str(file)).targets == side(filled, "release").targets
    base, new = sides("last~1", "last")
    assert (base.run_id, new.run_id) == ("20261124-000000-0004", "20261125-000000-0005")
    assert sides(str(file), str(file))[0].source == "baseline b.json"


def test_a_file_is_one_by_its_folder_or_its_end():
    assert is_file("b.json")
    assert is_file("./b")
    assert not is_file("tag:./b.json")
    assert not is_file("release")
    assert not is_file("last~1")


def test_the_best_is_the_fastest_clean_one_that_is_like_it(filled):
    new = snapshot(run_of(measured(5.0), run_id="new"))

    def found(**allowed):
        (target,) = best(filled, new, **allowed).targets
        return target.timing.median_ms

    assert found() == pytest.approx(4.0, rel=1e-3)
    assert found(allow=["not-clean"]) == pytest.approx(3.0, rel=1e-3)
    assert found(allow=["timer"]) == pytest.approx(2.0, rel=1e-3)
    disturbed = snapshot(run_of(measured(5.0, latency={"clean": False}), run_id="new"))
    assert best(filled, disturbed).targets[0].run_id == "20261121-000000-0001"


def test_a_tag_of_any_name_is_found_as_a_tag(filled):
    for tag in ("best", "feature/x", "v1.json", "20261120", "tag:odd"):
        filled.retag("20261120-000000-0000", tag)
        assert sides(f"tag:{tag}", "last")[0].run_id == "20261120-000000-0000"
        assert filled.find(f"tag:{tag}") == "20261120-000000-0000"
    with pytest.raises(UsageError, match="no run named 'tag:last'"):
        side(filled, "tag:last")


def test_runs_on_what_the_board_once_was_are_not_loaded(filled, monkeypatch):
    now = {"pi4": {**BOARD, "fingerprint": "ef" * 32}}
    record = run_of(measured(5.0), run_id="new", devices=now)
    loaded = []
    load = filled.load
    monkeypatch.setattr(filled, "load", lambda run_id: loaded.append(run_id) or load(run_id))
    with pytest.raises(UsageError, match="no other run has a clean measurement"):
        best(filled, snapshot(record))
    assert loaded == []
    assert best(filled, snapshot(record), allow=["system"]).targets[0].run_id[:8] == "20261121"


def test_a_run_is_not_its_own_best(filled):
    new = snapshot(filled.load("release"))
    assert best(filled, new).targets[0].run_id == "20261120-000000-0000"


def test_without_any_like_it_there_is_no_best(filled):
    with pytest.raises(UsageError, match="no other run has a clean measurement"):
        best(filled, snapshot(run_of(measured(5.0, "other"), run_id="new")))
    with pytest.raises(UsageError, match="Give it first"):
        sides("last", "best")


def test_the_last_of_a_manifest(filled):
    manifest = "manifests/quickstart.yaml"
    assert last_of(filled, manifest, "none").run_id == "20261125-000000-0005"
    assert last_of(filled, manifest, "20261121-000000-0001").run_id == "20261120-000000-0000"
    with pytest.raises(UsageError, match="no earlier run of manifests"):
        last_of(filled, manifest, "20261120-000000-0000")
    with pytest.raises(UsageError, match="no earlier run of other"):
        last_of(filled, "other.yaml", "none")


def test_what_is_not_there(filled, tmp_path):
    with pytest.raises(UsageError, match="no run named 'nightly'"):
        sides("nightly", "last")
    with pytest.raises(StoreError, match="No such file"):
        sides(str(tmp_path / "none.json"), "last")
