"""Sides of a comparison by their names, on both databases."""

from __future__ import annotations

import pytest
from record_makers import BOARD
from run_makers import measured, run_of

from wherry.errors import StoreError, UsageError
from wherry.records.sides import best, is_file, last_of, side, sides
from wherry.records.snapshot import render, snapshot

MANIFEST = "manifests/quickstart.yaml"


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
        (target,) = best(filled, new, manifest=MANIFEST, **allowed).targets
        return target.timing.median_ms

    assert found() == pytest.approx(4.0, rel=1e-3)
    assert found(allow=["not-clean"]) == pytest.approx(3.0, rel=1e-3)
    assert found(allow=["timer"]) == pytest.approx(2.0, rel=1e-3)
    disturbed = snapshot(run_of(measured(5.0, latency={"clean": False}), run_id="new"))
    assert best(filled, disturbed, manifest=MANIFEST).targets[0].run_id == "20261121-000000-0001"


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
    with pytest.raises(UsageError, match=r"no other run of .* has a clean"):
        best(filled, snapshot(record), manifest=MANIFEST)
    assert loaded == []
    found = best(filled, snapshot(record), manifest=MANIFEST, allow=["system"])
    assert found.targets[0].run_id[:8] == "20261121"


def test_a_run_is_not_its_own_best(filled):
    new = snapshot(filled.load("release"))
    assert best(filled, new, manifest=MANIFEST).targets[0].run_id == "20261120-000000-0000"


def test_the_best_is_of_the_same_manifest_whatever_its_model_was(records, tmp_path):
    small = {"manifest": "/ci/small/m.yaml", "model": {"digest": "33" * 32}}
    for run_id, ms, changes in (
        (
            "20261120-000000-0000",
            4.0,
            {"manifest": "/ci/big/m.yaml", "model": {"digest": "11" * 32}},
        ),
        ("20261121-000000-0001", 0.4, small),
        (
            "20261122-000000-0002",
            5.0,
            {"manifest": "/ci/big/m.yaml", "model": {"digest": "22" * 32}},
        ),
        ("20261123-000000-0003", 0.5, {**small, "manifest": "/ci/small/other.yaml"}),
    ):
        day = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}"
        started = f"{day}T00:00:00+00:00"
        records.save(run_of(measured(ms), run_id=run_id, started=started, **changes))
    base, new = sides("best", "20261122")
    assert [target.run_id for target in base.targets] == ["20261120-000000-0000"]
    assert base.source == "the best of all runs of m.yaml"
    assert base.targets[0].model != new.targets[0].model
    with pytest.raises(UsageError, match=r"no other run of /ci/small/m\.yaml has a clean"):
        sides("best", "20261121")
    # a baseline file knows the manifest's name alone
    file = tmp_path / "b.json"
    file.write_text(render(records.load("20261122")))
    assert sides("best", str(file))[0].targets[0].run_id == "20261121-000000-0001"


def test_without_any_like_it_there_is_no_best(filled):
    with pytest.raises(UsageError, match=r"no other run of .* has a clean"):
        best(filled, snapshot(run_of(measured(5.0, "other"), run_id="new")), manifest=MANIFEST)
    with pytest.raises(UsageError, match="Give it first"):
        sides("last", "best")


def test_the_last_of_a_manifest(filled):
    manifest = MANIFEST
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
