"""``wherry cache``: each verb, as a command and as a function."""

import json
import os
import time
from datetime import timedelta

import pytest
from rich.filesize import decimal

from wherry import cli
from wherry.cli.cache import cache_explain, cache_gc, cache_list, cache_verify
from wherry.engine.environments import Environments
from wherry.errors import UsageError
from wherry.requirements import Requirements
from wherry.store import Key, Store


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    return tmp_path / "home" / "store"


def key(level, kind="convert"):
    options = {"level": level, "fold": True}
    return Key(kind, {"backend": "ncnn", "model": "ab" * 32, "options": options})


def put(root, made_from, size=1000, days=0):
    store = Store(root)  # not kept: what it made is in use as long as it lives
    with store.build(made_from) as folder:
        (folder / "file").write_bytes(b"x" * size)
    moment = time.time() - days * 86400
    os.utime(store.path(made_from) / "entry.json", (moment, moment))


@pytest.fixture
def filled(root):
    put(root, key(1), 1000, days=50)
    put(root, key(2), 2000, days=3)
    put(root, key(3, "measure"), 4000)
    return root


def run(capsys, *arguments, code=0):
    assert cli.main(["cache", *arguments]) == code
    return capsys.readouterr()


def run_json(capsys, *arguments, code=0):
    return json.loads(run(capsys, *arguments, "--json", code=code).out)


def test_an_empty_store(root, capsys):
    assert cache_list() == []
    assert f"0 entries, 0 bytes, in {root}" in run(capsys, "list").out
    assert "0 removed" in run(capsys, "gc").out
    assert "0 entries, 0 damaged" in run(capsys, "verify").out


def test_list_shows_the_last_used_first(filled, capsys):
    found = cache_list()
    assert [entry["key"] for entry in found] == [
        key(3, "measure").digest,
        key(2).digest,
        key(1).digest,
    ]
    assert found[1]["parts"]["options"]["level"] == 2
    assert found[1]["size_bytes"] == 2000
    assert list(found[1]["files"]) == ["file"]
    assert run_json(capsys, "list") == found
    out = run(capsys, "list").out
    assert key(1).digest[:12] in out
    assert "backend=ncnn" in out
    assert "50 days ago" in out
    assert "abab" not in out
    assert "3 entries, 7.0 kB" in out


def test_list_of_one_kind(filled, capsys):
    assert [entry["kind"] for entry in cache_list("measure")] == ["measure"]
    assert len(run_json(capsys, "list", "--kind", "convert")) == 2
    assert "1 entry, 4.0 kB" in run(capsys, "list", "--kind", "measure").out
    out = run(capsys, "list", "--kind", "conversion").out
    assert "no entry is of the kind conversion; there are entries of convert, measure" in out


def test_explain_shows_the_parts_and_what_changed(filled, capsys):
    found = cache_explain(key(2).digest[:8])
    assert found["entry"]["key"] == key(2).digest
    assert found["nearest"]["key"] == key(1).digest
    assert found["differences"] == [{"part": "options.level", "here": "2", "there": "1"}]
    assert run_json(capsys, "explain", key(2).digest) == found
    out = run(capsys, "explain", key(2).digest[:8]).out
    assert key(2).digest in out
    assert "options.fold" in out
    assert f"The nearest other one is {key(1).digest[:12]}" in out


def test_explain_of_the_only_one_of_its_kind(filled, capsys):
    assert "the only entry of its kind" in run(capsys, "explain", key(3, "measure").digest).out


def test_explain_of_what_is_not_there(filled, capsys):
    with pytest.raises(UsageError):
        cache_explain("xyz")
    assert "cache list" in run(capsys, "explain", "xyz", code=2).err


def test_gc_without_a_limit_takes_what_a_month_did_not_use(filled, capsys):
    assert "1 would be removed, 1.0 kB" in run(capsys, "gc", "--dry-run").out
    assert len(cache_list()) == 3
    out = run(capsys, "gc").out
    assert f"convert {key(1).digest[:12]}  1.0 kB, used 50 days ago" in out
    assert "1 removed, 1.0 kB; 6.0 kB of entries stay" in out


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--max-age", "2d"], 1),
        (["--max-age", "1w"], 2),
        (["--max-age", "1200h"], 2),
        (["--max-age", "10w"], 3),
        (["--max-size", "6kB"], 2),
        (["--max-size", "5.9 KiB"], 2),
        (["--max-size", "5.8KiB"], 1),
        (["--max-size", "4000"], 1),
        (["--max-size", "0"], 0),
        (["--max-size", "1GB"], 3),
        (["--max-size", "1g", "--max-age", "60m"], 1),
    ],
)
def test_gc_with_limits(filled, capsys, arguments, left):
    run(capsys, "gc", *arguments)
    assert len(cache_list()) == left


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--max-age", age] for age in ("3", "d", "-1d", "3y")),
        *(["--max-size", size] for size in ("x", "5XB", "", "-1GB")),
    ],
)
def test_limits_that_are_none(filled, capsys, arguments):
    assert "; write " in run(capsys, "gc", *arguments, code=2).err
    assert len(cache_list()) == 3


def test_gc_as_a_function(filled, capsys):
    found = cache_gc(timedelta(days=10), dry_run=True)
    assert [entry["key"] for entry in found["removed"]] == [key(1).digest]
    assert (found["freed_bytes"], found["kept_bytes"], found["in_use"]) == (1000, 6000, 0)
    assert run_json(capsys, "gc", "--max-age", "10d", "--dry-run") == found


def test_gc_says_what_is_in_use(filled, capsys):
    store = Store(filled)
    assert store.get(key(1))
    assert "0 removed, 0 bytes; 7.0 kB of entries stay, 1 entry in use" in run(capsys, "gc").out


def test_gc_takes_environments_by_age_but_not_by_size(root, tmp_path, capsys):
    directory = Environments(tmp_path / "home").ensure(Requirements()).parent.parent
    moment = time.time() - 40 * 86400
    os.utime(directory / ".wherry-complete", (moment, moment))
    run(capsys, "gc", "--max-size", "0")
    assert directory.exists()
    found = cache_gc(dry_run=True)
    assert [made["directory"] for made in found["environments"]] == [str(directory)]
    assert found["freed_bytes"] > 1000
    assert "1 removed" in run(capsys, "gc").out
    assert not directory.exists()


def test_wheels_of_boards_are_listed_and_go_by_age(root, tmp_path, capsys):
    folder = tmp_path / "home" / "wheels" / ("ab" * 32)
    folder.mkdir(parents=True)
    wheel = folder / "ncnn-1.0-cp311-cp311-linux_aarch64.whl"
    wheel.write_bytes(os.urandom(8000))
    size = wheel.stat().st_blocks * 512  # on the disk
    assert (
        f"wheels for boards: 1 set, {decimal(size)}, in {folder.parent}" in run(capsys, "list").out
    )
    run(capsys, "gc")
    moment = time.time() - 40 * 86400
    os.utime(folder, (moment, moment))
    run(capsys, "gc", "--max-size", "0")
    assert folder.exists()
    found = cache_gc(dry_run=True)
    assert found["wheels"] == [
        {"directory": str(folder), "packages": ["ncnn==1.0"], "size_bytes": size}
    ]
    assert found["freed_bytes"] == size
    out = run(capsys, "gc").out
    assert f"wheels ncnn==1.0  {decimal(size)}" in out and f"1 removed, {decimal(size)}" in out
    assert not folder.exists()
    assert "wheels for boards" not in run(capsys, "list").out


def test_verify(filled, capsys):
    assert "3 entries, 0 damaged" in run(capsys, "verify").out
    damaged = Store(filled).path(key(2))
    (damaged / "payload" / "file").write_bytes(b"y" * 2000)
    found = cache_verify()
    assert found["checked"] == 3
    assert found["damaged"] == [{"directory": str(damaged), "problem": "file was changed"}]
    assert run_json(capsys, "verify", code=1) == found
    streams = run(capsys, "verify", code=1)
    assert f"{damaged}: file was changed" in streams.out
    assert "--remove" in streams.err
    run(capsys, "verify", "--remove")
    assert cache_verify() == {"checked": 2, "damaged": []}


def test_a_store_that_cannot_be_is_an_error_with_a_remedy(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "file"))
    assert "WHERRY_HOME" in run(capsys, "gc", code=1).err
