"""The layers of a network that a product of smaller ones could replace, and chains in their place.

A layer is a Conv without groups, a Gemm or a MatMul with constant weights of its own. Its weights
are [outputs, inputs, *kernel]; the kernel of a Gemm or MatMul has no axes. A `Factor` of a chain
has the same layout and says which of the layer's spatial axes it takes: their stride, padding and
dilation are then its own, on all other axes its kernel is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.normalise.graph import STANDARD, Graph, Step, attributes
from wherry_compress.graph.patches import Window

if TYPE_CHECKING:
    import onnx

_TWO_INPUTS = 11  # opset with which a Gemm does without C


@dataclass(frozen=True)
class Layer:
    """See the module.

    Attributes:
        name: of the node.
        kind: ``Conv``, ``Gemm`` or ``MatMul``.
        weights: float32 [outputs, inputs, *kernel].
        bias: float32 [outputs]; None where there is none, or one that `intercept` may not touch.
        intercept: a bias may be changed or added.
        source: the tensor that it takes.
        positions: numbers of results an output channel: rows, or axes of the map.
        given: the shape of its input.
        window: of a Conv.
    """

    name: str
    kind: str
    weights: np.ndarray
    bias: np.ndarray | None
    intercept: bool
    source: str
    positions: tuple[int, ...]
    given: tuple[int, ...]
    window: Window | None = None

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of the kernel; none for a Gemm or MatMul."""
        return self.weights.shape[2:]

    @property
    def macs(self) -> int:
        """Multiplications of one inference."""
        return int(self.weights.size * prod(self.positions))


@dataclass(frozen=True)
class Shape:
    """What a `Factor` will be.

    Attributes:
        outputs: channels.
        inputs: channels.
        groups: of channels; 1, or the inputs.
        takes: axes of the layer, ascending.
    """

    outputs: int
    inputs: int
    groups: int = 1
    takes: tuple[int, ...] = ()

    def kernel(self, layer: Layer) -> tuple[int, ...]:
        """The sizes of its kernel."""
        sizes = layer.kernel
        return tuple(size if axis in self.takes else 1 for axis, size in enumerate(sizes))

    def size(self, layer: Layer) -> int:
        """Of its weights."""
        return self.outputs * self.inputs // self.groups * prod(self.kernel(layer))


Chain = tuple[Shape, ...]


@dataclass(frozen=True)
class Factor:
    """One link of a chain.

    Attributes:
        weights: [outputs, inputs / groups, *kernel].
        shape: what it is.
    """

    weights: np.ndarray
    shape: Shape


def chain_macs(layer: Layer, chain: Iterable[Shape]) -> int:
    """Multiplications of one inference of a chain in a layer's place."""
    total, taken = 0, set[int]()
    for link in chain:
        taken.update(link.takes)
        total += link.size(layer) * prod(_positions(layer, taken))
    return total


def chain_size(layer: Layer, chain: Iterable[Shape]) -> int:
    """Weights of a chain."""
    return sum(link.size(layer) for link in chain)


def _positions(layer: Layer, taken: Iterable[int]) -> Iterable[int]:
    """The map behind a link, when the chain has so far taken some axes."""
    if layer.kind != "Conv":
        return layer.positions
    batch, _, *sizes = layer.given
    taken = frozenset(taken)
    return (
        batch,
        *(layer.positions[1 + a] if a in taken else size for a, size in enumerate(sizes)),
    )


def find_layers(graph: Graph) -> tuple[list[Layer], dict[str, str]]:
    """All layers in their order; and why the others of these operators are none, by node."""
    layers, left = [], {}
    for node in graph.proto.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.domain not in STANDARD:
            continue
        found = _layer(graph, node)
        if isinstance(found, Layer):
            layers.append(found)
        elif found:
            left[node.name] = found
    return layers, left


def _layer(graph: Graph, node: onnx.NodeProto) -> Layer | str:
    """The layer that a node is, or why it is none; nothing where nobody would expect one."""
    about = attributes(node)
    weights = graph.value(node, 1)
    given, made = graph.shape(node.input[0]), graph.shape(node.output[0])
    if weights is None:
        return "" if node.op_type == "MatMul" else "its weights are computed"
    if node.input[0] in graph.constants:
        return ""
    if weights.dtype != np.float32:
        return f"its weights are {weights.dtype}, not float32"
    if not np.isfinite(weights).all():
        return "its weights are not finite"
    if len(graph.takers[node.input[1]]) > 1 or node.input[1] in graph.kept:
        return f"its weights {node.input[1]!r} are shared"
    if not given or not made:
        return "the shape of its input is not known"
    bias = graph.value(node, 2)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    if node.op_type == "Conv":
        if about.get("group", 1) != 1:
            return "it has groups"
        if about.get("auto_pad", "NOTSET") != "NOTSET":
            return "its padding is not in numbers"
        fits = not has_bias or (bias is not None and bias.dtype == np.float32)
        return Layer(
            node.name, "Conv", weights, bias, fits, node.input[0],
            (made[0], *made[2:]), given, Window.of(node, weights.shape[2:]),
        )  # fmt: skip
    if weights.ndim != 2 or about.get("transA", 0):
        return "its weights are not one matrix" if weights.ndim != 2 else "its input is transposed"
    turned = node.op_type == "MatMul" or not about.get("transB", 0)
    matrix = np.ascontiguousarray(weights.T) if turned else weights
    plain = about.get("alpha", 1.0) == about.get("beta", 1.0) == 1.0
    own = bias is not None and bias.dtype == np.float32 and bias.size == matrix.shape[0]
    free = node.op_type == "Gemm" and plain and (own if has_bias else graph.opset >= _TWO_INPUTS)
    return Layer(
        node.name, node.op_type, matrix, bias.reshape(-1) if own and bias is not None else None,
        free, node.input[0], tuple(made[:-1]), given,
    )  # fmt: skip


def write_chain(
    graph: Graph, layer: Layer, factors: Sequence[Factor], bias: np.ndarray | None
) -> None:
    """Put a chain where a layer stands; its last node has the layer's name and output.

    Args:
        graph: of the layer.
        layer: of ``graph``.
        factors: in order.
        bias: of the last, where the layer's own does not do any more.
    """
    node = graph.nodes[layer.name]
    about = attributes(node)
    steps: list[Step] = []
    for index, factor in enumerate(factors):
        last = index == len(factors) - 1
        inputs: list[str | int] = [index - 1 if index else node.input[0]]
        values = factor.weights.astype(np.float32)
        kept = [name for name in node.input[2:] if name] if last else []
        if last and bias is not None:
            kept = [graph.constant(f"{node.output[0]}/bias", bias.astype(np.float32))]
        if node.op_type == "Conv":
            kind, said = "Conv", _attributes(layer, factor.shape)
        elif node.op_type == "Gemm" and (last or graph.opset >= _TWO_INPUTS):
            kind, said = "Gemm", about if last else {"transB": 1}
            values = values if said.get("transB", 0) else values.T
        else:
            kind, said, values = "MatMul", {}, values.T
        inputs += [
            graph.constant(f"{node.input[1]}/rank{index + 1}", np.ascontiguousarray(values)),
            *kept,
        ]
        steps.append((kind, inputs, said))
    graph.replace([node], *steps, ends=[f"rank{index}" for index in range(1, len(steps))])


def _attributes(layer: Layer, shape: Shape) -> dict[str, Any]:
    window, own = layer.window, set(shape.takes)
    assert window is not None, "of a Conv"
    axes = range(len(window.kernel))
    return {
        "group": shape.groups,
        "kernel_shape": list(shape.kernel(layer)),
        "strides": [window.strides[a] if a in own else 1 for a in axes],
        "pads": [window.pads[a][side] if a in own else 0 for side in (0, 1) for a in axes],
        "dilations": [window.dilations[a] if a in own else 1 for a in axes],
    }


def composed(factors: Sequence[Factor]) -> np.ndarray:
    """The kernel that a chain computes, float64 [outputs, inputs, *kernel]."""
    made: np.ndarray | None = None
    for factor in factors:
        shape, weights = factor.shape, factor.weights.astype(np.float64)
        if shape.groups > 1:
            each = shape.outputs // shape.groups
            dense = np.zeros((shape.outputs, shape.inputs, *weights.shape[2:]))
            dense[np.arange(shape.outputs), np.arange(shape.outputs) // each] = weights[:, 0]
            weights = dense
        moved = np.moveaxis(weights, (0, 1), (-2, -1))
        made = moved if made is None else moved @ made
    assert made is not None
    return np.moveaxis(made, (-2, -1), (0, 1))
