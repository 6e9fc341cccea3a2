"""What the processes of the tests of records do: ``python records_child.py VERB ...``.

``save URL START COUNT``: keep COUNT runs, of the numbers from START on, and print each that was
acknowledged. ``open URL``: bring the database to our schema.
"""

from __future__ import annotations

import sys

from record_makers import record_of, result_of

from wherry.records.database import Records
from wherry.reports import RunRecord


def record(number: int) -> RunRecord:
    """The run of a number."""
    results = [result_of(f"variant{i}", ms=1.0 + number + i) for i in range(20)]
    return record_of(*results, run_id=f"run-{number:06}", manifest_text=f"wherry: 1 # {number}\n")


def main() -> None:
    """Do what the arguments say."""
    verb, url, *numbers = sys.argv[1:]
    if verb == "open":
        with Records.open(url):
            pass
        return
    start, count = map(int, numbers)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()  # all begin at once
    with Records.open(url) as records:
        for number in range(start, start + count):
            records.save(record(number))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
