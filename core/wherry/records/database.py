"""The database of records: every finished run, kept whole, loaded whole, deleted whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from wherry.errors import StoreError, UsageError
from wherry.records.engine import reading, shrink, writing
from wherry.records.lists import Lists, Summary
from wherry.records.naming import check_tag
from wherry.records.rows import UNREADABLE, Rows, column_text, record_digest, record_of, rows_of
from wherry.records.tables import detail, result, run, samples
from wherry.reports import RunRecord

_BATCH = 500  # ids in one statement


class Records(Lists):
    """A database of records that is open: its lists (`Lists`), and its runs."""

    def save(self, record: RunRecord) -> bool:
        """Keep a run, whole or not at all.

        Returns:
            False where it was there already, the very same but for its tag, which is not changed.

        Raises:
            StoreError: there is another run of that id, or the database cannot be written.
            ValueError: it is no report, or JSON cannot say it.
        """
        rows = rows_of(record)
        try:
            with writing(self._engine, self._place) as connection:
                if self._same(connection, record, rows):
                    return False
                try:
                    _insert(connection, rows)
                except IntegrityError as error:
                    raise _RacedError from error
        except _RacedError:  # another process has kept that id since we looked
            with reading(self._engine, self._place) as connection:
                if not self._same(connection, record, rows):
                    raise
            return False
        return True

    def _same(self, connection: Connection, record: RunRecord, rows: Rows) -> bool:
        """Whether it is there; a tag is no part of a run, and the one that is there stays."""
        run_id, digest = rows.run["run_id"], rows.run["digest"]
        found = connection.execute(select(run.c.digest).where(run.c.run_id == run_id)).scalar()
        if found is None or found == digest:
            return found is not None
        there = _with_tag(self._load(connection, run_id), record.values["tag"])
        if record_digest(there) != digest:
            raise StoreError(
                f"there is another run of the id {run_id}",
                where=self.where,
                remedy="`wherry records delete` takes that away, if it is not wanted.",
            )
        return True

    def load(self, name: str = "last") -> RunRecord:
        """A run by id, tag, unique beginning of an id, ``last`` or ``last~N``.

        Raises:
            UsageError: there is no such run.
            StoreError: its rows are not as they were kept.
        """
        with reading(self._engine, self._place) as connection:
            return self._load(connection, self._find(connection, name))

    def _load(self, connection: Connection, run_id: str) -> RunRecord:
        kept = connection.execute(
            select(run.c.id, run.c.digest, run.c.body).where(run.c.run_id == run_id)
        ).one()
        details = select(detail.c.body).where(detail.c.run == kept.id).order_by(detail.c.position)
        arrays = (
            select(samples.c.position, samples.c.name, samples.c.data)
            .where(samples.c.run == kept.id)
            .order_by(samples.c.position, samples.c.name)
        )
        try:
            record = record_of(
                kept.body,
                connection.execute(details).scalars().all(),
                (tuple(row) for row in connection.execute(arrays)),
            )
            if record_digest(record) != kept.digest:
                raise ValueError("it does not match its hash")
        except UNREADABLE as error:
            raise StoreError(
                f"the run {run_id} is not as it was kept: {error}",
                where=self.where,
                remedy="Delete it (`wherry records delete`), and import it from an export.",
            ) from error
        return record

    def retag(self, run_id: str, tag: str | None) -> None:
        """Give a run another tag, or none.

        Raises:
            UsageError: there is no such run, or it cannot be a tag.
            StoreError: another has changed the run meanwhile.
        """
        if tag is not None:
            check_tag(tag)
        record = self.load(run_id)
        rows = rows_of(_with_tag(record, tag))
        changed = {name: rows.run[name] for name in ("tag", "digest", "body")}
        as_read = (run.c.run_id == rows.run["run_id"]) & (run.c.digest == record_digest(record))
        with writing(self._engine, self._place) as connection:
            if not connection.execute(update(run).where(as_read).values(changed)).rowcount:
                raise StoreError(
                    f"the run {run_id} was changed or deleted while its tag was",
                    where=self.where,
                    remedy="Try again.",
                )

    def delete(self, run_ids: Sequence[str], *, tagged: bool = True) -> int:
        """Delete runs by their ids; gives how many there were.

        Args:
            run_ids: the ids.
            tagged: those that have a tag by now, too.
        """
        with writing(self._engine, self._place) as connection:
            deleted = 0
            for start in range(0, len(run_ids), _BATCH):
                some = [column_text(each) for each in run_ids[start : start + _BATCH]]
                chosen = delete(run).where(run.c.run_id.in_(some))
                if not tagged:
                    chosen = chosen.where(run.c.tag.is_(None))
                deleted += connection.execute(chosen).rowcount
        if self._place.file is not None:  # PostgreSQL's own housekeeping does as much
            shrink(self._engine, self._place)
        return deleted

    def prune(
        self,
        *,
        keep: int | None = None,
        older_than: timedelta | None = None,
        tagged: bool = False,
        dry_run: bool = False,
    ) -> list[Summary]:
        """Delete old runs; gives them, the newest first.

        Args:
            keep: the newest so many stay, whatever their age; those with a tag are counted.
            older_than: only runs that began longer ago go; None: all but those that stay.
            tagged: runs with a tag go, too.
            dry_run: only say which would go.

        Raises:
            UsageError: there is no limit at all.
        """
        if keep is None and older_than is None:
            raise UsageError(
                "without a limit all runs would be deleted",
                remedy="Say how many stay (--keep), or which go (--older-than).",
            )
        found = self.runs()[keep or 0 :]
        if older_than is not None:
            oldest = datetime.now(UTC) - older_than
            found = [each for each in found if each.started < oldest]
        found = [each for each in found if tagged or each.tag is None]
        if not dry_run:
            self.delete([each.run_id for each in found], tagged=tagged)
        return found

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Compare all of each run with its hash; yields its id, and what is wrong with it.

        A run that was taken out, or changed together with its hash, is not found so.
        """
        with reading(self._engine, self._place) as connection:
            oldest_first = select(run.c.run_id).order_by(run.c.started, run.c.id)
            run_ids = connection.execute(oldest_first).scalars().all()
        for run_id in run_ids:
            with reading(self._engine, self._place) as connection:
                there = select(run).where(run.c.run_id == run_id)
                row = connection.execute(there).mappings().one_or_none()
                if row is not None:  # else it was deleted meanwhile
                    yield run_id, self._problem(connection, row)

    def _problem(self, connection: Connection, row: RowMapping) -> str | None:
        try:
            expected = rows_of(self._load(connection, row["run_id"]))
        except StoreError as error:
            return error.message
        except UNREADABLE as error:
            return f"it is no record: {error}"
        of_run = select(result).where(result.c.run == row["id"]).order_by(result.c.position)
        found = [dict(each) for each in connection.execute(of_run).mappings()]
        pairs = [
            (expected.run, dict(row), "the run"),
            *(
                (ours, theirs, f"the result {ours['name']!r}")
                for ours, theirs in zip(expected.results, found, strict=False)
            ),
        ]
        for ours, theirs, where in pairs:
            for name, value in ours.items():
                if name != "body" and theirs[name] != value:
                    return f"{name} of {where} was changed"
        if len(found) != len(expected.results):
            return "there are results more or less than were kept"
        return None


def _with_tag(record: RunRecord, tag: str | None) -> RunRecord:
    return replace(record, values={**record.values, "tag": tag})


class _RacedError(Exception):
    """Another has kept the same id at the same time."""


def _insert(connection: Connection, rows: Rows) -> None:
    number = connection.execute(insert(run).values(rows.run)).inserted_primary_key
    assert number is not None
    for table, values in (
        (result, rows.results),
        (detail, rows.details),
        (samples, rows.samples),
    ):
        if values:
            connection.execute(insert(table), [{"run": number[0], **row} for row in values])
