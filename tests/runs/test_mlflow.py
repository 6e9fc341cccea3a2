"""The tracker mlflow against MLflow's own server, on loopback, in an environment of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from wherry import api
from wherry.cli import main
from wherry.engine.environments import Environments
from wherry.errors import EnvironmentError_
from wherry.requirements import Requirements

mlflow = pytest.importorskip("mlflow", reason="the tracker needs mlflow-skinny")
pytestmark = [pytest.mark.mlflow, pytest.mark.timeout(300)]

SERVER = Requirements(packages=("mlflow==3.17.2",))
MANIFEST = """
wherry: 1
model: {path: net.onnx}
data: {evaluation: {source: npz, path: data.npz}}
metrics: [checksum]
targets: [{backend: moody, threads: [1, 2]}, {backend: moody, moody: {wrong: swapped}}]
measure: {rounds: 1, duration_s: 0.01, warmup_s: 0.01}
track: {mlflow: {uri: "URI", experiment: "boats & nets", artifacts: true}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, shared_environments):
    """A server's address."""
    home = tmp_path_factory.mktemp("mlflow")
    (home / "environments").symlink_to(shared_environments)
    try:
        python = Environments(home).ensure(SERVER)
    except EnvironmentError_ as error:
        pytest.skip(f"MLflow's server cannot be had: {error}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{home}/db.sqlite"),
        *("--artifacts-destination", str(home / "files")),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail((home / "log").read_text()[-2000:])
        assert process.poll() is None, (home / "log").read_text()[-2000:]
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return mlflow.MlflowClient(server)


def test_a_run_is_told_with_a_nested_run_for_each_target(
    moody, server, client, capsys, monkeypatch
):
    (moody / "m.yaml").write_text(MANIFEST.replace("URI", server))
    assert main(["run", "m.yaml", "--tag", "v1", "--quiet"]) == 1, "one target computes wrongly"
    record = api.report()
    experiment = client.get_experiment_by_name("boats & nets")
    found = client.search_runs([experiment.experiment_id])
    by_kind: dict[str, list] = {"run": [], "target": []}
    for run in found:
        by_kind[run.data.tags["wherry.kind"]].append(run)
    (parent,) = by_kind["run"]
    assert parent.info.run_name == "v1"
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["wherry.run_id"] == record.values["run_id"]
    assert parent.data.metrics["targets.ok"] == 2
    assert parent.data.metrics["targets.failed"] == 1
    assert parent.data.params["model"] == record.values["model"]["digest"]
    files = {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert files == {"report.json", "report.html"}
    got = client.download_artifacts(parent.info.run_id, "report.json", str(moody))
    assert json.loads(Path(got).read_text()) == record.values

    children = {run.info.run_name: run for run in by_kind["target"]}
    for result in record.values["results"]:
        child = children.pop(result["name"])
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params["backend"] == "moody"
        if result["status"] == "failed":
            assert child.info.status == "FAILED"
            assert "SQNR" in child.data.tags["wherry.error"]
            continue
        metrics = child.data.metrics
        assert metrics["latency.median_ms"] == pytest.approx(result["latency"]["median_ms"])
        assert metrics["metric.checksum"] == pytest.approx(result["metrics"]["checksum"])
        assert child.data.params["option.threads"] == str(result["target"]["options"]["threads"])
        (artifact,) = client.list_artifacts(child.info.run_id, "artifact")
        assert artifact.path == "artifact/program.json"
    assert children == {}

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for words in ("on http://127.0.0.1", "it was there already"):
        assert main(["report", "--track", "mlflow"]) == 0
        assert words in capsys.readouterr().out


def test_what_breaks_off_is_failed_and_not_half_a_run(moody, server, client, monkeypatch, capsys):
    (moody / "m.yaml").write_text(MANIFEST.replace("URI", server).replace("boats", "broken boats"))
    calls, log_batch = [], mlflow.MlflowClient.log_batch

    def breaks(self, run_id, **given):
        calls.append(run_id)
        if len(set(calls)) == 3:  # the run, its first target, and now its second
            raise ConnectionError("the line is dead")
        log_batch(self, run_id, **given)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", breaks)
    assert main(["run", "m.yaml", "--quiet"]) == 1, "one target computes wrongly"
    monkeypatch.undo()
    experiment = client.get_experiment_by_name("broken boats & nets")
    states = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert sorted(states) == ["FAILED", "FAILED", "FINISHED"]


def test_a_server_that_is_down_loses_nothing_and_shows_no_secret(moody, monkeypatch, capfd, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:geheim@127.0.0.1:9")
    text = MANIFEST.partition("track:")[0]
    text = text.replace(", {backend: moody, moody: {wrong: swapped}}", "")
    (moody / "m.yaml").write_text(text)
    assert main(["run", "m.yaml", "--track", "mlflow", "--json", "r.json"]) == 0
    values = json.loads(Path("r.json").read_text())
    assert api.report(values["run_id"]).values == values
    said = "".join((*capfd.readouterr(), caplog.text))
    assert "was not told of the run" in said
    assert "geheim" not in said
    assert "geheim" not in Path("r.json").read_text()
