"""Retention: which runs go, and that those with a tag stay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from wherry.errors import UsageError


@pytest.fixture
def aged(make, records):
    """Runs of 0, 10, 20, 30 and 40 days ago; that of 20 and the oldest have a tag."""
    now = datetime.now(UTC)
    for days in (40, 0, 10, 20, 30):
        record = make.record(
            make.result(),
            run_id=f"d{days}",
            tag="base" if days in {20, 40} else None,
            started=(now - timedelta(days=days, seconds=5)).isoformat(),
        )
        records.save(record)


def gone(records, **limits) -> list[str]:
    """Which go; a dry run says the same, and takes none."""
    before = records.runs()
    would = records.prune(dry_run=True, **limits)
    assert records.runs() == before
    found = records.prune(**limits)
    assert found == would
    assert records.runs() == [each for each in before if each not in found]
    return [each.run_id for each in found]


@pytest.mark.parametrize(
    ("limits", "run_ids"),
    [
        ({"keep": 2}, ["d30"]),
        ({"keep": 2, "tagged": True}, ["d20", "d30", "d40"]),
        ({"keep": 0}, ["d0", "d10", "d30"]),
        ({"keep": 9}, []),
        ({"older_than": timedelta(days=10)}, ["d10", "d30"]),
        ({"older_than": timedelta(days=25), "tagged": True}, ["d30", "d40"]),
        ({"keep": 3, "older_than": timedelta(days=5)}, ["d30"]),
        ({"keep": 1, "older_than": timedelta(days=15)}, ["d30"]),
    ],
)
def test_what_goes(aged, records, limits, run_ids):
    assert gone(records, **limits) == run_ids


def test_a_run_that_got_its_tag_meanwhile_stays(aged, records, monkeypatch):
    before = records.runs()
    records.retag("d30", "release")
    monkeypatch.setattr(records, "runs", lambda: before)
    records.prune(keep=2)
    assert records.find("release") == "d30"
    records.prune(keep=2, tagged=True)
    monkeypatch.undo()
    assert [each.run_id for each in records.runs()] == ["d0", "d10"]


def test_without_a_limit_nothing_goes(aged, records):
    with pytest.raises(UsageError, match="all runs would be deleted"):
        records.prune(tagged=True)
    assert len(records.runs()) == 5


@pytest.mark.parametrize("kind", ["sqlite"])  # PostgreSQL's autovacuum does that
def test_the_room_is_given_back(make, kind, tmp_path, records):
    for number in range(30):
        records.save(make.record(*[make.result(str(i)) for i in range(40)], run_id=f"r{number}"))
    file = tmp_path / "records" / "records.db"
    records.close()
    before = file.stat().st_size
    records.prune(keep=1)
    records.close()
    assert file.stat().st_size < before / 3
