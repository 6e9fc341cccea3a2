"""``wherry compare``: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from run_makers import measured, run_of

from wherry import api
from wherry.cli import main
from wherry.records.database import Records

OLD, NEW = "20261124-040500-3f9a", "20261125-000000-0001"


@pytest.fixture
def runs(wherry_home, monkeypatch):
    """Two runs: the newer is slower."""
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    monkeypatch.setenv("COLUMNS", "160")
    with Records.open() as records:
        records.save(run_of(measured(5.0), tag="release"))
        records.save(run_of(measured(5.5), run_id=NEW, started="2026-11-25T00:00:00+00:00"))


@pytest.fixture
def wherry(capsys):
    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        found = main(list(arguments))
        out, err = capsys.readouterr()
        assert found == code, err
        return out, err

    return call


@pytest.mark.parametrize("base", [OLD, "20261124", "release", "last~1", "best"])
def test_a_run_and_the_last(runs, wherry, base):
    out, _ = wherry("compare", base)
    assert "+10.0 %" in out
    assert "worse" in out
    assert wherry("compare", base, "last")[0] == out


def test_json_is_what_the_function_gives(runs, wherry):
    out, _ = wherry("compare", "release", "--json")
    assert json.loads(out) == api.compare("release")
    found = json.loads(out)
    assert (found["fail_on"], found["failures"]) == (None, [])
    assert api.compare("release", fail_on="worse")["failures"][0]["figure"] == "latency.median_ms"


def test_a_baseline_in_git_and_all_files(runs, wherry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wherry("report", "release", "--format", "baseline", "--output", "b.json")
    wherry("report", "release", "--output", "b.baseline.json")
    files = ("--markdown", "c.md", "--junit", "c.xml")
    out, err = wherry("compare", "b.json", "--fail-on", "worse:5%", "--github", *files, code=3)
    assert "baseline b.json to run" in out
    assert out.splitlines()[0].startswith("::stop-commands::")
    assert out.splitlines()[-1].startswith("::error title=wherry compare::original, onnxruntime")
    assert "worse:5%: 1 worse: original, onnxruntime fp32 on pi4: latency.median_ms" in err
    assert "--allow" not in err
    assert "### wherry" in (tmp_path / "c.md").read_text()
    assert ET.parse(tmp_path / "c.xml").getroot().get("name").startswith("wherry compare")
    wherry("compare", "b.baseline.json", "--fail-on", "worse:15%")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "b.baseline.json", "b.json", "c.md", "c.xml",
    ]  # fmt: skip


def test_the_error_keeps_what_is_worse_apart_and_says_what_can_be_allowed(runs, wherry):
    with Records.open() as records:
        results = [
            measured(6.0),
            measured(5.0, "busy", latency={"clean": False}),
            measured(5.0, "short", rounds=(1.0, 1.0)),
        ]
        older = [measured(5.0, name) for name in ("original", "busy", "short", "gone")]
        for number, each in enumerate((older, results)):
            changes = {"started": f"2026-11-2{6 + number}T00:00:00+00:00"}
            records.save(run_of(*each, run_id=f"2026112{6 + number}-x", **changes))
    _, err = wherry("compare", "last~1", "--fail-on", "worse", code=3)
    text = " ".join(err.split())
    assert "worse: 1 worse: original, onnxruntime fp32 on pi4: latency.median_ms" in text
    assert "2 not comparable, and so not known to be as good: busy, onnxruntime fp32 on pi4" in text
    assert "1 not measured on both sides: gone, onnxruntime fp32 on pi4: the new run has no" in text
    assert "`--allow not-clean` compares all the same what is not comparable" in text
    assert "Measure what is missing, or take another base." in text
    found = api.compare("last~1", fail_on="worse")["failures"]
    assert [(each["kind"], each["reasons"]) for each in found] == [
        ("worse", []), ("not comparable", ["not-clean"]), ("not comparable", []),
        ("not measured", []),
    ]  # fmt: skip


def test_a_changed_network_fails_by_what_is_worse_alone(runs, wherry):
    """`agreement` is against each run's own original; the README's step may not fail for that."""
    with Records.open() as records:
        retrained = {"model": {"digest": "77" * 32}, "started": "2026-11-26T00:00:00+00:00"}
        records.save(run_of(measured(5.0), run_id="20261126-x", **retrained))
    out, _ = wherry("compare", "release", "--fail-on", "worse:5%")
    assert "note: not compared, original: agreement is against each run's own original" in out
    found = api.compare("release", fail_on="worse")
    assert found["failures"] == [] and found["summary"]["not comparable"] == 1
    assert wherry("compare", "release", "--fail-on", "worse", "--allow", "original")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nightly",), 2, "no run named 'nightly'"),
        (("last", "best"), 2, "Give it first"),
        (("last~1", "--allow", "weather"), 2, "is no reason why measurements are unlike"),
        (("last~1", "--fail-on", "better"), 2, "nothing to fail on"),
        (("none.json",), 1, "cannot be read: No such file"),
        (("last~1", "--markdown", "no/such/folder.md"), 2, "in a folder that does not exist"),
    ],
)
def test_a_wrong_question(runs, wherry, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    out, err = wherry("compare", *arguments, code=code)
    assert out == ""
    assert words in " ".join(err.split())


def test_what_was_allowed_is_in_every_output(runs, wherry, tmp_path):
    file = tmp_path / "c.md"
    out, _ = wherry("compare", "release", "--allow", "timer", "--markdown", str(file))
    assert "that was allowed: timer" in out
    assert "that was allowed: timer" in file.read_text()
    found = json.loads(wherry("compare", "release", "--allow", "timer", "--json")[0])
    assert found["allowed"] == ["timer"]
