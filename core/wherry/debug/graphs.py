"""The model on ONNX Runtime, taken apart: all tensors, errors put in, and each piece alone.

A tensor is *exposed* where the deployed artifact gives it too. Cut at the exposed tensors, the
model falls into pieces: each makes one exposed tensor from others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.reference import open_session

if TYPE_CHECKING:
    import onnx

    from wherry.model import Model

DELTA, MADE, OWN = "/wherry-delta", "/wherry-made", "/wherry-own"
"""What is added to a tensor's name: an error to put in, the value before it, a piece's result."""


class Graphs:
    """Two forms of one model, both in fp32 on the host.

    Args:
        model: with static shapes.
        exposed: names of tensors; those that no node of the model makes from an input, or whose
            type is not known, are left out.

    Attributes:
        tensors: the exposed ones, in the model's order.
        outputs: the model's own.
        pieces: tensor to the nodes that make it from other exposed tensors, in the model's order.
        readers: tensor to the nodes that read it.
        order: name of each node to its place in the model.
    """

    def __init__(self, model: Model, exposed: Iterable[str]) -> None:
        import onnx

        proto = onnx.shape_inference.infer_shapes(model.proto())
        graph = proto.graph
        self._types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type
        }
        wanted = set(exposed) & self._types.keys()
        self.tensors = tuple(
            name for node in graph.node for name in node.output if name and name in wanted
        )
        self.outputs = tuple(value.name for value in graph.output)
        self.order = {node.name: place for place, node in enumerate(graph.node)}
        self._inputs = tuple(spec.name for spec in model.inputs)
        self.pieces, self.readers = _pieces(graph, self.tensors)
        self.tensors = tuple(name for name in self.tensors if self.pieces[name])
        where = str(model.path)
        self._whole = open_session(self._with_deltas(proto), threads=1, where=where)
        self._apart = open_session(self._in_pieces(proto), threads=1, where=where)

    def reference(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All exposed tensors and the outputs, of one sample."""
        names = list(dict.fromkeys((*self.tensors, *self.outputs)))
        return _run(self._whole, names, inputs)

    def disturbed(
        self, inputs: Mapping[str, np.ndarray], tensor: str, error: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The outputs where ``error`` is added to one tensor (see `takes_error`)."""
        given = {**inputs, tensor + DELTA: error}
        return _run(self._whole, self.outputs, given)

    def takes_error(self, tensor: str) -> bool:
        """Whether an error can be put into it: it holds real numbers."""
        return _is_real(self._types[tensor])

    def own(
        self, inputs: Mapping[str, np.ndarray], deployed: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What each piece makes, in fp32, of what it is given on the device.

        Args:
            inputs: of the model.
            deployed: the exposed tensors, as the device has them.
        """
        import onnx

        given: dict[str, Any] = dict(inputs)
        for name in self.tensors:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self._types[name])
            given[name] = deployed[name].astype(dtype, copy=False)
        found = _run(self._apart, [name + OWN for name in self.tensors], given)
        return dict(zip(self.tensors, found.values(), strict=True))

    def _with_deltas(self, proto: onnx.ModelProto) -> bytes:
        """The model with every exposed tensor as an output, and an error added to each."""
        import onnx
        from onnx import helper

        made = onnx.ModelProto()
        made.CopyFrom(proto)
        graph = made.graph
        del graph.value_info[:]
        nodes: list[onnx.NodeProto] = []
        real = {name for name in self.tensors if self.takes_error(name)}
        for node in graph.node:
            nodes.append(node)
            for place, name in enumerate(node.output):
                if name not in real:
                    continue
                node.output[place] = name + MADE
                nodes.append(helper.make_node("Add", [name + MADE, name + DELTA], [name]))
                kind = self._types[name]
                zero = np.zeros((), helper.tensor_dtype_to_np_dtype(kind))
                # an initializer that is an input too is a default: a run may give another value
                graph.initializer.append(onnx.numpy_helper.from_array(zero, name + DELTA))
                graph.input.append(_untold(name + DELTA, kind))
        _replace(graph.node, nodes)
        graph.output.extend(
            _untold(name, self._types[name]) for name in self.tensors if name not in self.outputs
        )
        return bytes(made.SerializeToString())

    def _in_pieces(self, proto: onnx.ModelProto) -> bytes:
        """The model cut at every exposed tensor, which is an input, and made anew as an output."""
        import onnx

        made = onnx.ModelProto()
        made.CopyFrom(proto)
        graph = made.graph
        del graph.value_info[:]
        del graph.output[:]
        cut = set(self.tensors)
        for node in graph.node:
            for place, name in enumerate(node.output):
                if name in cut:
                    node.output[place] = name + OWN
        for name in self.tensors:
            graph.input.append(_untold(name, self._types[name]))
            graph.output.append(_untold(name + OWN, self._types[name]))
        # A node that makes no exposed tensor, and none for one, has nothing to be computed for.
        return bytes(made.SerializeToString())


def _run(
    session: Any, names: Sequence[str], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One inference; what numpy and ONNX Runtime make scalars of are arrays here."""
    given = {name: np.asarray(value) for name, value in inputs.items()}
    found = session.run(list(names), given)
    return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}


def _untold(name: str, kind: int) -> onnx.ValueInfoProto:
    """A tensor of a type, and of no shape that is said."""
    import onnx

    value = onnx.ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = kind
    return value


def _replace(field: Any, nodes: list[onnx.NodeProto]) -> None:
    import onnx

    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del field[:]
    field.extend(copies)


def _is_real(kind: int) -> bool:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(kind).kind == "f"


def _pieces(
    graph: onnx.GraphProto, tensors: tuple[str, ...]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """See `Graphs`: the nodes that make each tensor from the others, and those that read it."""
    nodes = list(graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer}
    moving = {value.name for value in graph.input} - constants  # what depends on an input
    readers: dict[str, list[str]] = {name: [] for name in tensors}
    for node in nodes:
        read = reads(node)
        if read & moving:
            moving.update(node.output)
        for name in read & readers.keys():
            readers[name].append(node.name)
    pieces = {}
    for tensor in tensors:
        waiting, found = [makers[tensor]], set[int]()
        while waiting:
            place = waiting.pop()
            if place in found or not moving.intersection(nodes[place].output):
                continue
            found.add(place)
            waiting += [
                makers[name]
                for name in reads(nodes[place])
                if name in makers and name not in readers  # else another piece ends there
            ]
        pieces[tensor] = tuple(nodes[place].name for place in sorted(found))
    return pieces, {name: tuple(nodes) for name, nodes in readers.items()}


def reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node, or a graph inside of it, reads."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names.update(value.name for value in graph.output)
            for inner in graph.node:
                names |= reads(inner)
    return names
