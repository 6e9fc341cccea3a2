"""Several nodes that are one: a BatchNormalization into weights, the parts of a HardSwish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.normalise.graph import Graph, attributes

if TYPE_CHECKING:
    import onnx

SIXTH = 1 / 6
CLOSE = 1e-5  # relative: constants stand in float32


def batch_norm(graph: Graph, node: onnx.NodeProto) -> bool:
    """Into the Conv, ConvTranspose or Gemm before it, whose result nobody else takes.

    The node keeps its name: whoever names it in a manifest still does after a pass.
    """
    about = attributes(node)
    if about.get("training_mode", 0) or any(node.output[1:]):
        return False
    if graph.opset < 7 and not about.get("is_test", 0):
        return False
    before = next(
        (
            m
            for kind in ("Conv", "ConvTranspose", "Gemm")
            if (m := graph.maker(node.input[0], kind))
        ),
        None,
    )
    values = [value for i in range(1, 5) if (value := graph.value(node, i)) is not None]
    if before is None or len(values) < 4 or any(value.ndim != 1 for value in values):
        return False
    of_before = attributes(before)
    weight, bias = graph.value(before, 1), graph.value(before, 2)
    has_bias = len(before.input) > 2 and bool(before.input[2])
    if weight is None or weight.dtype != np.float32 or (bias is None and has_bias):
        return False
    if before.op_type == "Gemm" and (
        of_before.get("beta", 1.0) != 1.0 or (bias is not None and bias.ndim > 1)
    ):
        return False
    scale, shift, mean, variance = (value.astype(np.float64) for value in values)
    factor = scale / np.sqrt(variance + about.get("epsilon", 1e-5))
    scaled = _scaled(weight, before.op_type, of_before, factor)
    if scaled is None:
        return False
    start = np.zeros(1) if bias is None else bias.astype(np.float64)
    sums = np.broadcast_to((start - mean) * factor + shift, factor.shape).astype(np.float32)
    inputs = [
        before.input[0],
        graph.constant(f"{before.input[1]}/folded", scaled),
        graph.constant(f"{node.output[0]}/bias", sums),
    ]
    graph.replace([before, node], (before.op_type, inputs, of_before), name=before.name)
    return True


def _scaled(
    weight: np.ndarray, kind: str, about: Mapping[str, Any], factor: np.ndarray
) -> np.ndarray | None:
    """The weight with a factor for each output channel; None where their numbers differ."""
    groups = about.get("group", 1) if kind == "ConvTranspose" else 1
    if kind == "ConvTranspose":
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        axis = 2
    else:
        parts, axis = weight, 0 if kind == "Conv" or about.get("transB", 0) else 1
    if parts.shape[axis] * groups != factor.size:
        return None
    shape = [1] * parts.ndim
    shape[axis] = parts.shape[axis]
    if kind == "ConvTranspose":
        shape[0] = groups
    scaled: np.ndarray = (parts * factor.reshape(shape)).astype(np.float32).reshape(weight.shape)
    return scaled


def hard_sigmoid(graph: Graph, node: onnx.NodeProto) -> bool:
    """``Clip(x + 3, 0, 6) / 6``."""
    inner = _sixth(graph, node)
    found = None if inner is None else _relu6(graph, inner)
    if found is None:
        return False
    x, add, bound = found
    about = {"alpha": SIXTH, "beta": 0.5}
    graph.replace([add, bound, node], ("HardSigmoid", [x], about))
    return True


def hard_swish(graph: Graph, node: onnx.NodeProto) -> bool:
    """``x * HardSigmoid(x)``, and ``x * Clip(x + 3, 0, 6) / 6``; before opset 14 the former."""
    if node.op_type == "Mul":
        for index in (0, 1):
            x = node.input[1 - index]
            gate = graph.maker(node.input[index], "HardSigmoid")
            if gate is None or gate.input[0] != x or graph.opset < 14:
                continue
            about = attributes(gate)
            slope, middle = about.get("alpha", 0.2), about.get("beta", 0.5)
            if abs(slope - SIXTH) < CLOSE and abs(middle - 0.5) < CLOSE:
                graph.replace([gate, node], ("HardSwish", [x], {}))
                return True
    inner = _sixth(graph, node)
    product = None if inner is None else graph.maker(inner, "Mul")
    for index in (0, 1) if product is not None else ():
        assert product is not None
        found = _relu6(graph, product.input[index])
        if found is None or found[0] != product.input[1 - index]:
            continue
        x, add, bound = found
        old = [add, bound, product, node]
        if graph.opset >= 14:
            graph.replace(old, ("HardSwish", [x], {}))
        else:
            gate_of = {"alpha": SIXTH, "beta": 0.5}
            graph.replace(old, ("HardSigmoid", [x], gate_of), ("Mul", [x, 0], {}))
        return True
    return False


def _sixth(graph: Graph, node: onnx.NodeProto) -> str | None:
    """What a node divides by 6, be it by a product."""
    ways = [(0, 1, 6.0)] if node.op_type == "Div" else [(0, 1, SIXTH), (1, 0, SIXTH)]
    for given, factor, wanted in ways:
        if _is(graph, node, factor, wanted):
            return str(node.input[given])
    return None


def _relu6(graph: Graph, name: str) -> tuple[str, onnx.NodeProto, onnx.NodeProto] | None:
    """``Clip(x + 3, 0, 6)``: x and the two nodes."""
    bound = graph.maker(name, "Clip")
    if bound is None:
        return None
    if graph.opset < 11:
        about = attributes(bound)
        limits = about.get("min") == 0.0 and about.get("max") == 6.0
    else:
        limits = _is(graph, bound, 1, 0.0) and _is(graph, bound, 2, 6.0)
    add = graph.maker(bound.input[0], "Add")
    for index in (0, 1) if limits and add is not None else ():
        assert add is not None
        if _is(graph, add, index, 3.0):
            return add.input[1 - index], add, bound
    return None


def _is(graph: Graph, node: onnx.NodeProto, index: int, wanted: float) -> bool:
    """An input is one number, in float32, that makes the result no larger."""
    value = graph.value(node, index)
    if value is None or value.size != 1 or value.dtype != np.float32:
        return False
    shape = graph.shape(node.output[0])
    fits = value.ndim <= len(shape) if shape is not None else value.ndim == 0
    return fits and abs(float(value.ravel()[0]) - wanted) <= CLOSE * max(1.0, abs(wanted))
