"""Gates: the manifest's thresholds, judged on a run's report. No gate passes on nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherry.manifest.sections import Gate
    from wherry.metrics import MetricKind


@dataclass(frozen=True)
class _Finding:
    """One gate on one result: by how much it holds (negative: it does not), and why."""

    slack: float
    value: float | None
    result: str
    reason: str


def evaluate(
    gates: Sequence[Gate],
    values: Mapping[str, Any],
    metric_kinds: Mapping[str, MetricKind],
) -> list[dict[str, Any]]:
    """Judge every gate.

    Args:
        gates: of the manifest.
        values: the report's JSON, without its gates.
        metric_kinds: by the kind's name, for the direction of ``max_drop``.

    Returns:
        Per gate, as the report's ``gates``: ``gate`` (its text), ``passed``, ``value`` (of the
        result that is the closest to failing, or fails worst), ``result`` (which one), ``reason``
        and ``location``.
    """
    return [_evaluate(gate, values, metric_kinds) for gate in gates]


def name_of(result: Mapping[str, Any]) -> str:
    """A result in words: ``slim, ncnn fp16 on pi4``, with its threads where there are several."""
    target = result["target"]
    threads = target["options"].get("threads", 1)
    more = f" ({threads} threads)" if threads != 1 else ""
    words = f"{target['backend']} {target['precision']} on {target['device']}{more}"
    return f"{result['variant']}, {words}"


def _evaluate(
    gate: Gate, values: Mapping[str, Any], metric_kinds: Mapping[str, MetricKind]
) -> dict[str, Any]:
    findings = [
        _judge(gate, result, values, metric_kinds)
        for result in values["results"]
        if _selects(gate, result)
    ]
    if findings:
        worst = min(findings, key=lambda finding: finding.slack)
    else:
        worst = _Finding(float("-inf"), None, "", "no result is like its `where:`")
    return {
        "gate": gate.text,
        "passed": worst.slack >= 0,
        "value": worst.value,
        "result": worst.result,
        "reason": worst.reason,
        "location": gate.location,
    }


def _selects(gate: Gate, result: Mapping[str, Any]) -> bool:
    where, target = gate.where, result["target"]
    wanted = {
        "variant": (where.variant, result["variant"]),
        "backend": (where.backend, target["backend"]),
        "precision": (where.precision, target["precision"]),
        "device": (where.device, target["device"]),
        "threads": (where.threads, target["options"].get("threads", 1)),
    }
    return all(allowed is None or found in allowed for allowed, found in wanted.values())


def _judge(
    gate: Gate,
    result: Mapping[str, Any],
    values: Mapping[str, Any],
    metric_kinds: Mapping[str, MetricKind],
) -> _Finding:
    name = name_of(result)
    value = _value(gate.metric, result)
    if value is None:
        why = result["error"] or f"it has no {gate.metric}"
        return _Finding(float("-inf"), None, name, f"{name} was not measured: {why}")
    latency = result["latency"] or {}
    timed = gate.metric.startswith("latency.") or gate.metric == "load_ms"
    if timed and latency.get("emulated"):
        reason = f"{name} ran on an emulated board, where {gate.metric} means nothing"
        return _Finding(float("-inf"), value, name, reason)
    baseline, higher = None, True
    if gate.max_drop is not None:
        baseline = ((values.get("reference") or {}).get("metrics") or {}).get(gate.metric)
        if baseline is None:
            reason = f"there is no {gate.metric} of the original to compare {name} with"
            return _Finding(float("-inf"), value, name, reason)
        kind = metric_kinds[gate.metric.split(".", 1)[0]]
        higher = kind.better == "higher"
    slacks = _slacks(gate, value, baseline, higher=higher)
    slack, reason = min(slacks, key=lambda item: item[0])
    reason = f"{name}: {reason}"
    if gate.metric == "latency.median_ms" and _within_noise(gate, latency):
        reason += ", within noise: the bound lies in the 95 % interval"
    if timed and not latency.get("clean", True):
        reason += "; the measurement is not clean"
    return _Finding(slack, value, name, reason)


def _slacks(
    gate: Gate, value: float, baseline: float | None, *, higher: bool
) -> list[tuple[float, str]]:
    """Per bound of the gate, how far the value is on the right side of it, in bounds' units."""
    found: list[tuple[float, str]] = []
    if gate.min is not None:
        found.append((value - gate.min, f"{gate.metric} {value:.6g}, at least {gate.min:.6g}"))
    if gate.max is not None:
        found.append((gate.max - value, f"{gate.metric} {value:.6g}, at most {gate.max:.6g}"))
    if gate.max_drop is not None and baseline is not None:
        drop = baseline - value if higher else value - baseline
        allowed = gate.max_drop.amount * (abs(baseline) if gate.max_drop.relative else 1.0)
        word = "drop" if higher else "rise"
        text = (
            f"{gate.metric} {value:.6g} against {baseline:.6g}, a {word} of {drop:.6g}, "
            f"at most {allowed:.6g}"
        )
        # sums of floats: a drop that equals the bound in decimal must hold
        found.append((allowed - drop + 1e-12, text))
    return found


def _within_noise(gate: Gate, latency: Mapping[str, Any]) -> bool:
    low, high = latency["ci95_ms"]
    return any(bound is not None and low <= bound <= high for bound in (gate.min, gate.max))


def _value(metric: str, result: Mapping[str, Any]) -> float | None:
    if result["status"] != "ok":
        return None
    if metric == "load_ms":
        return _number((result["latency"] or {}).get("load_ms"))
    for section in ("latency", "parity"):
        if metric.startswith(f"{section}."):
            return _number((result[section] or {}).get(metric.split(".", 1)[1]))
    if metric in {"size_bytes", "peak_memory_bytes"}:
        return _number(result[metric])
    return _number(result["metrics"].get(metric))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)

