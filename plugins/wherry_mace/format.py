"""MACE's model files: ``.pb``, the network, and ``.data``, its weights.

``.pb`` is a MultiNetDef (proto2, package mace; the fields below are those of MACE's
``mace/proto/mace.proto``, of which only what is written here is named). ``.data`` is the weights
one after the other as raw little-endian arrays; each but those of 8 bits begins at a multiple of 4.

MACE decides at load time in which order a tensor's axes lie: NCHW on a CPU in float, NHWC on a GPU
and where the network is quantised. An operation says in its argument ``data_format`` in which order
its shapes and axes are written: ``AUTO`` (NHWC) or NCHW, which is ONNX's order; both then lie as
MACE decided. With ``NONE`` its tensors lie as they are written, and MACE leaves them alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FLOAT, UINT8, HALF, INT32 = 1, 2, 3, 4
"""MACE's DataType."""
NONE, NHWC, NCHW, OIHW, OHWI, AUTO = 0, 1, 2, 101, 103, 1000
"""MACE's DataFormat: of tensors, of weights."""
ONNX_FRAMEWORK = 2
GPU_IMAGE = 2
RUNTIMES = {"cpu": 0, "gpu": 2}
"""MACE's RuntimeType."""

TABLES: Mapping[str, Mapping[str, str]] = {
    "ConstTensor": {
        "dims": "1 repeated int64",
        "data_type": "2 int32",
        "name": "5 string",
        "offset": "6 int64",
        "data_size": "7 int64",
        "scale": "8 float",
        "zero_point": "9 int32",
        "minval": "10 float",
        "maxval": "11 float",
        "quantized": "12 bool",
    },
    "Argument": {
        "name": "1 string",
        "f": "2 float",
        "i": "3 int64",
        "s": "4 bytes",
        "floats": "5 repeated float",
        "ints": "6 repeated int64",
    },
    "OutputShape": {"dims": "1 repeated int64"},
    "QuantizeActivationInfo": {
        "scale": "1 float",
        "zero_point": "2 int32",
        "minval": "3 float",
        "maxval": "4 float",
    },
    "OperatorDef": {
        "input": "1 repeated string",
        "output": "2 repeated string",
        "name": "3 string",
        "type": "4 string",
        "arg": "6 repeated Argument",
        "output_shape": "7 repeated OutputShape",
        "output_type": "8 repeated int32",
        "quantize_info": "9 repeated QuantizeActivationInfo",
    },
    "InputOutputInfo": {
        "name": "1 string",
        "dims": "3 repeated int32",
        "data_type": "5 int32",
        "data_format": "6 int32",
        "scale": "7 float",
        "zero_point": "8 int32",
        "alias": "100 string",
    },
    "NetDef": {
        "op": "1 repeated OperatorDef",
        "arg": "2 repeated Argument",
        "tensors": "3 repeated ConstTensor",
        "data_type": "4 int32",
        "name": "5 string",
        "data_offset": "6 int32",
        "data_size": "7 int32",
        "infer_order": "8 int32",
        "input_info": "100 repeated InputOutputInfo",
        "output_info": "101 repeated InputOutputInfo",
    },
    "MultiNetDef": {
        "version_code": "1 int32",
        "name": "2 string",
        "net_def": "3 repeated NetDef",
        "input_tensor": "100 repeated string",
        "output_tensor": "101 repeated string",
    },
}

Value = int | float | str | Sequence[int] | Sequence[float]
"""Of an argument: the type says which field it is written to."""


@dataclass(frozen=True)
class Quantisation:
    """How whole numbers of 8 bits, 0 to 255, stand for real ones: ``(q - zero_point) * scale``."""

    scale: float
    zero_point: int

    @property
    def least(self) -> float:
        """The real number that 0 stands for."""
        return -self.zero_point * self.scale

    @property
    def greatest(self) -> float:
        """The real number that 255 stands for."""
        return (255 - self.zero_point) * self.scale


@dataclass(frozen=True)
class Constant:
    """A weight.

    Attributes:
        values: float32, int32 or uint8, in the axes' order that is written.
        quantisation: of uint8, and of int32 biases.
    """

    values: np.ndarray
    quantisation: Quantisation | None = None


@dataclass(frozen=True)
class Op:
    """An operation.

    Attributes:
        type: MACE's word.
        name: unique in the network; MACE's benchmark knows it by this.
        inputs: tensors and constants, by name.
        outputs: tensors that it makes.
        shapes: of the outputs, in ONNX's order of axes.
        arguments: without those that every operation has. Those of a free operation are written
            for NHWC.
        free: written for NHWC, and MACE turns the axes of its arguments (see the module).
        fixed: its tensors lie as they are written, in ONNX's order.
        nodes: of the normal form, that it does; empty: it is wherry's own.
        kind: ``FLOAT`` or ``UINT8``.
        quantisations: of the outputs, where they are whole numbers.
        stands_for: the model's tensor that its one output is, where that has another name here.
    """

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    arguments: Mapping[str, Value] = field(default_factory=dict)
    free: bool = False
    fixed: bool = False
    nodes: tuple[str, ...] = ()
    kind: int = FLOAT
    quantisations: tuple[Quantisation, ...] = ()
    stands_for: str = ""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network, float32.

    Attributes:
        name: in MACE.
        shape: in ONNX's order of axes.
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        ops: in an order in which they can be run.
        constants: by name.
        inputs: of the model, in its order.
        outputs: likewise.
        quantised: MACE's ``quantize_flag``: some operations compute in 8 bits.
    """

    ops: tuple[Op, ...]
    constants: Mapping[str, Constant]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    quantised: bool = False


@cache
def classes() -> dict[str, Any]:
    """The messages of `TABLES`."""
    from wherry.messages import message_classes

    return message_classes("mace", TABLES)


def nhwc(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape of four axes in the order NHWC; others as they are."""
    return tuple(shape[axis] for axis in (0, 2, 3, 1)) if len(shape) == 4 else tuple(shape)


def nchw(shape: Sequence[int]) -> tuple[int, ...]:
    """The inverse of `nhwc`."""
    return tuple(shape[axis] for axis in (0, 3, 1, 2)) if len(shape) == 4 else tuple(shape)


def with_views_last(net: Net) -> Net:
    """The network with those of its outputs at the end that are only another shape.

    MACE gives them the memory of what they are made of, and uses that again in what comes behind.
    """
    outputs = {tensor.name for tensor in net.outputs}
    views = [op for op in net.ops if op.type == "Reshape" and outputs.issuperset(op.outputs)]
    others = [op for op in net.ops if op not in views]
    return replace(net, ops=(*others, *views))


def write(net: Net, name: str, *, half: bool, runtime: str) -> tuple[bytes, bytes]:
    """The bytes of ``.pb`` and ``.data``; the same whenever it is called.

    Args:
        net: the network.
        name: of the model and of its one network.
        half: write float weights in float16 (MACE's ``fp16_fp32``: a CPU widens them when it
            loads, a GPU computes in them). What does not fit float16 stays as it is.
        runtime: ``cpu`` or ``gpu``.
    """
    made = classes()
    model = made["MultiNetDef"](version_code=1, name=name)
    model.input_tensor.extend(tensor.name for tensor in net.inputs)
    model.output_tensor.extend(tensor.name for tensor in net.outputs)
    kind = HALF if half else FLOAT
    definition = model.net_def.add(data_type=kind, name=name, data_offset=0, infer_order=0)
    arguments: dict[str, Value] = {
        "filter_format": OHWI if net.quantised else OIHW,
        "data_format": NCHW,
        "framework_type": ONNX_FRAMEWORK,
        "opencl_mem_type": GPU_IMAGE,
        "runtime_type": RUNTIMES[runtime],
    }
    if net.quantised:
        arguments["quantize_flag"] = 1
    _add_arguments(definition, arguments)
    for op in net.ops:
        _add_op(definition, op, kind)
    data = _add_constants(definition, net.constants, half=half)
    definition.data_size = len(data)
    for tensors, infos in (
        (net.inputs, definition.input_info),
        (net.outputs, definition.output_info),
    ):
        for tensor in tensors:
            info = infos.add(name=tensor.name, alias=tensor.name, data_type=FLOAT)
            info.dims.extend(nhwc(tensor.shape))
            info.data_format = NHWC if len(tensor.shape) == 4 else NONE
    return model.SerializeToString(deterministic=True), data


def _add_op(definition: Any, op: Op, kind: int) -> None:
    entry = definition.op.add(name=op.name, type=op.type)
    entry.input.extend(op.inputs)
    entry.output.extend(op.outputs)
    general: dict[str, Value] = {
        "T": kind if op.kind == FLOAT else op.kind,
        "framework_type": ONNX_FRAMEWORK,
        "data_format": AUTO if op.free else NONE if op.fixed else NCHW,
    }
    _add_arguments(entry, {**op.arguments, **general})
    for shape in op.shapes:
        entry.output_shape.add(dims=nhwc(shape) if op.free else shape)
    if op.type == "Dequantize":
        entry.output_type.append(FLOAT)
    for each in op.quantisations:
        entry.quantize_info.add(
            scale=each.scale,
            zero_point=each.zero_point,
            minval=each.least,
            maxval=each.greatest,
        )


def _add_arguments(message: Any, values: Mapping[str, Value]) -> None:
    for name, value in values.items():
        argument = message.arg.add(name=name)
        if isinstance(value, str):
            argument.s = value.encode()
        elif isinstance(value, int):  # bool too
            argument.i = value
        elif isinstance(value, float):
            argument.f = value
        elif value and isinstance(value[0], float):
            argument.floats.extend(value)
        else:
            argument.ints.extend(value)


def _add_constants(definition: Any, constants: Mapping[str, Constant], *, half: bool) -> bytes:
    """Describe the weights and return their bytes."""
    import numpy as np

    data = bytearray()
    if not constants:  # MACE refuses a network that has none
        constants = {"wherry/nothing": Constant(np.zeros(1, np.float32))}
    for name, constant in constants.items():
        values, kind = constant.values, _kind(constant.values)
        if kind == FLOAT and half:
            with np.errstate(over="ignore"):
                narrow = values.astype(np.float16)
            if np.isfinite(narrow).all():
                values, kind = narrow, HALF
        if kind != UINT8:
            data.extend(bytes(-len(data) % 4))
        entry = definition.tensors.add(
            dims=values.shape,
            data_type=kind,
            name=name,
            offset=len(data),
            data_size=values.size,
        )
        if (found := constant.quantisation) is not None:
            entry.scale, entry.zero_point = found.scale, found.zero_point
            if kind == UINT8:
                entry.minval, entry.maxval, entry.quantized = found.least, found.greatest, True
        data.extend(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes())
    return bytes(data)


def _kind(values: np.ndarray) -> int:
    return {"float32": FLOAT, "int32": INT32, "uint8": UINT8}[values.dtype.name]
