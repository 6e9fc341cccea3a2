"""The stream of files to a board: chunks, confirmations, pace, packing."""

from __future__ import annotations

import hashlib
import os
import zlib

import pytest

from wherry.errors import DeviceError, StoreError
from wherry_devices.shipping import Pace, Shipment

LEAST = 1 << 16


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Link:
    """A board behind a link of so many bytes/s: what crosses it takes time on the clock."""

    def __init__(self, rate, damaged=()):
        self.clock = Clock()
        self.pace = Pace(self.clock)
        self.rate = rate
        self.damaged = damaged
        self.files, self.wire, self.most, self.pending, self.chunks = {}, 0, 0, [], []

    def ask(self, number, header, tensor):
        number = number or len(self.files) + 1
        data = bytes(tensor.data)
        self.wire += len(data)
        self.chunks.append((len(data), header.get("encoding")))
        plain = zlib.decompress(data) if header.get("encoding") == "zlib" else data
        name, taken = self.files.get(number, (header["sha256"], b""))
        self.files[number] = (name, taken + plain)
        self.pending.append((number, len(data)))
        self.most = max(self.most, sum(size for _, size in self.pending))
        return number

    def answer(self, number):
        asked, size = self.pending.pop(0)
        assert asked == number
        self.clock.now += size / self.rate
        name, taken = self.files[number]
        return {"damaged": [name]} if name in self.damaged else {"taken": len(taken)}

    def send(self, missing, sources):
        return Shipment(self.ask, self.answer, self.pace).send(missing, sources)

    def arrived(self):
        return dict(self.files.values())


@pytest.fixture
def file(tmp_path):
    def make(data):
        digest = hashlib.sha256(data).hexdigest()
        (tmp_path / digest).write_bytes(data)
        return digest, tmp_path / digest

    return make


@pytest.mark.parametrize("rate", [1e4, 1e6, 1e9])
def test_files_arrive_whole(file, rate):
    data = [b"", b"small", os.urandom(1_000_000)]
    sources = dict(map(file, data))
    link = Link(rate)
    assert link.send(dict.fromkeys(sources, 0), sources) == []
    assert link.arrived() == dict(zip(sources, data, strict=True))


def test_a_file_goes_on_where_it_broke_off(file):
    data = os.urandom(300_000)
    digest, path = file(data)
    link = Link(1e6)
    link.send({digest: 200_001}, {digest: path})
    assert link.arrived() == {digest: data[200_001:]}


def test_a_file_that_is_there_and_was_not_named(file):
    digest, path = file(b"all")
    link = Link(1e6)
    link.send({digest: 3}, {digest: path})
    assert link.arrived() == {digest: b""}, "it is asked to name it"


def test_little_is_under_way_on_a_slow_link_and_much_on_a_fast_one(file):
    digest, path = file(os.urandom(30_000_000))
    slow, fast = Link(20_000), Link(200e6)
    slow.send({digest: 29_000_000}, {digest: path})
    fast.send({digest: 0}, {digest: path})
    assert slow.most <= (1 << 18) + LEAST, "what is under way takes less than 20 s"
    assert {size for size, _ in slow.chunks} <= {LEAST, 1_000_000 % LEAST}
    assert max(size for size, _ in fast.chunks) == 1 << 22
    assert fast.most > 10_000_000


def test_what_packs_is_packed_on_a_slow_link_alone(file):
    plain, random = file(b"words that come again " * 50_000), file(os.urandom(1_000_000))
    sources = dict([plain, random])
    slow, fast = Link(1e5), Link(1e9)
    for link in (slow, fast):
        link.send(dict.fromkeys(sources, 0), sources)
        assert {hashlib.sha256(data).hexdigest() for data in link.arrived().values()} == set(
            sources
        )
    packed = [size for size, encoding in slow.chunks if encoding]
    assert packed and sum(packed) < 100_000
    assert slow.wire < 1_500_000
    assert all(encoding is None for _, encoding in fast.chunks)
    only = Link(1e5)
    only.send({random[0]: 0}, sources)
    assert all(encoding is None for _, encoding in only.chunks)


def test_a_part_that_was_damaged_is_told(file):
    sources = dict([file(b"one"), file(b"two")])
    first = next(iter(sources))
    assert Link(1e6, damaged=[first]).send(dict.fromkeys(sources, 0), sources) == [first]


def test_a_file_that_becomes_shorter(file):
    digest, path = file(os.urandom(200_000))
    link = Link(1e6)
    ask = link.ask

    def shorten(*arguments):
        path.write_bytes(b"")
        return ask(*arguments)

    link.ask = shorten
    with pytest.raises(StoreError, match="became shorter"):
        link.send({digest: 0}, {digest: path})


def test_a_refusal_ends_it(file):
    def refuse(_number):
        raise DeviceError("no room", remedy="Make some.")

    digest, path = file(b"x")
    link = Link(1e6)
    link.answer = refuse
    with pytest.raises(DeviceError, match="no room"):
        link.send({digest: 0}, {digest: path})


def test_the_pace_forgets():
    clock = Clock()
    pace = Pace(clock)
    pace.begin()
    assert pace.rate is None
    for _ in range(20):
        clock.now += 1
        pace.confirm(1000)
    assert pace.rate == 1000
    for _ in range(20):
        clock.now += 0.001
        pace.confirm(1000)
    assert pace.rate == pytest.approx(1e6)
    clock.now += 3600
    pace.begin()
    assert pace.rate is None
