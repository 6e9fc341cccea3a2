"""Rewrites an ONNX model where pnnx would misread it; the rewritten model computes the same.

Every rewrite is exact, and is undone by nothing: it is only ever seen by pnnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

NEWEST_IR = 13
"""Of the ONNX files that pnnx reads; it says nothing about operators."""


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Change ``model`` in place and return it.

    Args:
        model: with static shapes, its weights inside.
    """
    _cast_inputs_outside(model.graph)
    weights = _weights(model.graph)
    _double_single_axes(model.graph, weights)
    _give_gemms_a_bias(model.graph)
    model.ir_version = min(model.ir_version, NEWEST_IR)
    return model


def castable_inputs(graph: onnx.GraphProto) -> set[str]:
    """Inputs of other types that the network does nothing with but cast them to float32.

    They can be cast before ncnn sees them, as their `wherry.artifact.Binding` says.
    """
    from onnx import TensorProto

    found = {
        value.name for value in graph.input if value.type.tensor_type.elem_type != TensorProto.FLOAT
    } - {value.name for value in graph.output}
    for node in graph.node:
        is_cast = node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT
        if not is_cast:
            found.difference_update(node.input)
    return found


def _cast_inputs_outside(graph: onnx.GraphProto) -> None:
    """Make such inputs float32; a Cast that has nothing left to do is dropped by pnnx."""
    from onnx import TensorProto

    names = castable_inputs(graph)
    for value in graph.input:
        if value.name in names:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _weights(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Tensors of whole numbers that are known, by name."""
    import onnx

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: onnx.numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor.data_type == onnx.TensorProto.INT64
    }


def _double_single_axes(graph: onnx.GraphProto, weights: Mapping[str, np.ndarray]) -> None:
    """Name the axis of a reduction twice where it is the only one.

    pnnx takes a tensor of one element for a number, and writes a reduction over no axis at all
    (ReduceMean from opset 18, ReduceSum from 13). Reducing over an axis twice is the same.
    """
    import numpy as np

    for node in graph.node:
        if not node.op_type.startswith("Reduce") or len(node.input) < 2:
            continue
        axes = weights.get(node.input[1])
        if axes is not None and axes.size == 1:
            node.input[1] = _add(graph, node, np.array([axes.flat[0]] * 2, np.int64))


def _give_gemms_a_bias(graph: onnx.GraphProto) -> None:
    """Zeros, where a Gemm has none: pnnx takes its weights for transposed ones there."""
    import numpy as np

    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm" or node.input[1] not in shapes or any(node.input[2:]):
            continue
        transposed = any(about.name == "transB" and about.i for about in node.attribute)
        width = shapes[node.input[1]][0 if transposed else 1]
        bias = _add(graph, node, np.zeros(width, np.float32))
        node.input[:] = [*node.input[:2], bias]


def _add(graph: onnx.GraphProto, node: onnx.NodeProto, values: np.ndarray) -> str:
    """A new weight for ``node``; its name is one that no file has."""
    from onnx import numpy_helper

    name = f"wherry:{node.name or node.output[0]}"
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name
