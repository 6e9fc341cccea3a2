"""ONNX to an ONNX that onnx2tf gets right; it runs in the converter's environment.

The model is in wherry's normal form already. Nodes that onnx2tf 2.6.9 gets wrong, or does not take,
are written in words that it knows. What stands here was found by running every form of every
operator; the conformance tests run them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

Nodes = list[onnx.NodeProto]
Step = tuple[str, Sequence[str | int], dict[str, Any]]
"""Operator, inputs, attributes; an input that is a number is the output of that step."""

RANKS = (3, 4, 5)  # of tensors that onnx2tf may turn to channels last


def repair(proto: onnx.ModelProto) -> list[str]:
    """Rewrite nodes in place; returns their names."""
    graph = Graph(proto)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    repaired = []
    for node in nodes:
        mended = widened(graph, node) if node.op_type in WIDENED else None
        if mended is None and node.op_type in REPAIRS:
            mended = REPAIRS[node.op_type](graph, node)
        proto.graph.node.extend([node] if mended is None else mended)
        if mended is not None:
            repaired.append(node.name)
    return repaired


class Graph:
    """What the repairs know of a graph, and how they add to it.

    Attributes:
        opset: of ONNX's own operators.
        shapes: static shapes by tensor.
        kinds: element types by tensor.
        makers: tensor to the node that gives it.
        takers: tensor to the nodes that take it.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
        self.opset = next(o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"})
        self.shapes = {
            value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
            for value in [*inferred.input, *inferred.value_info, *inferred.output]
        }
        self.kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in [*inferred.input, *inferred.value_info, *inferred.output]
        }
        self.kinds |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
        self.makers = {name: node for node in proto.graph.node for name in node.output}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)
        self._initializers = proto.graph.initializer
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._names = {*self.shapes, *self.takers, *self.makers, *self._constants}

    def value(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """The constant that is a node's input; None where it has none there."""
        name = node.input[index] if index < len(node.input) else ""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def fresh(self, text: str) -> str:
        """A tensor's name that no other has, ``text`` where it is free."""
        name = text
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def constant(self, text: str, value: Any) -> str:
        """Add a constant; returns its name, ``text`` where that is free."""
        name = self.fresh(text)
        tensor = numpy_helper.from_array(np.asarray(value), name)
        self._constants[name] = tensor
        self._initializers.append(tensor)
        return name


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Of a node, texts as ``str``."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def chain(graph: Graph, node: onnx.NodeProto, output: str, *steps: Step) -> Nodes:
    """Nodes in place of ``node``, the last of which gives ``output``."""
    names = [graph.fresh(f"{output}/step{index}") for index in range(len(steps) - 1)] + [output]
    return [
        helper.make_node(
            operator,
            [names[each] if isinstance(each, int) else each for each in inputs],
            [names[index]],
            name=node.name if index == len(steps) - 1 else f"{node.name}/{index}",
            **about,
        )
        for index, (operator, inputs, about) in enumerate(steps)
    ]


# --- the repairs: the nodes in place of one, or None where it stays ------------------------------


def widened(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """TFLite takes small whole numbers for quantised ones: they are computed in larger ones."""
    kind = graph.kinds.get(node.input[0], 0)
    wide = WIDE.get(kind)
    if wide is None:
        return None
    steps: list[Step] = [("Cast", [name], {"to": wide}) for name in node.input]
    steps.append((node.op_type, list(range(len(steps))), attributes(node)))
    if graph.kinds.get(node.output[0]) == kind:
        steps.append(("Cast", [len(steps) - 1], {"to": kind}))
    return chain(graph, node, node.output[0], *steps)


WIDE = {
    **dict.fromkeys(
        (
            onnx.TensorProto.INT8,
            onnx.TensorProto.UINT8,
            onnx.TensorProto.INT16,
            onnx.TensorProto.UINT16,
        ),
        onnx.TensorProto.INT32,
    ),
    onnx.TensorProto.UINT32: onnx.TensorProto.INT64,
}
WIDENED = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        *("BitwiseNot", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
    )
)


def indices(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """Indices that count from the end are refused where they are not known in advance."""
    name, shape = node.input[1], graph.shapes.get(node.input[0], ())
    if graph.value(node, 1) is not None or not shape:
        return None
    about, y = attributes(node), node.output[0]
    kind = onnx.helper.tensor_dtype_to_np_dtype(graph.kinds[name])
    length = graph.constant(f"{y}/length", np.asarray(shape[about.get("axis", 0)], kind))
    return chain(
        graph,
        node,
        y,
        ("Add", [name, length], {}),
        ("Mod", [0, length], {}),
        (node.op_type, [node.input[0], 1], about),
    )


def one_hot(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """Indices beyond the depth name no place, and get mixed up: they are compared instead."""
    depth, values = graph.value(node, 1), graph.value(node, 2)
    shape = graph.shapes.get(node.input[0])
    if depth is None or values is None or shape is None:
        return None
    y, size = node.output[0], int(depth.ravel()[0])
    axis = attributes(node).get("axis", -1) % (len(shape) + 1)
    places = np.arange(size, dtype=np.int64).reshape(-1, *[1] * (len(shape) - axis))
    where = graph.constant(f"{y}/places", places)
    behind = graph.constant(f"{y}/behind", places - size)
    off, on = (graph.constant(f"{y}/{i}", values[i : i + 1].reshape(())) for i in (0, 1))
    to = graph.constant(f"{y}/shape", np.asarray([*shape[:axis], 1, *shape[axis:]], np.int64))
    return chain(
        graph,
        node,
        y,
        ("Cast", [node.input[0]], {"to": onnx.TensorProto.INT64}),
        ("Reshape", [0, to], {}),
        ("Equal", [1, where], {}),
        ("Equal", [1, behind], {}),
        ("Or", [2, 3], {}),
        ("Where", [4, on, off], {}),
    )


def zeros_before(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """Padding adds nothing to a norm: it can come before."""
    about = attributes(node)
    pads = about.get("pads", [])
    if not any(pads):
        return None
    half = len(pads) // 2
    whole = np.asarray([0, 0, *pads[:half], 0, 0, *pads[half:]])
    name = graph.constant(f"{node.output[0]}/pads", whole)
    about["pads"] = [0] * len(pads)
    steps: list[Step] = [
        ("Pad", [node.input[0], name], {"mode": "constant"}),
        (node.op_type, [0], about),
    ]
    return chain(graph, node, node.output[0], *steps)


def infinite(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """The greatest of values that are all -inf is the least finite number, in TFLite."""
    for index in (0, 1):
        value = graph.value(node, index)
        if value is not None and value.dtype.kind == "f" and np.isneginf(value).all():
            y, other = node.output[0], node.input[1 - index]
            least = graph.constant(f"{y}/least", np.full_like(value, np.finfo(value.dtype).min))
            return chain(graph, node, y, ("LessOrEqual", [other, least], {}))
    return broadcast(graph, node)


def last_index(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """The last of several is the first from behind."""
    about = attributes(node)
    if not about.pop("select_last_index", 0):
        return None
    x, y = node.input[0], node.output[0]
    shape = graph.shapes[x]
    axis = about.get("axis", 0) % len(shape)
    ends = {"start": -1, "end": -(2**31), "axis": axis, "step": -1}
    names = [graph.constant(f"{y}/{word}", np.asarray([ends[word]])) for word in ends]
    last = graph.constant(f"{y}/last", np.asarray(shape[axis] - 1))
    return chain(
        graph,
        node,
        y,
        ("Slice", [x, *names], {}),
        (node.op_type, [0], about),
        ("Sub", [last, 1], {}),
    )


def elu(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """Every alpha is taken for 1, which is right for what stands below 0 and is scaled after it."""
    alpha = attributes(node).get("alpha", 1.0)
    if alpha == 1.0:
        return None
    x, y = node.input[0], node.output[0]
    zero = graph.constant(f"{y}/zero", np.float32(0))
    factor = graph.constant(f"{y}/alpha", np.float32(alpha))
    return chain(
        graph,
        node,
        y,
        ("Min", [x, zero], {}),
        ("Elu", [0], {}),
        ("Mul", [1, factor], {}),
        ("Relu", [x], {}),
        ("Add", [3, 2], {}),
    )


def softmax(graph: Graph, node: onnx.NodeProto) -> Nodes:
    """The axis is written out: Hardmax has the default of an older opset."""
    x, y = node.input[0], node.output[0]
    axis = attributes(node).get("axis", 1 if graph.opset < 13 else -1) % len(graph.shapes[x])
    return chain(graph, node, y, (node.op_type, [x], {"axis": axis}))


def broadcast(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """A constant of fewer axes gets all of them: only such are turned to channels last."""
    rank = len(graph.shapes.get(node.output[0], ()))
    makers = {graph.makers[name].op_type for name in node.input if name in graph.makers}
    if rank not in RANKS or makers & {"MatMul", "Gemm"}:  # these take a bias of one axis
        return None
    repaired = False
    for index, name in enumerate(node.input):
        value = graph.value(node, index)
        if value is not None and value.size > 1 and value.ndim < rank:
            full = value.reshape((1,) * (rank - value.ndim) + value.shape)
            node.input[index] = graph.constant(f"{node.output[0]}/{name}", full)
            repaired = True
    return [node] if repaired else None


def product(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """Two products with constants become one, and a Relu or Clip between them gets lost.

    With the sign turned twice nothing can be lost, and no value changes.
    """
    mended = broadcast(graph, node)
    y = node.output[0]
    between = graph.takers.get(y, [])
    if [taker.op_type for taker in between] not in (["Relu"], ["Clip"]):
        return mended
    after = {taker.op_type for taker in graph.takers.get(between[0].output[0], [])}
    if not after & {"Mul", "Div", "Add", "Sub", "BatchNormalization"}:
        return mended
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        factor = graph.value(node, index)
        if factor is not None:
            node.input[index] = graph.constant(f"{y}/turned", -factor)
            return chain(graph, node, y, (node.op_type, list(node.input), {}), ("Neg", [0], {}))
    return mended


def last_state(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """The final state is wrong; it is a step of the sequence of states, which is right."""
    if len(node.output) < 2 or not node.output[1]:
        return None
    state, node.output[1] = node.output[1], ""
    node.output[0] = node.output[0] or f"{state}/states"
    states = node.output[0]
    steps = graph.shapes[node.input[0]][0]
    first = graph.constant(f"{state}/first", np.int64(0))
    last = graph.constant(f"{state}/last", np.int64(steps - 1))
    direction = attributes(node).get("direction", "forward")
    along = {"axis": 0}
    if direction != "bidirectional":
        end = last if direction == "forward" else first
        return [node, *chain(graph, node, state, ("Gather", [states, end], along))]
    one, two = (graph.constant(f"{state}/{way}", np.asarray([way])) for way in (1, 2))
    nil = graph.constant(f"{state}/0", np.asarray([0]))
    return [
        node,
        *chain(
            graph,
            node,
            state,
            ("Gather", [states, last], along),
            ("Slice", [0, nil, one, nil], {}),
            ("Gather", [states, first], along),
            ("Slice", [2, one, two, nil], {}),
            ("Concat", [1, 3], along),
        ),
    ]


def nearest(graph: Graph, node: onnx.NodeProto) -> Nodes | None:
    """One way of taking the nearest value is known; the others are Gathers."""
    about = attributes(node)
    if about.get("mode", "nearest") != "nearest" or graph.opset < 11:
        return None
    x, y = node.input[0], node.output[0]
    given = graph.value(node, 2)
    lengths, sizes = graph.shapes[x], graph.shapes[y]
    scales = [size / length for size, length in zip(sizes, lengths, strict=True)]
    simple = (about.get("coordinate_transformation_mode"), about.get("nearest_mode"))
    if given is not None and given.size:
        whole = np.allclose(scales, given)
        scales = [float(scale) for scale in given]
    else:
        whole = True
    if whole and simple == ("asymmetric", "floor"):
        return None
    steps: list[Step] = []
    for axis, (length, size, scale) in enumerate(zip(lengths, sizes, scales, strict=True)):
        indices = nearest_indices(length, size, scale, about)
        if indices is None:
            return None
        if not np.array_equal(indices, np.arange(length)):
            name = graph.constant(f"{y}/{axis}", indices)
            steps.append(("Gather", [len(steps) - 1 if steps else x, name], {"axis": axis}))
    return chain(graph, node, y, *steps) if steps else None


def nearest_indices(
    length: int, size: int, scale: float, about: dict[str, Any]
) -> np.ndarray | None:
    """Which of ``length`` values each of ``size`` values is; None: in a way that is not known.

    As ONNX defines Resize, in float32 as ONNX Runtime computes it.
    """
    at, step, half = np.arange(size, dtype=np.float32), np.float32(scale), np.float32(0.5)
    way = about.get("coordinate_transformation_mode", "half_pixel")
    if way == "asymmetric":
        at = at / step
    elif way == "half_pixel" or (way == "pytorch_half_pixel" and size > 1):
        at = (at + half) / step - half
    elif way == "align_corners" and size > 1:
        at = at * np.float32(length - 1) / np.float32(size - 1)
    elif way in {"align_corners", "pytorch_half_pixel"}:
        at = at * 0
    else:
        return None
    up, shift = ROUNDINGS[about.get("nearest_mode", "round_prefer_floor")]
    whole = np.ceil(at + shift) if up else np.floor(at + shift)
    indices: np.ndarray = np.clip(whole, 0, length - 1).astype(np.int64)
    return indices


ROUNDINGS = {
    "floor": (False, np.float32(0)),
    "ceil": (True, np.float32(0)),
    "round_prefer_ceil": (False, np.float32(0.5)),
    "round_prefer_floor": (True, np.float32(-0.5)),
}
"""Resize's ``nearest_mode`` to (whether it rounds up, what is added first)."""

REPAIRS: dict[str, Callable[[Graph, onnx.NodeProto], Nodes | None]] = {
    "Elu": elu,
    "GatherElements": indices,
    "LpPool": zeros_before,
    "OneHot": one_hot,
    **dict.fromkeys(("ArgMax", "ArgMin"), last_index),
    "Resize": nearest,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("RNN", "LSTM"), last_state),
    **dict.fromkeys(("Add", "Sub", "Max", "Min", "Mean", "Sum", "Pow"), broadcast),
    **dict.fromkeys(("Where", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), broadcast),
    **dict.fromkeys(("And", "Or", "Xor", "Mod"), broadcast),
    "Equal": infinite,
    **dict.fromkeys(("Mul", "Div"), product),
}
