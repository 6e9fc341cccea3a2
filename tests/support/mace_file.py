"""MACE's files as they are read, without anything of wherry's: see ``mace_net``."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NONE, NHWC, NCHW, AUTO = 0, 1, 2, 1000
TYPES = {1: np.float32, 2: np.uint8, 3: np.float16, 4: np.int32}


class MaceError(Exception):
    """What MACE would refuse or crash on."""


def check(condition: bool, *words: Any) -> None:
    if not condition:
        raise MaceError(" ".join(map(str, words)))


# --- the wire ------------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value - (1 << 64) if value >= 1 << 63 else value, at


def fields(data: bytes) -> dict[int, list[Any]]:
    """Number of a field to its values: whole numbers, 4 or 8 bytes, or bytes."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            size = {5: 4, 1: 8}[kind]
            value, at = data[at : at + size], at + size
        check(at <= len(data), "the message is cut off")
        found.setdefault(number, []).append(value)
    return found


def _float(raw: bytes) -> float:
    return struct.unpack("<f", raw)[0]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8")


@dataclass
class Arguments:
    """Of an operation or a network; every one has to be asked for by somebody."""

    values: dict[str, Any] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, messages: list[bytes]) -> Arguments:
        made = cls()
        for raw in messages:
            found = fields(raw)
            name = _text(found[1][0])
            check(name not in made.values, "argument", name, "is there twice")
            if 2 in found:
                value: Any = _float(found[2][0])
            elif 3 in found:
                value = found[3][0]
            elif 4 in found:
                value = _text(found[4][0])
            elif 5 in found:
                value = [_float(each) for each in found[5]]
            else:
                value = list(found.get(6, []))
            made.values[name] = value
        return made

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return self.values.get(name, default)


@dataclass
class Weight:
    values: np.ndarray
    scale: float = 0.0
    zero_point: int = 0


@dataclass
class Operation:
    type: str
    name: str
    inputs: list[str]
    outputs: list[str]
    arguments: Arguments
    shapes: list[list[int]]
    output_types: list[int]
    quantised: list[tuple[float, int]]


@dataclass
class Info:
    name: str
    dims: list[int]
    data_format: int


@dataclass
class Network:
    """A model file as it is read."""

    operations: list[Operation]
    weights: dict[str, Weight]
    inputs: list[Info]
    outputs: list[Info]
    arguments: Arguments
    data_type: int
    name: str

    @property
    def quantised(self) -> bool:
        return self.arguments.get("quantize_flag", 0) == 1


def read(model: Path, data: Path) -> Network:
    """A network of its two files."""
    found = fields(model.read_bytes())
    check(found[1] == [1], "the version is", found[1])
    check(len(found[3]) == 1, "there are", len(found[3]), "networks")
    net = fields(found[3][0])
    raw = data.read_bytes()
    check(net.get(7, [0])[0] == len(raw), "data_size is not that of the file")
    weights = dict(_weight(each, raw) for each in net.get(3, []))
    operations = [_operation(each) for each in net.get(1, [])]
    names = [op.name for op in operations]
    check(len(set(names)) == len(names), "operations of one name")
    read_net = Network(
        operations,
        weights,
        [_info(each) for each in net[100]],
        [_info(each) for each in net[101]],
        Arguments.of(net[2]),
        net[4][0],
        _text(net[5][0]),
    )
    check([_text(each) for each in found[100]] == [i.name for i in read_net.inputs], "inputs")
    check([_text(each) for each in found[101]] == [i.name for i in read_net.outputs], "outputs")
    return read_net


def _weight(raw: bytes, data: bytes) -> tuple[str, Weight]:
    found = fields(raw)
    kind = np.dtype(TYPES[found[2][0]]).newbyteorder("<")
    dims, offset, count = found.get(1, []), found[6][0], found[7][0]
    check(math.prod(dims) == count, "data_size of", found[5][0])
    check(kind.itemsize == 1 or offset % 4 == 0, "the offset of", found[5][0])
    check(offset + count * kind.itemsize <= len(data), "the end of", found[5][0])
    values = np.frombuffer(data, kind, count, offset).reshape(dims)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    scale = _float(found[8][0]) if 8 in found else 0.0
    return _text(found[5][0]), Weight(values, scale, found.get(9, [0])[0])


def _operation(raw: bytes) -> Operation:
    found = fields(raw)
    quantised = []
    for each in found.get(9, []):
        info = fields(each)
        quantised.append((_float(info[1][0]), info.get(2, [0])[0]))
    return Operation(
        _text(found[4][0]),
        _text(found[3][0]),
        [_text(each) for each in found.get(1, [])],
        [_text(each) for each in found[2]],
        Arguments.of(found.get(6, [])),
        [list(fields(each).get(1, [])) for each in found.get(7, [])],
        found.get(8, []),
        quantised,
    )


def _info(raw: bytes) -> Info:
    found = fields(raw)
    check(found[5] == [1], "an input or output that is no float")
    return Info(_text(found[1][0]), found.get(3, []), found[6][0])
