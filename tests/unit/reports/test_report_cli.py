"""``wherry report``: each form, each way to ask, and each way to ask wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from wherry.cli import main
from wherry.cli.report import report
from wherry.records.database import Records

FORMS = {
    "json": (".json", '{\n  "schema_version": 1,'),
    "html": (".html", "<!doctype html>"),
    "markdown": (".md", "### wherry: manifests/quickstart.yaml\n"),
    "csv": (".csv", "run_id,variant,"),
    "junit": (".xml", "<?xml version="),
}


@pytest.fixture
def runs(make, wherry_home, monkeypatch):
    """Two runs: the older one has a tag, and a failed gate."""
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    monkeypatch.setenv("COLUMNS", "120")
    older = make.rich()
    newer = make.record(make.result("newer"), run_id="20261125-000000-0001", gates=[make.gate()])
    with Records.open() as records:
        for record in (older, newer):
            records.save(record)
    return older, newer


def test_parquet_is_written_as_bytes(runs, tmp_path, monkeypatch):
    for name, forms in (("r.parquet", []), ("r.samples.parquet", []), ("r", ["parquet"])):
        arguments = ["--format", *forms] if forms else []
        assert main(["report", "last", "-o", str(tmp_path / name), *arguments]) == 0
        written = (tmp_path / name).read_bytes()
        assert written[:4] == written[-4:] == b"PAR1"
        assert (b"samples.infer_ns" in written) == ("samples" in name)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["report", "last", "--format", "parquet"]) == 2


@pytest.fixture
def wherry(capsys):
    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        found = main(["report", *arguments])
        out, err = capsys.readouterr()
        assert found == code, err
        return out, err

    return call


def test_the_last_run_is_shown_on_the_terminal(runs, wherry):
    out, _ = wherry()
    assert "run 20261125-000000-0001 of manifests/quickstart.yaml\n" in out
    assert "newer   onnxruntime" in out
    assert wherry("last")[0] == out
    out, _ = wherry("nightly")
    assert "failed: slim, tflite fp16 on pi4" in out


@pytest.mark.parametrize("form", FORMS)
def test_each_form_on_stdout_and_in_a_file(runs, wherry, tmp_path, form):
    suffix, beginning = FORMS[form]
    out, _ = wherry("nightly", "--format", form)
    assert out.startswith(beginning)
    for name, more in ((f"a{suffix}", ()), ("b.txt", ("--format", form))):
        silent, _ = wherry("nightly", "--output", str(tmp_path / name), *more)
        assert silent == ""
        assert (tmp_path / name).read_bytes().decode() == out
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(
        [f"a{suffix}", "b.txt"]
    )


def test_json_is_the_contract(runs, wherry, schema):
    out, _ = wherry("last~1", "--json")
    assert json.loads(out) == runs[0].values
    jsonschema.Draft202012Validator(schema).validate(json.loads(out))
    assert wherry("nightly", "--format", "json", "--json")[0] == out


def test_the_list(runs, wherry):
    out, _ = wherry("--list")
    first, second = out.splitlines()
    assert first == (
        "20261124-040500-3f9a (nightly)  8 ok, 1 failed, 1 skipped; 1 of 2 gates failed  "
        "manifests/quickstart.yaml"
    )
    assert second == "20261125-000000-0001  1 ok; gates hold  manifests/quickstart.yaml"
    rows = json.loads(wherry("--list", "--json")[0])
    assert [row["run"] for row in rows] == ["20261124-040500-3f9a", "20261125-000000-0001"]
    assert rows[0] == {
        "run": "20261124-040500-3f9a", "tag": "nightly", "started": "2026-11-24T04:05:00+00:00",
        "manifest": "manifests/quickstart.yaml", "ok": 8, "failed": 1, "skipped": 1,
        "gates": 2, "gates_failed": 1,
    }  # fmt: skip


def test_the_list_may_be_of_the_newest_alone(runs, wherry):
    (row,) = json.loads(wherry("--list", "--limit", "1", "--json")[0])
    assert row["run"] == "20261125-000000-0001"
    assert len(wherry("--list", "--limit", "3")[0].splitlines()) == 2


def test_without_runs_the_list_is_empty_and_a_report_a_usage_error(wherry_home, wherry):
    assert json.loads(wherry("--list", "--json")[0]) == []
    assert "There is no run yet" in wherry("--list")[0]
    for arguments in ((), ("--json",), ("--format", "html"), ("last~3",), ("nightly",)):
        out, err = wherry(*arguments, code=2)
        assert out == ""
        assert "there is no run yet" in err
        assert "`wherry run`" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--format", "pdf"),
            "no form of a report named 'pdf'. There are baseline, csv, html,",
        ),
        (
            ("--output", "x.pdf"),
            "form of a report ends in '.pdf'; there are .baseline.json, .csv, .html,",
        ),
        (("--output", "x"), "no form of a report ends in ''"),
        (("nothing",), "there is no run named 'nothing'"),
        (("last~2",), "there are only 2 runs"),
        (("2026",), "could be any of"),
        (("--json", "--format", "html"), "ask for two forms"),
        (("--list", "last"), "--list shows the runs"),
        (("--list", "--format", "html"), "--list shows the runs"),
        (("--list", "--output", "x.html"), "--list shows the runs"),
        (("--limit", "3"), "--limit is of the list"),
        (("--list", "--limit", "0"), "Invalid value for '--limit'"),
        (("--nothing",), "No such option"),
        (("a", "b"), "unexpected extra argument"),
    ],
)
def test_a_wrong_question_is_answered_with_2(runs, wherry, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    out, err = wherry(*arguments, code=2)
    assert out == ""
    assert words in " ".join(err.split())
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_cannot_be_written_is_said(runs, wherry, tmp_path):
    _, err = wherry("--output", str(tmp_path / "no" / "x.html"), code=1)
    assert "the html report cannot be written" in err


def test_as_a_function(runs):
    assert report().values["run_id"] == "20261125-000000-0001"
    assert report("nightly").values == runs[0].values


def test_as_a_program_into_a_pipe(runs, wherry_home):
    done = subprocess.run(
        [sys.executable, "-m", "wherry", "report", "nightly", "--format", "junit"],
        capture_output=True,
        check=True,
    )
    assert len(ET.fromstring(done.stdout).findall("testsuite/testcase")) == 12
