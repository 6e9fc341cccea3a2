"""The report as Markdown, for pull requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wherry.records.gates import name_of
from wherry.reports import RunRecord
from wherry.reports.terminal import LEGEND, bytes_text, collect_warnings, marks, metric_text

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#+!|~"})


def render(record: RunRecord) -> str:
    """A table of the results, the front's marks, what went wrong, the gates."""
    values = record.values
    lines = [f"### wherry: {_text(values['manifest'])}", ""]
    measured = [result for result in values["results"] if result["status"] == "ok"]
    if measured:
        lines += [*_table(measured, values), ""]
    for result in values["results"]:
        if result["status"] != "ok":
            lines.append(f"- **{result['status']}**: {_text(name_of(result))}: {_text(result['error'])}")
    lines += [
        f"- note: {_text(text)} ({len(names)} of {len(values['results'])} targets)"
        for text, names in collect_warnings(values["results"]).items()
    ]
    for gate in values["gates"]:
        verdict = "gate holds" if gate["passed"] else "**gate failed**"
        lines.append(f"- {verdict}: {_text(gate['gate'])}: {_text(gate['reason'])}")
    lines += ["", f"Run `{values['run_id']}`, wherry {values['wherry']}, {values['finished']}."]
    return "\n".join(lines) + "\n"


def _table(results: Iterable[Mapping[str, Any]], values: Mapping[str, Any]) -> list[str]:
    results = list(results)
    metrics = [metric["name"] for metric in values["metrics"]]
    head = ["target", "median ms", "95 %", "vs fp32", *metrics, "size", ""]
    rows = [_row(head), _row(["---", *["---:"] * (len(head) - 2), "---"])]
    for result in results:
        latency, speedup = result["latency"], result["speedup_vs_fp32"]
        low, high = latency["ci95_ms"]
        rows.append(
            _row(
                [
                    _text(name_of(result)),
                    f"{latency['median_ms']:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"x{speedup:.2f}" if speedup is not None else "-",
                    *(metric_text(result["metrics"].get(name)) for name in metrics),
                    bytes_text(result["size_bytes"]),
                    _text(marks(result)),
                ]
            )
        )
    present = "".join(marks(result) for result in results)
    legend = ", ".join(f"{_text(sign)} {text}" for sign, text in LEGEND.items() if sign in present)
    return [*rows, *(["", legend] if legend else [])]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: object) -> str:
    """Any text on one line, with nothing left that Markdown or HTML would take for markup."""
    return " ".join(str(value).split()).translate(_SPECIAL)
