"""The schema: made once, brought up by one process at a time, never taken from a newer wherry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import records_child
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from wherry.errors import StoreError
from wherry.records.database import Records
from wherry.records.tables import HEAD, VERSIONS, metadata

CHILD = Path(records_child.__file__)


def test_the_migrations_make_the_tables(connect):
    with connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSIONS, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD


def test_the_newest_migration_is_the_one_that_is_asked_for():
    config = Config()
    config.set_main_option("script_location", "wherry.records:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_database_at_our_schema_costs_no_alembic(url):
    with Records.open(url):
        pass
    code = "import sys; from wherry.records.database import Records; Records.open().runs(); "
    code += "assert 'sqlalchemy' in sys.modules; assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neither_costs_the_command_line_its_start():
    code = "import sys; from wherry.cli import main; main(['--version']); "
    code += "assert 'sqlalchemy' not in sys.modules; assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_tables_of_others_in_the_same_database_stay(fresh_url, connect_plainly):
    with connect_plainly() as connection:  # as another program that has alembic, too
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('theirs')"))
        connection.execute(sa.text("CREATE TABLE run (id INTEGER)"))
    with Records.open(fresh_url) as records:
        records.save(records_child.record(1))
    with connect_plainly() as connection:
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version"))
        assert found.scalars().all() == ["theirs"]


def test_a_migration_that_fails_leaves_nothing(fresh_url, connect_plainly, monkeypatch):
    with connect_plainly() as connection:  # in the way of the second table
        connection.execute(sa.text("CREATE TABLE wherry_result (id INTEGER)"))
    with pytest.raises(StoreError, match="already exists"):
        Records.open(fresh_url)
    with connect_plainly() as connection:
        assert sa.inspect(connection).get_table_names() == ["wherry_result"]
        connection.execute(sa.text("DROP TABLE wherry_result"))
    with Records.open(fresh_url) as records:
        assert records.runs() == []


def test_a_newer_schema_is_refused_and_left_alone(fresh_url, connect_plainly):
    with Records.open(fresh_url) as records:
        records.save(records_child.record(1))
    with connect_plainly() as connection:
        connection.execute(sa.text(f"UPDATE {VERSIONS} SET version_num = '9999'"))
    with pytest.raises(StoreError, match="is at schema 9999") as caught:
        Records.open(fresh_url)
    assert "pip install --upgrade wherry" in str(caught.value.remedy)
    with connect_plainly() as connection:
        connection.execute(sa.text(f"UPDATE {VERSIONS} SET version_num = '{HEAD}'"))
    with Records.open(fresh_url) as records:
        assert len(records.runs()) == 1


def test_two_that_make_it_at_once(fresh_url):
    found = [subprocess.Popen([sys.executable, str(CHILD), "open", fresh_url]) for _ in range(2)]
    assert [child.wait(60) for child in found] == [0, 0]
    with Records.open(fresh_url) as records:
        assert records.runs() == []


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"x" * 5000, b"hello" * 1000])
def test_a_file_that_is_no_database(tmp_path, content):
    path = tmp_path / "records.db"
    path.write_bytes(content)
    if not content:  # as one that was just made
        with Records.open(f"sqlite:///{path}") as records:
            assert records.runs() == []
        return
    with pytest.raises(StoreError, match="cannot be used") as caught:
        Records.open(f"sqlite:///{path}")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("left_open", [False, True])
def test_who_may_only_read_sees_what_is_written_meanwhile(left_open, tmp_path, monkeypatch):
    """As a server does for weeks that runs as another user."""
    url = f"sqlite:///{tmp_path}/records.db"
    with Records.open(url) as writer:
        writer.save(records_child.record(1))
        if not left_open:
            writer.close()  # takes its log away
        with monkeypatch.context() as patch:
            patch.setattr("os.access", lambda _path, mode: mode != os.W_OK)
            reader = Records.open(url)
        assert len(reader.runs()) == 1
        with pytest.raises(StoreError, match="readonly"):
            reader.delete(["run-000001"])
        writer.save(records_child.record(2))
        assert len(reader.runs()) == 2
        writer.close()
        writer.save(records_child.record(3))
        assert len(reader.runs()) == 3
        reader.close()


@pytest.mark.parametrize("left_open", [False, True])
def test_a_database_that_can_only_be_read_is_read(left_open, as_nobody):
    """Also one whose writer is still there, or was killed, so that its log is beside it."""
    path = as_nobody.folder / "records.db"
    with Records.open(f"sqlite:///{path}") as records:
        records.save(records_child.record(1))
        if not left_open:
            records.close()
        as_nobody.read_only(path)
        out = as_nobody.run(
            f"""
            records = Records.open("sqlite:///{path}")
            print(records.load("last").values["run_id"])
            try:
                records.delete(["run-000001"])
            except StoreError as error:
                print(error)
            """
        )
    first, second = out.splitlines()
    assert first == "run-000001"
    assert "readonly" in second
