"""Export and import: nothing changes on the way, and what was changed is refused by its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.errors import StoreError
from wherry.records.database import Records
from wherry.records.transfer import export_file, import_file, read_file


@pytest.fixture
def filled(make, records):
    """Three runs of the same start, so that their order is that of their ends."""
    kept = [
        make.rich(),
        make.record(make.result(ms=None), run_id="a"),
        make.record(make.result("\0\ud800 Größe"), run_id="Z.9", manifest_text="\r\n\0"),
    ]
    for record in kept:
        records.save(record)
    return kept


@pytest.fixture
def exported(filled, tmp_path):
    path = tmp_path / "runs.jsonl"
    assert export_file(filled, path) == 3
    return path


@pytest.fixture
def other(tmp_path):
    """Another database."""
    with Records.open(f"sqlite:///{tmp_path}/other.db") as opened:
        yield opened


def test_what_is_exported_is_imported_once(exported, filled, records, other):
    found = import_file(exported, other)
    assert found.saved == ("20261124-040500-3f9a", "a", "Z.9")
    assert found.there == ()
    assert other.runs() == records.runs()
    for record in filled:
        again = other.load(record.values["run_id"])
        assert repr(again.values) == repr(record.values)
        assert again.manifest == record.manifest
        assert [{n: a.tolist() for n, a in s.items()} for s in again.samples] == [
            {n: a.tolist() for n, a in s.items()} for s in record.samples
        ]
    again = import_file(exported, other)
    assert (again.saved, again.there) == ((), found.saved)
    assert len(other.runs()) == 3
    assert [problem for _, problem in other.verify()] == [None] * 3


def test_exports_can_be_put_together(make, tmp_path, other):
    parts = []
    for name in "ab":
        path = tmp_path / name
        export_file([make.record(make.result(), run_id=name)], path)
        parts.append(path.read_bytes())
    whole = tmp_path / "whole"
    whole.write_bytes(b"".join(parts))
    assert import_file(whole, other).saved == ("a", "b")


def test_an_export_of_nothing_is_one(tmp_path, other):
    assert export_file([], tmp_path / "none") == 0
    assert import_file(tmp_path / "none", other).saved == ()


def refused(path, other, line: int) -> str:
    with pytest.raises(StoreError, match="the export is damaged") as caught:
        import_file(path, other)
    assert caught.value.where == f"{path}:{line}"
    assert caught.value.remedy
    assert other.runs() == []
    return str(caught.value)


def test_a_changed_figure_is_refused_by_its_line(exported, other):
    lines = exported.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('"median_ms":1.0', '"median_ms":0.5')
    exported.write_text("".join(lines))
    assert "does not match its checksum" in refused(exported, other, 3)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: lines[:2], 3),  # cut at the end of a line
        (lambda lines: lines[:-1], 4),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], 4),
        (lambda lines: [*lines[:2], lines[2][:500]], 3),
        (lambda lines: lines[1:], 3),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 4),
        (lambda lines: [lines[0], *lines], 5),
        (lambda lines: ["\n", *lines], 1),
        (lambda lines: [lines[0].replace('"wherry_record":1', '"wherry_record":2')], 1),
        (lambda lines: ["[" * 100_000 + "\n"], 1),
        (lambda lines: ["[]\n"], 1),
        (lambda lines: ["{}\n"], 1),
        (lambda lines: ['{"wherry_record":1}\n'], 1),
        (lambda lines: ['{"wherry_export":1}\n'], 1),
        (lambda lines: ['{"wherry_record":[]}\n'], 1),
        (lambda lines: [], 1),
        (lambda lines: ["é\n", *lines], 1),
    ],
)
def test_what_is_cut_or_mixed_is_refused(exported, other, change, line):
    lines = exported.read_text().splitlines(keepends=True)
    exported.write_text("".join(change(lines)), encoding="utf-8")
    refused(exported, other, line)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"run_id": "../../x"},
        {"run_id": None},
        {"results": {}},
        {"results": [1]},
        {"started": "yesterday"},
        {"tag": 5},
        {"gates": [{}]},
        {"host": None},
    ],
)
def test_what_no_run_could_have_written_is_refused_though_its_checksum_fits(
    make, tmp_path, other, change
):
    path = tmp_path / "x.jsonl"
    export_file([make.record(make.result(), **change)], path)
    refused(path, other, 1)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_changed_byte_gets_through(exported, data):
    """It is refused, or says the very same (as another space between words of JSON does)."""
    whole = exported.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255))
    path = exported.with_name("changed.jsonl")
    path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    before = [repr(record.values) for _, record in read_file(exported)]
    try:
        after = [repr(record.values) for _, record in read_file(path)]
    except StoreError:
        return
    assert after == before


def test_another_run_of_an_id_is_refused_by_its_line(exported, make, other):
    other.save(make.record(make.result("mine"), run_id="a"))
    with pytest.raises(StoreError, match="there is another run of the id a") as caught:
        import_file(exported, other)
    assert str(caught.value.where) == f"{exported}:2"
    assert other.load("a").values["results"][0]["variant"] == "mine"


def test_a_tag_is_no_part_of_a_run(exported, filled, records, make):
    """An export from before is the same run still, and takes no tag away."""
    records.retag("a", "release")
    records.retag(filled[0].values["run_id"], None)
    assert import_file(exported, records).saved == ()
    assert [(each.run_id, each.tag) for each in records.runs()] == [
        ("Z.9", None), ("a", "release"), ("20261124-040500-3f9a", None),
    ]  # fmt: skip
    assert [problem for _, problem in records.verify()] == [None] * 3
    with pytest.raises(StoreError, match="there is another run of the id a"):
        records.save(make.record(make.result("mine"), run_id="a", tag="release"))


def test_a_changed_tag_is_refused_by_its_line(exported, other):
    lines = exported.read_text().splitlines(keepends=True)
    assert '"tag":"nightly"' in lines[0]
    exported.write_text("".join(lines).replace('"tag":"nightly"', '"tag":"release"'))
    assert "does not match its checksum" in refused(exported, other, 1)


def test_files_that_are_not_there(tmp_path, other, make):
    with pytest.raises(StoreError, match="cannot be read"):
        import_file(tmp_path / "nothing", other)
    with pytest.raises(StoreError, match="cannot be written"):
        export_file([], tmp_path / "no" / "x")
    with pytest.raises(ValueError, match="JSON"):
        export_file([make.record(make.result(energy_mj=float("inf")))], tmp_path / "x")
    assert not list(tmp_path.glob("x*"))


def test_a_line_says_its_checksum_and_the_last_how_many(exported):
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    assert [line.get("wherry_record") for line in lines] == [1, 1, 1, None]
    assert all(len(line["sha256"]) == 64 for line in lines)
    assert (lines[3]["wherry_export"], lines[3]["records"]) == (1, 3)
