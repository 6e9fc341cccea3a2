"""The store: keys, commits that are whole or not at all, many users, housekeeping."""

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry import entry as entry_module
from wherry.errors import Interrupted, PluginError, StoreError, UsageError
from wherry.filelock import TakenError, hold
from wherry.housekeeping import explain, gc, leaves, verify
from wherry.store import Key, Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def key(n=0, kind="convert", **parts):
    return Key(kind, {"n": n, **parts})


def put(store, made_from, **files):
    with store.build(made_from) as folder:
        for name, text in (files or {"file": "text"}).items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    found = store.get(made_from)
    assert found is not None
    return found


def left_over(store) -> list[Path]:
    return [*(store.root / ".tmp").iterdir(), *(store.root / ".locks").iterdir()]


# Keys

leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    leaf | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
parts = st.dictionaries(st.text(st.characters()), values, max_size=5)


def shuffled(value, chance):
    if isinstance(value, dict):
        items = list(value.items())
        chance.shuffle(items)
        return {name: shuffled(item, chance) for name, item in items}
    if isinstance(value, list):
        return [shuffled(item, chance) for item in value]
    return value


def typed(value):
    """A form in which two JSON values are equal only if their types are as well."""
    if isinstance(value, dict):
        return ("dict", frozenset((name, typed(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(typed, value)))
    if isinstance(value, float):
        return ("float", value.hex())
    return (type(value).__name__, value)


@given(parts, st.randoms())
def test_the_order_of_a_keys_parts_does_not_matter(given_parts, chance):
    assert Key("k", given_parts).digest == Key("k", shuffled(given_parts, chance)).digest


@given(parts, parts)
def test_distinct_parts_have_distinct_digests(one, other):
    assert (Key("k", one) == Key("k", other)) == (typed(one) == typed(other))


@given(parts)
def test_a_key_survives_json(given_parts):
    text = entry_module.canonical(Key("k", given_parts).parts)
    assert Key("k", json.loads(text.decode("utf-8", "surrogatepass"))) == Key("k", given_parts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[(1, 1.0), (0, False), (1, True), (0.1 + 0.2, 0.3), ("1", 1), ("", None), ([], {})],
        *[("é", "e\u0301"), ("\ud83d\ude00", "😀"), ("a", "A"), (0.0, -0.0), ([1, 2], [2, 1])],
    ],
)
def test_values_that_are_easily_taken_for_one_another(one, other):
    assert Key("k", {"v": one}) != Key("k", {"v": other})


def test_a_tuple_is_a_list_and_a_kind_is_part_of_the_key():
    assert Key("k", {"v": (1, 2)}) == Key("k", {"v": [1, 2]})
    assert Key("k", {}) != Key("l", {})
    assert len({Key("k", {"v": (1,)}), Key("k", {"v": [1]}), Key("k", {"v": 1})}) == 2


def test_the_stores_version_is_part_of_the_key(monkeypatch):
    before = Key("k", {})
    monkeypatch.setattr(entry_module, "STORE_VERSION", 10**6)
    assert Key("k", {}) != before


def test_a_digest_is_what_it_always_was():
    """Users' stores depend on it: raise STORE_VERSION when this has to change."""
    digest = Key("convert", {"b": [1, 2.5, None, True], "a": {"ü": "x"}}).digest
    assert digest == "2802dfb6316fb51b516ed52221e5bcc180ef6876040c466136d0d53e2111422b"


def test_a_key_does_not_change_with_what_it_was_made_from():
    options = {"threads": 1}
    made = Key("k", {"options": options})
    options["threads"] = 2
    assert made.parts == {"options": {"threads": 1}}


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("-inf"), Path("x"), b"x", {1}, {1: 2}, np.float32(1), np.zeros(1), object],
)
def test_what_is_not_json_is_refused_by_its_place(value):
    with pytest.raises(PluginError, match=r"convert\.a\.b\[1\]"):
        Key("convert", {"a": {"b": [0, value]}})


@pytest.mark.parametrize("kind", ["", "../x", ".tmp", "A", "a/b"])
def test_a_kind_is_a_plain_word(kind):
    with pytest.raises(ValueError, match="kind"):
        Key(kind, {})


# Commits


def test_what_was_built_is_there(store):
    before = datetime.now(UTC)
    assert store.get(key()) is None
    found = put(store, key(), a="1", sub__b="22")
    assert (found.directory / "sub" / "b").read_text() == "22"
    assert set(found.files) == {"a", "sub/b"}
    assert found.size_bytes == 3
    assert before <= found.created <= datetime.now(UTC)
    assert found.key == key()
    assert store.get(key(1)) is None
    assert left_over(store) == []


def test_an_empty_folder_is_an_entry_too(store):
    with store.build(key()) as folder:
        assert list(folder.iterdir()) == []
    assert store.get(key()).files == {}


def test_another_object_sees_it(store):
    put(store, key())
    assert Store(store.root).get(key()).files.keys() == {"file"}


def test_a_failed_build_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.build(key()) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert store.get(key()) is None
    assert left_over(store) == []


def test_the_first_commit_stays(store):
    with store.build(key()) as ours:
        (ours / "file").write_text("ours")
        put(store, key(), file="theirs")
    assert (store.get(key()).directory / "file").read_text() == "theirs"
    assert left_over(store) == []


def test_a_removed_entry_is_gone(store):
    put(store, key())
    store.remove(key())
    store.remove(key())
    assert store.get(key()) is None
    assert left_over(store) == []


@pytest.mark.parametrize(
    "leave",
    [lambda p: p.symlink_to("/etc/passwd"), lambda p: p.symlink_to(p.parent), os.mkfifo],
)
def test_links_and_pipes_are_refused(store, leave):
    with pytest.raises(PluginError, match="'odd', which is no plain file"), store.build(key()) as f:
        leave(f / "odd")
    assert store.get(key()) is None


def overwrite(path):
    (path / "file").write_text("TEXT")


def shorten(path):
    (path / "file").write_text("")


def take_away(path):
    (path / "file").unlink()


def make_a_link(path):
    (path / "file").rename(path.parent / "moved")
    (path / "file").symlink_to(path.parent / "moved")


def break_description(path):
    (path.parent / "entry.json").write_text('{"kind": "convert"')


def lose_description(path):
    (path.parent / "entry.json").unlink()


def forge_description(path):
    text = (path.parent / "entry.json").read_text()
    (path.parent / "entry.json").write_text(text.replace('"n":0', '"n":1'))


def odd_description(path):
    (path.parent / "entry.json").write_text("[]")


DAMAGES = [overwrite, shorten, take_away, make_a_link, break_description, lose_description]
DAMAGES += [forge_description, odd_description]


@pytest.mark.parametrize("spoil", DAMAGES)
def test_a_damaged_entry_is_found_told_and_made_again(store, spoil, caplog):
    spoil(put(store, key()).directory)
    with caplog.at_level(logging.WARNING):
        assert store.get(key()) is None
    assert "damaged" in caplog.text
    assert key().digest in caplog.text
    assert (put(store, key()).directory / "file").read_text() == "text"


def test_a_payload_that_was_only_touched_is_good(store):
    path = put(store, key()).directory / "file"
    before = path.stat().st_mtime_ns
    os.utime(path, (1, 1))
    assert store.get(key()) is not None
    assert path.stat().st_mtime_ns == before


def test_using_an_entry_is_noted(store):
    path = put(store, key()).directory.parent / "entry.json"
    os.utime(path, (1, 1))
    assert store.get(key()).last_used > datetime.now(UTC) - timedelta(minutes=1)


# Locks


def test_one_thread_at_a_time_has_a_key(store):
    inside, most = [], []

    def work():
        with store.lock(key()):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
    assert left_over(store) == []


def test_other_keys_are_not_locked(store):
    with store.lock(key(0)), store.lock(key(1)), store.lock(key(0, "measure")):
        pass


def test_the_waiting_is_told_and_can_be_ended(store):
    told, cancelled = threading.Event(), threading.Event()

    def wait():
        lock = store.lock(key(), on_wait=told.set, cancelled=cancelled)
        with pytest.raises(Interrupted), lock:
            pass

    with store.lock(key()):
        thread = threading.Thread(target=wait)
        thread.start()
        assert told.wait(20)
        cancelled.set()
        thread.join(20)
        assert not thread.is_alive()


def test_a_killed_holder_holds_nothing(store):
    holder = start(
        store,
        "with store.lock(Key('convert', {'n': 0})):\n print('held', flush=True); time.sleep(1000)",
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TakenError), hold(store.root / ".locks" / key().digest, wait=False):
        pass
    holder.kill()
    with store.lock(key()):
        pass
    holder.communicate()


def test_a_lock_file_that_was_taken_away_is_not_the_lock(tmp_path):
    path = tmp_path / "lock"
    order = []

    def second():
        with hold(path, remove=True):
            order.append("second")
            time.sleep(0.2)
            order.append("second leaves")

    with hold(path, remove=True):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first leaves")
    time.sleep(0.1)
    with hold(path, remove=True):
        order.append("third")
    thread.join()
    assert order == ["first leaves", "second", "second leaves", "third"]
    assert not path.exists()


def test_shared_holders_keep_the_alone_one_out(tmp_path):
    path = tmp_path / "lock"
    with hold(path, shared=True):
        with hold(path, shared=True, wait=False):
            pass
        with pytest.raises(TakenError), hold(path, wait=False):
            pass
    with hold(path, wait=False):
        pass


# The file system's errors


@pytest.mark.parametrize(
    ("number", "found"),
    [
        (errno.ENOSPC, "full.*cache gc"),
        (errno.EDQUOT, "full.*cache gc"),
        (errno.EROFS, "only be read.*WHERRY_HOME"),
        (errno.EACCES, "not yours.*WHERRY_HOME"),
        (errno.ENOLCK, "no locks.*local disk"),
        (errno.EIO, "Input/output error.*WHERRY_HOME"),
    ],
)
def test_each_error_has_its_own_words_and_leaves_nothing(store, monkeypatch, number, found):
    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    put(store, key(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match=found), store.build(key()) as folder:
            (folder / "file").touch()
    assert store.get(key()) is None
    assert left_over(store) == []


def test_a_disk_that_fills_in_the_step_is_told_alike(store):
    with pytest.raises(StoreError, match="full"), store.build(key()):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), store.build(key()):
        raise FileNotFoundError(errno.ENOENT, "the step's own error")


def test_a_store_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    with pytest.raises(StoreError), store.build(key()):
        pass
    with pytest.raises(StoreError), store.lock(key()):
        pass
    with pytest.raises(StoreError):
        gc(store)


# Many users

PROGRAM = """\
import os, random, sys, time
from datetime import timedelta
from pathlib import Path
from wherry.housekeeping import gc
from wherry.store import Key, Store
store = Store(Path(sys.argv[1]))
"""


def start(store, program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + program, store.root, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_a_living_process_builds_stays_and_what_a_killed_one_built_is_swept(store):
    builder = start(
        store,
        "with store.build(Key('convert', {'n': 0})) as folder:\n"
        " (folder / 'half').touch(); print('building', flush=True); time.sleep(1000)",
    )
    assert builder.stdout.readline() == "building\n"
    assert store.sweep() == 0
    assert len(left_over(store)) == 1
    builder.kill()
    builder.communicate()
    put(store, key(1))  # the first build of an object sweeps
    assert left_over(store) == []


def test_what_an_interrupted_step_left_waits_a_week(store):
    folders = [store.unfinished(key(n)) for n in range(3)]
    for age, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "checkpoint").touch()
        days = time.time() - age * 5 * 86_400
        os.utime(folder, (days, days))
    with store.lock(key(2)):  # a run goes on from it
        gc(store)
    assert [folder.exists() for folder in folders] == [True, True, True]
    gc(store, dry_run=True)
    assert folders[2].exists()
    gc(store)
    assert [folder.exists() for folder in folders] == [True, True, False]
    gc(store, max_age=timedelta(days=1))
    assert [folder.exists() for folder in folders] == [True, False, False]


def test_gc_keeps_what_a_living_process_uses(store):
    for n in (0, 1):
        put(Store(store.root), key(n))
    user = start(
        store,
        "assert store.get(Key('convert', {'n': 0})); print('using', flush=True); time.sleep(1000)",
    )
    assert user.stdout.readline() == "using\n"
    collected = gc(store, max_bytes=0)
    assert [entry.key for entry in collected.removed] == [key(1)]
    assert collected.in_use == 1
    user.kill()
    user.communicate()
    assert [entry.key for entry in gc(store, max_bytes=0).removed] == [key(0)]


HAMMER = """
chance = random.Random(int(sys.argv[2]))
while True:
    n = chance.randrange(12)
    key = Key('hammer', {'n': n})
    what = chance.random()
    if what < 0.05:
        gc(store, max_bytes=chance.randrange(20000))
        continue
    if what < 0.1:
        store.remove(key)
        continue
    with store.lock(key):
        entry = store.get(key)
        if entry is None:
            with store.build(key) as folder:
                for i in range(3):
                    (folder / str(i)).write_text(f'{n}.{i} ' * 500)
                    time.sleep(chance.random() / 500)
            entry = store.get(key)
        if entry is not None:
            try:
                texts = [(entry.directory / str(i)).read_text() for i in range(3)]
            except FileNotFoundError:
                continue  # removed by name, which no use prevents
            assert texts == [f'{n}.{i} ' * 500 for i in range(3)], texts
    print(n, flush=True)
"""


def test_processes_that_are_killed_at_random_moments_spoil_nothing(store):
    chance = random.Random(1)
    workers = [start(store, HAMMER, seed) for seed in range(4)]
    end = time.monotonic() + 8
    done = 0
    seed = 100
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.2, 0.6))
        index = chance.randrange(len(workers))
        assert workers[index].poll() is None, "a worker failed by itself"
        workers[index].send_signal(signal.SIGKILL)
        done += len(workers[index].communicate()[0].split())
        workers[index] = start(store, HAMMER, seed)
        seed += 1
    for worker in workers:
        assert worker.poll() is None
        worker.kill()
        done += len(worker.communicate()[0].split())
    assert done > 50
    assert [problem for _, problem in verify(store) if problem is not None] == []
    store.sweep()
    assert list((store.root / ".tmp").iterdir()) == []
    for path in (store.root / ".locks").iterdir():
        with hold(path, wait=False):  # nobody holds it any more
            pass


def test_threads_that_share_an_object(store):
    failures = []

    def work(seed):
        chance = random.Random(seed)
        try:
            for _ in range(30):
                made_from = key(chance.randrange(5))
                with store.lock(made_from):
                    if store.get(made_from) is None:
                        put(store, made_from, file=str(made_from.parts["n"]))
                found = store.get(made_from)
                assert (found.directory / "file").read_text() == str(made_from.parts["n"])
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FORK = """
with store.build(Key('convert', {'n': 0})) as folder:
    (folder / 'file').write_text('text')
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(len(gc(Store(store.root), max_bytes=0).removed))
"""


def test_a_forked_child_does_not_end_its_parents_use(store):
    assert start(store, FORK).communicate()[0] == "0\n"
    assert len(gc(store, max_bytes=0).removed) == 1


# Housekeeping


def age(store, made_from, days):
    moment = time.time() - days * 86400
    os.utime(store.path(made_from) / "entry.json", (moment, moment))


@pytest.fixture
def filled(store):
    """Entries 0 to 4 of 10, 20, .. 50 bytes; entry n was used n days ago; nobody uses any."""
    for n in range(5):
        put(Store(store.root), key(n), file="x" * 10 * (n + 1))
        age(store, key(n), n)
    return store


def numbers(entries):
    return [entry.key.parts["n"] for entry in entries]


def test_gc_by_size_takes_the_least_recently_used(filled):
    collected = gc(filled, max_bytes=70)
    assert numbers(collected.removed) == [4, 3]
    assert (collected.freed_bytes, collected.kept_bytes) == (90, 60)
    assert sorted(numbers(filled.entries())) == [0, 1, 2]
    assert left_over(filled) == []


def test_gc_by_age(filled):
    assert numbers(gc(filled, max_age=timedelta(days=2.5)).removed) == [4, 3]


def test_gc_without_limits_takes_nothing(filled):
    assert gc(filled).removed == ()


def test_gc_keeps_what_it_is_told_to(filled):
    assert numbers(gc(filled, max_bytes=0, keep={key(4).digest}).removed) == [3, 2, 1, 0]


def test_a_dry_run_takes_nothing(filled):
    assert numbers(gc(filled, max_bytes=0, dry_run=True).removed) == [4, 3, 2, 1, 0]
    assert len(list(filled.entries())) == 5


def test_gc_takes_what_cannot_be_read(filled):
    break_description(filled.path(key(2)) / "payload")
    collected = gc(filled)
    assert collected.damaged == (filled.path(key(2)),)
    assert not filled.path(key(2)).exists()


def test_entries_of_one_kind(store):
    put(store, key(0))
    put(store, key(1, "measure"))
    assert numbers(store.entries("measure")) == [1]
    assert sorted(numbers(store.entries())) == [0, 1]


def flip_a_bit_unseen(path):
    before = (path / "file").stat()
    (path / "file").write_text("tExt")
    os.utime(path / "file", ns=(before.st_atime_ns, before.st_mtime_ns))


def add_a_file(path):
    (path / "more").touch()


@pytest.mark.parametrize("spoil", [*DAMAGES, flip_a_bit_unseen, add_a_file])
def test_verify_finds_every_damage(store, spoil):
    put(store, key(1))
    spoil(put(store, key(0)).directory)
    found = dict(verify(store))
    assert found.pop(store.path(key(1))) is None
    (damaged,) = found.values()
    assert damaged.digest == key(0).digest
    assert len([1 for _, problem in verify(store, remove=True) if problem]) == 1
    assert dict(verify(store)) == {store.path(key(1)): None}


def test_explain_names_the_parts_that_changed(store):
    put(store, Key("convert", {"model": "aa", "options": {"fold": True, "level": 2}}))
    put(store, Key("convert", {"model": "bb", "options": {"fold": False, "level": 1}}))
    put(store, Key("measure", {"model": "aa", "options": {"fold": True, "level": 3}}))
    asked = Key("convert", {"model": "aa", "options": {"fold": True, "level": 3, "new": [1]}})
    put(store, asked)
    explained = explain(store, asked.digest[:9].upper())
    assert explained.entry.key == asked
    assert explained.nearest.key.parts["options"]["level"] == 2
    assert {(d.part, d.here, d.there) for d in explained.differences} == {
        ("options.level", "3", "2"),
        ("options.new[0]", "1", None),
    }


def test_of_equally_near_keys_the_newest_is_taken(store):
    for n in (1, 2, 3):
        put(store, key(n))
    assert explain(store, key(1).digest).nearest.key == key(3)


def test_explain_where_there_is_nothing_to_compare_with(store):
    put(store, key())
    explained = explain(store, key().digest)
    assert (explained.nearest, explained.differences) == (None, ())


def test_explain_of_no_key_and_of_many(store):
    with pytest.raises(UsageError, match="cache list"):
        explain(store, "abc")
    for n in range(20):
        put(store, key(n))
    with pytest.raises(UsageError, match=r"20 keys begin with ''"):
        explain(store, "")


@given(parts)
def test_leaves_hold_every_leaf_once(given_parts):
    def count(value):
        inner = value.values() if isinstance(value, dict) else value
        return sum(map(count, inner)) if isinstance(value, dict | list) and value else 1

    if not any(mark in str(given_parts) for mark in ".["):  # which would make paths ambiguous
        assert len(leaves(given_parts)) == count(given_parts)
