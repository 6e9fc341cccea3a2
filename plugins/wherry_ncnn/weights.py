"""Reads and writes ncnn's ``.bin`` files: the weights of a network, in the order of its layers.

The form (ncnn's source, ``modelbin.cpp`` and each layer's ``load_model``): no header, nothing but
arrays, little-endian. A main weight begins with a tag of four bytes that says what it is made of,
and is padded to four bytes; all others (biases, scales) are float32 and nothing else. How many
values an array has follows from the parameters of its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from wherry_ncnn.param import Layer

FLOAT32, RAW_FLOAT32, FLOAT16, INT8 = 0, 0x0002C056, 0x01306B47, 0x000D4B38
"""Tags of main weights."""

_TYPES = {FLOAT32: "<f4", RAW_FLOAT32: "<f4", FLOAT16: "<f2", INT8: "i1"}
_ALIGNED = 4  # bytes
Piece = tuple[int, bool]
"""How many values an array has, and whether a tag stands before it."""


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One array.

    Attributes:
        values: flat, of the type that the tag says.
        tag: None: float32 without a tag.
    """

    values: np.ndarray
    tag: int | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Weight)
            and self.tag == other.tag
            and self.values.dtype == other.values.dtype
            and self.values.tobytes() == other.values.tobytes()
        )

    __hash__ = None  # type: ignore[assignment] # arrays change


def read(layers: Sequence[Layer], data: bytes) -> dict[str, tuple[Weight, ...]]:
    """The arrays of every layer that has some, by its name.

    Args:
        layers: what the ``.param`` file says.
        data: the bytes of the ``.bin`` file.

    Raises:
        ValueError: the bytes are not those of these layers; the layer is named.
    """
    found: dict[str, tuple[Weight, ...]] = {}
    start = 0
    for layer in layers:
        weights = []
        for count, tagged in pieces(layer):
            try:
                weight, start = _weight(data, start, count, tagged=tagged)
            except ValueError as error:
                raise ValueError(f"{layer.type} {layer.name}: {error}") from None
            weights.append(weight)
        if weights:
            found[layer.name] = tuple(weights)
    if start != len(data):
        raise ValueError(f"{len(data) - start} bytes are left after the last layer")
    return found


def _weight(data: bytes, start: int, count: int, *, tagged: bool) -> tuple[Weight, int]:
    import numpy as np

    tag = None
    if tagged:
        tag = int.from_bytes(data[start : start + 4], "little")
        start += 4
        if tag not in _TYPES:
            raise ValueError(f"the tag {tag:#x} at byte {start - 4} is none of ncnn's")
    kind = np.dtype(_TYPES[FLOAT32 if tag is None else tag])
    size = count * kind.itemsize
    if start + size > len(data):
        raise ValueError(f"{count} values of {kind.name} are wanted, and the file ends before")
    values = np.frombuffer(data, kind, count, start)
    return Weight(values, tag), start + size + -size % _ALIGNED


def write(layers: Sequence[Layer], weights: Mapping[str, Sequence[Weight]]) -> bytes:
    """The inverse of `read`.

    Raises:
        ValueError: a layer's arrays are not those that its parameters announce.
    """
    written: list[bytes] = []
    for layer in layers:
        given = weights.get(layer.name, ())
        wanted = list(pieces(layer))
        if [(weight.values.size, weight.tag is not None) for weight in given] != wanted:
            raise ValueError(f"{layer.type} {layer.name} wants arrays of {wanted}")
        for weight in given:
            kind = _TYPES[FLOAT32 if weight.tag is None else weight.tag]
            body = weight.values.astype(kind, casting="no").tobytes()
            if weight.tag is not None:
                written.append(weight.tag.to_bytes(4, "little"))
            written.append(body + bytes(-len(body) % _ALIGNED))
    return b"".join(written)


# --- which arrays a layer has --------------------------------------------------------------------


def pieces(layer: Layer) -> Iterator[Piece]:
    """The arrays of a layer, in the file's order."""
    made = _PIECES.get(layer.type)
    if made is not None:
        yield from made(_Numbers(layer.parameters))


class _Numbers:
    """A layer's parameters as whole numbers, with ncnn's defaults."""

    def __init__(self, parameters: Mapping[int, Any]) -> None:
        self._parameters = parameters

    def __call__(self, key: int, default: int = 0) -> int:
        return int(self._parameters.get(key, default))


def _convolution(get: _Numbers) -> Iterator[Piece]:
    if get(19) or get(28):  # its weights are an input
        return
    outputs, term = get(0), get(8)
    yield get(6), True
    if get(5):
        yield outputs, False
    if term:
        yield from ((outputs, False), (1, False))
    if term > 100:
        yield 1, False


def _depthwise(get: _Numbers) -> Iterator[Piece]:
    if get(19) or get(28):
        return
    term = get(8)
    yield get(6), True
    if get(5):
        yield get(0), False
    if term:
        yield from ((get(7, 1) if term % 100 == 1 else 1, False), (1, False))
    if term > 100:
        yield 1, False


def _deconvolution(get: _Numbers) -> Iterator[Piece]:
    if not get(28):
        yield get(6), True
        if get(5):
            yield get(0), False


def _inner_product(get: _Numbers) -> Iterator[Piece]:
    yield get(2), True
    if get(1):
        yield get(0), False
    if get(8):
        yield from ((get(0), False), (1, False))


def _embed(get: _Numbers) -> Iterator[Piece]:
    yield get(3), True
    if get(2):
        yield get(0), False
    if get(18):
        yield 1, False


def _gemm(get: _Numbers) -> Iterator[Piece]:
    m, n, k = get(7), get(8), get(9)
    if get(4) == 1:
        yield m * k, True
    if get(5) == 1:
        yield n * k, True
    if get(6) == 1 and get(10) != -1:
        yield {0: 1, 1: m, 2: m, 3: n * m, 4: n}[get(10)], True
    if get(18):
        if get(4) == 1:
            yield m, False
        if get(5) == 1:
            yield 1, False


def _recurrent(gates: int, biases: int) -> Callable[[_Numbers], Iterator[Piece]]:
    """RNN, GRU, LSTM: the gates of a cell, and the rows of its biases."""

    def made(get: _Numbers) -> Iterator[Piece]:
        outputs, directions = get(0), 2 if get(2) == 2 else 1
        cells = get(3, outputs) if gates == 4 else outputs
        yield get(1), True
        yield cells * biases * directions, True
        yield outputs * cells * gates * directions, True
        if cells != outputs:
            yield cells * outputs * directions, True
        if get(8):
            yield from 2 * ((cells * gates * directions, False),)

    return made


def _attention(get: _Numbers) -> Iterator[Piece]:
    width, size = get(0), get(2)
    into = size // width if width else 0
    for count in (size, width * get(3, width), width * get(4, width)):
        yield from ((count, True), (width, False))
    yield from ((size, True), (into, False))
    if get(18):
        yield from (*3 * ((width, False),), (1, False))


def _memory(get: _Numbers) -> Iterator[Piece]:
    axes = [get(key) for key in (0, 1, 11, 2) if get(key)]
    if axes:
        count = 1
        for axis in axes:
            count *= axis
        yield count, get(21, 1) == 0


def _scale(get: _Numbers) -> Iterator[Piece]:
    if get(0) != -233:  # the scale is an input
        yield get(0), False
        if get(1):
            yield get(0), False


def _affine(size: int, switch: int, count: int) -> Callable[[_Numbers], Iterator[Piece]]:
    """Norms: keys of the size and of the switch, and how many arrays."""
    return lambda get: iter(count * ((get(size), False),) if get(switch, 1) else ())


def _plain(key: int, count: int = 1) -> Callable[[_Numbers], Iterator[Piece]]:
    return lambda get: iter(count * ((get(key), False),) if get(key) else ())


_PIECES: Mapping[str, Callable[[_Numbers], Iterator[Piece]]] = {
    **{f"Convolution{axes}": _convolution for axes in ("", "1D", "3D")},
    **{f"ConvolutionDepthWise{axes}": _depthwise for axes in ("", "1D", "3D")},
    **{f"Deconvolution{axes}": _deconvolution for axes in ("", "1D", "3D")},
    **{f"DeconvolutionDepthWise{axes}": _deconvolution for axes in ("", "1D", "3D")},
    "DeformableConv2D": _deconvolution,
    "InnerProduct": _inner_product,
    "Embed": _embed,
    "Gemm": _gemm,
    "RNN": _recurrent(1, 1),
    "GRU": _recurrent(3, 4),
    "LSTM": _recurrent(4, 4),
    "MultiHeadAttention": _attention,
    "MemoryData": _memory,
    "Scale": _scale,
    "BatchNorm": _plain(0, 4),
    "Bias": _plain(0),
    "PReLU": _plain(0),
    "Padding": _plain(6),
    "Normalize": _plain(3),
    "LayerNorm": _affine(0, 2, 2),
    "RMSNorm": _affine(0, 2, 1),
    "GroupNorm": _affine(1, 3, 2),
    "InstanceNorm": _affine(0, 2, 2),
}
"""Types of the layers that have weights; all others of ncnn's have none."""
