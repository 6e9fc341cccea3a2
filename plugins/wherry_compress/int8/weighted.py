"""The layers whose weights a backend rounds to int8, and how it does: on which grid, and where to.

All writers of int8 (ONNX Runtime's, tflite's, ncnn's) round by `wherry.quantize.weights`: a scale
for each output channel, 127 steps to its greatest |w|, sums of errors balanced. So what they will
make of a weight is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wherry.normalise.graph import STANDARD, Graph, attributes
from wherry.quantize.weights import MOST, quantise_weight, weight_scales

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Weighted:
    """A Conv, Gemm or MatMul with constant weights of its own.

    Attributes:
        name: of the node.
        kind: its operator.
        tensor: name of its weights.
        weights: float32, as they stand in the model.
        axis: of them, that of the output channels.
        groups: of a Conv.
        source: the tensor that it takes.
        result: the tensor that it gives.
    """

    name: str
    kind: str
    tensor: str
    weights: np.ndarray
    axis: int
    groups: int
    source: str
    result: str

    def scales(self) -> np.ndarray:
        """Of the output channels, float32."""
        return weight_scales(self.weights, self.axis)

    def whole(self) -> np.ndarray:
        """What the writers round the weights to, int8."""
        return quantise_weight(self.weights, self.scales(), self.axis)

    def real(self, whole: np.ndarray) -> np.ndarray:
        """Whole numbers as float32 weights, exactly on the grid."""
        shape = [1] * whole.ndim
        shape[self.axis] = -1
        greatest = np.abs(self.weights).max(
            axis=tuple(i for i in range(whole.ndim) if i != self.axis)
        )
        # by the greatest |w| rather than by its 127th, which float32 has rounded
        steps = np.where(greatest > 0, greatest.astype(np.float64) / MOST, 1.0)
        made: np.ndarray = (whole * steps.reshape(shape)).astype(np.float32)
        return made


def find(graph: Graph) -> tuple[list[Weighted], dict[str, str]]:
    """All such layers in their order; and why the others of these operators are none, by node."""
    found, left = [], {}
    for node in graph.proto.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.domain not in STANDARD:
            continue
        weights = graph.value(node, 1)
        if weights is None:
            if node.op_type != "MatMul":
                left[node.name] = "its weights are computed"
        elif node.input[0] in graph.constants:
            continue
        elif problem := _problem(graph, node, weights):
            left[node.name] = problem
        else:
            about = attributes(node)
            of_rows = node.op_type == "Conv" or about.get("transB", 0)
            found.append(
                Weighted(
                    node.name,
                    node.op_type,
                    node.input[1],
                    weights,
                    0 if of_rows else 1,
                    about.get("group", 1),
                    node.input[0],
                    node.output[0],
                )
            )
    return found, left


def _problem(graph: Graph, node: onnx.NodeProto, weights: np.ndarray) -> str:
    if weights.dtype != np.float32:
        return f"its weights are {weights.dtype}, not float32"
    if weights.ndim < 2 or (node.op_type == "MatMul" and weights.ndim > 2):
        return "its weights are not one matrix or kernel"
    if not np.isfinite(weights).all():
        return "its weights are not finite"
    if len(graph.takers[node.input[1]]) > 1 or node.input[1] in graph.kept:
        return f"its weights {node.input[1]!r} are shared"
    if attributes(node).get("alpha", 1.0) != 1.0:
        return "it has a factor alpha, and stays in float"
    return ""


def set_constant(graph: Graph, name: str, values: np.ndarray) -> None:
    """Other values for a constant of the same shape."""
    from onnx import numpy_helper

    graph.constants[name].CopyFrom(numpy_helper.from_array(values, name))
