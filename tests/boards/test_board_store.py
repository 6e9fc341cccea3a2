"""The board's store: nothing partial under a final name, nothing outside of its folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from wherry_devices.agent import locks
from wherry_devices.agent.board_store import SPARE_BYTES, BoardStore, BoardStoreError, DamagedError


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(tmp_path):
    made = BoardStore(tmp_path)
    yield made
    made.close()


def put(store, data, *, name=None, chunk=5):
    receiver = store.receive(name or digest(data), len(data))
    pieces = [data[at : at + chunk] for at in range(0, len(data), chunk)] or [b""]
    return [receiver.write(memoryview(piece)) for piece in pieces]


def age(path, seconds):
    """Make it look as if it was used last so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"12345", b"123456789"])
def test_a_file_arrives(store, tmp_path, data):
    assert store.missing([digest(data)]) == {digest(data): 0}
    done = put(store, data)
    assert done[-1] and not any(done[:-1])
    assert store.missing([digest(data)]) == {}
    assert [path.read_bytes() for path in files(tmp_path)] == [data]


def test_a_damaged_file_leaves_nothing(store, tmp_path):
    with pytest.raises(BoardStoreError, match="what arrived has the sha256"):
        put(store, b"12345", name=digest(b"54321"))
    assert files(tmp_path) == []


def test_more_than_announced_leaves_nothing(store, tmp_path):
    receiver = store.receive(digest(b"123"), 3)
    with pytest.raises(BoardStoreError, match="cannot take the file"):
        receiver.write(memoryview(b"1234"))
    assert files(tmp_path) == []


def test_a_full_disk_is_refused_before_it_is_written(store, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=SPARE_BYTES + 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BoardStoreError, match="4 bytes do not fit"):
        put(store, b"1234")
    assert put(store, b"123")[-1]


def begin(store, data, count):
    """Have the first bytes of a file arrive."""
    receiver = store.receive(digest(data), len(data))
    assert not receiver.write(memoryview(data[:count]))
    return receiver


def incoming(tmp_path):
    return sorted((tmp_path / "incoming").iterdir())


def test_a_file_that_broke_off_is_gone_on_with(store, tmp_path):
    data = os.urandom(3_000_000)
    begin(store, data, 2_000_001).close()
    later = BoardStore(tmp_path)
    later.sweep()
    assert later.missing([digest(data)]) == {digest(data): 2_000_001}
    receiver = later.receive(digest(data), len(data))
    assert receiver.write(memoryview(data[2_000_001:]))
    assert receiver.taken == len(data)
    assert [path.read_bytes() for path in files(tmp_path)] == [data]


def test_a_file_that_broke_off_before_it_was_named(store, tmp_path):
    (tmp_path / "incoming" / f"{digest(b'all')}.0").write_bytes(b"all")
    assert store.missing([digest(b"all")]) == {digest(b"all"): 3}
    assert store.receive(digest(b"all"), 3).write(memoryview(b""))
    assert store.missing([digest(b"all")]) == {}


@pytest.mark.parametrize("left", [b"1x3", b"123456789"])
def test_a_part_that_was_damaged_since_is_sent_again(store, tmp_path, left):
    data = b"1234567"
    (tmp_path / "incoming" / f"{digest(data)}.0").write_bytes(left)
    assert store.missing([digest(data)]) == {digest(data): len(left)}
    receiver = store.receive(digest(data), len(data))
    with pytest.raises(DamagedError) as caught:
        receiver.write(memoryview(data[len(left) :]))
    assert caught.value.digests == [digest(data)]
    assert files(tmp_path) == []
    assert store.missing([digest(data)]) == {digest(data): 0}
    assert put(store, data)[-1]


def test_what_nobody_works_on_is_swept(store, tmp_path):
    put(store, b"kept")
    alive = begin(store, b"123", 1)
    begin(store, b"456", 1).close()  # and may come again
    begin(store, b"789", 1).close()
    strange = tmp_path / "incoming" / "strange"
    strange.write_bytes(b"1")
    (tmp_path / "incoming" / "folder.y").mkdir()
    old, kept = (tmp_path / "incoming" / f"{digest(data)}.0" for data in (b"456", b"789"))
    age(old, 8 * 86_400)
    store.sweep()
    assert incoming(tmp_path) == sorted([alive._partial.path, kept])
    assert alive.write(memoryview(b"23"))
    put(store, b"789")
    assert incoming(tmp_path) == []
    assert store.missing([digest(b"kept"), digest(b"123"), digest(b"789")]) == {}


def test_two_sessions_take_the_same_file(store, tmp_path):
    other = BoardStore(tmp_path)
    first = begin(store, b"123456", 2)
    second = begin(other, b"123456", 4)
    assert second.write(memoryview(b"56"))
    assert first.write(memoryview(b"3456"))
    assert incoming(tmp_path) == []
    assert [path.read_bytes() for path in files(tmp_path)] == [b"123456"]


@pytest.fixture
def named_meanwhile(store, monkeypatch):
    """A file that gets its name just before somebody else locks it: what was seen of that."""
    first, take, seen = begin(store, b"123456", 2), locks.take, []

    def slow(descriptor, *kind):
        if not seen:
            seen.append(first.write(memoryview(b"3456")))
        return take(descriptor, *kind)

    monkeypatch.setattr(locks, "take", slow)
    return seen


def test_a_part_that_gets_its_name_while_another_opens_it(named_meanwhile, tmp_path):
    """The other must not take the whole file for its part, and empty it."""
    second = begin(BoardStore(tmp_path), b"123456", 1)
    assert named_meanwhile == [True]
    assert second.write(memoryview(b"23456"))
    assert [path.read_bytes() for path in files(tmp_path)] == [b"123456"]


def test_what_gets_its_name_while_others_are_swept(named_meanwhile, tmp_path, monkeypatch):
    other = BoardStore(tmp_path)
    other.sweep()
    assert named_meanwhile == [True]
    gone = tmp_path / "incoming" / "gone"
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([gone]))
    other.sweep()
    assert (tmp_path / "blobs" / digest(b"123456")).read_bytes() == b"123456"


def test_parts_make_room_for_what_comes(store, tmp_path, monkeypatch):
    begin(store, b"123", 2).close()
    asked = []
    usage = shutil.disk_usage(tmp_path)

    def free(_):
        asked.append(incoming(tmp_path))
        return usage._replace(free=SPARE_BYTES + (5 if len(incoming(tmp_path)) == 1 else 3))

    monkeypatch.setattr(shutil, "disk_usage", free)
    assert put(store, b"12345")[-1], "the other's part was removed for it"
    with pytest.raises(BoardStoreError, match="7 bytes do not fit"):
        put(store, b"1234567")
    assert incoming(tmp_path) == []


def test_parts_are_forgotten(store, tmp_path):
    begin(store, b"123", 2).close()
    assert store.forget(86_400) == 2
    assert incoming(tmp_path) == []


def test_what_was_asked_about_is_left_at_the_end(store, tmp_path):
    begin(store, b"123", 2).close()
    assert store.missing([digest(b"123")]) == {digest(b"123"): 2}
    store.close()
    later = BoardStore(tmp_path)
    assert later.missing([digest(b"123")]) == {digest(b"123"): 2}
    later.close()


def test_a_tree_is_made_of_files(store):
    put(store, b"one")
    put(store, b"two")
    wanted = {"a.txt": digest(b"one"), "sub/b.txt": digest(b"two"), "sub/c.txt": digest(b"one")}
    folder = store.tree(wanted)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files(folder)}
    assert found == {"a.txt": b"one", "sub/b.txt": b"two", "sub/c.txt": b"one"}
    assert store.tree(dict(reversed(wanted.items()))) == folder


def test_a_tree_wants_all_its_files(store, tmp_path):
    put(store, b"one")
    with pytest.raises(BoardStoreError, match="is not in the board's store"):
        store.tree({"a": digest(b"one"), "b": digest(b"two")})
    assert list((tmp_path / "trees").iterdir()) == list((tmp_path / "incoming").iterdir()) == []


def test_a_file_that_was_damaged_later_is_sent_again(store, tmp_path):
    put(store, b"one")
    (blob,) = files(tmp_path)
    blob.chmod(0o600)
    blob.write_bytes(b"eno")
    later = BoardStore(tmp_path)  # what this session received itself was hashed as it came
    with pytest.raises(BoardStoreError, match="was damaged"):
        later.tree({"a": digest(b"one")})
    assert store.missing([digest(b"one")]) == {digest(b"one"): 0}
    put(store, b"one")
    assert (store.tree({"a": digest(b"one")}) / "a").read_bytes() == b"one"


def test_a_folder_is_compared_once_after_each_start_of_the_board(tmp_path):
    boot = tmp_path / "boot_id"
    boot.write_text("first")
    files_ = {"a/b": digest(b"one"), "c": digest(b"two")}
    store = BoardStore(tmp_path / "store", boot)
    for data in (b"one", b"two"):
        put(store, data)
    folder = store.tree(files_)
    (folder / "c").chmod(0o600)
    (folder / "c").write_bytes(b"")  # a power cut: the names are there, the bytes are not
    assert BoardStore(tmp_path / "store", boot).tree(files_) == folder, "no start, no look"

    boot.write_text("second")
    later = BoardStore(tmp_path / "store", boot)
    with pytest.raises(DamagedError) as caught:
        later.tree(files_)
    assert caught.value.digests == [digest(b"two")]
    assert not folder.exists()
    assert later.missing(files_.values()) == {digest(b"two"): 0}
    put(later, b"two")
    assert (later.tree(files_) / "c").read_bytes() == b"two"


@pytest.mark.parametrize("path", ["../a", "/a", "a/../b", "a//b", "", ".", "a/.", "a\0b"])
def test_no_path_leads_out_of_a_tree(store, path):
    put(store, b"one")
    with pytest.raises(BoardStoreError, match="not a path below a folder"):
        store.tree({path: digest(b"one")})


@pytest.mark.parametrize("name", ["../../x", "ab", "", "A" * 64])
def test_only_hashes_name_files(store, name):
    with pytest.raises(BoardStoreError, match="not a sha256"):
        store.receive(name, 1)
    with pytest.raises(BoardStoreError, match="not a sha256"):
        store.missing([name])


def test_folders_that_nobody_asked_for_are_forgotten_with_their_files(store, tmp_path):
    for data in (b"old", b"shared", b"new"):
        put(store, data)
    old = store.tree({"a": digest(b"old"), "b": digest(b"shared")})
    new = store.tree({"a": digest(b"new"), "b": digest(b"shared")})
    age(old, 7200)
    age(new, 1800)
    assert store.forget(3600) == 0  # its file came just now: another session may be about to use it
    assert list((tmp_path / "trees").iterdir()) == [new]
    assert store.forget(0) == len(b"old" + b"new" + b"shared")
    assert files(tmp_path) == [] and list((tmp_path / "trees").iterdir()) == []


def test_a_folder_that_is_asked_for_again_is_kept(store):
    put(store, b"one")
    folder = store.tree({"a": digest(b"one")})
    age(folder, 7200)
    assert store.tree({"a": digest(b"one")}) == folder
    assert store.forget(3600) == 0
    assert (folder / "a").read_bytes() == b"one"


def test_files_of_no_folder_are_forgotten_when_they_are_no_longer_fresh(store, monkeypatch):
    put(store, b"one")
    put(store, b"four")
    folder = store.tree({"a": digest(b"one")})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 4000)  # a file's ctime cannot be set
    os.utime(folder, (now + 4000, now + 4000))
    assert store.forget(86_400) == len(b"four")
    assert store.missing([digest(b"one"), digest(b"four")]) == {digest(b"four"): 0}
