"""Frames: how the host and the agent speak, over any pair of byte streams.

One frame, little-endian::

    4 bytes   magic b"WHF" and the format's version
    u32       length of the header
    u64       length of the payload
    header    a JSON object in UTF-8; its key "tensors" lists {"name", "dtype", "shape"}
    payload   the tensors' bytes in that order, C-contiguous, each padded to 16 bytes

Standard library only; numpy is imported by the two functions that make or take arrays.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"WHF\x01"
MAX_HEADER = 1 << 20
MAX_PAYLOAD = 1 << 28
ALIGNMENT = 16
ITEM_SIZE = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}
_PREFIX = struct.Struct("<4sIQ")
_MAX_VECTOR = 512  # buffers in one writev; POSIX systems allow 1024 and more


class FrameError(Exception):
    """What came is no frame, or is cut off, or is larger than a frame may be."""


class TruncatedError(FrameError):
    """The stream ended in the middle of a frame: the other side died while it wrote."""


class Tensor(NamedTuple):
    """A named array as bytes.

    Attributes:
        name: of the tensor.
        dtype: numpy's name of the type, a key of `ITEM_SIZE`.
        shape: of the array.
        data: its bytes, C-contiguous, little-endian.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class Frame(NamedTuple):
    """A message: JSON values and tensors by name."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def encode(header: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> list[memoryview]:
    """The frame's bytes, as buffers to be written one after another; the tensors are not copied.

    Raises:
        FrameError: the frame would be larger than the other side accepts, or a tensor's bytes
            do not fit its shape.
    """
    body: list[memoryview] = []
    total = 0
    for tensor in tensors:
        data = memoryview(tensor.data).cast("B")
        if len(data) != _size(tensor.dtype, tensor.shape):
            raise FrameError(
                f"tensor {tensor.name!r}: {len(data)} bytes do not fit {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
        body.append(data)
        padding = -len(data) % ALIGNMENT
        if padding:
            body.append(memoryview(bytes(padding)))
        total += len(data) + padding
    described = dict(header)
    if tensors:
        described["tensors"] = [
            {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
            for tensor in tensors
        ]
    text = json.dumps(described, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER or total > MAX_PAYLOAD:
        raise FrameError(
            f"a frame of {len(text)} + {total} bytes is over the limit of "
            f"{MAX_HEADER} + {MAX_PAYLOAD}"
        )
    return [memoryview(_PREFIX.pack(MAGIC, len(text), total) + text), *body]


class Reader:
    """Takes frames out of a stream.

    Args:
        readinto: fills the start of a buffer and returns how many bytes it filled, at least 1;
            0 at the end of the stream.
    """

    def __init__(self, readinto: Callable[[memoryview], int]) -> None:
        self._readinto = readinto

    def read(self) -> Frame | None:
        """The next frame; None where the stream ends between two frames.

        Raises:
            FrameError: see there; the stream is then useless.
        """
        prefix = self._exactly(_PREFIX.size, may_end=True)
        if prefix is None:
            return None
        magic, header_size, payload_size = _PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise FrameError(f"expected a frame, found {bytes(prefix)!r}")
        if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
            raise FrameError(f"a frame of {header_size} + {payload_size} bytes is over the limit")
        header = _parse(bytes(self._exactly(header_size) or b""))
        payload = memoryview(self._exactly(payload_size) or b"")
        return Frame(header, _slice(header.pop("tensors", []), payload))

    def _exactly(self, size: int, may_end: bool = False) -> bytearray | None:
        buffer = bytearray(size)
        view = memoryview(buffer)
        filled = 0
        while filled < size:
            count = self._readinto(view[filled:])
            if count == 0:
                if may_end and filled == 0:
                    return None
                raise TruncatedError("the stream ended in the middle of a frame")
            filled += count
        return buffer


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame's header is not JSON: {text[:80]!r}") from error
    if not isinstance(header, dict):
        raise FrameError(f"a frame's header is no object: {text[:80]!r}")
    return header


def _slice(described: Any, payload: memoryview) -> dict[str, Tensor]:
    """Cut the payload into the tensors that the header lists."""
    tensors: dict[str, Tensor] = {}
    offset = 0
    try:
        for entry in described:
            name, dtype, shape = str(entry["name"]), str(entry["dtype"]), tuple(entry["shape"])
            size = _size(dtype, shape)
            if name in tensors:
                raise FrameError(f"a frame has two tensors named {name!r}")
            tensors[name] = Tensor(name, dtype, shape, payload[offset : offset + size])
            offset += size + (-size % ALIGNMENT)
    except (TypeError, KeyError) as error:
        raise FrameError(f"a frame's list of tensors is malformed: {described!r}") from error
    if offset != len(payload):
        raise FrameError(f"a frame's tensors take {offset} bytes, its payload has {len(payload)}")
    return tensors


def _size(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of an array."""
    size = ITEM_SIZE.get(dtype)
    if size is None:
        raise FrameError(f"tensors of type {dtype!r} cannot be sent; known: {', '.join(ITEM_SIZE)}")
    for length in shape:
        if not isinstance(length, int) or isinstance(length, bool) or length < 0:
            raise FrameError(f"a tensor's shape is malformed: {list(shape)}")
        size *= length
    return size


def from_array(name: str, array: np.ndarray) -> Tensor:
    """An array as a tensor; copied only where it is not C-contiguous."""
    import numpy as np

    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return Tensor(name, str(array.dtype), array.shape, data)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array that shares the frame's memory."""
    import numpy as np

    return np.frombuffer(tensor.data, np.dtype(tensor.dtype)).reshape(tensor.shape)


def write(
    descriptor: int, buffers: Sequence[memoryview], wait: Callable[[], None] | None = None
) -> None:
    """Write buffers to a file descriptor, all of them.

    Args:
        descriptor: where to.
        buffers: what.
        wait: for a descriptor that does not block: returns when it takes more, or raises.
    """
    pending = [buffer for buffer in buffers if len(buffer)]
    while pending:
        try:
            written = os.writev(descriptor, pending[:_MAX_VECTOR])
        except BlockingIOError:
            if wait is None:
                raise
            wait()
            continue
        done = 0
        while done < len(pending) and written >= len(pending[done]):
            written -= len(pending[done])
            done += 1
        del pending[:done]
        if written:
            pending[0] = pending[0][written:]
