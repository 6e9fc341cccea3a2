"""The report on a terminal: a table a device, the Pareto front, what went wrong, the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wherry.records.gates import name_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from wherry.reports import RunRecord

LEGEND = {
    "*": "Pareto front",
    "~": "not clean: something disturbed the measurement",
    "e": "emulated board: the latency means nothing",
    "c": "from the store",
}


def print_record(record: RunRecord, console: Console) -> None:
    """Print all that a user has to know of a run."""
    from rich.markup import escape

    values = record.values
    console.print(
        f"run {values['run_id']} of {escape(str(values['manifest']))}", highlight=False
    )
    devices = dict.fromkeys(result["target"]["device"] for result in values["results"])
    for device in devices:
        results = [r for r in values["results"] if r["target"]["device"] == device]
        measured = [r for r in results if r["status"] == "ok"]
        if measured:
            console.print(_table(device, measured, values, console.width))
        for result in results:
            if result["status"] != "ok":
                line = f"{result['status']}: {name_of(result)}: {result['error']}"
                console.print(escape(line), style="red", soft_wrap=True, highlight=False)
    _print_front(values, console)
    for text, names in collect_warnings(values["results"]).items():
        line = f"note: {text} [{', '.join(names)}]"
        console.print(escape(line), style="yellow", soft_wrap=True, highlight=False)
    for gate in values["gates"]:
        verdict = "gate holds" if gate["passed"] else "gate FAILED"
        console.print(
            escape(f"{verdict}: {gate['gate']}: {gate['reason']}"),
            style="green" if gate["passed"] else "bold red",
            soft_wrap=True,
            highlight=False,
        )


def collect_warnings(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Each warning and disturbance once, with the results that it speaks of."""
    found: dict[str, list[str]] = {}
    for result in results:
        disturbances = (result["latency"] or {}).get("disturbances", ())
        for text in [*result["warnings"], *disturbances]:
            found.setdefault(text, []).append(name_of(result))
    return found


def marks(result: Mapping[str, Any]) -> str:
    """The signs of `LEGEND` that a result has."""
    latency = result["latency"] or {}
    signs = {
        "*": result["pareto"],
        "~": latency and not latency["clean"],
        "e": latency.get("emulated"),
        "c": result.get("cached"),
    }
    return "".join(sign for sign, present in signs.items() if present)


def bytes_text(count: int | None) -> str:
    """``1.4 MB``; decimal units, as the sizes of files are sold."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _table(
    device: str, results: Sequence[Mapping[str, Any]], values: Mapping[str, Any], width: int
) -> Table:
    """On a narrow terminal the memory and then the interval are left out; files have both."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    board = values["devices"].get(device, {})
    title = f"{device}: {board.get('model') or board.get('cpu') or 'unknown board'}"
    present = "".join(marks(result) for result in results)
    caption = "   ".join(f"{sign} {text}" for sign, text in LEGEND.items() if sign in present)
    table = Table(
        title=escape(title),
        caption=escape(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    several = len({r["target"]["options"].get("threads", 1) for r in results}) > 1
    names = [metric["name"] for metric in values["metrics"]]
    rows = [_cells(result, names) for result in results]
    left_out = {"threads"} if not several else set()
    needed = sum(max(len(head), *(len(row[head]) for row in rows)) + 1 for head in rows[0])
    for head in ("memory", "95 %"):
        if needed > width:
            left_out.add(head)
            needed -= max(len(head), *(len(row[head]) for row in rows)) + 1
    for head in rows[0]:
        if head not in left_out:
            words = head in {"variant", "backend", "precision", ""}
            table.add_column(
                escape(head), justify="left" if words else "right", no_wrap=head != "variant"
            )
    for row in rows:
        table.add_row(*(escape(text) for head, text in row.items() if head not in left_out))
    return table


def _cells(result: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, str]:
    """A line of the table by the heads of its columns."""
    latency, target = result["latency"], result["target"]
    low, high = latency["ci95_ms"]
    speedup = result["speedup_vs_fp32"]
    return {
        "variant": result["variant"],
        "backend": target["backend"],
        "precision": target["precision"],
        "threads": str(target["options"].get("threads", 1)),
        "median ms": f"{latency['median_ms']:.3f}",
        "95 %": f"{low:.3f}-{high:.3f}",
        "vs fp32": f"x{speedup:.2f}" if speedup is not None else "-",
        **{name: metric_text(result["metrics"].get(name)) for name in metrics},
        "size": bytes_text(result["size_bytes"]),
        "memory": bytes_text(result["peak_memory_bytes"]),
        "": marks(result),
    }


def metric_text(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def _print_front(values: Mapping[str, Any], console: Console) -> None:
    from rich.markup import escape

    front = [r for r in values["results"] if r["pareto"]]
    if not front:
        return
    first = values["metrics"][0]["name"] if values["metrics"] else None
    axis = first or "size"
    console.print(escape(f"Pareto front (latency, {axis}):"), highlight=False)
    for result in sorted(front, key=lambda r: r["latency"]["median_ms"]):
        quality = (
            metric_text(result["metrics"].get(first))
            if first
            else bytes_text(result["size_bytes"])
        )
        line = f"  {result['latency']['median_ms']:.3f} ms  {axis} {quality}  {name_of(result)}"
        console.print(escape(line), highlight=False, soft_wrap=True)
