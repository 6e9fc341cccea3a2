"""The database of records as lists see it: runs, targets, points of a trend; never a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, select

from wherry.records.engine import open_engine, reading
from wherry.records.naming import find_run
from wherry.records.place import Place, find_place
from wherry.records.rows import column_text, key_text
from wherry.records.tables import result, run

MEDIAN = "latency.median_ms"
FIGURES = (MEDIAN, "size_bytes", "peak_memory_bytes", "energy_mj")
"""What a trend can be of besides the manifests' metrics."""

_COLUMNS = {name: result.c[name.removeprefix("latency.")] for name in FIGURES}


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in a list.

    Attributes:
        run_id: its id.
        tag: of ``run --tag``.
        started: in UTC.
        finished: in UTC.
        manifest: path of the manifest on the host.
        model: digest of the model's file; None: it could not be read.
        wherry: version of wherry.
        host: name of the machine that wherry ran on.
        ok: how many results were measured.
        failed: how many were not.
        skipped: how many their backends do not support.
        gates: how many gates the manifest has.
        gates_failed: how many of them did not hold.
    """

    run_id: str
    tag: str | None
    started: datetime
    finished: datetime
    manifest: str
    model: str | None
    wherry: str
    host: str
    ok: int
    failed: int
    skipped: int
    gates: int
    gates_failed: int


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """A target over all runs that have it.

    Attributes:
        target_key: see `wherry.records.rows.target_key`.
        name: of the result, as the newest run has it; and so the next four.
        variant: of the manifest.
        backend: its name.
        precision: its name.
        device: its name in the inventory.
        runs: how many runs have it.
        run_id: of the newest of them.
    """

    target_key: str
    name: str
    variant: str
    backend: str
    precision: str
    device: str
    runs: int
    run_id: str


@dataclass(frozen=True, slots=True)
class Point:
    """A target in a run, for a trend. Points of unlike measurements are not to be joined.

    Attributes:
        run_id: of the run.
        tag: of the run.
        started: of the run, in UTC.
        status: ``ok``, ``failed`` or ``skipped``.
        value: of the metric; None: it was not measured.
        low: the interval's lower end; None but for ``latency.median_ms``.
        high: its upper end.
        timed_by: what timed it; None where it was not measured, and so the next two.
        clean: whether nothing disturbed the measurement.
        emulated: whether the board was emulated.
        board: fingerprint of the board; None: it was not reached.
        model: digest of the model's file.
        manifest: path of the manifest, as in `Summary`: another one's target is of another network,
            even where both are called alike.
    """

    run_id: str
    tag: str | None
    started: datetime
    status: str
    value: float | None
    low: float | None
    high: float | None
    timed_by: str | None
    clean: bool | None
    emulated: bool | None
    board: str | None
    model: str | None
    manifest: str


class Lists:
    """A database of records that is open. Threads may share it, but not a forked child.

    All methods raise `StoreError` where the database cannot be used.
    """

    def __init__(self, engine: Engine, place: Place) -> None:
        self._engine = engine
        self._place = place

    @classmethod
    def open(cls, url: str | None = None) -> Self:
        """Open it; make it where there is none, bring it to our schema where it is of an earlier.

        Args:
            url: ``postgresql://...`` or ``sqlite:///...``; None: that of ``$WHERRY_RECORDS``, of
                ``records.yaml`` in the config folder, else ``home()/records.db``.

        Raises:
            UsageError: it is no such URL.
            StoreError: the database cannot be used, or a newer wherry has made it.
        """
        place = find_place(url)
        return cls(open_engine(place), place)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def where(self) -> str:
        """Its URL without a password, for people."""
        return self._place.shown

    def find(self, name: str = "last") -> str:
        """The id of the run that a name means, as `load` takes it; raises `UsageError`."""
        with reading(self._engine, self._place) as connection:
            return self._find(connection, name)

    def _find(self, connection: Connection, name: str) -> str:
        return find_run(name, _Names(connection), self.where)

    def runs(
        self,
        limit: int | None = None,
        *,
        before: str | None = None,
        tag: str | None = None,
        manifest: str | None = None,
        device: str | None = None,
        since: datetime | None = None,
    ) -> list[Summary]:
        """The runs, the newest first; of one start, the last that was kept.

        Args:
            limit: how many at most.
            before: an id: only runs that are further down; the next page.
            tag: only with this.
            manifest: only of this path, or of paths that end so.
            device: only with a result on it.
            since: only that began then or later.

        Raises:
            UsageError: there is no run ``before``.
        """
        columns = [run.c[name] for name in Summary.__slots__]
        wanted = select(*columns).order_by(run.c.started.desc(), run.c.id.desc()).limit(limit)
        if tag is not None:
            wanted = wanted.where(run.c.tag == key_text(tag))
        if manifest is not None:
            wanted = wanted.where(_of_manifest(manifest))
        if device is not None:
            of_device = select(result.c.run).where(result.c.device == key_text(device))
            wanted = wanted.where(run.c.id.in_(of_device))
        if since is not None:
            wanted = wanted.where(run.c.started >= since)
        with reading(self._engine, self._place) as connection:
            if before is not None:
                run_id = self._find(connection, before)
                mark = connection.execute(
                    select(run.c.started, run.c.id).where(run.c.run_id == run_id)
                ).one()
                wanted = wanted.where(
                    (run.c.started < mark.started)
                    | ((run.c.started == mark.started) & (run.c.id < mark.id))
                )
            return [Summary(*row) for row in connection.execute(wanted)]

    def targets(
        self,
        *,
        target_key: str | None = None,
        manifest: str | None = None,
        device: str | None = None,
    ) -> list[TargetSummary]:
        """Every target of any run, those of the newest runs first.

        Args:
            target_key: only this.
            manifest: as in `runs`.
            device: only on it.
        """
        # of runs that were imported late, the last that was kept is taken for the newest
        groups = select(
            result.c.target_key, func.max(result.c.run).label("run"), func.count().label("runs")
        ).group_by(result.c.target_key)
        if target_key is not None:
            groups = groups.where(result.c.target_key == column_text(target_key))
        if device is not None:
            groups = groups.where(result.c.device == key_text(device))
        if manifest is not None:
            groups = groups.join(run, run.c.id == result.c.run).where(_of_manifest(manifest))
        group = groups.subquery()
        of_newest = (result.c.target_key == group.c.target_key) & (result.c.run == group.c.run)
        names = ("target_key", "name", "variant", "backend", "precision", "device")
        columns = [*(result.c[name] for name in names), group.c.runs, run.c.run_id]
        wanted = (
            select(*columns)
            .join(group, of_newest)
            .join(run, run.c.id == result.c.run)
            .order_by(group.c.run.desc(), result.c.position)
        )
        with reading(self._engine, self._place) as connection:
            return [TargetSummary(*row) for row in connection.execute(wanted)]

    def metrics(self, target_key: str) -> list[str]:
        """The manifest's metrics of a target, by name, as it had them when it was last measured."""
        of_target = (result.c.target_key == column_text(target_key)) & (result.c.status == "ok")
        wanted = select(result.c.metrics).where(of_target).order_by(result.c.run.desc()).limit(1)
        with reading(self._engine, self._place) as connection:
            return list(connection.execute(wanted).scalar() or ())

    def trend(
        self,
        target_key: str,
        metric: str = MEDIAN,
        limit: int | None = None,
        *,
        manifest: str | None = None,
    ) -> list[Point]:
        """A figure of one target over the runs, the oldest first.

        Args:
            target_key: see `wherry.records.rows.target_key`.
            metric: one of `FIGURES`, or a metric of the manifests.
            limit: how many of the newest runs at most.
            manifest: as in `runs`.
        """
        value: ColumnElement[Any] = _COLUMNS.get(metric, result.c.metrics)
        head = [run.c[name] for name in ("run_id", "tag", "started")]
        tail = [result.c[name] for name in ("timed_by", "clean", "emulated", "board")]
        bounds = [result.c.low_ms, result.c.high_ms]
        wanted = (
            select(*head, result.c.status, value, *bounds, *tail, run.c.model, run.c.manifest)
            .join(run, run.c.id == result.c.run)
            .where(result.c.target_key == column_text(target_key))
            .order_by(result.c.started.desc(), result.c.run.desc(), result.c.position)
            .limit(limit)
        )
        if manifest is not None:
            wanted = wanted.where(_of_manifest(manifest))
        with reading(self._engine, self._place) as connection:
            rows = connection.execute(wanted).all()
        points = []
        for run_id, tag, started, status, found, low, high, *rest in reversed(rows):
            figure = found if metric in _COLUMNS else found.get(column_text(metric))
            interval = (low, high) if metric == MEDIAN else (None, None)
            points.append(Point(run_id, tag, started, status, figure, *interval, *rest))
        return points


class _Names:
    """The names of the runs, for `find_run`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def newest(self, count: int, skip: int = 0) -> Sequence[str]:
        return self._ids(_newest().limit(count).offset(skip))

    def count(self) -> int:
        return int(self._connection.execute(select(func.count()).select_from(run)).scalar_one())

    def with_id(self, name: str) -> bool:
        return bool(self._ids(_newest().where(run.c.run_id == column_text(name))))

    def with_tag(self, tag: str) -> str | None:
        return next(iter(self._ids(_newest().where(run.c.tag == key_text(tag)).limit(1))), None)

    def beginning(self, name: str, limit: int) -> Sequence[str]:
        begun = func.substr(run.c.run_id, 1, len(name)) == column_text(name)
        wanted = select(run.c.run_id).where(begun).order_by(run.c.started, run.c.id).limit(limit)
        return self._ids(wanted)

    def _ids(self, wanted: Select[Any]) -> Sequence[str]:
        return self._connection.execute(wanted).scalars().all()


def _newest() -> Select[Any]:
    return select(run.c.run_id).order_by(run.c.started.desc(), run.c.id.desc())


def _of_manifest(manifest: str) -> ColumnElement[bool]:
    """Of this path or of one that ends so; LIKE would not care for the case in SQLite."""
    path = column_text(manifest)
    end = f"/{path}"
    start = func.length(run.c.manifest) - len(end) + 1
    ends = (start > 0) & (func.substr(run.c.manifest, start) == end)
    return (run.c.manifest == path) | ends
