"""A row that was changed behind our back is found, and stops no other run."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from wherry.errors import StoreError
from wherry.records.rows import rows_of
from wherry.records.tables import detail, result, run, samples


@pytest.fixture
def two(make, records):
    """The older run is whole."""
    records.save(make.record(make.result(), run_id="whole", started="2026-11-01T00:00:00+00:00"))
    record = make.record(make.result(), make.result("slim"), run_id="hurt")
    records.save(record)
    return record


def changed(kind: str, record, make) -> sa.Update | sa.Delete | sa.Insert:
    other = rows_of(make.record(make.result(ms=0.5), make.result("slim"), run_id="hurt"))
    hurt = sa.select(run.c.id).where(run.c.run_id == "hurt").scalar_subquery()
    first = {"run": hurt, "position": 0}
    of_first = lambda table: (table.c.run == hurt) & (table.c.position == 0)  # noqa: E731
    return {
        "a result's JSON": sa.update(detail)
        .where(of_first(detail))
        .values(body=other.details[0]["body"]),
        "a result's JSON cut": sa.update(detail).where(of_first(detail)).values(body=b"x\x9c"),
        "the run's JSON": sa.update(run)
        .where(run.c.run_id == "hurt")
        .values(
            body=rows_of(make.record(make.result(), run_id="hurt", overrides=["a=b"])).run["body"]
        ),
        "samples": sa.update(samples)
        .where(of_first(samples) & (samples.c.name == "infer_ns"))
        .values(data=rows_of(record).samples[0]["data"][:-1] + b"\0"),
        "samples gone": sa.delete(samples).where(of_first(samples)),
        "samples of none": sa.insert(samples).values(**first, name="x", data=b""),
        "the hash": sa.update(run).where(run.c.run_id == "hurt").values(digest="0" * 64),
        "a result gone": sa.delete(result).where(of_first(result)),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("a result's JSON", "a result's JSON cut", "the run's JSON", "samples", "samples gone"),
        *("samples of none", "the hash", "a result gone"),
    ],
)
def test_a_changed_row_is_named_and_stops_no_other(two, make, records, connect, kind):
    with connect() as connection:
        connection.execute(changed(kind, two, make))
    with pytest.raises(StoreError, match="the run hurt is not as it was kept") as caught:
        records.load("hurt")
    assert caught.value.remedy
    problems = dict(records.verify())
    assert problems["whole"] is None
    assert "not as it was kept" in problems["hurt"]
    assert records.load("whole").values["run_id"] == "whole"
    assert records.delete(["hurt"]) == 1


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("result", "median_ms", 0.1),
        ("result", "clean", False),
        ("result", "metrics", {"top1": 1.0}),
        ("result", "target_key", "0" * 32),
        ("run", "tag", "best"),
        ("run", "failed", 3),
        ("run", "started", None),
    ],
)
def test_a_changed_column_is_named(two, records, connect, table, column, value):
    found = {"run": run, "result": result}[table]
    if column == "started":
        value = run.c.finished
    where = run.c.run_id == "hurt"
    if table == "result":
        where = (result.c.position == 1) & (
            result.c.run == sa.select(run.c.id).where(where).scalar_subquery()
        )
    with connect() as connection:
        connection.execute(sa.update(found).where(where).values({column: value}))
    words = {"run": "the run", "result": "the result 'slim, onnxruntime fp32 on pi4'"}[table]
    assert list(records.verify()) == [
        ("whole", None),
        ("hurt", f"{column} of {words} was changed"),
    ]
