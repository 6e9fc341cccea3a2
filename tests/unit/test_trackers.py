"""Trackers: told only where somebody asked, and a run is never lost with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict
from record_makers import rich_record

from wherry import api
from wherry.cli import main
from wherry.errors import ManifestError, RunFailed, UsageError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.manifest import load_manifest
from wherry.records.database import Records
from wherry.trackers import Tracker, _words, track, wanted, without_users
from wherry_mlflow.log import _key
from wherry_mlflow.plugin import MlflowParameters


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str = "told.txt"


class NeedsMuch(BaseModel):
    server: str


def _log(parameters, tracked):
    Path(parameters.file).write_text(f"{tracked.record.values['run_id']} {sorted(tracked.files)}")
    return parameters.file


def _fails(parameters, tracked):
    raise ConnectionError("cannot reach https://me:geheim@example.org/mlflow (timed out)\nmore")


class Trackers:
    @hookimpl
    def wherry_trackers(self):
        yield Tracker("good", "writes a file", Parameters, _log)
        yield Tracker("bad", "cannot be reached", Parameters, _fails)
        yield Tracker("much", "wants to be told where", NeedsMuch, _log)


@pytest.fixture
def host():
    return Host.load(plugins=(), extra=[Trackers()])


def told(host, *names, written=None):
    said, warned = [], []
    found = track(
        rich_record(),
        wanted(names, written or {}, host),
        host,
        tell=said.append,
        warn=warned.append,
    )
    return found, said, warned


def test_nobody_is_told_unless_asked(host, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told(host) == ({}, [], [])
    found, said, warned = told(host, "good")
    assert found == {"good": "told.txt"}
    assert (said, warned) == (["good: told.txt"], [])
    assert "['report.html', 'report.json']" in Path("told.txt").read_text()
    found, _, _ = told(host, "good", written={"good": Parameters(file="other.txt")})
    assert found == {"good": "other.txt"}, "the manifest's parameters hold"


def test_a_tracker_that_fails_is_a_warning_without_secrets_and_others_are_told(
    host, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found, _, (warning,) = told(host, "bad", "good")
    assert found == {"bad": None, "good": "told.txt"}
    assert "ConnectionError: cannot reach https://***@example.org/mlflow (timed out)" in warning
    assert "geheim" not in warning
    assert "wherry report 20261124-040500-3f9a --track bad" in warning


def test_an_unknown_tracker_and_one_that_wants_more_are_refused(host):
    with pytest.raises(UsageError, match="no tracker 'nobody'"):
        wanted(["nobody"], {}, host)
    with pytest.raises(UsageError, match=r"much wants server"):
        wanted(["much"], {}, host)


def test_a_kept_run_is_told_later(host, wherry_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Records.open() as records:
        records.save(rich_record())
    assert api.report_track("good", host=host) == "told.txt"
    with pytest.raises(RunFailed, match="was not told of the run"):
        api.report_track("bad", host=host)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["report", "--track", "mlflow"]) == 1
    assert main(["report", "--track", "mlflow", "--json"]) == 2


MANIFEST = """
wherry: 1
model: {path: net.onnx}
targets: [{backend: moody}]
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mlfow: {}", r"unknown tracker 'mlfow'.*Did you mean 'mlflow'"),
        ("mlflow: {experimnt: x}", r"unknown key 'experimnt'.*Did you mean 'experiment'"),
        ("mlflow: {uri: 'https://me:geheim@host/'}", "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_a_manifest_that_tracks_wrongly_is_refused(tmp_path, text, words):
    (tmp_path / "net.onnx").touch()
    (tmp_path / "m.yaml").write_text(
        MANIFEST.replace("moody", "onnxruntime") + f"track: {{{text}}}\n"
    )
    with pytest.raises(ManifestError, match=words) as caught:
        load_manifest(tmp_path / "m.yaml", Host.load(plugins=()))
    assert "geheim" not in str(caught.value)


def test_a_manifest_says_who_is_told(tmp_path):
    (tmp_path / "net.onnx").touch()
    text = MANIFEST.replace("moody", "onnxruntime") + "track: {mlflow: {experiment: nets}}\n"
    (tmp_path / "m.yaml").write_text(text)
    loaded = load_manifest(tmp_path / "m.yaml", Host.load(plugins=()))
    assert loaded.track == {"mlflow": MlflowParameters(experiment="nets")}


def test_no_name_is_too_hostile_for_mlflow():
    for name in ("../../etc", "a..b", "/", " ", "", "metric.top1", "=cmd|' /C calc'!A0", "x" * 999):
        key = _key(name)
        assert key and len(key) <= 250
        assert not set(key) - set(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.- "
        )
        assert ".." not in key and not key.startswith((".", "/"))
    assert _key("metric.top1") == "metric.top1"


def test_users_are_left_out_of_urls():
    assert without_users("at http://a:b@h:1/x and https://h/y@z") == (
        "at http://***@h:1/x and https://h/y@z"
    )
    assert without_users("http://me:ge@he@im@host/x") == "http://***@host/x"


def test_a_secret_is_not_shown_where_an_error_is_cut_in_its_middle():
    error = ConnectionError(f"{'x' * 280} http://me:geheimgeheimgeheim@host")
    assert "geh" not in without_users(_words(error))
