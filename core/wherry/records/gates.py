"""Gates: the manifest's thresholds, judged on a run's report. No gate passes on nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wherry.errors import WherryError
from wherry.manifest.sections import ORIGINAL
from wherry.records.baselines import nothing_there
from wherry.records.compare import OTHER_MODEL
from wherry.reports import RunRecord
from wherry.reports.comparison_words import change_text, interval_text
from wherry.stats import P90_SAMPLES

if TYPE_CHECKING:
    from wherry.manifest.sections import Drop, Gate
    from wherry.records.baselines import Baselines

TIMED = ("latency.median_ms", "latency.p90_ms", "latency.mean_ms", "load_ms")
"""What gates can look at that means nothing on an emulated board."""


@dataclass(frozen=True)
class _Finding:
    """One gate on one result: by how much it holds (negative: it does not), and why."""

    slack: float
    value: float | None
    result: str
    reason: str
    base: float | None = None


def evaluate(
    gates: Sequence[Gate], values: Mapping[str, Any], baselines: Baselines | None = None
) -> list[dict[str, Any]]:
    """Judge every gate.

    Args:
        gates: of the manifest.
        values: the report's JSON, without its gates.
        baselines: what gates compare with; None: there is nothing, and those fail.

    Returns:
        Per gate, as the report's ``gates``: ``gate`` (its text), ``passed``, ``value`` (of the
        result that is the closest to failing, or fails worst), ``result`` (which one), ``reason``,
        ``location``, ``against``, ``base`` (its value) and ``allowed``.
    """
    return [_evaluate(gate, values, baselines) for gate in gates]


def broken_by(
    result: Mapping[str, Any],
    gates: Sequence[Gate],
    values: Mapping[str, Any],
    baselines: Baselines | None = None,
) -> list[str]:
    """Why one result does not hold the gates that speak of it; empty: it holds them all."""
    findings = [_judge(gate, result, values, baselines) for gate in gates if _selects(gate, result)]
    return [finding.reason for finding in findings if finding.slack < 0]


def with_gates(record: RunRecord, gates: list[dict[str, Any]]) -> RunRecord:
    """The same run with what its gates found."""
    return replace(record, values={**record.values, "gates": gates})


def _evaluate(gate: Gate, values: Mapping[str, Any], baselines: Baselines | None) -> dict[str, Any]:
    findings = [
        _judge(gate, result, values, baselines)
        for result in values["results"]
        if _selects(gate, result)
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
        "against": gate.against,
        "base": worst.base,
        "allowed": sorted(gate.allow),
    }


def _selects(gate: Gate, result: Mapping[str, Any]) -> bool:
    where, target = gate.where, result["target"]
    if not gate.speaks_of(result["variant"]):
        return False
    wanted = (
        (where.variant, result["variant"]),
        (where.backend, target["backend"]),
        (where.precision, target["precision"]),
        (where.device, target["device"]),
        (where.threads, target["options"].get("threads", 1)),
    )
    return all(allowed is None or found in allowed for allowed, found in wanted)


def _judge(
    gate: Gate,
    result: Mapping[str, Any],
    values: Mapping[str, Any],
    baselines: Baselines | None,
) -> _Finding:
    name, metric = result["name"], gate.metric
    if result["status"] != "ok":
        reason = f"{name} was not measured: {(result['error'].splitlines() or [''])[0]}"
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
    base: float | None = None
    differs = ""
    if gate.against is not None:
        found = _compared(gate, name, baselines)
        if isinstance(found, str):
            return _Finding(-math.inf, value, name, f"{name}: {found}")
        figure, entry = found
        value, base = figure["new"], figure["base"]  # to the digits that a baseline file has
        bounds += _relative_bounds(gate, figure)
        differs = _differs(entry)
    elif gate.max_drop is not None:
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
    reason += differs
    if gate.allow:
        reason += f"; unlike measurements are allowed: {', '.join(sorted(gate.allow))}"
    return _Finding(slack, value, name, f"{name}: {reason}", base)


def _differs(entry: Mapping[str, Any]) -> str:
    """What a reader of the verdict has to know of its base."""
    return f"; {OTHER_MODEL}" if OTHER_MODEL in entry["differs"] else ""


def _compared(
    gate: Gate, name: str, baselines: Baselines | None
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | str:
    """The gate's figure of a result against its base's, and the comparison's result that has it.

    A sentence where they are not compared.
    """
    assert gate.against is not None
    if baselines is None:
        return f"there is no {gate.against} to compare with"
    try:
        entry = baselines.entry(gate.against, gate.allow, name)
    except WherryError as error:
        return nothing_there(error)
    if entry["status"] != "compared":
        return entry["why"] if gate.against in WITHIN else f"{entry['why']}: {NEW_BASELINE}"
    figure: Mapping[str, Any] | None = next(
        (each for each in entry["figures"] if each["figure"] == gate.metric), None
    )
    if figure is None:
        return f"neither has {gate.metric}"
    if figure["verdict"] == "not comparable":
        anew = gate.against in WITHIN and "not-clean" in figure["reasons"]
        remedy = "; `--remeasure` measures both anew, in turns" if anew else ""
        return f"not comparable with {gate.against}: {figure['why']}{_differs(entry)}{remedy}"
    return figure, entry


WITHIN = ("fp32", ORIGINAL)
"""What is compared with in the run itself."""

NEW_BASELINE = (
    "name another baseline, or write one anew: `wherry report --output NAME.baseline.json`"
)
"""What to do where a baseline has not what is asked for."""

NOISY = ("latency.median_ms", "peak_memory_bytes", "energy_mj")
"""What is measured with noise; a size is exact, and a metric is exact on its samples."""


def _relative_bounds(gate: Gate, figure: Mapping[str, Any]) -> list[tuple[float, str]]:
    """By how much each bound against a base holds, and in words."""
    value, base, difference = figure["new"], figure["base"], figure["difference"]
    shown = f"{gate.metric} {_text(value)} against {_text(base)}"
    noise = f" (95 %: {interval_text(figure)})" if figure["ci95"] else ""
    bounds: list[tuple[float, str]] = []
    if gate.max_increase is not None:
        if figure["ci95"] and figure["change"] is not None:  # the same median as the interval's
            difference = base * figure["change"]
        most = gate.max_increase.amount * (base if gate.max_increase.relative else 1.0)
        slack = most - difference + 1e-12 * (abs(base) + abs(value))
        over = gate.max_increase.amount if gate.max_increase.relative else 0.0
        text = f"{shown}, {change_text(figure, over)}{noise}, "
        text += f"at most {_amount_text(gate.max_increase)}"
        if slack < 0 and figure["verdict"] == "same" and gate.metric in NOISY:
            slack, text = 0.0, f"{text}: more, but within noise"
        bounds.append((slack, text))
    if gate.min_speedup is not None:
        speedup = base / value
        text = f"{shown}, x{speedup:.2f}{noise}, at least x{gate.min_speedup:g}"
        bounds.append((speedup - gate.min_speedup, text))
    if gate.max_drop is not None:
        higher = figure["better"] == "higher"
        slack, text = _drop(gate.max_drop, value, base, higher=higher)
        bounds.append((slack, f"{shown}, {text}"))
    return bounds


def _amount_text(bound: Drop) -> str:
    return f"{100 * bound.amount:g} %" if bound.relative else f"{bound.amount:g}"


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
