"""Gates: the manifest's thresholds, judged on a run's report. No gate passes on nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wherry.reports import RunRecord
from wherry.stats import P90_SAMPLES

if TYPE_CHECKING:
    from wherry.manifest.sections import Drop, Gate

TIMED = ("latency.median_ms", "latency.p90_ms", "latency.mean_ms", "load_ms")
"""What gates can look at that means nothing on an emulated board."""


@dataclass(frozen=True)
class _Finding:
    """One gate on one result: by how much it holds (negative: it does not), and why."""

    slack: float
    value: float | None
    result: str
    reason: str


def evaluate(gates: Sequence[Gate], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Judge every gate.

    Args:
        gates: of the manifest.
        values: the report's JSON, without its gates.

    Returns:
        Per gate, as the report's ``gates``: ``gate`` (its text), ``passed``, ``value`` (of the
        result that is the closest to failing, or fails worst), ``result`` (which one), ``reason``
        and ``location``.
    """
    return [_evaluate(gate, values) for gate in gates]


def broken_by(
    result: Mapping[str, Any], gates: Sequence[Gate], values: Mapping[str, Any]
) -> list[str]:
    """Why one result does not hold the gates that speak of it; empty: it holds them all."""
    findings = [_judge(gate, result, values) for gate in gates if _selects(gate, result)]
    return [finding.reason for finding in findings if finding.slack < 0]


def with_gates(record: RunRecord, gates: list[dict[str, Any]]) -> RunRecord:
    """The same run with what its gates found."""
    return replace(record, values={**record.values, "gates": gates})


def _evaluate(gate: Gate, values: Mapping[str, Any]) -> dict[str, Any]:
    findings = [
        _judge(gate, result, values) for result in values["results"] if _selects(gate, result)
    ]
    if not findings:
        findings = [_Finding(-math.inf, None, "", "no result is like its `where:`")]
    worst = min(findings, key=lambda finding: finding.slack)
    reason = worst.reason
    if others := sum(finding.slack < 0 for finding in findings) - 1 if worst.slack < 0 else 0:
        reason += f"; {others} more {'does' if others == 1 else 'do'} not hold it"
    return {
        "gate": gate.text,
        "passed": worst.slack >= 0,
        "value": worst.value,
        "result": worst.result,
        "reason": reason,
        "location": gate.location,
    }


def _selects(gate: Gate, result: Mapping[str, Any]) -> bool:
    where, target = gate.where, result["target"]
    wanted = (
        (where.variant, result["variant"]),
        (where.backend, target["backend"]),
        (where.precision, target["precision"]),
        (where.device, target["device"]),
        (where.threads, target["options"].get("threads", 1)),
    )
    return all(allowed is None or found in allowed for allowed, found in wanted)


def _judge(gate: Gate, result: Mapping[str, Any], values: Mapping[str, Any]) -> _Finding:
    name, metric = result["name"], gate.metric
    if result["status"] != "ok":
        reason = f"{name} was not measured: {result['error'].splitlines()[0]}"
        return _Finding(-math.inf, None, name, reason)
    value, latency = _value(metric, result), result["latency"]
    if value is None:
        return _Finding(-math.inf, None, name, f"{name} has no {metric}{_why(metric, latency)}")
    if metric in TIMED and latency["emulated"]:
        reason = f"{name} ran on an emulated board, where {metric} means nothing"
        return _Finding(-math.inf, value, name, reason)

    bounds: list[tuple[float, str]] = []
    shown = f"{metric} {_text(value)}"
    if gate.min is not None:
        bounds.append((value - gate.min, f"{shown}, at least {_text(gate.min)}"))
    if gate.max is not None:
        bounds.append((gate.max - value, f"{shown}, at most {_text(gate.max)}"))
    if gate.max_drop is not None:
        original = _number((values["reference"] or {"metrics": {}})["metrics"].get(metric))
        if original is None:
            reason = f"there is no {metric} of the original to compare {name} with"
            return _Finding(-math.inf, value, name, reason)
        better = {known["name"]: known["better"] for known in values["metrics"]}
        slack, text = _drop(gate.max_drop, value, original, higher=better[metric] == "higher")
        bounds.append((slack, f"{shown} against {_text(original)}, {text}"))

    slack, reason = min(bounds)
    if metric == "latency.median_ms" and _within_noise(gate, latency):
        reason += ", within noise: the bound lies in the 95 % interval"
    if metric in TIMED and not latency["clean"]:
        reason += "; the measurement is not clean"
    return _Finding(slack, value, name, f"{name}: {reason}")


def _value(metric: str, result: Mapping[str, Any]) -> float | None:
    """Of a result that was measured; None where it has none that is a finite number."""
    if metric in result["metrics"]:
        return _number(result["metrics"][metric])
    if metric == "load_ms":
        return _number(result["latency"]["load_ms"])
    section, _, key = metric.partition(".")
    if section in {"latency", "parity"}:
        return _number((result[section] or {}).get(key))
    return _number(result.get(metric))


def _why(metric: str, latency: Mapping[str, Any]) -> str:
    if metric == "latency.p90_ms":
        return f": there are {latency['samples']} samples, and it takes {P90_SAMPLES}"
    return ""


def _drop(allowed: Drop, value: float, original: float, *, higher: bool) -> tuple[float, str]:
    """By how much the drop is below the allowed one, and in words."""
    drop = original - value if higher else value - original
    most = allowed.amount * (abs(original) if allowed.relative else 1.0)
    word = "drop" if higher else "rise"
    found = f"a {word} of {_text(drop)}" if drop > 0 else f"no {word}"
    # differences of floats: a drop that equals the bound in decimal holds
    rounding = 1e-12 * (abs(original) + abs(value))
    return most - drop + rounding, f"{found}, at most {_text(most)}"


def _within_noise(gate: Gate, latency: Mapping[str, Any]) -> bool:
    low, high = latency["ci95_ms"]
    return any(bound is not None and low <= bound <= high for bound in (gate.min, gate.max))


def _number(value: Any) -> float | None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if numeric and math.isfinite(value) else None


def _text(value: float) -> str:
    """Six digits, but whole numbers (of bytes) in full."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"
