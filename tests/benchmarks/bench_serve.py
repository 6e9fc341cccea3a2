"""The server's pages over a team's records: how long each takes, beside its questions alone.

``python tests/benchmarks/bench_serve.py [--runs 10000] [--folder FOLDER]``, with Debian's package
postgresql and the extras ``postgres`` and ``serve``. On SQLite and a PostgreSQL server of its own,
filled as by ``bench_records.py``, the application is asked in process for each page and its JSON;
beside each stands the time of its questions to the database alone.

Exits with 1 where a list, a comparison or a trend takes 300 ms or more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]

from bench_records import QUESTION_S, a_run, fill, say, timed  # noqa: E402 -- of this folder
from postgres_server import both_databases  # noqa: E402 -- of the folder of the tests' support
from record_makers import result_of  # noqa: E402 -- likewise
from served import timed as with_rounds  # noqa: E402 -- likewise
from starlette.testclient import TestClient  # noqa: E402 -- after the paths

from wherry.records.database import Records  # noqa: E402 -- likewise
from wherry.records.rows import target_key  # noqa: E402 -- likewise
from wherry.serve.app import make_app  # noqa: E402 -- likewise
from wherry.serve.guard import Keeper  # noqa: E402 -- likewise
from wherry.serve.site import Site  # noqa: E402 -- likewise


def bench(name: str, records: Records, home: Path, count: int) -> bool:
    """Each page; False: one took too long."""
    for number in (count, count + 1):  # two whose latency can be compared
        records.save(with_rounds(a_run(number, 20, 300), number))
    client = TestClient(make_app(Site(records, Keeper(None), home)), base_url="http://localhost")
    key = target_key(result_of("variant1", "ncnn"))
    middle = records.find(f"last~{count // 2}")
    pages = {
        "/": lambda: records.runs(51),
        f"/?before={middle}": lambda: records.runs(51, before=middle),
        "/?device=pi4": lambda: records.runs(51, device="pi4"),
        "/targets": records.targets,
        f"/targets/{key}": lambda: records.trend(key, limit=200),
        f"/targets/{key}?metric=top1": lambda: records.trend(key, "top1", 200),
        "/compare?base=last~1&new=last": lambda: [records.load(n) for n in ("last~1", "last")],
        "/api/runs": lambda: records.runs(51),
        f"/api/targets/{key}": lambda: records.trend(key, limit=200),
        "/api/compare?base=last~1&new=last": lambda: [records.load(n) for n in ("last~1", "last")],
    }
    good = True
    for place, floor in pages.items():
        client.get(place)  # templates are compiled once

        def ask(place: str = place) -> None:
            assert client.get(place).status_code == 200

        median, most, work = timed(ask)
        bare, *_ = timed(floor)
        good = good and median < QUESTION_S
        shown = place.replace(key, "KEY").replace(middle, "MIDDLE")
        say(
            f"{name:11s} {shown:34s} {median * 1e3:6.1f} ms (most {most * 1e3:.0f}; processor "
            f"{work * 1e3:.0f}); questions alone {bare * 1e3:.1f} ms, x{median / bare:.1f}"
        )
    return good


def main() -> int:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="for the databases; it needs 3 GB")
    options = parser.parse_args()
    with both_databases(options.folder) as both:
        fill([both.lite, both.postgres], options.runs)
        good = bench("SQLite", both.lite, both.folder, options.runs)
        good &= bench("PostgreSQL", both.postgres, both.folder, options.runs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
