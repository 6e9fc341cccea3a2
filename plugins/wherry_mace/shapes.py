"""Operators that move or join values: shapes, parts, products of matrices, reductions, Softmax."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry_mace.elementwise import ABS, POW, PROD, SUM, scalar
from wherry_mace.format import Value
from wherry_mace.translate import Handler, Node, RefusedError, Translator
from wherry_mace.windows import (
    ASYMMETRIC,
    HALF_PIXEL,
    NHWC_AXIS,
    PYTORCH_HALF_PIXEL,
    add_split,
    sliced,
)

if TYPE_CHECKING:
    import numpy as np

REDUCTIONS = {"ReduceMean": 0, "ReduceMin": 1, "ReduceMax": 2, "ReduceProd": 3, "ReduceSum": 4}
"""Operators to MACE's reduce_type."""
_MOST_AXES = 4  # of MACE's Transpose


def _reshape(t: Translator, node: Node) -> None:
    """A new shape; with a Transpose and another one behind it perhaps a shuffle of channels."""
    found = _shuffle(t, node)
    if found is not None:
        nodes, groups = found
        t.done.update(each.name for each in nodes[1:])
        t.add(
            "ChannelShuffle", nodes, [node.inputs[0]], nodes[-1].outputs[0], free=True,
            group=groups, has_data_format=1,
        )  # fmt: skip
        return
    t.reshape_to(node, node.inputs[0], node.outputs[0])


def _shuffle(t: Translator, node: Node) -> tuple[list[Node], int] | None:
    """[n, groups * k, h, w] by way of [n, groups, k, h, w] and [n, k, groups, h, w]."""
    shape, split = t.shape(node.inputs[0]), t.shape(node.outputs[0])
    if len(shape) != 4 or len(split) != 5 or t.value(node.inputs[0]) is not None:
        return None
    batch, groups, each, *picture = split
    if (batch, groups * each, *picture) != shape:
        return None
    turn = t.taker(node.outputs[0])
    if turn is None or turn.kind != "Transpose" or turn.about.get("perm") != [0, 2, 1, 3, 4]:
        return None
    back = t.taker(turn.outputs[0])
    if back is None or back.kind != "Reshape" or t.shape(back.outputs[0]) != shape:
        return None
    return [node, turn, back], groups


def _transpose(t: Translator, node: Node) -> None:
    shape = t.shape(node.inputs[0])
    order = list(node.about.get("perm") or range(len(shape)))
    if "perm" not in node.about:
        order.reverse()
    transposed(t, node, node.inputs[0], shape, order, node.outputs[0])


def transposed(
    t: Translator,
    node: Node,
    x: str,
    shape: Sequence[int],
    order: Sequence[int],
    output: str | None = None,
) -> str:
    """Write a Transpose; axes that stay together become one, for MACE has four."""
    groups: list[list[int]] = []
    for axis in order:
        if shape[axis] == 1 and len(shape) > _MOST_AXES:
            continue
        if groups and axis == groups[-1][-1] + 1 and len(shape) > _MOST_AXES:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    made = [shape[axis] for axis in order]
    name = output or t.graph.fresh(f"{node.outputs[0]}/transposed")
    if len(shape) <= _MOST_AXES:
        t.add("Transpose", node, [x], name, [made], dims=list(order))
        return name
    if len(groups) > _MOST_AXES:
        raise RefusedError("MACE transposes up to four axes that move apart.")
    ranks = sorted(range(len(groups)), key=lambda index: groups[index][0])
    before = [math.prod(shape[axis] for axis in groups[index]) for index in ranks]
    inner = t.reshaped(node, x, before)
    dims = [ranks.index(index) for index in range(len(groups))]
    moved = inner
    if dims != sorted(dims):
        moved = t.part("Transpose", node, [inner], [before[axis] for axis in dims], dims=dims)
        t.bounds[moved] = t.bounds.get(x, x)
    if output is None:
        return t.reshaped(node, moved, made)
    t.reshape_to(node, moved, output)
    return output


def _cast(t: Translator, node: Node) -> None:
    """Of an input, which is given as float32; the normal form has no other that does nothing."""
    if not t.is_cast_outside(node.inputs[0]):
        raise RefusedError("MACE computes in float32: do without a cast to another type.")
    t.reshape_to(node, node.inputs[0], node.outputs[0])


def _concat(t: Translator, node: Node) -> None:
    shape = t.shape(node.outputs[0])
    axis = int(node.about.get("axis", 1)) % len(shape)
    if len(node.inputs) == 1:
        t.reshape_to(node, node.inputs[0], node.outputs[0])
        return
    free = len(shape) == 4 and all(t.value(name) is None for name in node.inputs)
    if free:
        t.add(
            "Concat", node, node.inputs, node.outputs[0], free=True,
            axis=NHWC_AXIS[axis], has_data_format=1,
        )  # fmt: skip
    else:
        t.add("Concat", node, node.inputs, node.outputs[0], axis=axis)


def _split(t: Translator, node: Node) -> None:
    shape = t.shape(node.inputs[0])
    axis = int(node.about.get("axis", 0)) % len(shape)
    names = list(node.outputs)
    shapes = [t.shape(name) for name in names]
    if len(names) == 1:
        t.reshape_to(node, node.inputs[0], names[0])
        return
    add_split(t, node, node.inputs[0], names, shapes, axis, [each[axis] for each in shapes])


def _slice(t: Translator, node: Node) -> None:
    shape = t.shape(node.inputs[0])
    if len(shape) > 5:
        raise RefusedError("MACE slices up to five axes.")
    if t.opset < 10:
        starts, ends = node.about["starts"], node.about["ends"]
        axes = node.about.get("axes", range(len(starts)))
        steps: Sequence[int] = [1] * len(starts)
    else:
        starts, ends = (t.parameter(node, index).reshape(-1).tolist() for index in (1, 2))
        given = t.given(node, 3)
        axes = range(len(starts)) if given is None else given.reshape(-1).tolist()
        given = t.given(node, 4)
        steps = [1] * len(starts) if given is None else given.reshape(-1).tolist()
    begin, stop, stride = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, first, last, step in zip(axes, starts, ends, steps, strict=True):
        place = int(axis) % len(shape)
        begin[place], stop[place], stride[place] = slice(first, last, step).indices(shape[place])
    made = t.shape(node.outputs[0])
    sliced(t, node, node.inputs[0], made, begin, stop, stride, node.outputs[0])


def _gather(t: Translator, node: Node) -> None:
    """Elements that lie side by side, or one of them."""
    shape, indices = t.shape(node.inputs[0]), t.parameter(node, 1)
    axis = int(node.about.get("axis", 0)) % len(shape)
    wanted = [int(index) % shape[axis] for index in indices.reshape(-1)]
    if indices.ndim > 1 or wanted != list(range(wanted[0], wanted[0] + len(wanted))):
        raise RefusedError("MACE takes neighbours that are known in advance: use Slice and Concat.")
    begin, stop = [0] * len(shape), list(shape)
    begin[axis], stop[axis] = wanted[0], wanted[-1] + 1
    made = [last - first for first, last in zip(begin, stop, strict=True)]
    part = sliced(t, node, node.inputs[0], made, begin, stop, [1] * len(shape))
    t.reshape_to(node, part, node.outputs[0])


def _expand(t: Translator, node: Node) -> None:
    """A Tile; that of ONNX is one by itself."""
    import numpy as np

    shape, made = t.shape(node.inputs[0]), t.shape(node.outputs[0])
    wide = (*[1] * (len(made) - len(shape)), *shape)
    times = [after // before for after, before in zip(made, wide, strict=True)]
    name = t.constant(f"{node.outputs[0]}/times", np.asarray(times, np.int32))
    x = node.inputs[0] if wide == shape else t.reshaped(node, node.inputs[0], wide)
    t.add("Tile", node, [x, name], node.outputs[0])


def _matmul(t: Translator, node: Node) -> None:
    x, y = node.inputs
    shapes = [t.shape(x), t.shape(y)]
    if min(map(len, shapes)) < 2:
        raise RefusedError("Give both operands two axes.")
    weight = t.value(y)
    if weight is not None and weight.ndim == 2 and t.value(x) is None:
        _product(t, node, x, weight.T, None, node.outputs[0])
        return
    same = shapes[0][:-2] == shapes[1][:-2]
    if not same and min(map(len, shapes)) > 2:
        raise RefusedError("MACE multiplies batches of one size, or one matrix with each.")
    t.add("MatMul", node, [x, y], node.outputs[0], transpose_a=0, transpose_b=0)


def _product(
    t: Translator, node: Node, x: str, weight: np.ndarray, bias: np.ndarray | None, output: str
) -> None:
    """Write a MatMul with weights [outputs, inputs]."""
    inputs = [x, t.constant(f"{node.inputs[1]}/weights", weight)]
    if bias is not None:
        inputs.append(t.constant(f"{output}/bias", bias))
    t.add("MatMul", node, inputs, output, transpose_a=0, transpose_b=1)


def _gemm(t: Translator, node: Node) -> None:
    import numpy as np

    x, made = node.inputs[0], t.shape(node.outputs[0])
    alpha, beta = (float(node.about.get(word, 1.0)) for word in ("alpha", "beta"))
    if node.about.get("transA", 0):
        x = transposed(t, node, x, t.shape(x), [1, 0])
    weight = t.parameter(node, 1)
    weight = weight if node.about.get("transB", 0) else weight.T
    if alpha != 1.0:
        weight = weight * np.float32(alpha)
    bias = t.given(node, 2)
    if bias is None:
        _product(t, node, x, weight, None, node.outputs[0])
        return
    bias = bias * np.float32(beta)
    row = bias.ndim < 2 or bias.shape[0] == 1
    if row:
        values = np.broadcast_to(bias.reshape(-1), (made[1],)).astype(np.float32)
        _product(t, node, x, weight, values, node.outputs[0])
        return
    inner = t.graph.fresh(f"{node.outputs[0]}/product")
    t.shapes[inner] = made
    _product(t, node, x, weight, None, inner)
    name = t.constant(f"{node.outputs[0]}/summands", bias)
    t.add("Eltwise", node, [inner, name], node.outputs[0], type=SUM)


def _reduce(t: Translator, node: Node) -> None:
    shape = t.shape(node.inputs[0])
    axes = node.about.get("axes")
    given = t.given(node, 1)
    if given is not None:
        axes = given.reshape(-1).tolist()
    wanted = sorted({axis % len(shape) for axis in axes or range(len(shape))})
    kind, keep = REDUCTIONS[node.kind], int(node.about.get("keepdims", 1))
    runs = [key for key, _ in itertools.groupby(axis in wanted for axis in range(len(shape)))]
    if len(runs) > 4:
        raise RefusedError("Reduce over axes that lie side by side.")
    if len(shape) == 4 and wanted == [2, 3] and keep:
        t.add(
            "Reduce", node, [node.inputs[0]], node.outputs[0], free=True,
            reduce_type=kind, axis=[1, 2], keepdims=keep, has_data_format=1,
        )  # fmt: skip
        return
    t.add(
        "Reduce", node, [node.inputs[0]], node.outputs[0],
        reduce_type=kind, axis=wanted, keepdims=keep,
    )  # fmt: skip


def _norm(t: Translator, node: Node) -> None:
    """ReduceL1, ReduceL2 and ReduceSumSquare: MACE sums alone."""
    x, shape = node.inputs[0], t.shape(node.inputs[0])
    more: dict[str, Value] = {"has_data_format": 1} if len(shape) == 4 else {}
    free = bool(more)
    if node.kind == "ReduceL1":
        inner = t.part("Eltwise", node, [x], shape, free=free, type=ABS, about=more)
    else:
        inner = t.part("Eltwise", node, [x, x], shape, free=free, type=PROD, about=more)
    t.shapes[inner] = shape
    total = node.outputs[0]
    if node.kind == "ReduceL2":
        total = t.graph.fresh(f"{node.outputs[0]}/sum")
        t.shapes[total] = t.shape(node.outputs[0])
    about = node.about
    of_sum = Node("ReduceSum", node.name, (inner, *node.inputs[1:]), (total,), about)
    _reduce(t, of_sum)
    if node.kind == "ReduceL2":
        scalar(t, node, total, node.outputs[0], POW, 0.5)


def _softmax(t: Translator, node: Node) -> None:
    """Over the channels of a picture, or over the last axis; others are brought there."""
    shape, x, output = t.shape(node.inputs[0]), node.inputs[0], node.outputs[0]
    axis = int(node.about.get("axis", -1 if t.opset >= 13 else 1)) % max(1, len(shape))
    about: dict[str, Value] = {"use_log": 1} if node.kind == "LogSoftmax" else {}
    if len(shape) == 4 and axis == 1:
        t.add("Softmax", node, [x], output, free=True, axis=1, has_data_format=1, about=about)
        return
    if axis == len(shape) - 1 and len(shape) > 1:
        t.add("Softmax", node, [x], output, axis=axis, about=about)
        return
    count, after = shape[axis], math.prod(shape[axis + 1 :])
    rows = (math.prod(shape[:axis]), count, after)
    inner = transposed(t, node, t.reshaped(node, x, rows), rows, [0, 2, 1])
    made = t.part("Softmax", node, [inner], (rows[0], after, count), axis=2, about=about)
    back = transposed(t, node, made, (rows[0], after, count), [0, 2, 1])
    t.reshape_to(node, back, output)


def _space(t: Translator, node: Node) -> None:
    mode = node.about.get("mode", "DCR")
    t.add(
        node.kind, node, [node.inputs[0]], node.outputs[0], free=True,
        block_size=int(node.about["blocksize"]), mode=str(mode),
    )  # fmt: skip


def _resize(t: Translator, node: Node) -> None:
    """Nearest and linear, where MACE takes the same places of the picture."""
    shape, made = t.shape(node.inputs[0]), t.shape(node.outputs[0])
    about = node.about
    if len(shape) != 4 or shape[:2] != made[:2]:
        raise RefusedError("MACE resizes the height and width of pictures.")
    if about.get("antialias", 0) or about.get("exclude_outside", 0):
        raise RefusedError("MACE resizes without antialias.")
    upsample = node.kind == "Upsample" or t.opset < 11
    way = "asymmetric" if upsample else "half_pixel"
    way = about.get("coordinate_transformation_mode", way)
    _check_scales(t, node, shape, made)
    mode = about.get("mode", "nearest")
    size = {"size": list(made[2:])}
    if mode in {"linear", "bilinear"}:
        words = {
            "asymmetric": (ASYMMETRIC, 0),
            "half_pixel": (HALF_PIXEL, 0),
            "pytorch_half_pixel": (PYTORCH_HALF_PIXEL, 0),
            "align_corners": (ASYMMETRIC, 1),
        }
        if way not in words:
            raise RefusedError(f"MACE resizes linearly with {', '.join(words)}.")
        number, corners = words[way]
        kind = "ResizeBilinear"
    elif mode == "nearest":
        rounding = about.get("nearest_mode", "floor" if upsample else "round_prefer_floor")
        found = nearest(shape[2:], made[2:], way, rounding)
        if found is None:
            raise RefusedError("MACE resizes to the nearest by asymmetric coordinates and floor.")
        number, corners = found
        kind = "ResizeNearestNeighbor"
    else:
        raise RefusedError("MACE resizes to the nearest or linearly here.")
    t.add(
        kind, node, [node.inputs[0]], node.outputs[0], free=True,
        coordinate_transformation_mode=number, align_corners=corners, about=size,
    )  # fmt: skip


def _check_scales(t: Translator, node: Node, shape: Sequence[int], made: Sequence[int]) -> None:
    """MACE works the scales out of the sizes."""
    index = 2 if node.kind == "Resize" and t.opset >= 11 else 1
    scales = node.about.get("scales")
    given = t.given(node, index) if scales is None else None
    if given is not None:
        scales = given.reshape(-1).tolist()
    for length, size, scale in zip(shape, made, scales or (), strict=False):
        if abs(length * scale - size) > 1e-4:
            raise RefusedError("Give sizes instead of scales that do not come out even.")


def nearest(
    lengths: Sequence[int], sizes: Sequence[int], way: str, rounding: str
) -> tuple[int, int] | None:
    """MACE's (coordinate mode, align_corners) that take the same pixels as ONNX; None: none."""
    wanted = [
        _pixels(length, size, way, rounding) for length, size in zip(lengths, sizes, strict=True)
    ]
    for mode, corners in ((ASYMMETRIC, 0), (HALF_PIXEL, 0), (ASYMMETRIC, 1)):
        found = [
            _mace_pixels(length, size, mode, corners)
            for length, size in zip(lengths, sizes, strict=True)
        ]
        if found == wanted:
            return mode, corners
    return None


def _mace_pixels(length: int, size: int, mode: int, corners: int) -> list[int]:
    import numpy as np

    scale = np.float32(length) / np.float32(size)
    if corners and size > 1:
        scale = np.float32(length - 1) / np.float32(size - 1)
    places = np.arange(size, dtype=np.float32)
    if mode == HALF_PIXEL:
        places = places + np.float32(0.5)
    places = places * scale
    whole = np.floor(places + np.float32(0.5)) if corners else np.floor(places)
    return [int(pixel) for pixel in np.minimum(whole, length - 1)]


def _pixels(length: int, size: int, way: str, rounding: str) -> list[int]:
    """By ONNX's definition of Resize."""
    scale, found = size / length, []
    for place in range(size):
        if way == "asymmetric":
            real = place / scale
        elif way == "align_corners":
            real = place * (length - 1) / (size - 1) if size > 1 else 0.0
        elif way == "pytorch_half_pixel" and size == 1:
            real = 0.0
        elif way in {"half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"}:
            real = (place + 0.5) / scale - 0.5
        else:
            return []
        whole = {
            "floor": math.floor(real),
            "ceil": math.ceil(real),
            "round_prefer_floor": math.ceil(real - 0.5),
            "round_prefer_ceil": math.floor(real + 0.5),
        }[rounding]
        found.append(min(max(whole, 0), length - 1))
    return found


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(
        ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _reshape
    ),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSumSquare"), _norm),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _space),
    **dict.fromkeys(("LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Expand", "Tile"), _expand),
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
