"""Caffe2's networks as messages: ``init_net.pb`` makes the weights, ``predict_net.pb`` computes.

The format is Caffe2's ``caffe2.proto`` (proto2): a `NetDef` holds `OperatorDef`, these hold
`Argument`. The fields here are those that a network for inference has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from wherry.messages import message_classes

INIT_NET, PREDICT_NET = "init_net.pb", "predict_net.pb"

Value = int | float | str | bytes | Sequence[int] | Sequence[float] | np.ndarray

TABLES: Mapping[str, Mapping[str, str]] = {
    "NetDef": {
        "name": "1 string",
        "op": "2 repeated OperatorDef",
        "type": "3 string",
        "num_workers": "4 int32",
        "device_option": "5 DeviceOption",
        "arg": "6 repeated Argument",
        "external_input": "7 repeated string",
        "external_output": "8 repeated string",
    },
    "OperatorDef": {
        "input": "1 repeated string",
        "output": "2 repeated string",
        "name": "3 string",
        "type": "4 string",
        "arg": "5 repeated Argument",
        "device_option": "6 DeviceOption",
        "engine": "7 string",
    },
    "Argument": {
        "name": "1 string",
        "f": "2 float",
        "i": "3 int64",
        "s": "4 bytes",
        "floats": "5 repeated float",
        "ints": "6 repeated int64",
        "strings": "7 repeated bytes",
    },
    "DeviceOption": {"device_type": "1 int32", "device_id": "2 int32"},
}
"""Message to its fields, as `wherry.messages.message_classes` reads them."""


@cache
def messages() -> Mapping[str, Any]:
    """The message classes by name."""
    return message_classes("caffe2", TABLES)


@dataclass(frozen=True)
class Operator:
    """An operator of a network.

    Attributes:
        type: Caffe2's word, e.g. ``Conv``.
        inputs: names of blobs.
        outputs: likewise; some operators have to be given more than anyone reads.
        arguments: by name; whole numbers, floats, texts, bytes, or lists of whole or of floating
            point numbers. None of them: the argument is left out.
        name: that of the ONNX node, where it is the node's main operator; unique in a network.
        source: of the node of the normal form that it does; empty: it is the converter's own.
        engine: an implementation that is asked for; empty: Caffe2's choice.
    """

    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: Mapping[str, Value | None] = field(default_factory=dict)
    name: str = ""
    source: str = ""
    engine: str = ""


def write_net(
    name: str,
    operators: Iterable[Operator],
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
) -> bytes:
    """A serialised NetDef.

    Args:
        name: of the network.
        operators: in the order in which they run.
        inputs: blobs that exist before it runs.
        outputs: blobs that are asked for when it has run.
    """
    net = messages()["NetDef"](name=name, type="simple")
    for operator in operators:
        made = net.op.add(
            type=operator.type, name=operator.name, input=operator.inputs, output=operator.outputs
        )
        if operator.engine:
            made.engine = operator.engine
        for key, value in operator.arguments.items():
            if value is not None:
                _set(made.arg.add(name=key), value)
    net.external_input.extend(inputs)
    net.external_output.extend(outputs)
    data: bytes = net.SerializeToString(deterministic=True)
    return data


def _set(argument: Any, value: Value) -> None:
    if isinstance(value, str | bytes):
        argument.s = value.encode() if isinstance(value, str) else value
    elif isinstance(value, int):
        argument.i = value
    elif isinstance(value, float):
        argument.f = value
    elif isinstance(value, np.ndarray):
        _set_many(argument, value)
    elif all(isinstance(each, int) for each in value):
        argument.ints.extend(value)
    else:
        argument.floats.extend(value)


def _set_many(argument: Any, values: np.ndarray) -> None:
    """Floats, of which there may be millions: as they are on the wire.

    Field 5 is not packed: each value has a key, a byte, before its four.
    """
    wire = np.empty(values.size, np.dtype([("key", "u1"), ("value", "<f4")]))
    wire["key"] = 5 << 3 | 5
    wire["value"] = values.ravel()
    argument.MergeFromString(wire.tobytes())


# --- what makes weights -----------------------------------------------------------------------

_FILLS = {
    "float32": "GivenTensorFill",
    "int64": "GivenTensorInt64Fill",
    "int32": "GivenTensorIntFill",
    "bool": "GivenTensorBoolFill",
}


def fill(name: str, values: np.ndarray) -> Operator:
    """An operator of ``init_net`` that makes a tensor.

    Args:
        name: of the blob.
        values: float32, int64, int32 or bool.
    """
    listed = [int(value) for value in values.ravel()] if values.dtype != np.float32 else values
    arguments: dict[str, Value] = {"shape": list(values.shape), "values": listed}
    return Operator(_FILLS[values.dtype.name], (), (name,), arguments)


def fill_int8(name: str, values: np.ndarray, scale: float, zero_point: int) -> Operator:
    """Likewise a quantised tensor.

    Args:
        name: of the blob.
        values: uint8, or int32 (of biases).
        scale: see `wherry.quantize.qdq.Scale`.
        zero_point: likewise.
    """
    wide = values.dtype.name == "int32"
    arguments: dict[str, Value] = {
        "shape": list(values.shape),
        "values": values.ravel().tolist() if wide else values.tobytes(),
        "Y_scale": float(scale),
        "Y_zero_point": zero_point,
    }
    return Operator(
        "Int8GivenIntTensorFill" if wide else "Int8GivenTensorFill", (), (name,), arguments
    )
