"""The report on a terminal: a table a device, the Pareto front, what went wrong, the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from wherry.reports import comparison_words, layers, words
from wherry.reports.words import Result

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from wherry.reports import RunRecord

HEAD_WIDTH, NAME_WIDTH = 9, 12
"""Heads and names of variants fold to this before a table becomes wider than the terminal."""


def print_record(record: RunRecord, console: Console) -> None:
    """Print all that a user has to know of a run."""
    values = record.values
    results: Sequence[Result] = values["results"]
    _say(console, f"run {values['run_id']} of {values['manifest']}")
    measured = [result for result in results if result["status"] == "ok"]
    devices = dict.fromkeys(result["target"]["device"] for result in measured)
    for device in devices:
        shown = [result for result in measured if result["target"]["device"] == device]
        console.print(_table(device, shown, values, console.width), crop=False)
        _print_front(shown, values, console)
        for result in shown:
            if text := words.sustained_text(result):
                _say(console, f"{result['name']}: {text}")
            if text := layers.slowest_text(result):
                _say(console, f"{result['name']}: {text}")
        console.print()
    for status, note in words.unmeasured(results):
        _say(console, f"{status}: {note.where}: {note.text}", "red")
    for note in words.notes(results):
        _say(console, f"note: {note.text} [{note.where}]", "yellow")
    for gate in values["gates"]:
        verdict, style = ("holds", "green") if gate["passed"] else ("FAILED", "bold red")
        _say(console, f"gate {verdict}: {gate['gate']}: {gate['reason']}", style)


def _say(console: Console, text: str, style: str = "") -> None:
    """A paragraph; nothing in it is markup, and its further lines are indented."""
    from rich.text import Text

    lines = words.clean(text).replace("\n", "\n  ")
    console.print(Text(lines, style=style), soft_wrap=True)


def _print_front(results: Sequence[Result], values: Mapping[str, Any], console: Console) -> None:
    front = [result for result in results if result["pareto"]]
    if not front:
        return
    first = values["metrics"][0]["name"] if values["metrics"] else None
    _say(console, f"Pareto front (latency, {first or 'size'}):")
    for result in sorted(front, key=lambda r: r["latency"]["median_ms"]):
        latency = words.ms_text(result["latency"]["median_ms"])
        worth = words.bytes_text(result["size_bytes"])
        if first:
            worth = f"{first} {words.metric_text(result['metrics'].get(first))}"
        _say(console, f"  {latency} ms  {worth}  {result['name']}")


@dataclass(frozen=True)
class _Column:
    """A column of the table; ``optional`` ones are left out where the terminal is too narrow."""

    head: str
    cells: list[str]
    justify: Literal["left", "right"] = "right"
    optional: bool = False


def _table(device: str, results: Sequence[Result], values: Mapping[str, Any], width: int) -> Table:
    """As wide as the terminal, or wider where even then something would be cut off."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    board = values["devices"].get(device, {})
    title = f"{device}: {board.get('model') or board.get('cpu') or 'unknown board'}"
    caption = "   ".join(f"{sign} {text}" for sign, text in words.legend(results).items())
    fitted = _fit(_columns(results, [metric["name"] for metric in values["metrics"]]), width)
    table = Table(
        title=Text(words.one_line(title)),
        caption=Text(caption) if caption else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        width=max(sum(wide for _, wide in fitted) + len(fitted) - 1, 1),
    )
    for column, wide in fitted:
        table.add_column(Text(column.head), justify=column.justify, width=wide, overflow="fold")
    for row in zip(*(column.cells for column, _ in fitted), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _columns(results: Sequence[Result], metrics: Sequence[str]) -> list[_Column]:
    def options(name: str) -> list[str]:
        return [words.option_text(r["target"]["options"].get(name)) for r in results]

    latencies = [result["latency"] for result in results]
    intervals = [[words.ms_text(end) for end in latency["ci95_ms"]] for latency in latencies]
    columns = [
        _Column("variant", [r["variant"] for r in results], "left"),
        _Column("backend", [r["target"]["backend"] for r in results], "left"),
        _Column("precision", [r["target"]["precision"] for r in results], "left"),
        *(_Column(name, options(name)) for name in words.differing_options(results)),
        _Column("median ms", [words.ms_text(latency["median_ms"]) for latency in latencies]),
        _Column("95 %", [f"{low}-{high}" for low, high in intervals], optional=True),
        *_speedups(results),
    ]
    for name in metrics:
        cells = [words.metric_text(result["metrics"].get(name)) for result in results]
        columns.append(_Column(name, cells))
    for head, key in (
        ("size", "size_bytes"),
        ("packed", "packed_bytes"),
        ("memory", "peak_memory_bytes"),
    ):
        if key == "packed_bytes" and all(result[key] is None for result in results):
            continue
        columns.append(_Column(head, [words.bytes_text(r[key]) for r in results], optional=True))
    if any(result["energy_mj"] is not None for result in results):
        energies = [words.energy_text(result["energy_mj"]) for result in results]
        columns.append(_Column("mJ", energies, optional=True))
    columns.append(_Column("", [words.marks(result) for result in results], "left"))
    return [
        replace(
            column,
            head=words.one_line(column.head),
            cells=[words.one_line(cell) for cell in column.cells],
        )
        for column in columns
        if any(column.cells)
    ]


def _speedups(results: Sequence[Result]) -> list[_Column]:
    """Against fp32, and where there are other variants against the original.

    Where all are fp32 anyway, the first would say nothing. Where there are both, the second is what
    a narrow terminal goes without: it can be told from the medians, what these are worth cannot.
    """
    fp32 = _Column("vs fp32", [words.speedup_text(r["speedup_vs_fp32"]) for r in results])
    if not words.shows_original(results):
        return [fp32]
    ups = [words.speedup_text(r.get("speedup_vs_original")) for r in results]
    if all(result["target"]["precision"] == "fp32" for result in results):
        return [_Column("vs original", ups)]
    return [fp32, _Column("vs original", ups, optional=True)]


def _fit(columns: Sequence[_Column], width: int) -> list[tuple[_Column, int]]:
    """The columns to show, and their widths: heads fold, then columns go, then names fold."""
    from rich.cells import cell_len

    shown = list(columns)
    while True:
        widths = [max(map(cell_len, [column.head, *column.cells])) for column in shown]
        _fold_heads(shown, widths, width, HEAD_WIDTH)
        optional = [index for index, column in enumerate(shown) if column.optional]
        if not optional or not _excess(widths, width):
            break
        del shown[optional[-1]]
    _fold_heads(shown, widths, width, HEAD_WIDTH // 2)
    widths[0] = max(min(widths[0], NAME_WIDTH), widths[0] - _excess(widths, width))
    return list(zip(shown, widths, strict=True))


def _fold_heads(columns: Sequence[_Column], widths: list[int], width: int, limit: int) -> None:
    """Narrow columns, the last ones first, to their cells and the words of their heads."""
    from rich.cells import cell_len

    for index, column in reversed(list(enumerate(columns))):
        word = min(max(map(cell_len, column.head.split()), default=0), limit)
        least = max(map(cell_len, column.cells))
        widths[index] = max(least, word, widths[index] - _excess(widths, width))


def _excess(widths: Sequence[int], width: int) -> int:
    """By how much a table of these columns, a space between them, is too wide."""
    return max(0, sum(widths) + len(widths) - 1 - width)


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print the latencies, what else has changed, and what is not compared and why."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    _say(console, comparison_words.title(comparison))
    rows = [row for row in comparison_words.rows(comparison) if row.told]
    if rows:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for head in comparison_words.HEAD:
            left = head in {"target", "figure", ""}
            table.add_column(head, justify="left" if left else "right", overflow="fold")
        styles = {"worse": "red", "better": "green"}
        for row in rows:
            cells = (row.target, row.figure, row.base, row.new, row.change, row.interval)
            texts = [Text(words.one_line(cell)) for cell in cells]
            verdict = words.one_line(row.verdict)
            style = styles.get(verdict.partition(":")[0], "")
            table.add_row(*texts, Text(verdict, style=style))
        console.print(table, crop=False)
    _say(console, comparison_words.summary(comparison))
    for note in comparison_words.notes(comparison):
        _say(console, f"note: {note}", "yellow")
