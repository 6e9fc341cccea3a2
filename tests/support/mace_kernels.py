"""What MACE's operations compute on a CPU, in numpy: see ``mace_net``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from mace_file import NCHW, NHWC, NONE, MaceError, Operation, check
from numpy.lib.stride_tricks import sliding_window_view


@dataclass
class Tensor:
    """A value and the order of its axes; whole numbers have a scale."""

    values: np.ndarray
    order: int
    scale: float = 0.0
    zero_point: int = 0

    def in_order(self, wanted: int) -> Tensor:
        """Transposed where it has four axes and lies in another order."""
        if self.values.ndim != 4 or NONE in {self.order, wanted} or self.order == wanted:
            return self
        axes = (0, 2, 3, 1) if wanted == NHWC else (0, 3, 1, 2)
        values = np.ascontiguousarray(self.values.transpose(axes))
        return Tensor(values, wanted, self.scale, self.zero_point)


@dataclass
class Call:
    """One operation with what it is given."""

    op: Operation
    given: list[Tensor]
    order: int
    has_order: bool
    kept: bool

    def arg(self, name: str, default: Any = None) -> Any:
        return self.op.arguments.get(name, default)

    @property
    def whole(self) -> bool:
        return self.arg("T") == 2

    def axis(self, axis: int) -> int:
        """An axis as it is written, in the order that the tensor lies in."""
        if axis < 0:
            axis += self.given[0].values.ndim
        if self.has_order and self.order == NCHW and self.given[0].values.ndim == 4:
            return (0, 2, 3, 1)[axis]
        return axis

    def out(self, values: np.ndarray, index: int = 0, order: int | None = None) -> Tensor:
        """A result: float, or the real numbers of whole ones, which are rounded here."""
        order = self.order if order is None else order
        order = order if values.ndim == 4 and not self.kept else NONE
        if not self.whole:
            return Tensor(values.astype(np.float32), order)
        scale, zero = self.op.quantised[index]
        whole = np.clip(np.floor(values / scale + 0.5) + zero, 0, 255).astype(np.uint8)
        return Tensor(whole, order, scale, zero)

    def real(self, index: int) -> np.ndarray:
        tensor = self.given[index]
        if tensor.values.dtype == np.float32:
            return tensor.values
        return (tensor.values.astype(np.float64) - tensor.zero_point) * tensor.scale


def _pictures(call: Call, values: np.ndarray) -> np.ndarray:
    """[n, c, h, w], whatever the order."""
    check(values.ndim == 4, call.op.name, "takes pictures")
    return values if call.order == NCHW else values.transpose(0, 3, 1, 2)


def _back(call: Call, values: np.ndarray) -> np.ndarray:
    return values if call.order == NCHW else values.transpose(0, 2, 3, 1)


def _size(call: Call, shape: Any, kernel: Any) -> tuple[list[int], list[int]]:
    """Heights and widths after a window, and the padding in front."""
    strides, dilations = call.arg("strides"), call.arg("dilations", [1, 1])
    totals, ceil = call.arg("padding_values"), call.arg("round_mode", 0)
    sizes = []
    for length, size, stride, step, total in zip(
        shape, kernel, strides, dilations, totals, strict=True
    ):
        check(step == 1 or stride == 1, "if dilations > 1, strides should be 1")
        room = (length + total - size - (size - 1) * (step - 1)) / stride
        sizes.append((math.ceil(room) if ceil else math.floor(room)) + 1)
    return sizes, [total // 2 for total in totals]


def _windows(call: Call, x: np.ndarray, kernel: Any, fill: float) -> np.ndarray:
    """[n, c, oh, ow, kh, kw]; beyond the picture there is ``fill``."""
    strides, dilations = call.arg("strides"), call.arg("dilations", [1, 1])
    sizes, begins = _size(call, x.shape[2:], kernel)
    pads = [(0, 0), (0, 0)]
    for length, size, stride, step, most, begin in zip(
        x.shape[2:], kernel, strides, dilations, sizes, begins, strict=True
    ):
        end = (most - 1) * stride + (size - 1) * step + 1 - begin - length
        pads.append((begin, max(0, end)))
    wide = np.pad(x, pads, constant_values=fill)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    view = sliding_window_view(wide, spans, (2, 3))
    view = view[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    return view[:, :, : sizes[0], : sizes[1]]


def _activated(call: Call, x: np.ndarray, word: str | None = None) -> np.ndarray:
    word = word or call.arg("activation", "NOOP")
    if word == "NOOP":
        return x
    if word == "RELU":
        return np.maximum(x, 0)
    if word == "RELUX":
        return np.clip(x, 0, np.float32(call.arg("max_limit", 0.0)))
    if word == "TANH":
        return np.tanh(x)
    if word == "SIGMOID":
        return 1 / (1 + np.exp(-x))
    if word == "LEAKYRELU":
        return np.maximum(x, 0) + np.minimum(x, 0) * np.float32(call.arg("activation_coefficient"))
    if word == "ELU":
        slope = np.float32(call.arg("activation_coefficient"))
        return np.where(x < 0, (np.exp(np.minimum(x, 0)) - 1) * slope, x)
    if word == "HARDSIGMOID":
        alpha, beta = call.arg("hardsigmoid_alpha"), call.arg("hardsigmoid_beta")
        return np.clip(np.float32(alpha) * x + np.float32(beta), 0, 1)
    raise MaceError(f"no activation {word}")


def _conv(call: Call) -> list[Tensor]:
    x, weight = _pictures(call, call.real(0)), call.real(1)
    depthwise = call.op.type == "DepthwiseConv2d"
    call.arg("kernels"), call.arg("group")
    if call.whole:
        check(all(d == 1 for d in call.arg("dilations", [1, 1])) or depthwise, "quantised dilation")
        # OHWI, and for depthwise ones HWIM
        weight = weight.transpose(3, 2, 0, 1) if depthwise else weight.transpose(0, 3, 1, 2)
    windows = _windows(call, x, weight.shape[2:], 0.0)
    if depthwise:
        check(weight.shape[1] == x.shape[1], "channels of", call.op.name)
        made = np.einsum("nchwij,mcij->ncmhw", windows, weight, optimize=True)
        made = made.reshape(len(x), -1, *made.shape[3:])
    else:
        check(weight.shape[1] == x.shape[1], "channels of", call.op.name)
        made = np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    made = made + _bias(call, made.shape[1])[:, None, None]
    word = call.arg("activation", "NOOP")
    if call.whole:  # it saturates; the limits of these are those of the result's range
        check(word in {"NOOP", "RELU", "RELUX"}, "quantised activation", word)
        call.arg("max_limit")
        return [call.out(_back(call, made))]
    return [call.out(_back(call, _activated(call, made)))]


def _bias(call: Call, count: int, at: int = 2) -> np.ndarray:
    if len(call.given) <= at:
        return np.zeros(count, np.float32)
    tensor = call.given[at]
    check(tensor.values.shape == (count,), "bias of", call.op.name)
    if call.whole:
        check(tensor.values.dtype == np.int32, "bias of", call.op.name)
        scale = np.float32(call.given[0].scale) * np.float32(call.given[1].scale)
        return tensor.values * float(scale)
    return tensor.values


def _deconv(call: Call) -> list[Tensor]:
    check(not call.whole, "quantised deconvolution")
    x, weight = _pictures(call, call.real(0)), call.real(1)  # OIHW
    strides, totals = call.arg("strides"), call.arg("padding_values")
    call.arg("kernels"), call.arg("group"), call.arg("dilations")
    outputs, inputs, kh, kw = weight.shape
    check(inputs == x.shape[1], "channels of", call.op.name)
    height, width = x.shape[2:]
    whole = np.zeros(
        (len(x), outputs, (height - 1) * strides[0] + kh, (width - 1) * strides[1] + kw), np.float64
    )
    for i in range(kh):
        for j in range(kw):
            part = np.tensordot(x, weight[:, :, i, j], (1, 1)).transpose(0, 3, 1, 2)
            rows = slice(i, i + (height - 1) * strides[0] + 1, strides[0])
            columns = slice(j, j + (width - 1) * strides[1] + 1, strides[1])
            whole[:, :, rows, columns] += part
    top, left = totals[0] // 2, totals[1] // 2
    made = whole[
        :, :, top : top + whole.shape[2] - totals[0], left : left + whole.shape[3] - totals[1]
    ]
    made = made + _bias(call, outputs)[:, None, None]
    return [call.out(_back(call, _activated(call, made)))]


def _pool(call: Call) -> list[Tensor]:
    x = _pictures(call, call.real(0))
    kernel, most = call.arg("kernels"), call.arg("pooling_type") == 2
    lowest = float(np.finfo(np.float32).min)
    windows = _windows(call, x, kernel, lowest if most else 0.0)
    if most:
        made = windows.max((4, 5))
    else:
        counts = _windows(call, np.ones_like(x), kernel, 0.0).sum((4, 5))
        check(bool(counts.all()), "an average of nothing")
        made = windows.sum((4, 5), dtype=np.float64) / counts
    _same_scale(call)
    return [call.out(_back(call, made))]


def _same_scale(call: Call) -> None:
    """Operations that give the whole numbers that they are given."""
    if call.whole:
        given = call.given[0]
        for scale, zero in call.op.quantised:
            check((given.scale, given.zero_point) == (scale, zero), call.op.name, "scales")


def _activation(call: Call) -> list[Tensor]:
    word = call.arg("activation")
    x = call.real(0)
    if call.whole:
        check(word in {"RELU", "RELUX"}, "quantised activation", word)
        call.arg("max_limit")
        _same_scale(call)
        return [call.out(_activated(call, x, word))]
    if word == "PRELU":
        check(x.ndim == 4 and call.order == NCHW, "PRELU of pictures")
        slopes = call.real(1)
        check(slopes.shape == (x.shape[1],), "slopes of", call.op.name)
        wide = slopes[:, None, None]
        return [call.out(np.maximum(x, 0) + np.minimum(x, 0) * wide)]
    return [call.out(_activated(call, x))]


_TWO = {
    0: np.add,
    1: np.subtract,
    2: np.multiply,
    3: np.divide,
    4: np.minimum,
    5: np.maximum,
    9: np.power,
}
_ONE = {6: np.negative, 7: np.abs, 13: np.sign}


def _eltwise(call: Call) -> list[Tensor]:
    kind, x = call.arg("type"), call.real(0)
    check(len(call.given) <= 2, "operands of", call.op.name)
    coefficients = call.arg("coeff", [])
    number, index = call.arg("scalar_input", 1.0), call.arg("scalar_input_index", 1)
    if call.whole:
        check(kind in {0, 1} and len(call.given) == 2, "quantised Eltwise", kind)
        y = call.real(1)
        check(x.shape == y.shape, "quantised Eltwise broadcasts")
        return [call.out(_TWO[kind](x, y))]
    if kind == 12:
        check(len(coefficients) == 2 and coefficients[0] < coefficients[1], "Clip's limits")
        return [call.out(np.clip(x, *map(np.float32, coefficients)))]
    check(not coefficients, "coefficients")
    if kind in _ONE:
        return [call.out(_ONE[kind](x))]
    with np.errstate(all="ignore"):
        if len(call.given) == 1:
            other = np.float32(number)
            pair = (x, other) if index == 1 else (other, x)
            return [call.out(_TWO[kind](*pair))]
        y = call.real(1)
        check(index == 1, "scalar_input_index of two tensors")
        wide, narrow = (x, y) if (x.ndim, x.size) >= (y.ndim, y.size) else (y, x)
        if call.has_order and wide.ndim == 4:
            if narrow.ndim == 4:
                check(np.broadcast_shapes(wide.shape, narrow.shape) == wide.shape, "broadcast")
            else:
                channels = wide.shape[1 if call.order == NCHW else 3]
                check(narrow.shape == (channels,), "broadcast of channels", narrow.shape)
                shape = (channels, 1, 1) if call.order == NCHW else (channels,)
                narrow = narrow.reshape(shape)
        elif wide.ndim == 4 and narrow.ndim in {2, 3}:  # as Caffe does
            narrow = narrow.reshape(*narrow.shape, *[1] * (4 - narrow.ndim))
        pair = (wide, narrow) if wide is x else (narrow, wide)
        return [call.out(_TWO[kind](*pair))]


def _concat(call: Call) -> list[Tensor]:
    axis = call.axis(call.arg("axis"))
    return [call.out(np.concatenate([call.real(i) for i in range(len(call.given))], axis))]


def _split(call: Call) -> list[Tensor]:
    check(not call.whole, "quantised Split")
    x, axis = call.real(0), call.axis(call.arg("axis"))
    check(len(call.op.outputs) >= 2, "a Split into one")
    if len(call.given) == 2:
        sizes = call.given[1].values
        check(sizes.dtype == np.int32 and sizes.shape == (len(call.op.outputs),), "sizes")
        check(int(sizes.sum()) == x.shape[axis], "the sum of sizes")
        return [call.out(part) for part in np.split(x, np.cumsum(sizes)[:-1], axis)]
    return [call.out(part) for part in np.split(x, len(call.op.outputs), axis)]


def _softmax(call: Call) -> list[Tensor]:
    x, axis = call.real(0), call.arg("axis", 1)
    check(x.ndim >= 2, "Softmax of a vector")
    over = x.ndim - 1
    if call.whole:
        check(x.ndim in {2, 4} and call.order == NHWC, "quantised Softmax")
        check(call.op.quantised == [(np.float32(1 / 255), 0)], "the scale of a quantised Softmax")
    elif x.ndim == 4 and call.order == NCHW and axis == 1:
        over = 1
    shifted = np.exp(x - x.max(over, keepdims=True))
    made = shifted / shifted.sum(over, keepdims=True)
    with np.errstate(divide="ignore"):
        return [call.out(np.log(made) if call.arg("use_log", 0) else made)]


def _matmul(call: Call) -> list[Tensor]:
    check(not call.whole, "quantised MatMul")
    x, y = call.real(0), call.real(1)
    check(min(x.ndim, y.ndim) >= 2, "rank of", call.op.name)
    same = x.ndim == y.ndim and x.shape[:-2] == y.shape[:-2]
    check(same or (x.ndim != y.ndim and 2 in {x.ndim, y.ndim}), "batches of", call.op.name)
    x = np.swapaxes(x, -1, -2) if call.arg("transpose_a", 0) else x
    y = np.swapaxes(y, -1, -2) if call.arg("transpose_b", 0) else y
    made = x @ y
    if len(call.given) > 2:
        check(call.real(2).shape == made.shape[-1:], "bias of", call.op.name)
        made = made + call.real(2)
    return [call.out(made)]


def _fully_connected(call: Call) -> list[Tensor]:
    check(call.whole and call.order == NHWC, "FullyConnected is for whole numbers here")
    x, weight = call.real(0), call.real(1)  # OHWI
    check(x.shape[1:] == weight.shape[1:], "shapes of", call.op.name, x.shape, weight.shape)
    made = x.reshape(len(x), -1) @ weight.reshape(len(weight), -1).T
    made = made + _bias(call, len(weight))
    word = call.arg("activation", "NOOP")
    check(word in {"NOOP", "RELU", "RELUX"}, "quantised activation", word)
    call.arg("max_limit")
    return [call.out(made.reshape(len(x), 1, 1, -1))]


def _reshape(call: Call) -> list[Tensor]:
    check(not call.whole, "quantised Reshape")
    check(not call.has_order, "a Reshape that knows of orders")
    shape = call.arg("dim", [])
    check(len(shape) > 0 and all(size > 0 for size in shape), "dim of", call.op.name)
    return [call.out(call.real(0).reshape(shape))]


def _transpose(call: Call) -> list[Tensor]:
    x, dims = call.real(0), call.arg("dims")
    check(x.ndim in {2, 3, 4} and len(dims) == x.ndim, "rank should be 2, 3 or 4")
    return [call.out(x.transpose(dims))]


def _pad(call: Call) -> list[Tensor]:
    x, numbers = call.real(0), call.arg("paddings")
    check(x.ndim == 4 and len(numbers) == 8, "Pad of pictures")
    pads = [(numbers[2 * i], numbers[2 * i + 1]) for i in range(4)]
    check(all(number >= 0 for number in numbers), "negative pads")
    if call.has_order and call.order == NCHW:  # written for NHWC
        pads = [pads[0], pads[3], pads[1], pads[2]]
    kind, fill = call.arg("pad_type", 0), call.arg("constant_value", 0.0)
    if kind == 1:
        check(all(n < size for size, p in zip(x.shape, pads, strict=True) for n in p), "reflection")
        return [call.out(np.pad(x, pads, "reflect"))]
    check(kind == 0, "pad_type", kind)
    return [call.out(np.pad(x, pads, constant_values=fill))]


_REDUCE = {0: np.mean, 1: np.min, 2: np.max, 3: np.prod, 4: np.sum}


def _reduce(call: Call) -> list[Tensor]:
    x, keep = call.real(0), bool(call.arg("keepdims", 0))
    axes = call.arg("axis", [])
    check(all(-x.ndim < axis < x.ndim for axis in axes), "axis is over range")
    wanted = tuple(call.axis(axis) for axis in axes) or None
    kind = call.arg("reduce_type")
    if call.whole:
        check(kind == 0 and call.order == NHWC, "quantised Reduce")
        _same_scale(call)
    made = _REDUCE[kind](x.astype(np.float64), axis=wanted, keepdims=keep)
    return [call.out(np.asarray(made))]


def _strided_slice(call: Call) -> list[Tensor]:
    check(not call.has_order and not call.whole, "a StridedSlice that knows of orders")
    x = call.real(0)
    begin, end, strides = (call.given[i].values.tolist() for i in (1, 2, 3))
    check(x.ndim <= 5 and len(begin) == x.ndim, "axes of", call.op.name)
    mask, parts = call.arg("end_mask", 0), []
    for axis, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        check(first >= 0 and (last > 0 or mask & 1 << axis or step < 0), "bounds")
        parts.append(slice(first, None if mask & 1 << axis else last, step))
    made = x[tuple(parts)]
    check(made.size > 0, "an empty slice")
    return [call.out(made)]


def _tile(call: Call) -> list[Tensor]:
    times = call.given[1].values
    check(times.dtype == np.int32 and len(times) == call.real(0).ndim, "multiples")
    return [call.out(np.tile(call.real(0), times))]


def _batch_norm(call: Call) -> list[Tensor]:
    x, scale, shift = _pictures(call, call.real(0)), call.real(1), call.real(2)
    made = x * scale[:, None, None] + shift[:, None, None]
    return [call.out(_back(call, made))]


def _instance_norm(call: Call) -> list[Tensor]:
    x, scale, shift = _pictures(call, call.real(0)), call.real(1), call.real(2)
    check(call.arg("affine") == 1, "affine")
    mean = x.mean((2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean((2, 3), keepdims=True)
    made = (x - mean) / np.sqrt(variance + np.float32(call.arg("epsilon")))
    return [call.out(_back(call, made * scale[:, None, None] + shift[:, None, None]))]


def _lrn(call: Call) -> list[Tensor]:
    x, radius = _pictures(call, call.real(0)), call.arg("depth_radius")
    squares, sums = x.astype(np.float64) ** 2, np.zeros(x.shape)
    for channel in range(x.shape[1]):
        sums[:, channel] = squares[:, max(0, channel - radius) : channel + radius + 1].sum(1)
    made = x * (call.arg("bias") + call.arg("alpha") * sums) ** -call.arg("beta")
    return [call.out(_back(call, made))]


def _shuffle(call: Call) -> list[Tensor]:
    x, group = _pictures(call, call.real(0)), call.arg("group")
    check(x.shape[1] % group == 0, "groups")
    made = x.reshape(len(x), group, -1, *x.shape[2:]).swapaxes(1, 2).reshape(x.shape)
    return [call.out(_back(call, made))]


def _depth_to_space(call: Call) -> list[Tensor]:
    x, size, mode = _pictures(call, call.real(0)), call.arg("block_size"), call.arg("mode", "DCR")
    n, c, h, w = x.shape
    if mode == "DCR":
        made = x.reshape(n, size, size, c // size**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        made = x.reshape(n, c // size**2, size, size, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [call.out(_back(call, made.reshape(n, c // size**2, h * size, w * size)))]


def _space_to_depth(call: Call) -> list[Tensor]:
    x, size = _pictures(call, call.real(0)), call.arg("block_size")
    call.arg("mode")
    n, c, h, w = x.shape
    made = x.reshape(n, c, h // size, size, w // size, size).transpose(0, 3, 5, 1, 2, 4)
    return [call.out(_back(call, made.reshape(n, c * size**2, h // size, w // size)))]


def _scale(length: int, size: int, corners: int) -> np.float32:
    if corners and size > 1:
        return np.float32(length - 1) / np.float32(size - 1)
    return np.float32(length) / np.float32(size)


def _resize(call: Call) -> list[Tensor]:
    x = _pictures(call, call.real(0))
    sizes, corners = call.arg("size"), call.arg("align_corners", 0)
    mode = call.arg("coordinate_transformation_mode", 0)
    for axis, size in zip((2, 3), sizes, strict=True):
        length = x.shape[axis]
        at = np.arange(size, dtype=np.float32)
        scale = _scale(length, size, corners)
        if call.op.type == "ResizeNearestNeighbor":
            places = (at + np.float32(0.5 if mode == 1 else 0)) * scale
            whole = np.floor(places + np.float32(0.5)) if corners else np.floor(places)
            x = x.take(np.minimum(whole.astype(int), length - 1), axis)
            continue
        places = at * scale
        if mode == 1 or (mode == 2 and size > 1):
            places = (at + np.float32(0.5)) * scale - np.float32(0.5)
        elif mode == 2:
            places = at * 0
        floor = np.floor(places)
        low = np.maximum(floor.astype(int), 0)
        high = np.minimum(np.ceil(places).astype(int), length - 1)
        share = (places - floor).reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return [call.out(_back(call, x))]


def _quantize(call: Call) -> list[Tensor]:
    check(call.whole, "Quantize")
    return [call.out(call.given[0].values.astype(np.float64))]


def _dequantize(call: Call) -> list[Tensor]:
    check(call.whole and call.given[0].values.dtype == np.uint8, "Dequantize")
    values = call.real(0).astype(np.float32)
    return [Tensor(values, call.order if values.ndim == 4 else NONE)]


KERNELS = {
    "Activation": _activation,
    "BatchNorm": _batch_norm,
    "ChannelShuffle": _shuffle,
    "Concat": _concat,
    "Conv2D": _conv,
    "Deconv2D": _deconv,
    "DepthToSpace": _depth_to_space,
    "DepthwiseConv2d": _conv,
    "Dequantize": _dequantize,
    "Eltwise": _eltwise,
    "FullyConnected": _fully_connected,
    "InstanceNorm": _instance_norm,
    "LocalResponseNorm": _lrn,
    "MatMul": _matmul,
    "Pad": _pad,
    "Pooling": _pool,
    "Quantize": _quantize,
    "Reduce": _reduce,
    "Reshape": _reshape,
    "ResizeBilinear": _resize,
    "ResizeNearestNeighbor": _resize,
    "Softmax": _softmax,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "StridedSlice": _strided_slice,
    "Tile": _tile,
    "Transpose": _transpose,
}
