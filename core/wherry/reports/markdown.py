"""The report as Markdown, for pull requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wherry.reports import RunRecord, comparison_words, words
from wherry.reports.words import Result

_SPECIAL = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>#|~&"})


def render(record: RunRecord) -> str:
    """A table of the results, the front's marks, what went wrong, the gates; a line is a line."""
    values = record.values
    lines = [f"### wherry: {escaped(values['manifest'])}", ""]
    measured = [result for result in values["results"] if result["status"] == "ok"]
    if measured:
        lines += [*_table(measured, values), ""]
    for result in measured:
        if text := words.sustained_text(result):
            lines.append(f"- {escaped(result['name'])}: {escaped(text)}")
    for status, note in words.unmeasured(values["results"]):
        lines.append(f"- **{status}**: {escaped(note.where)}: {escaped(note.text)}")
    for note in words.notes(values["results"]):
        lines.append(f"- note: {escaped(note.text)} ({escaped(note.where)})")
    for gate in values["gates"]:
        verdict = "gate holds" if gate["passed"] else "**gate failed**"
        lines.append(f"- {verdict}: {escaped(gate['gate'])}: {escaped(gate['reason'])}")
    run, version, end = (escaped(values[key]) for key in ("run_id", "wherry", "finished"))
    lines += ["", f"Run {run}, wherry {version}, {end}."]
    return "\n".join(lines) + "\n"


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """What has changed in a table, and all figures folded away; for a pull request."""
    lines = [f"### wherry: {escaped(comparison_words.title(comparison))}", ""]
    lines += [f"**{escaped(comparison_words.summary(comparison))}**", ""]
    every = list(comparison_words.rows(comparison))
    changed = [row for row in every if row.told]
    lines += [*_comparison_table(changed), ""] if changed else []
    for each in comparison["failures"]:
        text = comparison_words.failure_text(each, comparison)
        lines.append(f"- **fails**: {escaped(text)}")
    if remedy := comparison_words.failures_remedy(comparison):
        lines.append(f"- {escaped(remedy)}")
    lines += [f"- note: {escaped(note)}" for note in comparison_words.notes(comparison)]
    if len(every) > len(changed):
        summary = f"<details><summary>All {len(every)} figures</summary>"
        lines += ["", summary, "", *_comparison_table(every), "", "</details>"]
    versions = escaped(f"wherry {comparison['base']['wherry']} and {comparison['new']['wherry']}")
    lines += ["", f"{versions}, {escaped(comparison['new']['finished'])}."]
    return "\n".join(lines) + "\n"


def _comparison_table(rows: Sequence[comparison_words.Row]) -> list[str]:
    lines = [_row(comparison_words.HEAD), "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for row in rows:
        cells = (row.target, row.figure, row.base, row.new, row.change, row.interval, row.verdict)
        lines.append(_row(cells))
    return lines


def _table(results: Sequence[Result], values: Mapping[str, Any]) -> list[str]:
    metrics = [metric["name"] for metric in values["metrics"]]
    energy = ["mJ"] if any(result["energy_mj"] is not None for result in results) else []
    original = ["vs original"] if words.shows_original(results) else []
    head = ["target", "median ms", "95 %", "vs fp32", *original, *metrics, "size", *energy, ""]
    rows = [_row(head), f"| --- |{' ---: |' * (len(head) - 2)} --- |"]
    for result in results:
        latency = result["latency"]
        rows.append(
            _row(
                [
                    result["name"],
                    words.ms_text(latency["median_ms"]),
                    " to ".join(words.ms_text(end) for end in latency["ci95_ms"]),
                    words.speedup_text(result["speedup_vs_fp32"]),
                    *(words.speedup_text(result.get("speedup_vs_original")) for _ in original),
                    *(words.metric_text(result["metrics"].get(name)) for name in metrics),
                    words.size_text(result),
                    *(words.energy_text(result["energy_mj"]) for _ in energy),
                    words.marks(result),
                ]
            )
        )
    explained = ", ".join(f"{sign} {text}" for sign, text in words.legend(results).items())
    return [*rows, *(["", escaped(explained)] if explained else [])]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(value: object) -> str:
    """Any text on one line, with nothing left that Markdown or HTML would take for markup."""
    return words.one_line(value).translate(_SPECIAL)
