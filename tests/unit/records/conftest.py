"""Both databases of records behind one fixture, and the makers of records."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgres_server import Server, find_programs, running
from record_makers import Makers
from sqlalchemy import Connection, create_engine, func, select

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


KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    """``sqlite`` or ``postgresql``."""
    return request.param


@pytest.fixture
def fresh_url(kind, request, tmp_path, monkeypatch) -> Iterator[str]:
    """Of a database that holds nothing; it is the one that ``Records.open()`` takes."""
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/records/records.db"
        monkeypatch.setenv("WHERRY_RECORDS", url)
        yield url
        return
    server: Server = request.getfixturevalue("postgres")
    name = f"fresh_{secrets.token_hex(6)}"
    server.sql(f"CREATE DATABASE {name}")
    monkeypatch.setenv("WHERRY_RECORDS", server.url(name))
    yield server.url(name)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres_records(postgres: Server) -> Iterator[tuple[str, Records]]:
    """One database at our schema for all tests, as making one takes a while."""
    postgres.sql("CREATE DATABASE shared")
    url = postgres.url("shared")
    with Records.open(url) as opened:
        yield url, opened


@pytest.fixture
def url(kind, request, monkeypatch) -> Iterator[str]:
    """Of a database without runs; it is the one that ``Records.open()`` takes."""
    if kind == "sqlite":
        yield request.getfixturevalue("fresh_url")
        return
    found, opened = request.getfixturevalue("postgres_records")
    opened.delete([each.run_id for each in opened.runs()])
    monkeypatch.setenv("WHERRY_RECORDS", found)
    yield found


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


@pytest.fixture
def connect_plainly(fresh_url):
    """A transaction as another program would have it, on a database that may not be ours yet."""

    @contextmanager
    def transaction() -> Iterator[Connection]:
        place = find_place(fresh_url)
        if place.file is not None:
            place.file.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(place.url or fresh_url)
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    return transaction


class Nobody:
    """Somebody without rights; where we are no root, it is we.

    Attributes:
        folder: an empty one, which it can reach.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_only(self, path: Path) -> None:
        """Take the right to write from a database's files and folder."""
        for file in path.parent.glob(f"{path.name}*"):
            file.chmod(0o444)
        path.parent.chmod(0o555)

    def run(self, code: str) -> str:
        """What a program prints that has ``Records`` and ``StoreError``."""
        imports = "import os\nfrom wherry.records.database import Records\n"
        imports += "from wherry.errors import StoreError\n"
        # what is imported late may lie where a stranger cannot read
        imports += "import tempfile\nwith tempfile.TemporaryDirectory() as folder:\n"
        imports += "    with Records.open(f'sqlite:///{folder}/warm.db') as records:\n"
        imports += "        records.runs()\n"
        drop = "if os.geteuid() == 0: os.setgid(65534), os.setuid(65534)\n"
        words = [sys.executable, "-c", imports + drop + textwrap.dedent(code)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def as_nobody() -> Iterator[Nobody]:
    """To look with a stranger's rights."""
    # pytest's own folders let no stranger in
    folder = Path(tempfile.mkdtemp(prefix="wherry-nobody-", dir="/tmp"))
    yield Nobody(folder)
    folder.chmod(0o755)
    shutil.rmtree(folder)
