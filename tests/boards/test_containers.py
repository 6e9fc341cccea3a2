"""Files that travel packed: what is sent, and what stands on the board."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from wherry.artifact import CONTAINERS, Artifact, Packing
from wherry.errors import DeviceError
from wherry.packing import pack
from wherry.packing.artifacts import pack_artifact
from wherry_devices.agent.board_store import BoardStore, BoardStoreError, DamagedError


def weights(count=50_000, seed=0):
    book = np.float32(np.random.default_rng(9).normal(size=8))
    return book[np.random.default_rng(seed).integers(0, 8, count)].tobytes()


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def files(tmp_path):
    """A file of shared weights with its container, and one of noise."""
    found = {}
    noise = np.random.default_rng(1).bytes(5_000)
    for name, data in (("net.bin", weights()), ("noise", noise), ("packed", pack(weights()))):
        (tmp_path / name).write_bytes(data)
        found[name] = (sha(data), tmp_path / name)
    return found


@pytest.fixture
def store(tmp_path):
    made = BoardStore(tmp_path / "store")
    yield made
    made.close()


def put(store, data):
    receiver = store.receive(sha(data), len(data))
    assert receiver.write(memoryview(data))
    return sha(data)


def test_a_container_becomes_its_file_in_the_store(store):
    data = weights()
    container = put(store, pack(data))
    store.unpack(container, sha(data), len(data))
    assert store.missing([sha(data), container]) == {container: 0}, "it is not kept"
    tree = store.tree({"net.bin": sha(data)})
    assert (tree / "net.bin").read_bytes() == data


def test_what_is_no_container_of_the_file_leaves_nothing(store, tmp_path):
    data = weights()
    whole = pack(data)
    for wrong, size, words in (
        (whole[:-7], len(data), "cut off"),
        (b"no container", len(data), "cut off"),
        (pack(weights(seed=1)), len(data), "has the sha256"),
        (whole, len(data) - 1, "were announced"),
        (pack(data[:-4]), len(data), "holds less"),
    ):
        container = put(store, wrong)
        with pytest.raises(BoardStoreError, match=words):
            store.unpack(container, sha(data), size)
        assert sha(data) in store.missing([sha(data)])
        assert list((tmp_path / "store/incoming").iterdir()) == []


def test_a_container_that_is_gone_or_was_damaged_is_asked_for_again(store, tmp_path):
    data = weights()
    with pytest.raises(DamagedError):
        store.unpack("0" * 64, sha(data), len(data))
    container = put(store, pack(data))
    blob = tmp_path / "store/blobs" / container
    blob.chmod(0o600)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    with pytest.raises(DamagedError):
        store.unpack(container, sha(data), len(data))
    assert store.missing([container]) == {container: 0}


def test_shipped_packed(bench, files, nothing_is_left):
    tree = {"a/net.bin": files["net.bin"], "noise": files["noise"]}
    containers = {files["net.bin"][0]: files["packed"]}
    with bench.device().session(lease=False) as session:
        folder = Path(session.ship(tree, containers))
        assert (folder / "a/net.bin").read_bytes() == weights()
        assert (folder / "noise").read_bytes() == files["noise"][1].read_bytes()
        files["packed"][1].unlink()  # what the board has is not sent again
        assert Path(session.ship(tree, containers)) == folder


def test_a_container_of_something_else_is_refused(bench, files, tmp_path):
    (tmp_path / "other").write_bytes(other := pack(weights(seed=1)))
    containers = {files["net.bin"][0]: (sha(other), tmp_path / "other")}
    with (
        bench.device().session(lease=False) as session,
        pytest.raises(DeviceError, match="cannot take the file"),
    ):
        session.ship({"net.bin": files["net.bin"]}, containers)


def test_an_artifact_travels_packed(bench, tmp_path, nothing_is_left):
    plain = bench.artifact()
    (plain.directory / "net.bin").write_bytes(weights())
    files = {**plain.files, "net.bin": sha(weights())}
    packed = pack_artifact(
        dataclasses.replace(plain, files=files), plain.directory.parent / CONTAINERS
    )
    assert packed.packing is not None
    assert list(packed.packing.containers) == ["net.bin"], "a small file is sent as it is"
    assert packed.packing.size_bytes < packed.packing.gzip_bytes < packed.size_bytes
    assert Artifact.from_json(packed.to_json(), packed.directory) == packed
    assert packed.digest == dataclasses.replace(packed, packing=None).digest
    sample = {"x": np.ones((1, 3, 4), np.float32)}
    (plain.directory / "net.bin").write_bytes(b"")  # what is sent is the container
    (plain.directory / "net.bin").write_bytes(weights())
    with (
        bench.device().session() as session,
        session.host(packed, bench.target(), bench.backend, {}) as runner,
    ):
        assert all((out["y"] == 2).all() for out in runner.infer([sample]))
    trees = list((bench.home / "board/store/trees").glob("*/net.bin"))
    assert [path.read_bytes() for path in trees] == [weights()]


def test_an_artifact_of_an_earlier_wherry_has_no_packing(bench):
    artifact = bench.artifact()
    values = artifact.to_json()
    del values["packing"]
    assert Artifact.from_json(values, artifact.directory) == artifact
    assert artifact.containers == {}
    assert Packing({}, 1, 1) != artifact.packing
