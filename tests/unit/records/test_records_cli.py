"""``wherry records``: each verb, as a command and as a function; and a run that was not kept."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from wherry import api
from wherry.cli import main
from wherry.errors import StoreError, UsageError
from wherry.execute import UNKEPT_FILE, UnkeptError, _keep
from wherry.host import Host
from wherry.records.tables import run


@pytest.fixture
def wherry(capsys, url, wherry_home, monkeypatch):
    monkeypatch.setenv("WHERRY_RECORDS", url)  # which `wherry_home` has taken away
    monkeypatch.setenv("WHERRY_PLUGINS", "")

    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        found = main(["records", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert found == code, err
        return out, err

    return call


@pytest.fixture
def kept(make, wherry, records):
    """Two runs, of which the older has a tag."""
    for number in (1, 2):
        started = f"2026-11-0{number}T00:00:00+00:00"
        tag = "base" if number == 1 else None
        records.save(make.record(make.result(), run_id=f"run{number}", started=started, tag=tag))


def test_out_and_in(kept, wherry, records, tmp_path):
    file = tmp_path / "x.jsonl"
    assert wherry("export", "-o", file)[0] == f"2 runs in {file}\n"
    assert wherry("import", file)[0] == "0 runs imported, 2 there already\n"
    assert wherry("delete", "base", "last")[0] == "deleted run1\ndeleted run2\n"
    assert json.loads(wherry("import", file, "--json")[0]) == {
        "saved": ["run1", "run2"], "there": [],
    }  # fmt: skip
    wherry("export", "last", "run2", "-o", file)
    assert len(file.read_text().splitlines()) == 2
    wherry("export", "nothing", "-o", tmp_path / "y", code=2)
    assert not (tmp_path / "y").exists()
    _, err = wherry("delete", "run1", "nothing", code=2)
    assert "there is no run named 'nothing'" in err
    assert len(records.runs()) == 2


def test_a_damaged_file_is_said_with_its_line(kept, wherry, tmp_path):
    file = tmp_path / "x.jsonl"
    wherry("export", "-o", file)
    file.write_text(file.read_text().replace('"top1":0.985', '"top1":0.999'))
    _, err = wherry("import", file, code=1)
    assert err.startswith(f"Error: {file}:1: the export is damaged: it does not match its checksum")


def test_tag(kept, wherry, records):
    assert wherry("tag", "last", "release")[0] == "run2 (release)\n"
    assert records.find("release") == "run2"
    assert wherry("tag", "release", "v\x1b[2J2")[0] == "run2 (v\N{REPLACEMENT CHARACTER}[2J2)\n"
    assert wherry("tag", "run2", "--remove")[0] == "run2 has no tag\n"
    assert [each.tag for each in records.runs()] == [None, "base"]
    for words in (["run2"], ["run2", "x", "--remove"], ["nothing", "x"], ["run2", "last~1"]):
        wherry("tag", *words, code=2)


def test_an_age_beyond_all_calendars_is_refused(kept, wherry):
    for age in ("9999w", "999999w", "9" * 400 + "w"):
        code = 0 if age == "9999w" else 2
        wherry("prune", "--older-than", age, code=code)


def test_prune(kept, wherry, records):
    assert wherry("prune", "--keep", 1)[0] == "0 runs deleted\n"
    out, _ = wherry("prune", "--keep", 1, "--tagged", "--dry-run")
    assert out == "run1 (base)  manifests/quickstart.yaml\n1 run would be deleted\n"
    assert len(records.runs()) == 2
    (gone,) = json.loads(wherry("prune", "--older-than", "1d", "--json")[0])
    assert gone == {
        "run": "run2", "tag": None, "started": "2026-11-02T00:00:00+00:00",
        "manifest": "manifests/quickstart.yaml",
    }  # fmt: skip
    _, err = wherry("prune", code=2)
    assert "all runs would be deleted" in err
    assert [each.run_id for each in records.runs()] == ["run1"]


def test_verify(kept, wherry, connect):
    assert wherry("verify")[0] == "2 runs, 0 damaged\n"
    with connect() as connection:
        connection.execute(sa.update(run).where(run.c.run_id == "run1").values(ok=7))
    out, err = wherry("verify", code=1)
    assert out == "run1: ok of the run was changed\n2 runs, 1 damaged\n"
    assert "damaged in the database: 1 run" in err
    found = json.loads(wherry("verify", "--json", code=1)[0])
    assert found["damaged"] == [{"run": "run1", "problem": "ok of the run was changed"}]


def test_as_functions(kept, records, tmp_path):
    file = tmp_path / "x.jsonl"
    assert api.records_export(["base"], output=file) == 1
    assert api.records_delete(["base"]) == ["run1"]
    assert api.records_import(file) == {"saved": ["run1"], "there": []}
    assert api.records_verify()["checked"] == 2
    gone = api.records_prune(older_than=timedelta(days=1), tagged=True)
    assert [each["run"] for each in gone] == ["run2", "run1"]
    with pytest.raises(UsageError):
        api.records_prune()


def test_a_run_that_the_database_cannot_take_is_kept_in_its_folder(make, wherry, records, tmp_path):
    mine, folder = make.record(make.result("mine"), run_id="x"), tmp_path / "x"
    records.save(make.record(make.result(), run_id="x"))  # what is wrong with the database
    folder.mkdir()
    with pytest.raises(UnkeptError, match="the run was not kept: there is another run") as caught:
        _keep(mine, folder)
    assert isinstance(caught.value, StoreError)
    assert caught.value.exit_code == 1
    assert caught.value.record is mine
    file = folder / UNKEPT_FILE
    assert f"It is in {file}: `wherry records import`" in str(caught.value)
    wherry("delete", "x")
    wherry("import", file)
    assert records.load("x").values == mine.values


def test_where_the_folder_takes_nothing_either_both_are_said(make, wherry_home, tmp_path):
    (wherry_home / "records.db").mkdir()
    with pytest.raises(UnkeptError) as caught:
        _keep(make.record(make.result()), tmp_path / "gone")
    assert "unable to open database file" in str(caught.value)
    assert "Nor is it in a file" in str(caught.value)


def test_what_was_measured_is_still_reported(make, wherry, tmp_path, monkeypatch, capsys):
    """The report is written and printed first; then the error says where the run is."""
    record = make.rich()

    def execute(*arguments, **named):
        raise UnkeptError(StoreError("gone", where="there", remedy="Import it."), record)

    monkeypatch.setattr("wherry.execute.execute", execute)
    monkeypatch.chdir(tmp_path)
    services = SimpleNamespace(host=Host.load(), manifest=SimpleNamespace(track=()))
    prepared = SimpleNamespace(plan=SimpleNamespace(steps=()), services=services)
    monkeypatch.setattr("wherry.cli.run._prepare", lambda *arguments: prepared)
    assert main(["run", "m.yaml", "--json", "out.json"]) == 1
    out, err = capsys.readouterr()
    assert record.values["run_id"] in out
    assert "Error: there: the run was not kept: gone. Import it." in err
    assert json.loads((tmp_path / "out.json").read_text()) == record.values
    with pytest.raises(UnkeptError):
        api.run("m.yaml", outputs={"json": tmp_path / "again.json"})
    assert (tmp_path / "again.json").exists()
