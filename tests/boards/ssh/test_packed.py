"""What travels packed over SSH: the bytes on the wire follow the container, not the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from wherry.errors import DeviceLostError
from wherry.packing import pack

RANDOM = np.random.default_rng(0)


@pytest.fixture
def link(board, workstation, proxy):
    """A link to the board, which counts."""
    made = proxy(board)
    workstation.trust(board, port=made.port)
    return made


@pytest.fixture
def weights(tmp_path):
    """A file of so many shared weights, and its container: ``weights(count)``."""

    def make(count):
        book = np.float32(RANDOM.normal(size=16))
        data = book[RANDOM.integers(0, 16, count)].tobytes()
        pairs = []
        for content in (data, pack(data)):
            path = tmp_path / hashlib.sha256(content).hexdigest()
            path.write_bytes(content)
            pairs.append((path.name, path))
        return pairs

    return make


def test_the_bytes_on_the_wire_are_the_containers(link, device, board, weights):
    (small, small_packed), (large, large_packed) = weights(100_000), weights(800_000)
    with device(board, port=link.port).session(lease=False) as session:
        taken = []
        for file, container in ((small, small_packed), (large, large_packed)):
            before = link.sent
            folder = session.ship({"net.bin": file}, {file[0]: container})
            taken.append(link.sent - before)
            assert Path(folder, "net.bin").read_bytes() == file[1].read_bytes()
    sizes = [container[1].stat().st_size for container in (small_packed, large_packed)]
    for sent, size in zip(taken, sizes, strict=True):
        assert size < sent < 1.03 * size + 4000
    assert 7.5 < taken[1] / taken[0] < 8.5
    assert taken[1] < 0.14 * large[1].stat().st_size


def test_a_container_goes_on_where_the_link_was_cut(link, device, board, weights):
    file, container = weights(2_000_000)
    size = container[1].stat().st_size
    link.rate = 2e6
    with pytest.raises(DeviceLostError), device(board, port=link.port).session(lease=False) as far:
        link.cut_after(sent=size // 2)
        far.ship({"net.bin": file}, {file[0]: container})
    link.rate = None
    with device(board, port=link.port).session(lease=False) as session:
        before = link.sent
        folder = session.ship({"net.bin": file}, {file[0]: container})
        assert link.sent - before < 0.9 * size
        assert Path(folder, "net.bin").read_bytes() == file[1].read_bytes()
