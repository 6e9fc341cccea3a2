"""Lowerings of what moves values and computes none: ONNX to Caffe2. All shapes are static."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from wherry_caffe2.lowering import ALL, CUT, NUMBERS, Lowering, Refusal, about, lowers

if TYPE_CHECKING:
    import onnx

MOST_AXES = 8  # that Caffe2's Transpose was tried with


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze", takes=ALL)
def reshape(low: Lowering, node: onnx.NodeProto) -> None:
    """The same values in the static shape of the result."""
    low.give("Reshape", [low.use(node.input[0])], more=1, shape=list(low.shape(node.output[0])))


@lowers("Transpose", takes=NUMBERS)
def transpose(low: Lowering, node: onnx.NodeProto) -> None:
    """Axes in another order; unless it is said, backwards."""
    rank = len(low.shape(node.input[0]))
    order = list(about(node).get("perm", range(rank)[::-1]))
    if not order:
        low.give("Copy", [low.use(node.input[0])])
        return
    low.give("Transpose", [low.use(node.input[0])], axes=order)


@lowers("Concat", takes=ALL)
def concat(low: Lowering, node: onnx.NodeProto) -> None:
    """Along one axis; Caffe2 gives the lengths too."""
    axis = about(node)["axis"] % len(low.shape(node.output[0]))
    low.give("Concat", low.inputs(node), more=1, axis=axis)


@lowers("Split", takes=NUMBERS)
def split(low: Lowering, node: onnx.NodeProto) -> None:
    """Into parts of static lengths."""
    axis = about(node).get("axis", 0) % len(low.shape(node.input[0]))
    lengths = [low.shape(name)[axis] for name in node.output]
    if 0 in lengths:
        raise Refusal("Take what is empty out of the network.", "an empty tensor of")
    low.give("Split", [low.use(node.input[0])], axis=axis, split=lengths)


@lowers("Slice", takes=NUMBERS)
def cut(low: Lowering, node: onnx.NodeProto) -> None:
    """One axis after the other; steps by taking single places."""
    shape = low.shape(node.input[0])
    told = about(node)
    if "starts" in told:  # before opset 10
        starts, ends = told["starts"], told["ends"]
        axes, steps = told.get("axes", range(len(starts))), [1] * len(starts)
    else:
        values = [low.known(node, index) for index in range(1, 5)]
        starts, ends, axes, steps = ([] if v is None else v.tolist() for v in values)
        axes, steps = axes or range(len(starts)), steps or [1] * len(starts)
    places = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = shape[axis]
        chosen = list(range(length))[slice(start, _end(end, step, length), step)]
        if chosen != list(range(length)):
            places.append((axis % len(shape), chosen))
    name = low.use(node.input[0])
    if not places:
        low.give("Copy", [name])
        return
    for index, (axis, chosen) in enumerate(places):
        emit = low.give if index == len(places) - 1 else low.step
        if chosen == list(range(chosen[0], chosen[0] + len(chosen))):
            begins, limits = [0] * len(shape), [-1] * len(shape)
            begins[axis] = chosen[0]
            if chosen[-1] + 1 < shape[axis]:
                limits[axis] = chosen[-1] + 1
            name = emit("Slice", [name], starts=begins, ends=limits) or name
        else:
            indices = low.constant(f"{node.output[0]}/places", np.asarray(chosen, np.int64))
            name = emit("Gather", [name, indices], axis=axis) or name


def _end(end: int, step: int, length: int) -> int | None:
    """ONNX's end as Python's: backwards, one before the first is written as far below."""
    return None if step < 0 and end < -length else end


@lowers("Gather", takes=NUMBERS)
def gather(low: Lowering, node: onnx.NodeProto) -> None:
    """Places along one axis, known or computed."""
    shape = low.shape(node.input[0])
    axis = about(node).get("axis", 0) % len(shape)
    indices = low.view.constant(node.input[1])
    made = low.shape(node.output[0])
    if indices is None:
        _gather_computed(low, node, shape[axis], axis)
        return
    places = (indices.astype(np.int64) % shape[axis]).reshape(-1)
    name = low.constant(f"{node.output[0]}/places", places)
    if indices.ndim == 1:
        low.give("Gather", [low.use(node.input[0]), name], axis=axis)
        return
    taken = low.step("Gather", [low.use(node.input[0]), name], axis=axis)
    low.give("Reshape", [taken], more=1, shape=list(made))


def _gather_computed(low: Lowering, node: onnx.NodeProto, length: int, axis: int) -> None:
    """Caffe2 refuses places that count from the end: the length is added to these."""
    kind = low.view.kind(node.input[1])
    if kind not in {"int32", "int64"}:
        raise Refusal("Gather by int32 or int64.")
    given, y = low.use(node.input[1]), node.output[0]
    zero, whole = (low.constant(f"{y}/number", np.full(1, n, kind)) for n in (0, length))
    is_below = low.step("Cast", [low.step("LT", [given, zero])], to=2 if kind == "int32" else 10)
    places = low.step("Add", [given, low.step("Mul", [is_below, whole])])
    low.give("Gather", [low.use(node.input[0]), places], axis=axis)


@lowers("Expand", takes={"float32"})
def expand(low: Lowering, node: onnx.NodeProto) -> None:
    """To the static shape of the result."""
    zeros = low.constant(f"{node.output[0]}/zeros", np.zeros(low.shape(node.output[0]), np.float32))
    low.give("Add", [low.use(node.input[0]), zeros])


@lowers("Tile", takes=NUMBERS)
def tile(low: Lowering, node: onnx.NodeProto) -> None:
    """Each axis by copies behind each other."""
    given, made = low.shape(node.input[0]), low.shape(node.output[0])
    name = low.use(node.input[0])
    wide = [axis for axis in range(len(given)) if made[axis] != given[axis]]
    for axis in wide:
        emit = low.give if axis == wide[-1] else low.step
        copies = [name] * (made[axis] // given[axis])
        name = emit("Concat", copies, more=1, axis=axis) or name
    if not wide:
        low.give("Copy", [name])


@lowers("Pad")
def pad(low: Lowering, node: onnx.NodeProto) -> None:
    """With a number by Concat, and pictures by their edge or reflection."""
    shape, told = low.shape(node.input[0]), about(node)
    known = told.get("pads", told.get("paddings"))
    pads = np.asarray(low.known(node, 1) if known is None else known).reshape(2, -1).tolist()
    if len(pads[0]) != len(shape):
        raise Refusal("Write the pads of all axes.")
    mode, name = told.get("mode", "constant"), low.use(node.input[0])
    if mode not in {"constant", "edge", "reflect"} or min(map(min, pads)) < 0:
        raise Refusal("Caffe2 pads with a number, by the edge or by reflection, and never by less.")
    if mode != "constant":
        if len(shape) != 4 or any(pads[0][:2] + pads[1][:2]):
            raise Refusal("Caffe2 pads pictures alone by their edge or reflection.")
        if mode == "reflect" and any(
            each >= size for side in pads for each, size in zip(side[2:], shape[2:], strict=True)
        ):
            raise Refusal("Caffe2 reflects less than the picture's length.")
        low.give("PadImage", [name], mode=mode, pads=pads[0][2:] + pads[1][2:], order="NCHW")
        return
    value = low.known(node, 2)
    number = float(told.get("value", 0.0)) if value is None else float(value.reshape(-1)[0])
    axes = [axis for axis in range(len(shape)) if pads[0][axis] or pads[1][axis]]
    current = list(shape)
    for axis in axes:
        emit = low.give if axis == axes[-1] else low.step
        parts = [name]
        for side, place in ((0, 0), (1, len(parts) + 1)):
            if length := pads[side][axis]:
                filling = np.full(
                    [*current[:axis], length, *current[axis + 1 :]], number, np.float32
                )
                parts.insert(place, low.constant(f"{node.output[0]}/padding", filling))
        current[axis] += pads[0][axis] + pads[1][axis]
        name = emit("Concat", parts, more=1, axis=axis) or name
    if not axes:
        low.give("Copy", [name])


@lowers("DepthToSpace", "SpaceToDepth")
def blocks(low: Lowering, node: onnx.NodeProto) -> None:
    """By Reshape and Transpose."""
    n, c, h, w = low.shape(node.input[0])
    size = about(node)["blocksize"]
    depth_first = about(node).get("mode", "DCR") == "DCR"
    if node.op_type == "SpaceToDepth":
        parts = [n, c, h // size, size, w // size, size]
        order = [0, 3, 5, 1, 2, 4] if depth_first else [0, 1, 3, 5, 2, 4]
    elif depth_first:
        parts, order = [n, size, size, c // size**2, h, w], [0, 3, 4, 1, 5, 2]
    else:
        parts, order = [n, c // size**2, size, size, h, w], [0, 1, 4, 2, 5, 3]
    apart = low.step("Reshape", [low.use(node.input[0])], more=1, shape=parts)
    turned = low.step("Transpose", [apart], axes=order)
    low.give("Reshape", [turned], more=1, shape=list(low.shape(node.output[0])))


@lowers("Resize", "Upsample")
def resize(low: Lowering, node: onnx.NodeProto) -> None:
    """Pictures: nearest by whole factors, linear by products with the weights of the neighbours."""
    told, shape, made = about(node), low.shape(node.input[0]), low.shape(node.output[0])
    if len(shape) != 4 or shape[:2] != made[:2]:
        raise Refusal("Caffe2 resizes the height and width of pictures.")
    old = node.op_type == "Upsample" or low.view.opset < 11
    way = told.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    mode = told.get("mode", "nearest")
    if told.get("antialias") or told.get("exclude_outside") or "axes" in told:
        raise Refusal("Do without antialias, exclude_outside and axes.")
    if told.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refusal("Write the sizes in numbers.")
    scales = _scales(low, node, old=old)
    if mode == "nearest":
        rounding = told.get("nearest_mode", "floor" if old else "round_prefer_floor")
        _nearest(low, node, _places(way, rounding, scales, shape[2:], made[2:]))
    elif mode in {"linear", "bilinear"}:
        _linear(
            low,
            node,
            [_weights(way, *each) for each in zip(scales, shape[2:], made[2:], strict=True)],
        )
    else:
        raise Refusal("Caffe2 resizes to the nearest, or linearly.")


def _scales(low: Lowering, node: onnx.NodeProto, *, old: bool) -> list[float]:
    """Of height and width, as ONNX defines them."""
    shape, made = low.shape(node.input[0]), low.shape(node.output[0])
    told = about(node)
    value = low.known(node, 1 if old else 2)
    if "scales" in told:
        value = np.asarray(told["scales"])
    if value is None or not value.size:
        return [b / a for a, b in zip(shape[2:], made[2:], strict=True)]
    return [float(each) for each in value[2:]]


def _source(way: str, scale: float, given: int, made: int) -> np.ndarray:
    """Where each place of an axis comes from."""
    at = np.arange(made, dtype=np.float64)
    if way == "half_pixel":
        return (at + 0.5) / scale - 0.5
    if way == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if made > 1 else np.zeros(1)
    if way == "align_corners":
        return at * (given - 1) / (made - 1) if made > 1 else np.zeros(1)
    if way == "asymmetric":
        return at / scale
    raise Refusal(
        "Resize with half_pixel, pytorch_half_pixel, align_corners or asymmetric coordinates."
    )


def _places(
    way: str, rounding: str, scales: list[float], given: tuple[int, ...], made: tuple[int, ...]
) -> list[np.ndarray]:
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }
    round_to = ways[rounding]
    found = []
    for scale, old, new in zip(scales, given, made, strict=True):
        at = round_to(np.asarray(_source(way, scale, old, new), np.float32))
        found.append(np.clip(at, 0, old - 1).astype(np.int64))
    return found


def _nearest(low: Lowering, node: onnx.NodeProto, places: list[np.ndarray]) -> None:
    """Caffe2's own where it takes these places; else each axis by its places."""
    shape, made = low.shape(node.input[0]), low.shape(node.output[0])
    factors = [new // old for old, new in zip(shape[2:], made[2:], strict=True)]
    if all(
        new == old * factor and np.array_equal(place, np.arange(new) // factor)
        for old, new, factor, place in zip(shape[2:], made[2:], factors, places, strict=True)
    ):
        height, width = map(float, factors)
        low.give(
            "ResizeNearest",
            [low.use(node.input[0])],
            height_scale=height,
            width_scale=width,
            order="NCHW",
        )
        return
    rows, columns = (low.constant(f"{node.output[0]}/places", place) for place in places)
    taken = low.step("Gather", [low.use(node.input[0]), rows], axis=2)
    low.give("Gather", [taken, columns], axis=3)


def _weights(way: str, scale: float, given: int, made: int) -> np.ndarray:
    """The weights of the places of an axis, [made, given] float32."""
    source = np.clip(_source(way, scale, given, made), 0, given - 1)
    first = np.floor(source).astype(int)
    share = source - first
    found = np.zeros((made, given))
    np.add.at(found, (np.arange(made), first), 1 - share)
    np.add.at(found, (np.arange(made), np.minimum(first + 1, given - 1)), share)
    return found.astype(np.float32)


def _linear(low: Lowering, node: onnx.NodeProto, weights: list[np.ndarray]) -> None:
    rows = low.constant(f"{node.output[0]}/rows", weights[0][None, None])
    columns = np.ascontiguousarray(weights[1].T)[None, None]
    wide = low.step(
        "BatchMatMul",
        [low.use(node.input[0]), low.constant(f"{node.output[0]}/columns", columns)],
        broadcast=1,
    )
    low.give("BatchMatMul", [rows, wide], broadcast=1)


@lowers("Shape", "Size", takes=ALL, gives={"int64"})
def shape_of(low: Lowering, node: onnx.NodeProto) -> None:
    """Known in advance: the network gives a constant."""
    del low, node
    raise Refusal(CUT)
