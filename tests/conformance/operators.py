"""One small model for each form of each ONNX operator that a picture or sequence network may hold.

`FORMS` maps an operator to builders. Backends are asked with them what they convert: the lists of
supported operators in the plugins are what these models showed, and the tests show it again. Each
operator stands behind a convolution, so that a backend sees which axis is the batch, and gives
float32, through a Cast where it would give something else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from wherry_conformance_networks import Net

FORMS: dict[str, list[Callable[[], onnx.ModelProto]]] = {}
SHAPE = (1, 4, 6, 10)
FLOAT = TensorProto.FLOAT


def form(kind: str, *operands: Any, opset: int = 17, shape: tuple[int, ...] = SHAPE,
         cast: int = 0, outputs: int = 1, before: str = "", known: bool = True,
         **attributes: Any) -> None:  # fmt: skip
    """Enter a form of ``kind``.

    Args:
        kind: the operator.
        operands: after the data: arrays become weights, the word ``data`` another activation,
            ``none`` an absent input.
        opset: of the model.
        shape: of the data; a convolution gives it where it has four axes.
        cast: the element type that the operator takes; the data are cast to it.
        outputs: of the operator; the first one counts.
        before: an operator that the data pass first, ``Sigmoid`` for values of 0 to 1.
        known: ONNX's shape inference knows the operator; else its output has the data's shape.
        attributes: of the operator.
    """

    def build() -> onnx.ModelProto:
        n = Net(kind, opset=opset)
        data, other = _data(n, shape), ""
        if before:
            data = n.op(before, data)
        if cast:
            data = n.op("Cast", data, to=cast)
        names = [data]
        for operand in operands:
            if isinstance(operand, str):
                if operand == "data" and not other:
                    other = _data(n, shape)
                    other = n.op("Cast", other, to=cast) if cast else other
                names.append(other if operand == "data" else "")
            else:
                array = np.asarray(operand)
                names.append(n.const(array, "float32" if array.dtype.kind == "f" else array.dtype))
        made = n.ops(kind, *names, outputs=outputs, **attributes)[0]
        made = n.op("Cast", made, to=FLOAT) if cast or kind in NOT_FLOAT else made
        return n.model(y=made, shape=None if known else shape)

    FORMS.setdefault(kind, []).append(build)


def _data(n: Net, shape: tuple[int, ...]) -> str:
    x = n.input(f"x{len(n.inputs)}", *shape)
    return n.conv(x, shape[1], shape[1]) if len(shape) == 4 else x


def _recurrent(kind: str, *, batch_first: bool = False, bias: bool = True, last: bool = False,
               start: bool = False, **about: Any) -> onnx.ModelProto:  # fmt: skip
    """12 steps of 6 values; ``last``: the state after the last step is what counts."""
    n = Net(kind)
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    x = n.input("x", *((1, 12, 6) if batch_first else (12, 1, 6)))
    x = n.op("Transpose", x, perm=[1, 0, 2]) if batch_first else x
    names = [x, n.weight(1, 8 * gates, 6, fan_in=12), n.weight(1, 8 * gates, 8, fan_in=16)]
    names += [n.weight(1, 16 * gates) if bias else ""]
    names += ["", n.weight(1, 1, 8), *([n.weight(1, 1, 8)] if kind == "LSTM" else [])] * start
    if kind == "GRU":
        about.setdefault("linear_before_reset", 1)
    every, state = n.ops(kind, *names, outputs=2, hidden_size=8, **about)
    if last:
        return n.model(y=n.gemm(n.op("Squeeze", state, n.ints(0)), 8, 5))
    every = n.op("Squeeze", every, n.ints(1))
    return n.model(y=n.op("Transpose", every, perm=[1, 0, 2]) if batch_first else every)


def _where() -> onnx.ModelProto:
    n = Net("Where")
    x, other = _data(n, SHAPE), _data(n, SHAPE)
    return n.model(y=n.op("Where", n.op("Greater", x, n.const(0.2)), x, other))


NOT_FLOAT = {
    "ArgMax", "ArgMin", "Shape", "Size", "NonZero", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Equal", "IsNaN", "IsInf", "QuantizeLinear",
}  # fmt: skip
ints = np.array
rng = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    """Weights."""
    return rng.normal(0, 0.5, shape).astype(np.float32)


# --- one value at a time -----------------------------------------------------------------------

for kind in ("Abs", "Atan", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish",
             "Identity", "LeakyRelu", "Neg", "Relu", "Round", "Selu", "Celu", "Sigmoid", "Sign",
             "Sin", "Sinh", "Cosh", "Asinh", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
             "IsNaN", "IsInf", "Dropout", "Shrink"):  # fmt: skip
    form(kind)
for kind in ("Log", "Sqrt", "Reciprocal", "Acos", "Asin", "Atanh", "Tan"):
    form(kind, before="Sigmoid")
form("Mish", opset=18)
form("Gelu", opset=20)
form("Gelu", opset=20, approximate="tanh")
form("Swish", opset=24)
form("Shrink", bias=0.3, lambd=0.5)
form("LeakyRelu", alpha=0.3)
form("Clip", np.float32(-0.5), np.float32(0.7))
form("Clip", np.float32(0.0))
form("Clip", opset=9, min=-0.5, max=0.7)
form("Not", cast=TensorProto.BOOL)
form("Cast", to=TensorProto.FLOAT)
form("Cast", to=TensorProto.INT32, cast=TensorProto.INT32)
form("CastLike", floats(1))
form("PRelu", floats(4, 1, 1))
form("PRelu", floats(1))

# --- arithmetic --------------------------------------------------------------------------------

for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum"):
    for operand in ("data", np.float32(0.7), floats(1, 4, 1, 1), floats(10), floats(*SHAPE)):
        form(kind, operand)
form("Pow", np.float32(2.0))
form("Pow", np.float32(3.0), before="Sigmoid")
form("Pow", floats(4, 1, 1), before="Sigmoid")
form("Mod", np.float32(0.7), fmod=1)
for kind in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"):
    form(kind, "data")
    form(kind, np.float32(0.2))
for kind in ("And", "Or", "Xor"):
    form(kind, "data", cast=TensorProto.BOOL)

# --- reductions and the like -------------------------------------------------------------------

for kind in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
             "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"):  # fmt: skip
    for axes, keepdims in (([2, 3], 0), ([2, 3], 1), ([1], 1), ([3], 0)):
        if kind == "ReduceSum":
            form(kind, ints(axes), opset=13, keepdims=keepdims)
        else:
            form(kind, axes=axes, opset=13, before="Sigmoid", keepdims=keepdims)
        form(kind, ints(axes), opset=18, before="Sigmoid", keepdims=keepdims)
for kind in ("ArgMax", "ArgMin"):
    form(kind, axis=1)
    form(kind, axis=3, keepdims=0)
for kind in ("Softmax", "LogSoftmax", "Hardmax"):
    form(kind, axis=1)
    form(kind, axis=3)
    form(kind, axis=1, opset=11)
form("CumSum", np.int64(3))
form("TopK", ints([3]), axis=1, outputs=2)
form("Trilu", shape=(1, 6, 6))

# --- convolutions, pooling, products -----------------------------------------------------------

form("Conv", floats(8, 4, 3, 3), floats(8), pads=[1] * 4)
form("Conv", floats(8, 4, 3, 3), pads=[1] * 4)
form("Conv", floats(4, 1, 3, 3), group=4, strides=[2, 2])
form("Conv", floats(8, 2, 3, 3), group=2, dilations=[2, 2], pads=[2] * 4)
form("Conv", floats(8, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
form("Conv", floats(8, 4, 3), pads=[1, 1], shape=(1, 4, 20))
form("Conv", floats(8, 2, 3, 3, 3), pads=[1] * 6, shape=(1, 2, 4, 6, 8))
form("ConvTranspose", floats(4, 6, 2, 2), strides=[2, 2])
form("ConvTranspose", floats(4, 6, 3, 3), strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])
form("ConvTranspose", floats(4, 1, 3, 3), group=4)
for kind in ("MaxPool", "AveragePool"):
    form(kind, kernel_shape=[2, 2], strides=[2, 2])
    form(kind, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    form(kind, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    form(kind, kernel_shape=[3], shape=(1, 4, 20))
form("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
form("MaxPool", kernel_shape=[2, 2], dilations=[2, 2])
form("LpPool", kernel_shape=[2, 2], p=2)
form("GlobalAveragePool")
form("GlobalMaxPool")
form("GlobalLpPool")
form("Gemm", floats(16, 8), floats(8), shape=(1, 16))
form("Gemm", floats(8, 16), floats(8), shape=(1, 16), transB=1, alpha=0.5, beta=2.0)
form("Gemm", floats(16, 8), shape=(1, 16))
form("Gemm", floats(16, 16), shape=(1, 16))
form("Gemm", floats(8, 16), shape=(1, 16), transB=1, alpha=0.5)
form("MatMul", floats(10, 8))
form("MatMul", floats(16, 8), shape=(1, 16))
form("MatMul", floats(16, 8), shape=(1, 5, 16))
form("MatMul", "data", shape=(1, 6, 6))
form("Einsum", floats(10, 8), equation="bchw,wd->bchd")
form("DeformConv", floats(4, 4, 1, 1), floats(1, 2, 6, 10), opset=19)

# --- normalisation -----------------------------------------------------------------------------

positive = np.abs(floats(4)) + 0.5
form("BatchNormalization", positive, floats(4), floats(4), positive)
form("InstanceNormalization", positive, floats(4))
form("LayerNormalization", np.abs(floats(10)) + 0.5, floats(10), axis=-1)
form("LayerNormalization", np.abs(floats(16)) + 0.5, floats(16), axis=-1, shape=(1, 5, 16))
form("GroupNormalization", positive, floats(4), opset=21, num_groups=2, known=False)
form("RMSNormalization", np.abs(floats(16)) + 0.5, opset=23, axis=-1, shape=(1, 5, 16))
form("LRN", size=3)
form("LpNormalization", axis=1)

# --- shapes ------------------------------------------------------------------------------------

form("Reshape", ints([1, 2, 2, 60]))
form("Reshape", ints([1, -1]))
form("Reshape", ints([0, 2, 2, 6, 10]))
form("Flatten")
form("Flatten", axis=2)
for perm in itertools.permutations((1, 2, 3)):
    form("Transpose", perm=[0, *perm])
form("Transpose", perm=[0, 2, 1], shape=(1, 5, 16))
form("Squeeze", ints([2]), shape=(1, 4, 1, 10))
form("Unsqueeze", ints([2]), shape=(1, 5, 16))
form("Unsqueeze", ints([2]))
for axis in (1, 2, 3):
    form("Concat", "data", axis=axis)
    form("Concat", floats(*SHAPE), axis=axis)
form("Split", ints([1, 3]), axis=1, outputs=2)
form("Split", ints([4, 6]), axis=3, outputs=2)
form("Slice", ints([1]), ints([3]), ints([1]))
form("Slice", ints([1, 2]), ints([5, 1000]), ints([2, 3]))
form("Slice", ints([0]), ints([10]), ints([3]), ints([2]))
form("Slice", ints([-1]), ints([-1000]), ints([3]), ints([-1]))
form("Pad", ints([0, 0, 1, 2, 0, 0, 1, 2]), np.float32(0.5))
form("Pad", ints([0, 0, 0, 1, 0, 0, 2, 0]))
form("Pad", ints([0, 1, 0, 0, 0, 2, 0, 0]))
for mode in ("reflect", "edge"):
    form("Pad", ints([0, 0, 1, 2, 0, 0, 1, 2]), mode=mode)
form("Tile", ints([1, 1, 2, 3]))
form("Expand", ints([1, 4, 6, 10]), shape=(1, 4, 1, 10))
form("Gather", ints([2, 0, 1]), axis=1)
form("Gather", np.int64(1), axis=1)
form("Gather", np.int64(2), axis=3)
form("GatherElements", ints(np.zeros((1, 4, 6, 3), np.int64)), axis=3)
form("GatherND", ints([[0, 1], [0, 3]]))
form("ScatterND", ints([[0, 1]]), floats(1, 6, 10))
form("ScatterElements", ints(np.zeros((1, 1, 6, 10), np.int64)), floats(1, 1, 6, 10), axis=1)
for mode in ("DCR", "CRD"):
    form("DepthToSpace", blocksize=2, mode=mode)
form("SpaceToDepth", blocksize=2)
form("ReverseSequence", ints([3]), shape=(1, 5, 16), batch_axis=0, time_axis=1)
form("CenterCropPad", ints([4, 6]), opset=18, axes=[2, 3])
form("Shape")
form("Size")
twice = np.array([1, 1, 2, 2], np.float32)
half = np.array([1, 1, 0.5, 0.5], np.float32)
for mode, way in (("nearest", "asymmetric"), ("nearest", "half_pixel"), ("linear", "half_pixel"),
                  ("linear", "align_corners"), ("linear", "asymmetric"), ("cubic", "half_pixel"),
                  ("linear", "pytorch_half_pixel"), ("cubic", "align_corners")):  # fmt: skip
    about = {"mode": mode, "coordinate_transformation_mode": way}
    for rounding in ("floor", "round_prefer_floor") if mode == "nearest" else ("floor",):
        form("Resize", "none", twice, nearest_mode=rounding, **about)
        form("Resize", "none", half, nearest_mode=rounding, **about)
        form("Resize", "none", "none", ints([1, 4, 9, 13]), nearest_mode=rounding, **about)
form("Upsample", twice, opset=9, mode="nearest")
form("Upsample", twice, opset=9, mode="linear")
form("GridSample", np.tanh(floats(1, 6, 10, 2)), opset=20, mode="linear")

# --- sequences, choices, quantisation ----------------------------------------------------------

for kind in ("RNN", "GRU", "LSTM"):
    FORMS[kind] = [
        partial(_recurrent, kind, **case)
        for case in (
            {},
            {"batch_first": True},
            {"batch_first": True, "bias": False},
            {"batch_first": True, "last": True},
            {"batch_first": True, "bias": False, "last": True},
            {"batch_first": True, "bias": False, "start": True},
            {"batch_first": True, "start": True},
            {"batch_first": True, "direction": "reverse"},
            {"batch_first": True, "clip": 0.2},
        )
    ]
FORMS["GRU"].append(partial(_recurrent, "GRU", batch_first=True, linear_before_reset=0))
FORMS["RNN"].append(partial(_recurrent, "RNN", batch_first=True, activations=["Relu"]))
FORMS["Where"] = [_where]
form("QuantizeLinear", np.float32(0.05), np.uint8(100))
form("RoiAlign", floats(1, 4) * 0 + np.array([[0, 0, 5, 5]], np.float32), ints([0]),
     output_height=3, output_width=3)  # fmt: skip
form("Attention", "data", "data", opset=23, shape=(1, 6, 16), q_num_heads=2, kv_num_heads=2)
form("RotaryEmbedding", floats(8, 4), floats(8, 4), ints([[0, 1, 2, 3, 4, 5]]), opset=23,
     shape=(1, 2, 6, 8))  # fmt: skip
