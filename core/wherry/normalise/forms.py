"""One form for what ONNX can say in several: nodes that do nothing, attributes, older opsets.

Every function takes the graph and a node, rewrites it in place where it has something to say, and
returns whether it did. The tables are in ``__init__.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.normalise.graph import Graph, Step, attributes

if TYPE_CHECKING:
    import onnx

IDEMPOTENT_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
"""That change nothing where they reduce over no axis."""


def nothing(graph: Graph, node: onnx.NodeProto) -> bool:
    """Identity, and what is one: a cast to the same type, a new shape that is the old one."""
    about, kind = attributes(node), node.op_type
    given = graph.shape(node.input[0]) if node.input and node.input[0] else None
    same = given is not None and given == graph.shape(node.output[0])
    if kind == "Cast":
        does = about["to"] != graph.kind(node.input[0])
    elif kind == "Dropout":
        does = _drops(graph, node)
    elif kind in {"Concat", "Max", "Min", "Mean", "Sum"}:
        does = len(node.input) > 1
    elif kind == "Transpose":
        order = about.get("perm") or list(range(len(given or ())))[::-1]
        moved = [axis for axis in order if given is None or given[axis] != 1]
        does = not same or moved != sorted(moved)
    elif kind == "Pad":
        pads = graph.value(node, 1)
        does = (any(about["pads"]) if "pads" in about else True) if pads is None else pads.any()
        does = does or not same
    elif kind in {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"}:
        does = not same
    else:
        does = kind != "Identity"
    if does or graph.bypass(node):
        return not does
    if kind != "Identity" and not any(node.output[1:]):  # from an input to an output
        graph.replace([node], ("Identity", [node.input[0]], {}))
        return True
    return False


def cast_like(graph: Graph, node: onnx.NodeProto) -> bool:
    """A Cast to a type that is known."""
    kind = graph.kind(node.input[1])
    if not kind:
        return False
    graph.replace([node], ("Cast", [node.input[0]], {"to": kind}))
    return True


def _drops(graph: Graph, node: onnx.NodeProto) -> bool:
    if len(node.output) > 1 and (node.output[1] in graph.takers or node.output[1] in graph.kept):
        return True
    if graph.opset < 7:
        return not attributes(node).get("is_test", 0)
    if graph.opset < 12 or len(node.input) < 3 or not node.input[2]:
        return False
    training = graph.value(node, 2)
    return training is None or bool(training.any())


def reduction(graph: Graph, node: onnx.NodeProto) -> bool:
    """The axes of a reduction: all of them named, none negative."""
    about = attributes(node)
    shape = graph.shape(node.input[0])
    if shape is None:
        return False
    as_input = graph.opset >= (13 if node.op_type == "ReduceSum" else 18)
    axes: Any = about.pop("axes", None)
    if as_input and len(node.input) > 1 and node.input[1]:
        value = graph.value(node, 1)
        if value is None:
            return False
        axes = value.ravel().tolist()
    if not axes and about.pop("noop_with_empty_axes", 0):
        return node.op_type in IDEMPOTENT_REDUCTIONS and graph.bypass(node)
    about.pop("noop_with_empty_axes", None)
    wanted = sorted({axis % len(shape) for axis in axes or range(len(shape))}) if shape else []
    if not wanted or list(axes or ()) == wanted:
        return False
    inputs: list[str] = [node.input[0]]
    if as_input:
        inputs.append(graph.constant(f"{node.output[0]}/axes", np.asarray(wanted, np.int64)))
    else:
        about["axes"] = wanted
    graph.replace([node], (node.op_type, inputs, about))
    return True


def clip(graph: Graph, node: onnx.NodeProto) -> bool:
    """A Clip from zero up is a Relu; one that holds everything is nothing."""
    about = attributes(node)
    kind = graph.kind(node.input[0])
    if kind != 1:  # float32
        return False
    bounds = []
    for index, word in enumerate(("min", "max"), 1):
        if graph.opset < 11:
            bounds.append(about.get(word))
        elif len(node.input) > index and node.input[index]:
            value = graph.value(node, index)
            if value is None:
                return False
            bounds.append(float(value.ravel()[0]))
        else:
            bounds.append(None)
    largest = float(np.finfo(np.float32).max)
    low = None if bounds[0] is not None and bounds[0] <= -largest else bounds[0]
    high = None if bounds[1] is not None and bounds[1] >= largest else bounds[1]
    if high is not None or low not in {None, 0.0}:
        return False
    if low is None:
        return graph.bypass(node)
    graph.replace([node], ("Relu", [node.input[0]], {}))
    return True


def relu(graph: Graph, node: onnx.NodeProto) -> bool:
    """``Max(x, 0)``."""
    if len(node.input) != 2 or graph.kind(node.output[0]) != 1:
        return False
    for index in (0, 1):
        value, other = graph.value(node, index), node.input[1 - index]
        if (
            value is not None
            and not value.any()
            and graph.shape(other) == graph.shape(node.output[0])
        ):
            graph.replace([node], ("Relu", [other], {}))
            return True
    return False


def softmax(graph: Graph, node: onnx.NodeProto) -> bool:
    """Before opset 13 it runs over all axes from ``axis`` on."""
    x, shape = node.input[0], graph.shape(node.input[0])
    if graph.opset >= 13 or not shape:
        return False
    rank = len(shape)
    given = attributes(node).get("axis", 1)
    axis = given % rank if given < rank else rank
    if axis == rank - 1 or axis == rank:
        return False
    if all(size == 1 for size in shape[axis + 1 :]):
        return False
    to = graph.constant(f"{node.output[0]}/shape", np.asarray(shape, np.int64))
    graph.replace(
        [node], ("Flatten", [x], {"axis": axis}), (node.op_type, [0], {"axis": 1}),
        ("Reshape", [1, to], {}),
    )  # fmt: skip
    return True


def pad(graph: Graph, node: onnx.NodeProto) -> bool:
    """All axes of a Pad, and its mode, are written out."""
    about = attributes(node)
    shape = graph.shape(node.input[0])
    chosen = len(node.input) > 3 and bool(node.input[3])
    if graph.opset < 11 or shape is None or ("mode" in about and not chosen):
        return False
    inputs = list(node.input)
    if chosen:
        pads, axes = graph.value(node, 1), graph.value(node, 3)
        if pads is None or axes is None:
            return False
        spelt = np.zeros((2, len(shape)), np.int64)
        spelt[:, [int(axis) % len(shape) for axis in axes]] = pads.reshape(2, -1)
        inputs = inputs[:3]
        inputs[1] = graph.constant(f"{node.output[0]}/pads", spelt.ravel())
        while not inputs[-1]:
            inputs.pop()
    graph.replace([node], ("Pad", inputs, {"mode": "constant", **about}))
    return True


def split(graph: Graph, node: onnx.NodeProto) -> bool:
    """A Split into equal parts says how long they are; the last one may be shorter."""
    about = attributes(node)
    shape = graph.shape(node.input[0])
    known = "split" in about or (len(node.input) > 1 and bool(node.input[1]))
    if graph.opset < 13 or known or shape is None:
        return False
    length, count = shape[about.get("axis", 0)], len(node.output)
    each = -(-length // count)
    sizes = [each] * (count - 1) + [length - each * (count - 1)]
    if min(sizes) <= 0:
        return False
    name = graph.constant(f"{node.output[0]}/sizes", np.asarray(sizes, np.int64))
    del node.input[1:]
    node.input.append(name)
    for attribute in [a for a in node.attribute if a.name == "num_outputs"]:
        node.attribute.remove(attribute)
    graph.refresh()
    return True


def resize(graph: Graph, node: onnx.NodeProto) -> bool:
    """Scales or sizes of some axes become those of all."""
    about = attributes(node)
    shape, axes = graph.shape(node.input[0]), about.pop("axes", None)
    if (
        axes is None
        or shape is None
        or about.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        return False
    if about.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    inputs = list(node.input)
    for index, full in ((2, np.ones(len(shape), np.float32)), (3, np.asarray(shape, np.int64))):
        if len(inputs) <= index or not inputs[index]:
            continue
        value = graph.value(node, index)
        if value is None:
            return False
        full[list(axes)] = value
        inputs[index] = graph.constant(f"{node.output[0]}/all/{index}", full)
    graph.replace([node], ("Resize", inputs, about))
    return True


def pairs(graph: Graph, node: onnx.NodeProto) -> bool:
    """A sum or an extreme of many, two at a time."""
    if len(node.input) < 3:
        return False
    operator = "Add" if node.op_type == "Sum" else node.op_type
    first, *others = node.input
    steps: list[Step] = []
    for index, name in enumerate(others):
        steps.append((operator, [index - 1 if index else first, name], {}))
    graph.replace([node], *steps)
    return True


def power(graph: Graph, node: onnx.NodeProto) -> bool:
    """The third and fourth power of float32 as products, which are defined below zero too."""
    x, exponent = node.input[0], graph.value(node, 1)
    if exponent is None or exponent.size != 1 or graph.kind(x) != 1:
        return False
    if graph.shape(node.output[0]) != graph.shape(x) or exponent.ravel()[0] not in {3, 4}:
        return False
    other = x if exponent.ravel()[0] == 3 else 0
    graph.replace([node], ("Mul", [x, x], {}), ("Mul", [0, other], {}))
    return True


def extreme(graph: Graph, node: onnx.NodeProto) -> bool:
    """ReduceMax and ReduceMin as a pooling over what they reduce, brought together."""
    about, x, y = attributes(node), node.input[0], node.output[0]
    shape, made = graph.shape(x), graph.shape(y)
    axes = about.get("axes")
    if axes is None and len(node.input) > 1:
        value = graph.value(node, 1)
        axes = None if value is None else value.ravel().tolist()
    if not axes or not shape or made is None or graph.kind(x) != 1:
        return False
    gone = [axis % len(shape) for axis in axes]
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    count = int(np.prod([shape[axis] for axis in kept], dtype=np.int64))
    flat = graph.constant(f"{y}/flat", np.asarray([1, count, -1, 1], np.int64))
    back = graph.constant(f"{y}/shape", np.asarray(made, np.int64))
    steps: list[Step] = []
    given: str | int = x
    if node.op_type == "ReduceMin":
        steps.append(("Neg", [given], {}))
        given = 0
    if [*kept, *gone] != list(range(len(shape))):
        steps.append(("Transpose", [given], {"perm": [*kept, *gone]}))
        given = len(steps) - 1
    steps.append(("Reshape", [given, flat], {}))
    steps.append(("GlobalMaxPool", [len(steps) - 1], {}))
    steps.append(("Reshape", [len(steps) - 1, back], {}))
    if node.op_type == "ReduceMin":
        steps.append(("Neg", [len(steps) - 1], {}))
    graph.replace([node], *steps)
    return True


def log_softmax(graph: Graph, node: onnx.NodeProto) -> bool:
    """In parts, in which no logarithm of a probability that has become zero is taken."""
    shape = graph.shape(node.input[0])
    if not shape:
        return False
    x, y = node.input[0], node.output[0]
    axis = attributes(node).get("axis", 1 if graph.opset < 13 else -1) % len(shape)
    name = graph.constant(f"{y}/axes", np.asarray([axis], np.int64))
    by_word: tuple[list[str], dict[str, Any]] = ([], {"axes": [axis], "keepdims": 1})
    by_name: tuple[list[str], dict[str, Any]] = ([name], {"keepdims": 1})
    of_max, of_sum = (by_name if graph.opset >= since else by_word for since in (18, 13))
    graph.replace(
        [node],
        ("ReduceMax", [x, *of_max[0]], of_max[1]),
        ("Sub", [x, 0], {}),
        ("Exp", [1], {}),
        ("ReduceSum", [2, *of_sum[0]], of_sum[1]),
        ("Log", [3], {}),
        ("Sub", [1, 4], {}),
    )
    return True
