"""What each operator does to channels: passes them on, makes or reads them, moves them, ties them.

A rule is called once for a node whose inputs are known. It says where the channels of the node's
outputs lie, which constants have to be cut along them, and what must be tied or frozen. An operator
without a rule freezes what it reads. All shapes are static and nodes are in the normal form
(`wherry.normalise`); opset 7 or later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from wherry_compress.graph.ties import FIXED, Along, reshaped

if TYPE_CHECKING:
    import onnx

    from wherry_compress.graph.channels import Slicer, Tracer

Rule = Callable[["Tracer", "onnx.NodeProto"], None]

RULES: dict[str, Rule] = {}


def _rule(*operators: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return enter


def apply(tracer: Tracer, node: onnx.NodeProto) -> None:
    """Call the node's rule, where its inputs have channels or it makes some."""
    rule = RULES.get(node.op_type) if tracer.is_standard(node) else None
    known = any(tracer.along(name) is not None for name in node.input)
    if rule is None:
        if known:
            tracer.freeze(node, f"is a {node.op_type}, and what that does to channels is not known")
    elif known or node.op_type in _MAKERS:
        rule(tracer, node)


# --- those with weights ------------------------------------------------------------------------

_MAKERS = {"Conv", "ConvTranspose", "Gather", "Gemm", "MatMul"}


@_rule("Conv")
def _conv(t: Tracer, node: onnx.NodeProto) -> None:
    """Weights [outputs, inputs/groups, *kernel]."""
    weights, groups = t.weight(node, 1), t.attribute(node, "group", 1)
    if weights is None or not t.given_along(node, 1):
        return
    given = t.along(node.input[0])
    outputs, inner = weights.shape[:2]
    if groups > 1 and inner == 1:
        if given is not None:
            passed = np.repeat(given.ids, outputs // groups)
            t.cut(node, 1, 0, passed, "passes")
            t.cut(node, 2, 0, passed, "bias")
            t.edit(lambda s: s.set_attribute(node, "group", s.left(given.ids)))
            t.give(node, node.output[0], 1, passed)
        return
    if given is not None:
        t.cut(node, 1, 1, t.across_groups(node, given.ids, groups), "reads")
    made = np.tile(t.across_groups(node, t.fresh(outputs), groups), groups)
    t.cut(node, 1, 0, made, "filters")
    t.cut(node, 2, 0, made, "bias")
    t.give(node, node.output[0], 1, made)


@_rule("ConvTranspose")
def _conv_transpose(t: Tracer, node: onnx.NodeProto) -> None:
    """Weights [inputs, outputs/groups, *kernel]."""
    weights, groups = t.weight(node, 1), t.attribute(node, "group", 1)
    if weights is None or not t.given_along(node, 1):
        return
    given = t.along(node.input[0])
    inputs, inner = weights.shape[:2]
    if groups > 1 and inputs == groups:
        if given is not None:
            passed = np.repeat(given.ids, inner)
            t.cut(node, 1, 0, given.ids, "passes")
            t.cut(node, 2, 0, passed, "bias")
            t.edit(lambda s: s.set_attribute(node, "group", s.left(given.ids)))
            t.give(node, node.output[0], 1, passed)
        return
    if given is not None:
        t.cut(node, 1, 0, np.tile(t.across_groups(node, given.ids, groups), groups), "reads")
    column = t.across_groups(node, t.fresh(inner * groups), groups)
    t.cut(node, 1, 1, column, "filters")
    t.cut(node, 2, 0, np.tile(column, groups), "bias")
    t.give(node, node.output[0], 1, np.tile(column, groups))


@_rule("Gemm")
def _gemm(t: Tracer, node: onnx.NodeProto) -> None:
    """Weights [inputs, outputs], or turned."""
    weights, turned = t.weight(node, 1), t.attribute(node, "transB", 0)
    if weights is None or not t.given_along(node, 1):
        return
    if t.attribute(node, "transA", 0) and t.along(node.input[0]) is not None:
        t.freeze(node, "reads a matrix that it turns (transA)")
        return
    given = t.along(node.input[0])
    if given is not None:
        t.cut(node, 1, 1 if turned else 0, given.ids, "reads")
    made = t.fresh(weights.shape[0 if turned else 1])
    t.cut(node, 1, 0 if turned else 1, made, "filters")
    bias = t.constant(node, 2)
    if len(node.input) > 2 and node.input[2] and bias is None:
        t.freeze_ids(made, node, "adds a bias that is not a constant")
    elif bias is not None and bias.ndim and bias.shape[-1] == len(made):
        t.cut(node, 2, bias.ndim - 1, made, "bias")
    t.give(node, node.output[0], 1, made)


@_rule("MatMul")
def _mat_mul(t: Tracer, node: onnx.NodeProto) -> None:
    """Activations times weights [inputs, outputs]."""
    weights = t.weight(node, 1)
    if weights is None:
        return
    shape = t.shape(node.input[0])
    if weights.ndim != 2 or shape is None or len(shape) < 2:
        t.freeze(node, "multiplies by weights that are no matrix")
        return
    if not t.given_along(node, len(shape) - 1):
        return
    given = t.along(node.input[0])
    if given is not None:
        t.cut(node, 1, 0, given.ids, "reads")
    made = t.fresh(weights.shape[1])
    t.cut(node, 1, 1, made, "filters")
    t.give(node, node.output[0], len(shape) - 1, made)


@_rule("BatchNormalization")
def _batch_norm(t: Tracer, node: onnx.NodeProto) -> None:
    _each_channel(t, node, 4)


@_rule("InstanceNormalization")
def _instance_norm(t: Tracer, node: onnx.NodeProto) -> None:
    _each_channel(t, node, 2)


def _each_channel(t: Tracer, node: onnx.NodeProto, parameters: int) -> None:
    """A scale, a shift, ... for each channel."""
    given = t.along(node.input[0])
    if given is None or not t.given_along(node, 1) or len(node.output) > 1:
        t.freeze(node, f"is a {node.op_type} over another axis, or in training mode")
        return
    for index in range(1, parameters + 1):
        if t.constant(node, index) is None:
            t.freeze(node, "has parameters that are not constants")
            return
    for index in range(1, parameters + 1):
        t.cut(node, index, 0, given.ids, "values")
    t.give(node, node.output[0], 1, given.ids)


# --- those that pass channels on -----------------------------------------------------------------


@_rule("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip")
@_rule("Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish")
@_rule("Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu")
@_rule("Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt")
@_rule("Swish", "Tan", "Tanh", "ThresholdedRelu")
def _each_element(t: Tracer, node: onnx.NodeProto) -> None:
    given = t.along(node.input[0])
    if given is None:
        t.freeze(node, "takes them as bounds")
        return
    for name in filter(None, node.output):  # the mask of a Dropout too
        t.give(node, name, given.axis, given.ids)


@_rule("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max")
@_rule("Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor")
def _together(t: Tracer, node: onnx.NodeProto) -> None:
    """Element by element, shapes widened as numpy does."""
    rank = len(t.shape(node.output[0]) or ())
    found: list[Along] = []
    for name in node.input:
        given, shape = t.along(name), t.shape(name)
        if given is not None and shape is not None:
            found.append(Along(given.axis + rank - len(shape), given.ids))
    first = found[0]
    if any(each.axis != first.axis or len(each.ids) != len(first.ids) for each in found):
        t.freeze(node, f"is a {node.op_type} of tensors with channels on different axes")
        return
    for other in found[1:]:
        t.ties.tie(first.ids, other.ids, t.reason(node, f"is a {node.op_type} with what is fixed"))
    length = len(first.ids)
    for index, name in enumerate(node.input):
        shape = t.shape(name)
        if t.along(name) is not None or not name:
            continue
        axis = first.axis - rank + (len(shape) if shape is not None else 0)
        if shape is None:
            t.freeze(node, f"takes {name!r}, whose shape is not known")
        elif axis < 0 or shape[axis] == 1:
            continue
        elif t.constant(node, index) is not None and shape[axis] == length:
            t.cut(node, index, axis, first.ids, "values")
        else:
            t.freeze(node, f"takes {name!r}, whose channels no filter makes")
    t.give(node, node.output[0], first.axis, first.ids)


@_rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
def _pool(t: Tracer, node: onnx.NodeProto) -> None:
    given = t.along(node.input[0])
    if given is None or not t.given_along(node, 1):
        return
    if len(node.output) > 1 and node.output[1]:
        t.freeze(node, "gives indices into the whole tensor")
        return
    t.give(node, node.output[0], 1, given.ids)


@_rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(t: Tracer, node: onnx.NodeProto) -> None:
    given, shape = t.along(node.input[0]), t.shape(node.input[0])
    if given is None or shape is None:
        return
    axis = t.attribute(node, "axis", -1) % len(shape)
    if t.opset < 13 or axis == given.axis:
        t.freeze(node, f"is a {node.op_type} over them")
        return
    t.give(node, node.output[0], given.axis, given.ids)


@_rule("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean")
@_rule("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")
def _reduce(t: Tracer, node: onnx.NodeProto) -> None:
    given, shape = t.along(node.input[0]), t.shape(node.input[0])
    if given is None or shape is None:
        t.freeze(node, "takes them as axes")
        return
    axes = t.attribute(node, "axes", None)
    if len(node.input) > 1 and node.input[1]:
        values = t.constant(node, 1)
        axes = None if values is None else values.tolist()
    over = {axis % len(shape) for axis in axes} if axes else set(range(len(shape)))
    if given.axis in over:
        t.freeze(node, f"is a {node.op_type} over them")
        return
    axis = given.axis
    if not t.attribute(node, "keepdims", 1):
        axis -= sum(each < axis for each in over)
    t.give(node, node.output[0], axis, given.ids)


@_rule("Pad")
def _pad(t: Tracer, node: onnx.NodeProto) -> None:
    given = t.along(node.input[0])
    pads = t.integers(node, 1, "pads")
    rank = len(t.shape(node.output[0]) or ())
    plain = len(node.input) < 4 or not node.input[3]
    if given is None or not plain or pads is None or len(pads) != 2 * rank:
        t.freeze(node, "is a Pad whose widths are not known")
    elif pads[given.axis] or pads[given.axis + rank]:
        t.freeze(node, "pads the channels themselves")
    else:
        t.give(node, node.output[0], given.axis, given.ids)


@_rule("Resize", "Upsample")
def _resize(t: Tracer, node: onnx.NodeProto) -> None:
    given = t.along(node.input[0])
    shapes = t.shape(node.input[0]), t.shape(node.output[0])
    if given is None or shapes[0] is None or shapes[1] is None:
        t.freeze(node, "is resized to a size that is not known")
        return
    axis, ids = given.axis, given.ids
    whole = not t.attribute(node, "axes", None)
    if shapes[0][axis] != shapes[1][axis] or not whole:
        t.freeze(node, "resizes the channels themselves, or some axes alone")
        return
    sizes = t.integers(node, 3, "sizes") if node.op_type == "Resize" and t.opset >= 11 else None
    if sizes is not None and len(sizes) == len(shapes[1]):

        def edit(s: Slicer) -> None:
            s.set_integers(node, 3, [*sizes[:axis], s.left(ids), *sizes[axis + 1 :]])

        t.edit(edit)
    t.give(node, node.output[0], axis, ids)


# --- those that move channels --------------------------------------------------------------------


@_rule("Transpose")
def _transpose(t: Tracer, node: onnx.NodeProto) -> None:
    given, rank = t.along(node.input[0]), len(t.shape(node.output[0]) or ())
    if given is not None:
        order = list(t.attribute(node, "perm", None) or reversed(range(rank)))
        t.give(node, node.output[0], order.index(given.axis), given.ids)


@_rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshape(t: Tracer, node: onnx.NodeProto) -> None:
    given, before, after = t.along(node.input[0]), t.shape(node.input[0]), t.shape(node.output[0])
    target = t.integers(node, 1, "shape") if node.op_type == "Reshape" else None
    named = t.integers(node, 1, "axes") is not None or node.op_type != "Squeeze"
    if given is None or before is None or after is None or not named:
        t.freeze(node, f"is a {node.op_type} to a shape that is not known")
        return
    if node.op_type == "Reshape" and target is None:
        t.freeze(node, "is a Reshape to a shape that is computed")
        return
    found = reshaped(given, before, after)
    if found is None:
        t.freeze(node, f"is a {node.op_type} that leaves no axis for them")
        return
    axis, table = found
    ids = t.ties.tie_rows(table, t.reason(node, "mixes them with what is fixed"))
    if target is not None:
        kept = [
            after[i] if size == 0 and i in {given.axis, axis} else size
            for i, size in enumerate(target)
        ]

        def edit(s: Slicer) -> None:
            if kept[axis] > 0:
                s.set_integers(node, 1, [*kept[:axis], s.left(ids), *kept[axis + 1 :]])
            elif kept != target:
                s.set_integers(node, 1, kept)

        t.edit(edit)
    t.give(node, node.output[0], axis, ids)


@_rule("Concat")
def _concat(t: Tracer, node: onnx.NodeProto) -> None:
    shapes = [t.shape(name) for name in node.input]
    output = t.shape(node.output[0])
    if output is None or any(shape is None for shape in shapes):
        t.freeze(node, "joins tensors whose shapes are not known")
        return
    axis = t.attribute(node, "axis", 0) % len(output)
    found = [t.along(name) for name in node.input]
    channels = next(each.axis for each in found if each is not None)
    if any(each is not None and each.axis != channels for each in found):
        t.freeze(node, "joins tensors with channels on different axes")
        return
    if channels != axis:
        _together(t, node)
        return
    parts = [
        each.ids if each is not None else np.full(shape[axis], FIXED, np.int64)
        for each, shape in zip(found, shapes, strict=True)
        if shape is not None
    ]
    t.give(node, node.output[0], axis, np.concatenate(parts))


@_rule("Split")
def _split(t: Tracer, node: onnx.NodeProto) -> None:
    given = t.along(node.input[0])
    shapes = [t.shape(name) for name in node.output]
    if given is None or not all(node.output) or any(shape is None for shape in shapes):
        t.freeze(node, "is split into parts that are not known")
        return
    first = shapes[0] or ()
    axis = t.attribute(node, "axis", 0) % len(first)
    if axis != given.axis:
        for name in node.output:
            t.give(node, name, given.axis, given.ids)
        return
    if t.integers(node, 1, "split") is None:
        t.freeze(node, "is split into parts without given lengths")
        return
    ends = np.cumsum([(shape or ())[axis] for shape in shapes])
    parts = np.split(given.ids, ends[:-1])
    for name, part in zip(node.output, parts, strict=True):
        t.give(node, name, axis, part)
        t.keep_one(part)
    t.edit(lambda s: s.set_integers(node, 1, [s.left(part) for part in parts], "split"))


@_rule("Slice")
def _slice(t: Tracer, node: onnx.NodeProto) -> None:
    given, shape = t.along(node.input[0]), t.shape(node.input[0])
    starts, ends, axes, steps = (t.integers(node, index, "") for index in range(1, 5))
    unknown = any(
        len(node.input) > index and node.input[index] and t.integers(node, index, "") is None
        for index in range(1, 5)
    )
    if given is None or shape is None or starts is None or ends is None or unknown:
        t.freeze(node, "is a Slice with bounds that are not known")
        return
    places = [axis % len(shape) for axis in axes or range(len(starts))]
    if given.axis not in places:
        t.give(node, node.output[0], given.axis, given.ids)
        return
    place = places.index(given.axis)
    low, high, step = slice(
        starts[place], ends[place], steps[place] if steps else 1
    ).indices(len(given.ids))  # fmt: skip
    if step != 1 or high - low < 2:
        t.freeze(node, "takes channels with a step, or a single one")
        return
    ids = given.ids

    def edit(s: Slicer) -> None:
        if s.left(ids) == len(ids):
            return
        start = s.left(ids[:low])
        stop = start + s.left(ids[low:high])
        s.set_integers(node, 1, [*starts[:place], start, *starts[place + 1 :]])
        s.set_integers(node, 2, [*ends[:place], stop, *ends[place + 1 :]])

    t.edit(edit)
    t.keep_one(ids[low:high])
    t.give(node, node.output[0], given.axis, ids[low:high])


@_rule("Gather")
def _gather(t: Tracer, node: onnx.NodeProto) -> None:
    """Channels picked by constants; or rows of a table of weights."""
    data, shape = t.along(node.input[0]), t.shape(node.input[0])
    axis, picks = t.attribute(node, "axis", 0), t.shape(node.input[1])
    if t.along(node.input[1]) is not None or shape is None or picks is None:
        t.freeze(node, "takes them as indices, or has a shape that is not known")
        return
    axis %= len(shape)
    if data is None:
        table = t.constant(node, 0)
        if table is not None and table.ndim == 2 and axis == 0 and table.dtype.kind == "f":
            made = t.fresh(shape[1])
            t.cut(node, 0, 1, made, "filters")
            t.give(node, node.output[0], len(picks), made)
        return
    if axis != data.axis:
        moved = data.axis + (len(picks) - 1 if axis < data.axis else 0)
        t.give(node, node.output[0], moved, data.ids)
        return
    chosen = t.integers(node, 1, "")
    if chosen is None or len(picks) != 1:
        t.freeze(node, "picks channels by indices that are not a constant list")
        return
    where = np.array(chosen) % len(data.ids)
    ids = data.ids

    def edit(s: Slicer) -> None:
        kept = s.kept(ids)
        new = np.cumsum(kept) - 1
        s.set_integers(node, 1, [int(new[i]) for i in where if kept[i]])

    t.edit(edit)
    t.keep_one(ids[where])
    t.give(node, node.output[0], axis, ids[where])


@_rule("DepthToSpace")
def _depth_to_space(t: Tracer, node: onnx.NodeProto) -> None:
    given = t.along(node.input[0])
    if given is None or not t.given_along(node, 1):
        return
    block = t.attribute(node, "blocksize", 1) ** 2
    crd = t.attribute(node, "mode", "DCR") == "CRD"
    table = given.ids.reshape(-1, block) if crd else given.ids.reshape(block, -1).T
    ids = t.ties.tie_rows(table, t.reason(node, "mixes them with what is fixed"))
    t.give(node, node.output[0], 1, ids)


@_rule("SpaceToDepth")
def _space_to_depth(t: Tracer, node: onnx.NodeProto) -> None:
    given = t.along(node.input[0])
    if given is not None and t.given_along(node, 1):
        t.give(node, node.output[0], 1, np.tile(given.ids, t.attribute(node, "blocksize", 1) ** 2))


@_rule("Expand", "Tile")
def _expand(t: Tracer, node: onnx.NodeProto) -> None:
    given, before, after = t.along(node.input[0]), t.shape(node.input[0]), t.shape(node.output[0])
    target = t.integers(node, 1, "")
    if given is None or before is None or after is None or target is None:
        t.freeze(node, f"is a {node.op_type} by numbers that are not known")
        return
    axis, ids = given.axis + len(after) - len(before), given.ids
    if after[axis] != before[given.axis]:
        t.freeze(node, "repeats the channels")
        return
    place = axis - len(after) + len(target)
    if node.op_type == "Expand" and place >= 0 and target[place] != 1:

        def edit(s: Slicer) -> None:
            s.set_integers(node, 1, [*target[:place], s.left(ids), *target[place + 1 :]])

        t.edit(edit)
    t.give(node, node.output[0], axis, ids)
