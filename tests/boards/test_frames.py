"""The wire format: what is encoded comes back, and nothing else is taken for a frame."""

from __future__ import annotations

import io
import os
import struct
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wherry_devices.agent import frames

DTYPES = st.sampled_from(sorted(frames.ITEM_SIZE)).map(np.dtype)
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
HEADERS = st.dictionaries(st.text().filter(lambda key: key != "tensors"), VALUES, max_size=4)

EMPTY = b'{"name": "a", "dtype": "int8", "shape": [0]}'


def joined(header, arrays=()):
    tensors = [frames.from_array(name, array) for name, array in dict(arrays).items()]
    return b"".join(frames.encode(header, tensors))


class Trickle:
    """A stream that gives what it has in pieces of changing sizes."""

    def __init__(self, data, sizes):
        self.stream, self.sizes, self.count = io.BytesIO(data), sizes, 0

    def readinto(self, view):
        self.count += 1
        return self.stream.readinto(view[: self.sizes[self.count % len(self.sizes)]])


@given(
    st.lists(st.tuples(HEADERS, st.dictionaries(st.text(), ARRAYS, max_size=3)), max_size=3),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_frames_come_back(messages, sizes):
    data = b"".join(joined(header, arrays) for header, arrays in messages)
    reader = frames.Reader(Trickle(data, sizes).readinto)
    for header, arrays in messages:
        frame = reader.read()
        assert frame.header == header
        assert list(frame.tensors) == list(arrays)
        for name, array in arrays.items():
            back = frames.to_array(frame.tensors[name])
            assert back.dtype == array.dtype and back.shape == array.shape
            assert back.tobytes() == array.tobytes()
    assert reader.read() is None


@given(st.data())
def test_a_cut_stream_is_an_error(data):
    whole = joined({"op": "x"}, {"a": np.arange(7, dtype=np.int16)})
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(frames.TruncatedError):
        frames.Reader(io.BytesIO(whole[:cut]).readinto).read()


@given(st.binary(min_size=16))
def test_garbage_is_an_error(noise):
    if noise.startswith(frames.MAGIC):
        noise = b"?" + noise
    with pytest.raises(frames.FrameError, match="expected a frame, found"):
        frames.Reader(io.BytesIO(noise).readinto).read()


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_damaged_frame_is_never_anything_but_an_error(header, payload):
    prefix = struct.pack("<4sIQ", frames.MAGIC, len(header), len(payload))
    try:
        frame = frames.Reader(io.BytesIO(prefix + header + payload).readinto).read()
    except frames.FrameError:
        return
    assert isinstance(frame.header, dict) and len(payload) == 0


@pytest.mark.parametrize(
    ("header", "payload", "words"),
    [
        (b"[1]", b"", "no object"),
        (b"{", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"tensors": 3}', b"", "malformed"),
        (b'{"tensors": [{"name": "a", "dtype": "int8"}]}', b"", "malformed"),
        (b'{"tensors": [{"name": "a", "dtype": "O", "shape": []}]}', b"", "cannot be sent"),
        (b'{"tensors": [{"name": "a", "dtype": "int8", "shape": [-1]}]}', b"", "shape"),
        (b'{"tensors": [{"name": "a", "dtype": "int8", "shape": [16]}]}', b"12", "take 16 bytes"),
        (b"{}", b"12", "take 0 bytes"),
        (b'{"tensors": [%s, %s]}' % (EMPTY, EMPTY), b"", "two tensors named"),
    ],
)
def test_a_malformed_frame_says_what_is_wrong(header, payload, words):
    prefix = struct.pack("<4sIQ", frames.MAGIC, len(header), len(payload))
    with pytest.raises(frames.FrameError, match=words):
        frames.Reader(io.BytesIO(prefix + header + payload).readinto).read()


@pytest.mark.parametrize("sizes", [(frames.MAX_HEADER + 1, 0), (0, frames.MAX_PAYLOAD + 1)])
def test_a_frame_beyond_the_limits_is_refused_before_it_is_read(sizes):
    prefix = struct.pack("<4sIQ", frames.MAGIC, *sizes)
    with pytest.raises(frames.FrameError, match="over the limit"):
        frames.Reader(io.BytesIO(prefix).readinto).read()


def test_what_the_other_side_would_refuse_is_not_sent():
    with pytest.raises(frames.FrameError, match="over the limit"):
        frames.encode({"text": "x" * frames.MAX_HEADER})
    with pytest.raises(frames.FrameError, match="do not fit"):
        frames.encode({}, [frames.Tensor("a", "int16", (3,), memoryview(b"12345"))])
    with pytest.raises(frames.FrameError, match="complex64"):
        frames.encode({}, [frames.from_array("a", np.zeros(2, np.complex64))])


def test_tensors_are_aligned():
    arrays = {"a": np.zeros(3, np.uint8), "b": np.arange(4, dtype=np.float64)}
    frame = frames.Reader(io.BytesIO(joined({}, arrays)).readinto).read()
    assert all(frames.to_array(t).flags.aligned for t in frame.tensors.values())


def test_write_goes_on_after_partial_writes():
    reading, writing = os.pipe()
    pieces = [memoryview(bytes([index % 251]) * (index * 37 % 900)) for index in range(1500)]
    received = bytearray()

    def drain():
        while chunk := os.read(reading, 5000):
            received.extend(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    frames.write(writing, pieces)
    os.close(writing)
    thread.join()
    os.close(reading)
    assert received == b"".join(pieces)
