"""What ONNX Runtime does of a file, layer by layer: which nodes it fuses, and under which name.

Runs alone, beside ``convert.py``. The graph is looked at after the rewrites of the level
``extended``: they are the same on all processors, and keep the names of the tensors that are left.
What ``all`` adds is another layout of the same nodes, for the processor at hand; the runner's
``plain`` undoes what that does to names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING or __package__:
    from wherry_onnxruntime.runner import plain
else:  # alone, where this file's folder is the first place to look
    from runner import plain


def find(written: Path, optimised: Path) -> list[dict[str, Any]]:
    """The layers of a file, in their order.

    A node of ONNX Runtime's does the node whose name it has, and those between what it gives and
    what other nodes of ONNX Runtime's give.

    Args:
        written: the file.
        optimised: what ONNX Runtime made of it.

    Returns:
        For each ``name``, ``type``, ``nodes`` (of the file), ``tensors`` (name to ONNX's word for
        the type, of the file's tensors that it gives). What depends on no input is left out.
    """
    graph = _inferred(written)
    made = onnx.load(optimised, load_external_data=False).graph
    return _Slices(graph, made).find()


class _Slices:
    """Which node of ONNX Runtime's does which of the file's."""

    def __init__(self, graph: onnx.GraphProto, made: onnx.GraphProto) -> None:
        self.reached, reached = _reached(graph), _reached(made)
        self.made = [node for node in made.node if _reads(node) & reached]
        self.places = {node.name: place for place, node in enumerate(graph.node) if node.name}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.output)
        }
        self.given = {plain(name) for node in self.made for name in node.output}
        self.owner: dict[str, int] = {}

    def find(self) -> list[dict[str, Any]]:
        for index, node in enumerate(self.made):
            name = self._origin(plain(node.name))
            if name and name not in self.owner:
                self.owner[name] = index
        for index, node in enumerate(self.made):
            for name in node.output:
                self._claim(plain(name), index)
        nodes: list[list[str]] = [[] for _ in self.made]
        for name in sorted(self.owner, key=self.places.__getitem__):
            nodes[self.owner[name]].append(name)
        found, taken = [], set()
        for node, names in zip(self.made, nodes, strict=True):
            name = node.name or f"{node.op_type}/{plain(node.output[0])}"
            while name in taken:
                name += "+"
            taken.add(name)
            tensors = [plain(each) for each in node.output if plain(each) in self.makers]
            types = {
                each: onnx.TensorProto.DataType.Name(self.types.get(each, 0)) for each in tensors
            }
            found.append({"name": name, "type": node.op_type, "nodes": names, "tensors": types})
        return found

    def _origin(self, name: str) -> str:
        """The node that a name was made from: the same, or one followed by a rewrite's name."""
        while name not in self.places and "/" in name:
            name = name.rpartition("/")[0]
        maker = self.places.get(name)
        return name if maker is not None else ""

    def _claim(self, tensor: str, index: int) -> None:
        """Give a layer all nodes on the way to a tensor that are nobody's."""
        waiting, seen = [tensor], {tensor}
        while waiting:
            maker = self.makers.get(waiting.pop())
            if maker is None or not maker.name or not _reads(maker) & self.reached:
                continue
            if self.owner.setdefault(maker.name, index) != index:
                continue
            new = _reads(maker) - self.given - seen
            seen |= new
            waiting += new


def _inferred(path: Path) -> onnx.GraphProto:
    """A file's graph with the types of its tensors, without its external data."""
    model = onnx.load(path, load_external_data=False)
    return onnx.shape_inference.infer_shapes(model).graph


def _reached(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on an input."""
    constants = {tensor.name for tensor in graph.initializer}
    found = {value.name for value in graph.input if value.name not in constants}
    for node in graph.node:
        if _reads(node) & found:
            found.update(name for name in node.output if name)
    return found


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node or a graph inside of it reads."""
    names = {name for name in node.input if name}
    for graph in _nested(node):
        names.update(value.name for value in graph.output)
        for inner in graph.node:
            names |= _reads(inner)
    return names


def _nested(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
