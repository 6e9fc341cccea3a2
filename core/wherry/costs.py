"""What a network costs: multiply-accumulates, parameters and activation memory, node by node.

Counted is what the file says, with static shapes: no runtime fuses, tiles or pads anything here.
A multiply-accumulate (MAC) is one product that is added to a sum; biases, activations, pools and
element-wise operators count as none, which is how papers on pruning count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from wherry.errors import UnsupportedError
from wherry.normalise.graph import STANDARD, Graph, attributes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeCosts:
    """Of one node.

    Attributes:
        operator: its type.
        macs: multiply-accumulates of one inference.
        parameters: floating-point constants that it reads; one that several nodes read is counted
            at the first of them.
        output_bytes: of the tensors that it makes.
    """

    operator: str
    macs: int
    parameters: int
    output_bytes: int


@dataclass(frozen=True)
class Costs:
    """Of a network.

    Attributes:
        nodes: by name, in the graph's order.
        peak_bytes: of the tensors that are alive at the worst moment, when nodes run in their
            order, each tensor lives from its making to its last reader, and nothing is done in
            place. Constants are not among them.
        peak_node: the node that runs at that moment.
    """

    nodes: Mapping[str, NodeCosts]
    peak_bytes: int
    peak_node: str

    @property
    def macs(self) -> int:
        """Of one inference."""
        return sum(node.macs for node in self.nodes.values())

    @property
    def parameters(self) -> int:
        """Floating-point constants."""
        return sum(node.parameters for node in self.nodes.values())


def measure(proto: onnx.ModelProto) -> Costs:
    """The costs of a network; nested graphs are not looked into.

    Raises:
        UnsupportedError: the shape of a tensor that a cost depends on is not static.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = Graph(copy, {})
    kinds = {
        name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind
        for name, tensor in graph.constants.items()
    }
    counted: set[str] = set()
    nodes: dict[str, NodeCosts] = {}
    for node in copy.graph.node:
        count = _MACS.get(node.op_type) if node.domain in STANDARD else None
        new = [name for name in node.input if kinds.get(name) == "f" and name not in counted]
        counted.update(new)
        nodes[node.name] = NodeCosts(
            node.op_type,
            count(node, _shapes(graph, node)) if count else 0,
            sum(math.prod(graph.constants[name].dims) for name in dict.fromkeys(new)),
            sum(_bytes(graph, name) for name in node.output if name),
        )
    return Costs(nodes, *_peak(graph))


def positions(node: onnx.NodeProto, inputs: Sequence[Shape], output: Shape) -> int:
    """How often each weight of a Conv, ConvTranspose, Gemm or MatMul is used in one inference.

    Args:
        node: its weights are its second input.
        inputs: the shapes of its inputs.
        output: the shape of its first output.
    """
    if node.op_type == "Conv":
        return output[0] * math.prod(output[2:])
    if node.op_type == "ConvTranspose":
        return inputs[0][0] * math.prod(inputs[0][2:])
    if node.op_type == "Gemm":
        return output[0]
    if len(inputs[1]) == 2:
        return math.prod(output[:-1])
    return math.prod(output) // max(1, math.prod(inputs[1]) // inputs[1][max(-2, -len(inputs[1]))])


def _shapes(graph: Graph, node: onnx.NodeProto) -> tuple[list[Shape], Shape]:
    """Of a node's inputs (none: ``()``) and of its first output."""
    inputs = [_shape(graph, name, node) if name else () for name in node.input]
    output = next(name for name in node.output if name)
    return inputs, _shape(graph, output, node)


def _shape(graph: Graph, name: str, node: onnx.NodeProto) -> Shape:
    found = graph.shape(name)
    if found is None:
        maker = _controlled(graph, name)
        raise UnsupportedError(
            f"the shape of the tensor {name!r} is not known, so that {node.op_type} cannot be "
            "counted"
            + (
                ""
                if maker is None
                else f": it comes from {maker.name!r}, a {maker.op_type}, whose results have no "
                "shape before they are there"
            ),
            where=f"node {node.name!r}",
            remedy="Give the model static shapes.",
        )
    return found


def _controlled(graph: Graph, name: str) -> onnx.NodeProto | None:
    """The node with a graph inside (Loop, Scan, If) that a tensor is made from, the nearest."""
    sources = {name}
    nodes: list[onnx.NodeProto] = list(graph.proto.graph.node)
    for node in reversed(nodes):
        if sources.intersection(node.output):
            if any(each.type == each.GRAPH for each in node.attribute):
                return node
            sources.update(node.input)
    return None


def _weighted(node: onnx.NodeProto, shapes: tuple[list[Shape], Shape]) -> int:
    inputs, output = shapes
    return math.prod(inputs[1]) * positions(node, inputs, output)


def _product(_node: onnx.NodeProto, shapes: tuple[list[Shape], Shape]) -> int:
    """MatMul: of any ranks, both sides may be activations."""
    inputs, output = shapes
    return math.prod(output) * inputs[0][-1]


def _recurrent(gates: int) -> Callable[[onnx.NodeProto, tuple[list[Shape], Shape]], int]:
    """X [time, batch, inputs], W [directions, gates*hidden, inputs], R [.., .., hidden]."""

    def count(node: onnx.NodeProto, shapes: tuple[list[Shape], Shape]) -> int:
        (x, w, r), _ = shapes[0][:3], shapes[1]
        time, batch = (x[1], x[0]) if attributes(node).get("layout", 0) else (x[0], x[1])
        assert w[1] == r[1] and w[1] % gates == 0, "ONNX's own check has seen it"
        return time * batch * (math.prod(w) + math.prod(r))

    return count


_MACS: Mapping[str, Callable[[onnx.NodeProto, tuple[list[Shape], Shape]], int]] = {
    "Conv": _weighted,
    "ConvTranspose": _weighted,
    "Gemm": _weighted,
    "MatMul": _product,
    "RNN": _recurrent(1),
    "GRU": _recurrent(3),
    "LSTM": _recurrent(4),
}


def _bytes(graph: Graph, name: str) -> int:
    """Of a tensor; 0 where its shape is not known."""
    shape, kind = graph.shape(name), graph.kind(name)
    if shape is None or not kind:
        return 0
    return math.prod(shape) * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _peak(graph: Graph) -> tuple[int, str]:
    """The most bytes that are alive at once, and the node at which they are."""
    nodes = list(graph.proto.graph.node)
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in (*node.input, *node.output):
            last[name] = index
    last |= dict.fromkeys(graph.kept, len(nodes))
    alive = {
        value.name: _bytes(graph, value.name)
        for value in graph.proto.graph.input
        if value.name not in graph.constants
    }
    most, where = sum(alive.values()), ""
    for index, node in enumerate(nodes):
        alive |= {name: _bytes(graph, name) for name in node.output if name}
        if sum(alive.values()) > most:
            most, where = sum(alive.values()), node.name
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > index}
    return most, where
