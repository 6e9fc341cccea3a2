"""Tells an MLflow server of a run: parameters, metrics, tags, files; a nested run a target."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.errors import EnvironmentError_, WherryError
from wherry.trackers import Tracked, without_users

if TYPE_CHECKING:
    from wherry_mlflow.plugin import MlflowParameters

RUN_TAG = "wherry.run_id"

# MLflow's own limits: of a batch, and of what stands in it
_PARAMS, _METRICS, _TAGS = 100, 1000, 100
_KEY, _NAME, _PARAM, _TAG = 250, 250, 6000, 5000
_SHAPES = ("latency", "parity", "sustained")
_FIGURES = ("size_bytes", "packed_bytes", "peak_memory_bytes", "energy_mj", "speedup_vs_fp32",
            "speedup_vs_original")  # fmt: skip
# A server that is down is told of in seconds, and nobody else of anything.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def log(parameters: MlflowParameters, tracked: Tracked) -> str:
    """Tell a server of a run, unless it knows it already.

    Args:
        parameters: of the manifest.
        tracked: the run.

    Returns:
        Where it can be seen there.

    Raises:
        EnvironmentError_: MLflow's client is not installed.
        WherryError: no server was named. What MLflow raises passes as it is.
    """
    with _settings():
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise EnvironmentError_(
                "the tracker mlflow needs MLflow's client, which is not installed",
                remedy='Install it: pip install "wherry[mlflow]".',
            ) from error
        uri = parameters.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise WherryError(
                "no MLflow server is named",
                remedy="Give `track: {mlflow: {uri: ...}}`, or set MLFLOW_TRACKING_URI.",
            )
        client = MlflowClient(uri)
        experiment = _experiment(client, parameters.experiment)
        run_id = tracked.record.values["run_id"]
        found = client.search_runs(
            [experiment],
            f"tags.`{RUN_TAG}` = '{run_id}' and tags.`wherry.kind` = 'run' "
            "and attributes.status = 'FINISHED'",
            max_results=1,
        )
        run = found[0].info.run_id if found else _logged(client, experiment, parameters, tracked)
        known = " (it was there already)" if found else ""
        return f"run {run} of the experiment {parameters.experiment} on {without_users(uri)}{known}"


@contextmanager
def _settings() -> Iterator[None]:
    """`_SETTINGS` in the environment, where the user has said nothing else."""
    added = [name for name in _SETTINGS if name not in os.environ]
    os.environ.update({name: _SETTINGS[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _experiment(client: Any, name: str) -> str:
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    try:
        return str(client.create_experiment(name))
    except Exception:  # another has just made it, or there is none: the next line says which
        known = client.get_experiment_by_name(name)
        if known is None:
            raise
        return str(known.experiment_id)


def _logged(client: Any, experiment: str, parameters: MlflowParameters, tracked: Tracked) -> str:
    """A new run with one below it for each target; what breaks off is marked as failed."""
    values = tracked.record.values
    started, finished = (_ms(values[key]) for key in ("started", "finished"))
    name = values["tag"] or values["run_id"]
    begun: list[str] = []

    def begin(label: str, tags: Mapping[str, Any]) -> str:
        run = client.create_run(experiment, started, _texts(tags, _TAG), label[:_NAME])
        begun.append(str(run.info.run_id))
        return begun[-1]

    def end(run: str, state: str) -> None:
        client.set_terminated(run, state, finished)
        begun.remove(run)

    try:
        parent = begin(name, {RUN_TAG: values["run_id"], "wherry.kind": "run", **_run_tags(values)})
        _batch(client, parent, _run_params(values), _run_metrics(values), finished)
        for result in values["results"]:
            tags = {
                RUN_TAG: values["run_id"],
                "wherry.kind": "target",
                "mlflow.parentRunId": parent,
                **_target_tags(result),
            }
            child = begin(result["name"], tags)
            _batch(client, child, _target_params(result), _target_metrics(result), finished)
            if parameters.artifacts and result["artifact"]:
                artifact = tracked.artifact(result["artifact"])
                if artifact is not None:
                    client.log_artifacts(child, str(artifact.directory), "artifact")
            failed = result["status"] == "failed"
            end(child, "FAILED" if failed else "FINISHED")
        if parameters.files:
            with tempfile.TemporaryDirectory(prefix="wherry-mlflow-") as folder:
                for file, data in tracked.files.items():
                    (Path(folder) / file).write_bytes(data)
                client.log_artifacts(parent, folder)
        end(parent, "FINISHED")
    except BaseException:
        _mark_failed(client, begun)
        raise
    return parent


def _mark_failed(client: Any, runs: list[str]) -> None:
    """So that no half of a run looks like a whole one; where even this fails, it stays RUNNING."""
    for run in runs:
        try:
            client.set_terminated(run, "FAILED")
        except Exception:  # noqa: BLE001 -- what broke off the logging is what is told
            return


def _run_tags(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "wherry.version": values["wherry"],
        "wherry.tag": values["tag"],
        "wherry.manifest": Path(values["manifest"]).name,
        "wherry.gates": "failed" if any(not g["passed"] for g in values["gates"]) else "hold",
    }


def _run_params(values: Mapping[str, Any]) -> dict[str, Any]:
    model = values["model"] or {}
    return {
        "model": model.get("digest"),
        **{f"data.{name}": told["digest"] for name, told in values["data"].items()},
        **{f"measure.{name}": value for name, value in values["measure"].items()},
    }


def _run_metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    states = [result["status"] for result in values["results"]]
    reference = (values["reference"] or {}).get("metrics", {})
    return {
        **{f"targets.{state}": states.count(state) for state in ("ok", "failed", "skipped")},
        "gates.failed": sum(not gate["passed"] for gate in values["gates"]),
        **{f"reference.{name}": value for name, value in reference.items()},
    }


def _target_tags(result: Mapping[str, Any]) -> dict[str, Any]:
    latency = result["latency"] or {}
    return {
        "wherry.status": result["status"],
        "wherry.pareto": result["pareto"],
        **{f"wherry.{key}": latency.get(key) for key in ("clean", "emulated", "timed_by")},
        "wherry.error": result["error"],
    }


def _target_params(result: Mapping[str, Any]) -> dict[str, Any]:
    target = result["target"]
    return {
        "variant": result["variant"],
        **{key: target[key] for key in ("backend", "precision", "device")},
        **{f"option.{name}": value for name, value in target["options"].items()},
        "artifact": result["artifact"],
    }


def _target_metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {key: result.get(key) for key in _FIGURES}
    for section in _SHAPES:
        for key, value in (result[section] or {}).items():
            figures[f"{section}.{key}"] = value
    if result["latency"]:
        low, high = result["latency"]["ci95_ms"]
        figures |= {"latency.ci95_low_ms": low, "latency.ci95_high_ms": high}
    return figures | {f"metric.{name}": value for name, value in result["metrics"].items()}


def _batch(
    client: Any, run: str, params: Mapping[str, Any], metrics: Mapping[str, Any], at_ms: int
) -> None:
    """In portions that MLflow takes."""
    from mlflow.entities import Metric, Param

    given = [Param(key, text) for key, text in _texts(params, _PARAM).items()]
    for begin in range(0, len(given), _PARAMS):
        client.log_batch(run, params=given[begin : begin + _PARAMS])
    numbers = {
        _key(name): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    figures = [Metric(key, value, at_ms, 0) for key, value in numbers.items()]
    for begin in range(0, len(figures), _METRICS):
        client.log_batch(run, metrics=figures[begin : begin + _METRICS])


def _texts(values: Mapping[str, Any], most: int) -> dict[str, str]:
    """Values as texts under names that MLflow takes; None is left out."""
    texts = {}
    for name, value in values.items():
        if value is not None:
            texts[_key(name)] = (str(value).lower() if isinstance(value, bool) else str(value))[
                :most
            ]
    return texts


def _key(name: str) -> str:
    """A name that MLflow takes, whatever a metric or an option is called."""
    text = re.sub(r"[^A-Za-z0-9_.\- ]", "_", name).strip(" .")
    return re.sub(r"\.{2,}", "_", text)[:_KEY] or "_"


def _ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)
