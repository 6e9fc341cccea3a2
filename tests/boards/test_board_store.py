"""The board's store: nothing partial under a final name, nothing outside of its folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import time

import pytest

from wherry_devices.agent.board_store import SPARE_BYTES, BoardStore, BoardStoreError, DamagedError


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(tmp_path):
    return BoardStore(tmp_path)


def put(store, data, *, name=None, chunk=5):
    receiver = store.receive(name or digest(data), len(data))
    pieces = [data[at : at + chunk] for at in range(0, len(data), chunk)] or [b""]
    return [receiver.write(memoryview(piece)) for piece in pieces]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"12345", b"123456789"])
def test_a_file_arrives(store, tmp_path, data):
    assert store.missing([digest(data)]) == [digest(data)]
    done = put(store, data)
    assert done[-1] and not any(done[:-1])
    assert store.missing([digest(data)]) == []
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


def test_half_received_files_of_dead_processes_are_swept(store, tmp_path):
    put(store, b"kept")
    receiver = store.receive(digest(b"123"), 3)  # of this process, which lives
    (tmp_path / "incoming" / "999999999.x").write_bytes(b"1")
    (tmp_path / "incoming" / "999999998.y").mkdir()
    store.sweep()
    assert len(list((tmp_path / "incoming").iterdir())) == 1
    receiver.close()
    assert len(list((tmp_path / "incoming").iterdir())) == 0
    assert store.missing([digest(b"kept")]) == []


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
    assert store.missing([digest(b"one")]) == [digest(b"one")]
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
    assert later.missing(files_.values()) == [digest(b"two")]
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


def age(path, seconds):
    """Make it look as if it was used last so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


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
    assert store.missing([digest(b"one"), digest(b"four")]) == [digest(b"four")]
