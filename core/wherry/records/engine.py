"""The connection to the database of records: opened at its newest schema, told in our errors.

SQLite keeps a write-ahead log that is synced at each commit: what was acknowledged survives a
killed process and, as far as the disk keeps its word, a lost power. Writers take turns from the
beginning of their transactions, so that none fails because another was faster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    Connection,
    Engine,
    column,
    create_engine,
    event,
    exc,
    func,
    inspect,
    select,
    table,
)
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool, QueuePool

from wherry.errors import StoreError
from wherry.records.place import Place
from wherry.records.tables import HEAD, VERSIONS

_LITTLE = 1 << 20  # bytes free on a disk
_WAIT_S = 60.0
_CONNECT_S = 10
_LOCK = 0x77_68_65_72_72_79  # of PostgreSQL's advisory locks, ours
_IMMEDIATE = "wherry_immediate"


def open_engine(place: Place) -> Engine:
    """An engine on a database that is at our schema, which is made or brought there.

    Raises:
        StoreError: the database cannot be reached, read, or brought to our schema, or is newer.
    """
    with told(place):
        engine = _sqlite(place) if place.file is not None else _postgres(place)
        try:
            if _version(engine) != HEAD:
                _migrate(engine, place)
        except BaseException:
            engine.dispose()
            raise
        return engine


@contextlib.contextmanager
def reading(engine: Engine, place: Place) -> Iterator[Connection]:
    """A transaction that sees one state of the database."""
    with told(place), engine.connect() as connection:
        if place.file is None:
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextlib.contextmanager
def writing(engine: Engine, place: Place) -> Iterator[Connection]:
    """A transaction that is kept whole at the end, or not at all."""
    with told(place), engine.connect() as connection:
        connection.execution_options(**{_IMMEDIATE: True})
        with connection.begin():
            yield connection


def shrink(engine: Engine, place: Place) -> None:
    """Give SQLite's free pages back to the disk."""
    with told(place), engine.connect() as connection:
        # by the driver's script: its execute() takes one step, which is one page
        _driver(connection).executescript("PRAGMA incremental_vacuum")


@contextlib.contextmanager
def told(place: Place) -> Iterator[None]:
    """Tell an error of the database or of its file as a `StoreError`."""
    try:
        yield
    except (DBAPIError, exc.TimeoutError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        said = place.hide(" ".join(str(cause).split()))
        # the driver's own error is no cause: it may show the password
        raise StoreError(
            f"the database of records cannot be used: {said}",
            where=place.shown,
            remedy=_remedy(place, said),
        ) from None
    except OSError as error:
        raise StoreError(
            f"the database of records cannot be used: {error.strerror or error}",
            where=str(error.filename or place.shown),
            remedy=_remedy(place, ""),
        ) from error


def _remedy(place: Place, said: str) -> str:
    if place.file is None:
        return "Look whether the server runs and lets you in, and at WHERRY_RECORDS."
    # where even the log's index does not fit, SQLite speaks of input and output
    if "full" in said or ("I/O" in said and _free_bytes(place.file) < _LITTLE):
        return "Make room on its disk."
    if "malformed" in said or "not a database" in said:
        return "Move the file away and import an export, or set WHERRY_RECORDS to another."
    if "locked" in said:
        return f"Another process has held it for {_WAIT_S:.0f} s: end that."
    return "Look at that path, or set WHERRY_RECORDS to another."


def _free_bytes(file: Path) -> int:
    try:
        return shutil.disk_usage(file.parent).free
    except OSError:
        return _LITTLE  # it cannot be told: then nothing is said of room


def _sqlite(place: Place) -> Engine:
    path = place.file
    assert path is not None
    if path.exists():
        writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = True

    def connect() -> sqlite3.Connection:
        mode = "rwc"
        if not writable:
            # without its log the file is whole, and nobody here can make the log's index
            log = path.with_name(path.name + "-wal")
            mode = "ro" if log.exists() else "ro&immutable=1"
        name = f"file:{quote(os.fsencode(path))}?mode={mode}"
        connection = sqlite3.connect(
            name, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    # of a file that it takes for immutable, a connection does not see what others write later
    pool = QueuePool if writable else NullPool
    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=pool)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get(_IMMEDIATE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _postgres(place: Place) -> Engine:
    assert place.url is not None
    arguments: dict[str, Any] = {"application_name": "wherry"}
    if "connect_timeout" not in place.url.query:
        arguments["connect_timeout"] = _CONNECT_S
    try:
        return create_engine(place.url, connect_args=arguments, pool_pre_ping=True)
    except ImportError as error:
        raise StoreError(
            f"the driver of PostgreSQL is not installed: {error}",
            where=place.shown,
            remedy="`pip install 'wherry[postgres]'` brings it.",
        ) from error


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _version(engine: Engine) -> str | None:
    """The migration that the database is at; None: it has none of our tables."""
    try:
        with engine.connect() as connection:
            return _read_version(connection)
    except (OperationalError, ProgrammingError):
        with engine.connect() as connection:
            if inspect(connection).has_table(VERSIONS):
                raise
        return None


def _read_version(connection: Connection) -> str | None:
    found: str | None = connection.execute(
        select(column("version_num")).select_from(table(VERSIONS))
    ).scalar()
    return found


def _migrate(engine: Engine, place: Place) -> None:
    """Bring it to `HEAD`, one process at a time."""
    with contextlib.ExitStack() as stack:
        if place.file is not None:
            if not os.access(place.file.parent, os.W_OK):
                raise StoreError(
                    "the database of records is of an earlier wherry, and cannot be written",
                    where=place.shown,
                    remedy="Let somebody who may write it open it once with this wherry.",
                )
            from wherry.filelock import hold

            # a file takes its journal's mode only where nobody else has it open in a transaction
            lock = place.file.with_name(place.file.name + ".lock")
            stack.enter_context(hold(lock, remove=True))
            with engine.connect() as connection:
                driver = _driver(connection)
                driver.execute("PRAGMA auto_vacuum=INCREMENTAL")
                driver.execute("PRAGMA journal_mode=WAL")
        with writing(engine, place) as connection:
            if place.file is None:
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            there = inspect(connection).has_table(VERSIONS)
            found = _read_version(connection) if there else None
            if found != HEAD:  # else another process was faster
                _upgrade(connection, found, place)


def _upgrade(connection: Connection, found: str | None, place: Place) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "wherry.records:migrations")
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StoreError(
            f"the database is at schema {found}, and this wherry knows those up to {HEAD}",
            where=place.shown,
            remedy="A newer wherry has made it: install that, `pip install --upgrade wherry`.",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
