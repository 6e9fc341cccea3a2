"""From the outcomes of a plan's steps to the report's JSON, which is a contract."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry import __version__
from wherry.calibration import Calibration
from wherry.entry import canonical
from wherry.errors import UnsupportedError
from wherry.manifest.sections import ORIGINAL
from wherry.measurement import CONVENTION
from wherry.plan import EVALUATION
from wherry.records.layers import NO_LAYERS, layer_fields
from wherry.records.rows import target_key
from wherry.reports import SCHEMA_VERSION, RunRecord
from wherry.stages.reference import metrics_in_keys
from wherry.stats import pareto, summarise

if TYPE_CHECKING:
    from wherry.engine.local import StepOutcome
    from wherry.measurement import Measurement
    from wherry.plan import Plan, Row
    from wherry.records.requests import Request
    from wherry.stages.convert import Converted
    from wherry.stages.profile import Profiled
    from wherry.stages.services import Services


def assemble(
    services: Services,
    outcomes: Mapping[str, StepOutcome],
    *,
    run_id: str,
    request: Request,
    started: datetime,
    finished: datetime,
) -> RunRecord:
    """Everything that reports show, but the gates (`records.gates`)."""
    plan = services.plan
    results: list[dict[str, Any]] = []
    runs: list[str] = []
    samples: list[Mapping[str, np.ndarray]] = []
    for row in plan.rows:
        result, profiled = _result(row, outcomes, services)
        results.append(result)
        runs.append(profiled.run if profiled else "")
        measured = profiled.measurement if profiled else None
        samples.append(
            {"infer_ns": measured.infer_ns, "total_ns": measured.total_ns} if measured else {}
        )
    _relate(results, runs, plan, services)
    manifest = plan.manifest
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "tag": request.tag,
        "continues": request.continues,
        "wherry": __version__,
        "manifest": os.path.realpath(manifest.path),  # however it was named: runs go by it
        "overrides": list(request.overrides),
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "turns": services.turns,
        "host": _host(),
        "devices": {name: asdict(info) for name, info in sorted(services.boards.items())},
        "tagged": dict(request.chosen),
        "model": _model(outcomes),
        "data": _data(plan, outcomes),
        "measure": {**asdict(manifest.measure), "convention": CONVENTION},
        "metrics": _metrics(services),
        "reference": _reference(outcomes),
        "results": results,
        "gates": [],
        "steps": [_step(outcome, outcomes) for outcome in outcomes.values()],
        "plugins": [asdict(info) for info in services.host.plugins],
    }
    return RunRecord(_finite(values), tuple(samples), manifest.text)


def _finite(value: Any) -> Any:
    """Plugins' values too; what is no finite number is null, for JSON cannot say it."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _result(
    row: Row, outcomes: Mapping[str, StepOutcome], services: Services
) -> tuple[dict[str, Any], Profiled | None]:
    target = row.target
    result: dict[str, Any] = {
        "name": f"{row.variant}, {target.describe()}",
        "variant": row.variant,
        "target": {
            "backend": target.backend,
            "precision": target.precision,
            "device": target.device,
            "options": target.options.model_dump(mode="json"),
        },
        "status": "failed",
        "error": None,
        "latency": None,
        "metrics": {},
        "evaluated": 0,
        "passes": [],
        "calibration": None,
        "parity": None,
        "size_bytes": None,
        "packed_bytes": None,
        "gzip_bytes": None,
        "peak_memory_bytes": None,
        "energy_mj": None,
        "sustained": None,
        **NO_LAYERS,
        "speedup_vs_fp32": None,
        "fp32": None,
        "speedup_vs_original": None,
        "pareto": False,
        "artifact": None,
        "cached": False,
        "measured_in": None,
        "warnings": [],
        "sensors": [],
        "provenance": {},
        "extra": {},
    }
    done = [outcomes[step] for step in row.steps[:-1]]
    error = next((outcome.error for outcome in done if outcome.error), None)
    results = [outcome.result for outcome in done if outcome.result is not None]
    warnings = [text for each in results for text in each.warnings]
    result["passes"] = [dict(each.record) for each in results if each.record]
    for each in results:
        if isinstance(each.value, Calibration):
            result["calibration"] = {"method": each.value.method, "samples": each.value.samples}
    converted_outcome = outcomes[row.convert].result
    converted: Converted | None = converted_outcome.value if converted_outcome else None
    if converted is not None:
        result["size_bytes"] = converted.artifact.size_bytes
        if (packing := converted.artifact.packing) is not None:
            result["packed_bytes"] = packing.size_bytes
            result["gzip_bytes"] = packing.gzip_bytes
        result["artifact"] = f"sha256:{converted.artifact.digest}"
        result["provenance"] = dict(converted.artifact.provenance)

    profile = outcomes[row.profile]
    profiled: Profiled | None = None
    if profile.result is not None:
        profiled = profile.result.value.get(row.index)
    if profiled is None:
        error = error or profile.error
    else:
        error = error or profiled.error
        warnings.extend(profiled.warnings)
        result |= {"cached": profiled.cached, "measured_in": profiled.run or None}
    result["parity"] = _parity(converted, profiled)
    measured = profiled.measurement if profiled else None
    if measured is not None and converted is not None:
        result["status"] = "ok"
        result["latency"] = latency(measured, services.manifest.measure.seed)
        for name, value in measured.metrics.items():
            if math.isfinite(value):
                result["metrics"][name] = value
            else:
                warnings.append(f"The metric {name} is {value}: it is left out.")
        result["peak_memory_bytes"] = measured.peak_memory_bytes
        result["energy_mj"] = measured.energy_mj
        result["sustained"] = measured.sustained
        result |= layer_fields(converted.artifact, measured)
        result["evaluated"] = measured.evaluated
        result["sensors"] = [asdict(reading) for reading in measured.sensors]
        result["extra"] = dict(measured.extra)
    elif error is not None:
        result["status"] = "skipped" if isinstance(error, UnsupportedError) else "failed"
        result["error"] = str(error)
    else:
        result["error"] = "it was not measured, and no step says why: this is a bug of wherry"
    result["warnings"] = list(dict.fromkeys(warnings))
    return result, profiled


def _parity(converted: Converted | None, profiled: Profiled | None) -> dict[str, float] | None:
    """As compared on the host, else on the board."""
    found = (converted.parity if converted else None) or (profiled.parity if profiled else None)
    return None if found is None else {"sqnr_db": found.sqnr_db, "cosine": found.cosine}


def latency(measured: Measurement, seed: int) -> dict[str, Any]:
    """The report's ``latency`` of one measurement; milliseconds, the inference alone."""
    summary = summarise(measured.infer_ns, measured.round_sizes, seed=seed)
    return {
        "median_ms": summary.median_ms,
        "ci95_ms": list(summary.ci95_ms),
        "p90_ms": summary.p90_ms,
        "p99_ms": summary.p99_ms,
        "min_ms": summary.min_ms,
        "mean_ms": summary.mean_ms,
        "samples": summary.samples,
        "outliers": summary.outliers,
        "load_ms": statistics.median(measured.load_ms),
        "first_ms": statistics.median(measured.first_ms),
        "with_copies_ms": float(np.median(measured.total_ns)) / 1e6,
        "timed_by": measured.timed_by,
        "clean": measured.clean,
        "disturbances": list(measured.disturbances),
        "emulated": measured.emulated,
        "steady": all(measured.steady),
        "rounds": len(measured.round_sizes),
        "round_sizes": list(measured.round_sizes),
    }


def _relate(results: list[dict[str, Any]], runs: list[str], plan: Plan, services: Services) -> None:
    """Speed-ups, and the Pareto marks of each device; none where it is emulated.

    Args:
        results: in the rows' order; changed.
        runs: the run that measured each of them.
        plan: that was run.
        services: of the run.
    """
    measured = zip(results, runs, map(_peer, results, plan.rows), strict=True)
    from_run = [each for each in measured if each[0]["latency"]]
    from_run = [each for each in from_run if not each[0]["latency"]["emulated"]]
    timed = [result for result, _, _ in from_run]
    fp32 = {
        peer: (result, run)
        for result, run, peer in from_run
        if result["target"]["precision"] == "fp32"
    }
    for result, run, peer in from_run:
        (of_fp32, base_run), latency = fp32.get(peer, (None, "")), result["latency"]
        if of_fp32 is None or not latency["median_ms"]:
            continue
        base, result["fp32"] = of_fp32["latency"], of_fp32["name"]
        result["speedup_vs_fp32"] = speedup = _speedup(result, run, of_fp32, base_run, "fp32")
        if latency["ci95_ms"][0] > base["ci95_ms"][1]:  # beyond the noise
            precision = result["target"]["precision"]
            result["warnings"].append(f"{precision} is slower than fp32 here (x{speedup:.2f})")
    originals = {
        _alike(result): (result, run)
        for result, run, _ in from_run
        if result["variant"] == ORIGINAL
    }
    for result, run, _ in from_run:
        if result["latency"]["median_ms"] and (found := originals.get(_alike(result))):
            result["speedup_vs_original"] = _speedup(result, run, *found, ORIGINAL)
    first = plan.manifest.metrics[0] if plan.manifest.metrics else None
    sign = -1.0 if first and services.host.metrics[first.name].better == "lower" else 1.0
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in timed:
        if first is None or first.key in result["metrics"]:
            # what was timed by unlike clocks is never ranked together
            group = (result["target"]["device"], result["latency"]["timed_by"])
            groups.setdefault(group, []).append(result)
    for group_results in groups.values():
        points = [
            (
                r["latency"]["median_ms"],
                sign * r["metrics"][first.key] if first else -float(r["size_bytes"]),
            )
            for r in group_results
        ]
        for result, best in zip(group_results, pareto(points), strict=True):
            result["pareto"] = bool(best)


def _speedup(
    result: dict[str, Any], run: str, base: Mapping[str, Any], base_run: str, word: str
) -> float:
    """How many times as fast as its base a result is; warns where other runs measured them."""
    if run != base_run:
        result["warnings"].append(
            f"It was not measured in the same run as its {word}: `--remeasure` takes both anew."
        )
    return float(base["latency"]["median_ms"] / result["latency"]["median_ms"])


def _alike(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What a result shares with that of another variant on the same target: the clock, too."""
    return target_key({**result, "variant": ORIGINAL}), result["latency"]["timed_by"]


def _peer(result: Mapping[str, Any], row: Row) -> tuple[str, ...]:
    """What a result shares with its fp32 counterpart: all but the precision, and the clock."""
    options = row.target.options.of("fp32").model_dump_json()
    clock = result["latency"]["timed_by"] if result["latency"] else ""
    return (row.variant, row.target.backend, row.target.device, options, clock)


def _host() -> dict[str, Any]:
    return {
        "hostname": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _model(outcomes: Mapping[str, StepOutcome]) -> dict[str, Any] | None:
    result = outcomes["model"].result
    if result is None:
        return None
    model = result.value
    return {
        "digest": model.digest,
        "opset": model.opset,
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": [asdict(spec) for spec in model.outputs],
        "size_bytes": model.path.stat().st_size,
    }


def _data(plan: Plan, outcomes: Mapping[str, StepOutcome]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, section in plan.manifest.data.items():
        outcome = outcomes.get(f"data:{name}")
        if outcome is not None and outcome.result is not None:
            dataset = outcome.result.value
            found[name] = {
                "source": section.source,
                "samples": len(dataset),
                "digest": dataset.digest,
            }
    return found


def _reference(outcomes: Mapping[str, StepOutcome]) -> dict[str, Any] | None:
    """The original in fp32 on ONNX Runtime: what ``max_drop`` is measured against."""
    outcome = outcomes.get("reference")
    if outcome is None or outcome.result is None:
        return None
    return {"metrics": dict(outcome.result.value.metrics), "data": EVALUATION}


def _metrics(services: Services) -> list[dict[str, Any]]:
    definitions = metrics_in_keys(services)
    found = []
    for section in services.manifest.metrics:
        kind = services.host.metrics[section.name]
        found.append(
            {
                "name": section.key,
                "better": kind.better,
                "unit": kind.unit,
                "against": "labels" if kind.needs_labels else "original",
                "definition": hashlib.sha256(canonical(definitions[section.key])).hexdigest(),
            }
        )
    return found


def _step(outcome: StepOutcome, outcomes: Mapping[str, StepOutcome]) -> dict[str, Any]:
    step, error = outcome.step, outcome.error
    if outcome.result is not None:
        state = "cached" if outcome.result.cached else "done"
    else:  # a step that was not run has the error of the one that it needed
        blocked = any(outcomes[need].error is error for need in step.needs)
        state = "skipped" if blocked else "failed"
    return {
        "id": step.id,
        "kind": step.kind,
        "title": step.title,
        "state": state,
        "seconds": round(outcome.seconds, 3),
        "error": str(error) if error else None,
    }
