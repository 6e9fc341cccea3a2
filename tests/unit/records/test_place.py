"""Where the records are, and that no password of a URL is ever shown."""

from __future__ import annotations

import pickle
import traceback

import pytest

from wherry.cli import main
from wherry.errors import StoreError, UsageError
from wherry.records.database import Records
from wherry.records.place import find_place

SECRET = "s3cr3t-W0rd"


@pytest.fixture
def config(wherry_home, tmp_path):
    """The user's config folder, empty."""
    folder = tmp_path / "wherry-config"
    folder.mkdir()
    return folder


def test_by_itself_it_is_a_file_of_the_home(wherry_home, config):
    assert find_place().file == wherry_home / "records.db"
    assert find_place().shown == f"sqlite:///{wherry_home}/records.db"


def test_the_argument_wins_over_the_environment_and_that_over_the_config(config, monkeypatch):
    (config / "records.yaml").write_text("url: postgresql://team@host/one\n")
    assert find_place().shown == "postgresql://team@host/one"
    monkeypatch.setenv("WHERRY_RECORDS", "postgres://team@host:5433/two")
    assert find_place().shown == "postgresql://team@host:5433/two"
    assert find_place("sqlite:////data/three.db").shown == "sqlite:////data/three.db"


@pytest.mark.parametrize(
    "text",
    [
        *("", "one", "[1]", "url: 5", "url: a\nmore: b", "{url: a", "\ud800", "url: !!python/x y"),
        f"url: 'mysql://me:{SECRET}@host/x'",
        f"url: 'postgresql://me:{SECRET}@host:port/x'",
        f"postgresql://me:{SECRET}@host:{{",
    ],
)
def test_a_config_that_says_something_else_is_refused(config, text):
    path = config / "records.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError) as caught:
        find_place()
    assert caught.value.where == str(path)
    assert "postgresql://USER@HOST/DATABASE" in str(caught.value.remedy)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        *("", "records.db", "sqlite://", "sqlite:///:memory:", "sqlite:///x.db?mode=memory"),
        *(f"mysql://me:{SECRET}@host/x", f"postgresql://me:{SECRET}@host:port/x", "http://x/y"),
    ],
)
def test_another_url_is_refused_without_being_shown(url):
    with pytest.raises(UsageError, match="no URL of a database that wherry knows") as caught:
        find_place(url)
    assert caught.value.where == "the URL of the records"
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:1/x",
        f"postgresql://127.0.0.1:1/x?user=me&password={SECRET}",
        f"postgresql://me@127.0.0.1:1/x?password={SECRET}&connect_timeout=1",
        f"postgresql://me:{SECRET}@/x?host=/nowhere/{SECRET}",
        f"postgresql://me:{SECRET}@127.0.0.1:1/x?nonsense={SECRET}",
    ],
)
def test_a_password_is_in_no_error_and_no_text(wherry_home, monkeypatch, capfd, url):
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    place = find_place(url)
    assert SECRET not in repr(place) + str(place)
    with pytest.raises(StoreError) as caught:
        Records.open(url)
    error = caught.value
    assert "127.0.0.1" in str(error) or "nowhere" in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET.encode() not in pickle.dumps(error)
    monkeypatch.setenv("WHERRY_RECORDS", url)
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    assert main(["report"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Error: postgresql://")
    assert SECRET not in err


@pytest.mark.postgres
def test_a_password_that_the_server_refuses_is_not_shown(postgres):
    for url in (
        postgres.url("postgres", user="stranger", more=f"&password={SECRET}"),
        postgres.url("nothing", more=f"&password={SECRET}"),
    ):
        with pytest.raises(StoreError, match="does not exist") as caught:
            Records.open(url)
        assert SECRET not in str(caught.value)


@pytest.mark.postgres
def test_one_who_may_only_read_reads(postgres, postgres_records):
    """And is told so where writing is asked."""
    _, records = postgres_records
    records.delete([each.run_id for each in records.runs()])
    postgres.sql(
        "CREATE ROLE reader LOGIN",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
        database="shared",
    )
    with Records.open(postgres.url("shared", user="reader")) as theirs:
        assert theirs.runs() == []
        with pytest.raises(StoreError, match="permission denied"):
            theirs.delete(["x"])


def test_without_the_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(StoreError, match="driver of PostgreSQL is not installed") as caught:
        Records.open("postgresql://me@host/x")
    assert "wherry[postgres]" in str(caught.value.remedy)
