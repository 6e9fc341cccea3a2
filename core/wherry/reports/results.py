"""The table of results in the page: its columns, its rows, and what it can be filtered by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.reports import words
from wherry.reports.words import Result


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        head: its name.
        text: a result's cell; of results that were not measured only where ``always``.
        value: what it is sorted by; None: by its text, and it is no number.
        always: results that were not measured have it, too.
        strong: the figure that the table is read for.
        fine: paper has no room for it.
    """

    head: str
    text: Callable[[Result], str]
    value: Callable[[Result], float | None] | None = None
    always: bool = False
    strong: bool = False
    fine: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and the number that it is sorted by, as text; empty where there is none."""

    text: str
    value: str = ""


@dataclass(frozen=True)
class Row:
    """A result.

    Attributes:
        index: of the result in the report.
        cells: in the columns' order.
        badges: (kind, text): what a reader has to know before the figures.
        facets: what it is filtered by, in the order of `Table.facets`.
        front: it is on the record's Pareto front.
    """

    index: int
    cells: tuple[Cell, ...]
    badges: tuple[tuple[str, str], ...]
    facets: tuple[str, ...]
    front: bool


@dataclass(frozen=True)
class Facet:
    """What rows can be filtered by: its name, its values, and how many rows have each."""

    name: str
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Table:
    """All of it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    facets: tuple[Facet, ...]


def table(results: Sequence[Result], metrics: Sequence[Mapping[str, Any]]) -> Table:
    """The table of all results: measured ones first, each in the record's order."""
    measured = [result for result in results if result["status"] == "ok"]
    found = columns(results, measured, [metric["name"] for metric in metrics])
    order = sorted(range(len(results)), key=lambda index: results[index]["status"] != "ok")
    keys: dict[str, Callable[[Result], str]] = {
        "variant": lambda r: str(r["variant"]),
        "backend": lambda r: str(r["target"]["backend"]),
        "precision": lambda r: str(r["target"]["precision"]),
        "device": lambda r: str(r["target"]["device"]),
        "status": lambda r: str(r["status"]),
    }
    facets = []
    for name, key in keys.items():
        counts: dict[str, int] = {}
        for result in results:
            counts[key(result)] = counts.get(key(result), 0) + 1
        facets.append(Facet(name, tuple(counts.items())))
    rows = [
        Row(
            index,
            tuple(_cell(column, results[index]) for column in found),
            tuple(badges(results[index])),
            tuple(key(results[index]) for key in keys.values()),
            bool(results[index]["pareto"]),
        )
        for index in order
    ]
    return Table(tuple(found), tuple(rows), tuple(facets))


def _cell(column: Column, result: Result) -> Cell:
    if result["status"] != "ok" and not column.always:
        return Cell("-")
    value = column.value(result) if column.value else None
    return Cell(column.text(result), "" if value is None else f"{value:.9g}")


def badges(result: Result) -> list[tuple[str, str]]:
    """The marks of a result in words, with what they mean for its looks."""
    latency = result["latency"] or {}
    found = [
        ("good", "front", result["pareto"]),
        ("warn", "not clean", latency and not latency["clean"]),
        ("bad", "emulated", latency.get("emulated")),
        ("plain", "from the store", result["cached"]),
        ("bad", result["status"], result["status"] == "failed"),
        ("plain", result["status"], result["status"] == "skipped"),
    ]
    return [(kind, text) for kind, text, present in found if present]


def columns(
    results: Sequence[Result], measured: Sequence[Result], metrics: Sequence[str]
) -> list[Column]:
    """What differs between results, then the figures; what nothing here has is left out."""

    def latency(key: str) -> Callable[[Result], float | None]:
        return lambda r: r["latency"][key]

    def ms(head: str, key: str) -> Column:
        return Column(head, lambda r: words.ms_text(latency(key)(r)), latency(key), fine=True)

    def of(key: str) -> Callable[[Result], float | None]:
        return lambda r: r[key]

    def option(name: str) -> Column:
        return Column(
            name, lambda r: words.option_text(r["target"]["options"].get(name)), always=True
        )

    def metric(name: str) -> Column:
        return Column(
            name,
            lambda r: words.metric_text(r["metrics"].get(name)),
            lambda r: r["metrics"].get(name),
        )

    def interval(result: Result) -> str:
        low, high = result["latency"]["ci95_ms"]
        return f"{words.ms_text(low)} to {words.ms_text(high)}"

    found = [
        Column("variant", lambda r: r["variant"], always=True),
        Column("backend", lambda r: r["target"]["backend"], always=True),
        Column("precision", lambda r: r["target"]["precision"], always=True),
    ]
    if len({result["target"]["device"] for result in results}) > 1:
        found.append(Column("device", lambda r: r["target"]["device"], always=True))
    found += [
        option(name) for name in dict.fromkeys(["threads", *words.differing_options(results)])
    ]
    found += [
        Column(
            "median ms",
            lambda r: words.ms_text(r["latency"]["median_ms"]),
            latency("median_ms"),
            strong=True,
        ),
        Column("95 %", interval, lambda r: r["latency"]["ci95_ms"][0]),
        Column(
            "vs fp32", lambda r: words.speedup_text(r["speedup_vs_fp32"]), of("speedup_vs_fp32")
        ),
    ]
    if words.shows_original(measured):

        def original(result: Result) -> float | None:
            found: float | None = result.get("speedup_vs_original")
            return found

        found.append(
            Column("vs original", lambda r: words.speedup_text(original(r)), original, fine=True)
        )
    found += [
        *(metric(name) for name in metrics),
        Column("size", words.size_text, of("size_bytes")),
        Column(
            "memory", lambda r: words.bytes_text(r["peak_memory_bytes"]), of("peak_memory_bytes")
        ),
    ]
    if any(result["energy_mj"] is not None for result in measured):
        found.append(
            Column("energy mJ", lambda r: words.energy_text(r["energy_mj"]), of("energy_mj"))
        )
    found += [
        ms("p90 ms", "p90_ms"),
        Column("samples", lambda r: str(r["latency"]["samples"]), latency("samples"), fine=True),
        Column("outliers", lambda r: str(r["latency"]["outliers"]), latency("outliers"), fine=True),
        ms("with copies ms", "with_copies_ms"),
        ms("load ms", "load_ms"),
        Column(
            "parity dB",
            lambda r: words.metric_text(r["parity"] and r["parity"]["sqnr_db"]),
            lambda r: r["parity"] and r["parity"]["sqnr_db"],
            fine=True,
        ),
    ]
    return found
