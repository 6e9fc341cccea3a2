"""The database of records: how long a run takes to be kept, and a team's questions to be answered.

``python tests/benchmarks/bench_records.py [--runs 10000] [--folder FOLDER]``, with Debian's
package postgresql and the extra ``postgres``. On SQLite and on a PostgreSQL server of its own, both
of which wait for the disk as they do by themselves:

- a run of 200 targets with 1,000 raw samples each is kept, beside the floor: the same bytes by the
  driver alone, two columns, one transaction;
- of 10,000 runs of 20 targets with 300 samples each, the list's page, a comparison (two whole
  runs), a trend, and the targets are asked for; beside the trend its floor, the rows by the driver.

Exits with 1 where keeping a run takes a second or more, or one of the questions 300 ms or more.
"""

from __future__ import annotations

import argparse
import math
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from sqlalchemy import insert, select, text

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from postgres_server import both_databases  # noqa: E402 -- of the folder above
from record_makers import layer_of, layered_of, record_of, result_of  # noqa: E402 -- likewise

from wherry.records.database import Records  # noqa: E402 -- likewise
from wherry.records.engine import writing  # noqa: E402 -- likewise
from wherry.records.rows import Rows, rows_of, target_key  # noqa: E402 -- likewise
from wherry.records.tables import detail, result, run, samples  # noqa: E402 -- likewise
from wherry.reports import RunRecord  # noqa: E402 -- likewise

QUESTION_S, KEEP_S = 0.3, 1.0
ORIGINALS = 200
NUMBERS = np.random.default_rng(0)
BACKENDS = ("onnxruntime", "tflite", "ncnn", "tensorrt", "mace")


def say(line: str) -> None:
    """A line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def a_run(number: int, targets: int, count: int) -> RunRecord:
    """As the runs of a team are: each a little slower or faster than the one before."""
    results = [
        result_of(
            f"variant{i // len(BACKENDS)}",
            BACKENDS[i % len(BACKENDS)],
            ms=float((1 + i) * NUMBERS.lognormal(0, 0.02)),
            top1=float(0.98 + NUMBERS.normal(0, 0.001)),
            **layered_of(*(layer_of(f"conv{k}", float(NUMBERS.random())) for k in range(12))),
        )
        for i in range(targets)
    ]
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=10 * number)
    made = record_of(
        *results,
        run_id=f"{started:%Y%m%d-%H%M%S}-{number % 65536:04x}",
        started=started.isoformat(timespec="seconds"),
        finished=(started + timedelta(minutes=8)).isoformat(timespec="seconds"),
        manifest_text="wherry: 1\n" * 100,
        tag="nightly" if number % 50 == 0 else None,
    )
    spread = NUMBERS.lognormal(math.log(1e6), 0.03, (targets, count))
    infer = (spread * np.arange(1, targets + 1)[:, None]).astype(np.uint64)
    copies = NUMBERS.integers(20_000, 30_000, infer.shape, np.uint64)
    arrays = tuple(
        {"infer_ns": mine, "total_ns": mine + more}
        for mine, more in zip(infer, copies, strict=True)
    )
    return RunRecord(made.values, arrays, made.manifest)


def timed(call: Callable[[], object], repeats: int = 15) -> tuple[float, float, float]:
    """Of a call: (median, greatest) time, median of this process's processor time; seconds."""
    taken, worked = [], []
    for _ in range(repeats):
        began, before = time.perf_counter(), time.process_time()
        call()
        taken.append(time.perf_counter() - began)
        worked.append(time.process_time() - before)
    return statistics.median(taken), max(taken), statistics.median(worked)


def blobs(rows: Rows) -> list[tuple[str, bytes]]:
    """The bytes of a run, with a word for each."""
    found = [("run", rows.run["body"]), *(("result", each["body"]) for each in rows.details)]
    return found + [(each["name"], each["data"]) for each in rows.samples]


def plain_sqlite(path: Path) -> Callable[[list[tuple[str, bytes]]], None]:
    """Keeps bytes by the driver alone."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE plain (name TEXT, data BLOB)")

    def keep(rows: list[tuple[str, bytes]]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO plain VALUES (?, ?)", rows)
        connection.execute("COMMIT")

    return keep


def plain_postgres(url: str) -> Callable[[list[tuple[str, bytes]]], None]:
    """The same on PostgreSQL."""
    connection = psycopg.connect(url)
    connection.execute("CREATE TABLE plain (name TEXT, data BYTEA)")
    connection.commit()

    def keep(rows: list[tuple[str, bytes]]) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany("INSERT INTO plain VALUES (%s, %s)", rows)

    return keep


def bench_keeping(name: str, records: Records, plain: Callable[[Any], None]) -> bool:
    """A run of 200 targets, and its bytes alone; False: it took too long."""
    made: Iterator[RunRecord] = iter([a_run(-1 - i, 200, 1000) for i in range(7)])
    median, most, work = timed(lambda: records.save(next(made)), 7)
    rows = blobs(rows_of(a_run(-9, 200, 1000)))
    floor, *_ = timed(lambda: plain(rows), 7)
    size = sum(len(data) for _, data in rows)
    say(
        f"{name:11s} keep 200 targets, {size / 1e6:.2f} MB: {median * 1e3:6.0f} ms (most "
        f"{most * 1e3:.0f}, {work * 1e3:.0f} of the processor here); "
        f"floor {floor * 1e3:.0f} ms, x{median / floor:.1f}"
    )
    records.delete([each.run_id for each in records.runs()])
    return most < KEEP_S


def fill(databases: list[Records], count: int) -> None:
    """The tables directly: the newest runs as they are kept, older ones as copies of their rows.

    A copy has an id and a start of its own; its hash is that of the run that it was copied from.
    """
    originals = min(ORIGINALS, count)
    rows = [rows_of(a_run(count - originals + i, 20, 300)) for i in range(originals)]
    first = 1_000_000
    for records in databases:
        with writing(records._engine, records._place) as connection:
            connection.execute(
                insert(run), [{"id": first + i, **each.run} for i, each in enumerate(rows)]
            )
            for table, name in ((result, "results"), (detail, "details"), (samples, "samples")):
                connection.execute(
                    insert(table),
                    [
                        {"run": first + i, **row}
                        for i, each in enumerate(rows)
                        for row in getattr(each, name)
                    ],
                )
        for back in range(originals, count, originals):
            copies = rows[: count - back]
            with writing(records._engine, records._place) as connection:
                connection.execute(
                    insert(run),
                    [copy_of(each.run, first + i - back, back) for i, each in enumerate(copies)],
                )
                for table in (result, detail, samples):
                    others = [column for column in table.c if column.name != "run"]
                    of = table.c.run.between(first, first + len(copies) - 1)
                    start = select(run.c.started).where(run.c.id == table.c.run - back)
                    taken = [
                        start.scalar_subquery() if column.name == "started" else column
                        for column in others
                    ]
                    connection.execute(
                        insert(table).from_select(
                            ["run", *(column.name for column in others)],
                            select(table.c.run - back, *taken).where(of),
                        )
                    )
        if records._place.file is None:  # as its autovacuum does in time
            with records._engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.execute(text("ANALYZE"))


def copy_of(values: dict[str, Any], number: int, back: int) -> dict[str, Any]:
    """A run's row for an older run of the same figures."""
    started = values["started"] - timedelta(minutes=10 * back)
    run_id = f"{started:%Y%m%d-%H%M%S}-{number % 65536:04x}"
    return {**values, "id": number, "run_id": run_id, "started": started}


def bench_questions(name: str, records: Records, floor: Callable[[], list[Any]]) -> bool:
    """Each question; False: one took too long."""
    known = [each.run_id for each in records.runs()]
    key = target_key(result_of("variant1", "ncnn"))
    middle, older = known[len(known) // 2], known[ORIGINALS // 2]
    questions: dict[str, Callable[[], object]] = {
        "list, the newest 50": lambda: records.runs(50),
        "list, a page from the middle": lambda: records.runs(50, before=middle),
        "list, 50 of a device": lambda: records.runs(50, device="pi4"),
        "list, 50 of a device of none": lambda: records.runs(50, device="none"),
        "compare, two whole runs": lambda: (records.load("last"), records.load(older)),
        "trend, the newest 200": lambda: records.trend(key, limit=200),
        "trend, all": lambda: records.trend(key),
        "trend of top1, all": lambda: records.trend(key, "top1"),
        "targets": records.targets,
    }
    assert len(records.trend(key)) == len(known)
    good = True
    for question, ask in questions.items():
        began = time.perf_counter()
        ask()
        first = time.perf_counter() - began
        median, most, work = timed(ask)
        beside = ""
        if question == "trend, all":
            bare, *_ = timed(lambda: len(floor()))
            beside = f"; floor {bare * 1e3:.1f} ms, x{median / bare:.1f}"
        good = good and max(first, most) < QUESTION_S
        say(
            f"{name:11s} {question:29s} {median * 1e3:6.1f} ms "
            f"(first {first * 1e3:.0f}, most {most * 1e3:.0f}; processor {work * 1e3:.0f}){beside}"
        )
    return good


def main() -> int:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="for the databases; it needs 3 GB")
    options = parser.parse_args()
    with ExitStack() as stack:
        both = stack.enter_context(both_databases(options.folder))
        lite, postgres = both.lite, both.postgres
        both.server.sql("CREATE DATABASE plain")
        good = bench_keeping("SQLite", lite, plain_sqlite(both.folder / "plain.db"))
        good &= bench_keeping("PostgreSQL", postgres, plain_postgres(both.server.url("plain")))
        began = time.perf_counter()
        fill([lite, postgres], options.runs)
        say(f"filled with {options.runs:,} runs of 20 targets, {time.perf_counter() - began:.0f} s")
        with postgres._engine.connect() as connection:
            size = connection.execute(text("SELECT pg_database_size('records')")).scalar_one()
        kept = both.file.stat().st_size
        say(f"on disk: SQLite {kept / 1e6:.0f} MB, PostgreSQL {size / 1e6:.0f} MB")

        words = "SELECT run, median_ms, low_ms, high_ms, status, timed_by, clean, emulated, board "
        words += "FROM wherry_result WHERE target_key = "
        key = target_key(result_of("variant1", "ncnn"))
        bare_lite = stack.enter_context(sqlite3.connect(both.file))
        bare = stack.enter_context(psycopg.connect(both.url, autocommit=True))
        good &= bench_questions(
            "SQLite", lite, lambda: bare_lite.execute(f"{words}?", (key,)).fetchall()
        )
        good &= bench_questions(
            "PostgreSQL", postgres, lambda: bare.execute(f"{words}%s", (key,)).fetchall()
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
