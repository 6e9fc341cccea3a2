"""Both databases of records behind one fixture, and the makers of records."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgres_server import Server, find_programs, running
from record_makers import Makers
from sqlalchemy import Connection, func, select

from wherry.records.database import Records
from wherry.records.engine import open_engine, writing
from wherry.records.place import find_place
from wherry.records.tables import metadata


@pytest.fixture(scope="session")
def make():
    """``make.result``, ``make.record``, ``make.gate``, ``make.rich``."""
    return Makers


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server, once a session."""
    if find_programs() is None:
        pytest.skip("Debian's package postgresql is not installed")
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    # the path of a socket may have 107 characters, and all folders above must let the owner in
    folder = Path(tempfile.mkdtemp(prefix="wherry-pg-", dir="/tmp"))
    try:
        with running(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request, tmp_path, monkeypatch) -> Iterator[str]:
    """An empty database of each kind; it is the one that ``Records.open()`` takes."""
    if request.param == "sqlite":
        found = f"sqlite:///{tmp_path}/records/records.db"
        monkeypatch.setenv("WHERRY_RECORDS", found)
        yield found
        return
    server: Server = request.getfixturevalue("postgres")
    name = f"records_{abs(hash(str(tmp_path)))}"
    server.sql(f"CREATE DATABASE {name}")
    monkeypatch.setenv("WHERRY_RECORDS", server.url(name))
    yield server.url(name)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def records(url) -> Iterator[Records]:
    """It, open."""
    with Records.open(url) as opened:
        yield opened


@pytest.fixture
def rows_left(connect):
    """How many rows each table holds."""

    def count() -> dict[str, int]:
        with connect() as connection:
            return {
                name.removeprefix("wherry_"): connection.execute(
                    select(func.count()).select_from(table)
                ).scalar_one()
                for name, table in metadata.tables.items()
            }

    return count


@pytest.fixture
def connect(url):
    """A transaction on the database itself."""

    @contextmanager
    def transaction() -> Iterator[Connection]:
        place = find_place(url)
        engine = open_engine(place)
        try:
            with writing(engine, place) as connection:
                yield connection
        finally:
            engine.dispose()

    return transaction
