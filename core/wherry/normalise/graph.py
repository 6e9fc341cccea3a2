"""A model while it is rewritten: who makes and takes its tensors, and where nodes came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wherry.onnx_file import default_opset

if TYPE_CHECKING:
    import numpy as np
    import onnx

Step = tuple[str, Sequence[str | int], Mapping[str, Any]]
"""Operator, inputs, attributes; an input that is a number is the output of that step."""

STANDARD = {"", "ai.onnx"}


class Graph:
    """The main graph of a model; those nested in its nodes are not changed.

    Args:
        proto: with static shapes and a name for every node; it is changed in place.
        parts: nodes that are parts of original ones to these (`wherry.normalise.expand`).

    Attributes:
        opset: of ONNX's own operators.
        sources: name of a node to those of the original nodes that it does, in their order.
        nodes: by name.
        constants: the initializers by name.
        makers: tensor to the node that makes it.
        takers: tensor to the nodes that take it.
        kept: tensors whose names have to stay: outputs, and what nested graphs take.
    """

    def __init__(self, proto: onnx.ModelProto, parts: Mapping[str, str]) -> None:
        self.proto = proto
        proto.ir_version = max(proto.ir_version, 4)  # before, initializers had to be inputs
        self.opset = default_opset(proto)
        self.sources: dict[str, tuple[str, ...]] = {
            node.name: (parts.get(node.name, node.name),) for node in proto.graph.node
        }
        self._order = {names[0]: index for index, names in enumerate(self.sources.values())}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kinds: dict[str, int] = {}
        self.infer()
        self.refresh()

    def infer(self) -> None:
        """Find the shapes and types anew."""
        import onnx

        graph = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self._kinds[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                axes = tensor.shape.dim
                if all(axis.HasField("dim_value") for axis in axes):
                    self._shapes[value.name] = tuple(axis.dim_value for axis in axes)
        for tensor in self.proto.graph.initializer:
            self._kinds[tensor.name] = tensor.data_type
            self._shapes[tensor.name] = tuple(tensor.dims)

    def refresh(self) -> None:
        """Find the makers and takers anew, after nodes have changed."""
        graph = self.proto.graph
        self.nodes = {node.name: node for node in graph.node}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        self.kept = {value.name for value in graph.output}
        for node in graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)
            self.kept.update(_used_inside(node))
        self._names = {*self._kinds, *self.makers, *self.takers, *self.constants}

    # --- what is there -----------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor; None where it is not known."""
        return self._shapes.get(name)

    def kind(self, name: str) -> int:
        """The element type of a tensor; 0 where it is not known."""
        return self._kinds.get(name, 0)

    def value(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """The constant that is a node's input; None where it has none there."""
        from onnx import numpy_helper

        name = node.input[index] if index < len(node.input) else ""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def maker(self, name: str, operator: str) -> onnx.NodeProto | None:
        """Who makes a tensor, where it is this operator and nobody else takes the tensor."""
        node = self.makers.get(name)
        if node is None or node.op_type != operator or node.domain not in STANDARD:
            return None
        alone = len(self.takers.get(name, ())) == 1 and name not in self.kept
        return node if alone else None

    # --- changes -----------------------------------------------------------------------------

    def fresh(self, text: str) -> str:
        """A tensor's name that no other has, ``text`` where it is free."""
        name = text
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def constant(self, text: str, value: np.ndarray) -> str:
        """Add a constant; returns its name, ``text`` where that is free."""
        name = self.fresh(text)
        self.constant_named(name, value)
        return name

    def constant_named(self, name: str, value: np.ndarray) -> None:
        """Add a constant under a name that nobody makes (any more)."""
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(value, name)
        self.proto.graph.initializer.append(tensor)
        self.constants[name] = tensor
        self._kinds[name], self._shapes[name] = tensor.data_type, tuple(value.shape)

    def replace(
        self,
        old: Sequence[onnx.NodeProto],
        *steps: Step,
        name: str = "",
        ends: Sequence[str] = (),
    ) -> None:
        """Put steps where the last of the old nodes stands; the last step gives its output.

        Args:
            old: in the graph's order; of all but the last nobody else takes what they make.
            steps: in order; each depends on earlier ones alone.
            name: of the last step; that of the last of the old nodes where it is empty.
            ends: what the names of all steps but the last, and of their tensors, end in;
                ``step0``, ``step1``, ... where nothing is said.
        """
        from onnx import helper

        last = old[-1]
        output, own = last.output[0], name or last.name
        ends = ends or [f"step{index}" for index in range(len(steps) - 1)]
        names = [self.fresh(f"{output}/{end}") for end in ends]
        names.append(output)
        sources = self._merged([source for node in old for source in self.sources[node.name]])
        new = []
        for index, (operator, inputs, about) in enumerate(steps):
            node = helper.make_node(
                operator,
                [names[each] if isinstance(each, int) else each for each in inputs],
                [names[index]],
                name=own if index == len(steps) - 1 else self._node_name(f"{own}/{ends[index]}"),
                **about,
            )
            new.append(node)
        nodes = list(self.proto.graph.node)
        gone = {node.name for node in old}
        place = next(i for i, node in enumerate(nodes) if node.name == last.name)
        left = [node for node in nodes[:place] if node.name not in gone]
        self._set(left + new + nodes[place + 1 :])
        for each in gone:
            del self.sources[each]
        for node in new:
            self.sources[node.name] = sources

    def bypass(self, node: onnx.NodeProto) -> bool:
        """Take a node out that gives what it is given; False where that cannot be."""
        given, made = node.input[0], node.output[0]
        if made in self.kept:
            maker = self.makers.get(given)
            if maker is None or given in self.kept:
                return False
            for index, name in enumerate(maker.output):
                if name == given:
                    maker.output[index] = made
            old, new = given, made
        else:
            old, new = made, given
        nodes = [each for each in self.proto.graph.node if each.name != node.name]
        for each in nodes:
            for index, name in enumerate(each.input):
                if name == old:
                    each.input[index] = new
        del self.sources[node.name]
        self._set(nodes)
        return True

    def drop_unused(self) -> None:
        """Take out nodes whose results nobody takes, and constants likewise."""
        while True:
            idle = {
                node.name
                for node in self.proto.graph.node
                if not any(name in self.takers or name in self.kept for name in node.output if name)
            }
            if not idle:
                break
            for name in idle:
                self.sources.pop(name, None)
            self._set([node for node in self.proto.graph.node if node.name not in idle])
        graph = self.proto.graph
        used = [t for t in graph.initializer if t.name in self.takers or t.name in self.kept]
        if len(used) < len(graph.initializer):
            copies = [_copy(tensor) for tensor in used]
            del graph.initializer[:]
            graph.initializer.extend(copies)
            self.refresh()

    def _merged(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(set(names), key=lambda name: self._order[name]))

    def _node_name(self, name: str) -> str:
        while name in self.sources:
            name += "'"
        return name

    def _set(self, nodes: Sequence[onnx.NodeProto]) -> None:
        copies = [_copy(node) for node in nodes]  # what is deleted takes its messages along
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(copies)
        self.refresh()


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _used_inside(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the graphs nested in a node may take from outside."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                yield from inner.input
                yield from _used_inside(inner)
            yield from (value.name for value in graph.output)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Of a node, texts as ``str``."""
    from onnx import helper

    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
