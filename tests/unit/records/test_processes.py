"""Many processes at once, and processes that are killed: nothing is lost, nothing doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import records_child

from wherry.errors import StoreError
from wherry.records.database import Records

CHILD = Path(records_child.__file__)


def start(*arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, str(CHILD), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parent)}
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def writers(url: str, count: int, *, each: int, overlap: int = 0) -> list[subprocess.Popen[str]]:
    """That many, which have begun to keep their runs; neighbours share ``overlap`` of them."""
    found = [start("save", url, i * (each - overlap), each) for i in range(count)]
    for child in found:
        assert child.stdout.readline() == "ready\n"
    for child in found:
        child.stdin.write("\n")
        child.stdin.flush()
    return found


def check(url: str, numbers: set[int]) -> None:
    """Exactly these runs are there, and each is whole."""
    with Records.open(url) as records:
        found = [each.run_id for each in records.runs()]
        assert sorted(found) == [f"run-{number:06}" for number in sorted(numbers)]
        assert [problem for _, problem in records.verify() if problem] == []
        for number in list(numbers)[:3]:
            kept = records.load(f"run-{number:06}")
            assert kept.values == records_child.record(number).values


def test_eight_that_write_at_once_to_a_new_database(fresh_url):
    children = writers(fresh_url, 8, each=6, overlap=2)
    for child in children:
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        assert len(out.split()) == 6
    check(fresh_url, set(range(7 * 4 + 6)))


def test_one_that_is_killed_while_it_writes(url):
    """All that was acknowledged is there, and what was not is there whole or not at all."""
    acknowledged: set[int] = set()
    for attempt in range(4):
        child, other = writers(url, 2, each=1000)
        seen = [child.stdout.readline() for _ in range(3 + attempt)]
        child.send_signal(signal.SIGKILL)
        other.send_signal(signal.SIGKILL)
        for each in (child, other):  # by `read`: communicate() leaves out what readline() has read
            seen += each.stdout.read().splitlines()
            each.communicate()
        acknowledged.update(map(int, filter(str.strip, seen)))
    with Records.open(url) as records:
        found = {int(each.run_id.removeprefix("run-")) for each in records.runs()}
        assert acknowledged <= found
        assert len(found - acknowledged) <= 8  # one a process, kept but not yet told of
        assert records.save(records_child.record(999_999))
    check(url, found | {999_999})


def test_readers_are_not_held_up_by_a_writer(url, connect):
    with Records.open(url) as records:
        records.save(records_child.record(1))
        with connect() as connection:
            connection.exec_driver_sql("DELETE FROM wherry_run")
            assert len(records.runs()) == 1
            assert records.load().values["run_id"] == "run-000001"
        assert records.runs() == []


@pytest.mark.parametrize("kind", ["sqlite"])  # PostgreSQL's writers do not wait for each other
def test_a_database_that_nobody_gives_free_is_an_error_that_says_so(
    kind, fresh_url, connect, monkeypatch
):
    monkeypatch.setattr("wherry.records.engine._WAIT_S", 0.1)
    with (
        Records.open(fresh_url) as records,
        connect(),
        pytest.raises(StoreError, match=r"locked\. Another process has held it"),
    ):
        records.save(records_child.record(1))


@pytest.mark.postgres
def test_a_server_that_goes_away_is_an_error_and_comes_back(postgres):
    postgres.sql("CREATE DATABASE away")
    url = postgres.url("away")
    with Records.open(url) as records:
        records.save(records_child.record(1))
        postgres.stop()
        try:
            with pytest.raises(StoreError, match="cannot be used") as caught:
                records.save(records_child.record(2))
            assert "server" in str(caught.value.remedy)
            with pytest.raises(StoreError, match="cannot be used"):
                Records.open(url)
        finally:
            postgres.start()
        assert records.save(records_child.record(2))
    check(url, {1, 2})
