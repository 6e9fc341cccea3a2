"""The tables of the database of records.

Columns are what lists, trends and comparisons ask for; the whole of a run is in ``body`` columns,
deflated JSON, from which the columns were made (`wherry.records.rows`). The tables' names begin
with ``wherry_``, so that a team can put them into a database that it has. Whoever changes them adds
a migration to ``migrations/versions`` and raises `HEAD`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

HEAD = "0001"
"""The newest migration: what a database has to be at."""

VERSIONS = "wherry_schema"
"""The table that names the migration which a database is at; the form is alembic's."""


class Moment(TypeDecorator[datetime]):
    """A moment in UTC, with its zone on this side whatever the database keeps."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002, D102 -- SQLAlchemy's hook
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002, D102 -- likewise
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


metadata = MetaData()

run = Table(
    "wherry_run",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", Text, nullable=False, unique=True),
    Column("tag", Text),
    Column("started", Moment, nullable=False),
    Column("finished", Moment, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("model", Text),
    Column("wherry", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("ok", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("skipped", Integer, nullable=False),
    Column("gates", Integer, nullable=False),
    Column("gates_failed", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("wherry_run_started", "started", "id"),
    Index("wherry_run_tag", "tag"),
)

result = Table(
    "wherry_result",
    metadata,
    Column("run", ForeignKey(run.c.id, ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("target_key", Text, nullable=False),
    Column("started", Moment, nullable=False),
    Column("name", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("precision", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("board", Text),
    Column("status", Text, nullable=False),
    Column("median_ms", Float(53)),
    Column("low_ms", Float(53)),
    Column("high_ms", Float(53)),
    Column("timed_by", Text),
    Column("clean", Boolean),
    Column("emulated", Boolean),
    Column("size_bytes", BigInteger),
    Column("peak_memory_bytes", BigInteger),
    Column("energy_mj", Float(53)),
    Column("metrics", JSON, nullable=False),
    Index("wherry_result_target", "target_key", "started", "run"),
    Index("wherry_result_device", "device", "run"),
)
"""``board`` is the fingerprint of the board; ``low_ms`` and ``high_ms`` bound the median.

``started`` is the run's: the newest of a target's many results are found by the index alone.
"""

detail = Table(
    "wherry_detail",
    metadata,
    Column("run", Integer, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
    ForeignKeyConstraint(
        ["run", "position"], [result.c.run, result.c.position], ondelete="CASCADE"
    ),
)
"""A result's JSON."""

samples = Table(
    "wherry_samples",
    metadata,
    Column("run", Integer, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    ForeignKeyConstraint(
        ["run", "position"], [result.c.run, result.c.position], ondelete="CASCADE"
    ),
)
"""Raw samples of a result, by the array's name, as `wherry.records.samples` encodes them."""
