"""What a network costs: multiply-accumulates, parameters and activation memory, node by node.

Counted is what the file says, with static shapes: no runtime fuses, tiles or pads anything here.
A multiply-accumulate (MAC) is one product that is added to a sum; biases, activations, pools and
element-wise operators count as none, which is how papers on pruning count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from wherry.errors import UnsupportedError
from wherry.normalise.graph import STANDARD, Graph, attributes

Shape = tuple[int, ...]
Shapes = tuple[list[Shape], Shape]  # of a node's inputs, and of its first output
Count = Callable[[onnx.NodeProto, Shapes], int]


@dataclass(frozen=True)
class NodeCosts:
    """Of one node.

    Attributes:
        operator: its type.
        macs: multiply-accumulates of one inference.
        parameters: floating-point constants that it reads, and quantised weights; one that several
            nodes read is counted at the first of them.
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
            place. Constants, and what is made of nothing else, are not among them.
        peak_node: the node that runs at that moment.
        uncounted: operators whose multiply-accumulates are not known, to how many nodes there are:
            those with graphs inside, those that are not ONNX's own, Einsum with an ellipsis.
    """

    nodes: Mapping[str, NodeCosts]
    peak_bytes: int
    peak_node: str
    uncounted: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Of one inference."""
        return sum(node.macs for node in self.nodes.values())

    @property
    def parameters(self) -> int:
        """Floating-point constants, and quantised weights."""
        return sum(node.parameters for node in self.nodes.values())


def measure(proto: onnx.ModelProto) -> Costs:
    """The costs of a network; nested graphs are not looked into.

    Raises:
        UnsupportedError: the shape of a tensor that a cost depends on is not static.
    """
    graph = Graph(_without_weights(proto), {})
    kinds = {name: graph.kind(name) for name in _given_constants(graph)}
    counted: set[str] = set()
    nodes: dict[str, NodeCosts] = {}
    uncounted: Counter[str] = Counter()
    for node in graph.proto.graph.node:
        known = node.domain in STANDARD and not _is_open(node)
        count = _MACS.get(node.op_type) if known else None
        if not known:
            uncounted[node.op_type] += 1
        new = [
            name
            for index, name in enumerate(node.input)
            if name in kinds and name not in counted and _is_weight(node, index, kinds[name])
        ]
        counted.update(new)
        nodes[node.name] = NodeCosts(
            node.op_type,
            count(node, _shapes(graph, node)) if count else 0,
            sum(math.prod(graph.shape(name) or ()) for name in dict.fromkeys(new)),
            sum(_bytes(graph, name) for name in node.output if name),
        )
    return Costs(nodes, *_peak(graph, _constants(graph, kinds)), uncounted)


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large initializers have no values: shapes are all that is looked at."""
    given, graph = proto.graph, onnx.GraphProto(name=proto.graph.name)
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(given, field))
    for tensor in given.initializer:
        bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        graph.initializer.append(tensor if math.prod(tensor.dims) <= _SMALL else bare)
    copy = onnx.ModelProto(ir_version=proto.ir_version, graph=graph)
    copy.opset_import.extend(proto.opset_import)
    copy.functions.extend(proto.functions)
    return copy


def _given_constants(graph: Graph) -> list[str]:
    """Initializers and what Constant nodes give."""
    made = [n.output[0] for n in graph.proto.graph.node if n.op_type == "Constant"]
    return [*graph.constants, *made]


def _constants(graph: Graph, given: Iterable[str]) -> set[str]:
    """They and all that is made of them alone, as weights that are dequantised."""
    found = set(given)
    for node in graph.proto.graph.node:
        named = [name for name in node.input if name]
        if named and found.issuperset(named):
            found.update(node.output)
    return found


def _is_open(node: onnx.NodeProto) -> bool:
    """Whether it has graphs inside, or an equation with an ellipsis."""
    return any(
        each.type == each.GRAPH or (each.name == "equation" and b"..." in each.s)
        for each in node.attribute
    )


def _is_weight(node: onnx.NodeProto, index: int, kind: int) -> bool:
    if _QUANTISED.get(node.op_type) == index:
        return True
    return bool(kind) and onnx.helper.tensor_dtype_to_np_dtype(kind).kind == "f"


def positions(node: onnx.NodeProto, inputs: Sequence[Shape], output: Shape) -> int:
    """How often each weight of a Conv, ConvTranspose, Gemm or MatMul is used in one inference.

    Args:
        node: its weights are its second input.
        inputs: the shapes of its inputs.
        output: the shape of its first output.
    """
    if node.op_type in {"Conv", "ConvInteger", "QLinearConv"}:
        return output[0] * math.prod(output[2:])
    if node.op_type == "ConvTranspose":
        return inputs[0][0] * math.prod(inputs[0][2:])
    if node.op_type == "Gemm":
        return output[0]
    if len(inputs[1]) == 2:
        return math.prod(output[:-1])
    return math.prod(output) // max(1, math.prod(inputs[1]) // inputs[1][max(-2, -len(inputs[1]))])


def _shapes(graph: Graph, node: onnx.NodeProto) -> Shapes:
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


def _weighted(node: onnx.NodeProto, shapes: Shapes) -> int:
    inputs, output = shapes
    return math.prod(inputs[1]) * positions(node, inputs, output)


def _product(_node: onnx.NodeProto, shapes: Shapes) -> int:
    """MatMul: of any ranks, both sides may be activations."""
    inputs, output = shapes
    return math.prod(output) * inputs[0][-1]


def _recurrent(gates: int) -> Count:
    """X [time, batch, inputs], W [directions, gates*hidden, inputs], R [.., .., hidden]."""

    def count(node: onnx.NodeProto, shapes: Shapes) -> int:
        (x, w, r), _ = shapes[0][:3], shapes[1]
        time, batch = (x[1], x[0]) if attributes(node).get("layout", 0) else (x[0], x[1])
        assert w[1] == r[1] and w[1] % gates == 0, "ONNX's own check has seen it"
        return time * batch * (math.prod(w) + math.prod(r))

    return count


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    """A product for each combination of all indices, whichever are summed over."""
    terms = attributes(node)["equation"].replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for letters, shape in zip(terms, shapes[0], strict=True):
        sizes |= zip(letters, shape, strict=True)
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def _quantised(count: Count) -> Count:
    """Of an operator whose weights are not its second input."""

    def counted(node: onnx.NodeProto, shapes: Shapes) -> int:
        inputs, output = shapes
        return count(node, ([inputs[0], inputs[_QUANTISED[node.op_type]]], output))

    return counted


_SMALL = 1024
"""Values that may be a shape: they are kept."""

_QUANTISED = {
    "DequantizeLinear": 0,
    "QLinearConv": 3,
    "ConvInteger": 1,
    "QLinearMatMul": 3,
    "MatMulInteger": 1,
}
"""Operator to which of its inputs are weights in whole numbers."""

_MACS: Mapping[str, Count] = {
    "Conv": _weighted,
    "ConvTranspose": _weighted,
    "Gemm": _weighted,
    "MatMul": _product,
    "RNN": _recurrent(1),
    "GRU": _recurrent(3),
    "LSTM": _recurrent(4),
    "Einsum": _einsum,
    "QLinearConv": _quantised(_weighted),
    "ConvInteger": _quantised(_weighted),
    "QLinearMatMul": _quantised(_product),
    "MatMulInteger": _quantised(_product),
}


def _bytes(graph: Graph, name: str) -> int:
    """Of a tensor; 0 where its shape is not known."""
    shape, kind = graph.shape(name), graph.kind(name)
    if shape is None or not kind:
        return 0
    return math.prod(shape) * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _peak(graph: Graph, constants: Collection[str]) -> tuple[int, str]:
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
        if value.name not in constants
    }
    most, where = sum(alive.values()), ""
    for index, node in enumerate(nodes):
        made = (name for name in node.output if name and name not in constants)
        alive |= {name: _bytes(graph, name) for name in made}
        if sum(alive.values()) > most:
            most, where = sum(alive.values()), node.name
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > index}
    return most, where
