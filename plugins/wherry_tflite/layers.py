"""The layers of a .tflite file in the model's words: which ONNX nodes each operator does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wherry.artifact import Layer

if TYPE_CHECKING:
    import onnx

    from wherry.model import Model
    from wherry.normalise import Normalised


@dataclass(frozen=True)
class Matches:
    """What `match.Found` said, by index of the file's tensors.

    Attributes:
        stands: the ONNX tensor that it is.
        layouts: likewise, the permutation of the ONNX tensor's axes, where it is known.
        alike: the ONNX tensors that have the same values in some order.
    """

    stands: Mapping[int, str]
    layouts: Mapping[int, tuple[int, ...] | None]
    alike: Mapping[int, Sequence[str]]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Matches:
        """The inverse of `match.Found.to_json`."""
        layouts = {
            int(index): None if layout is None else tuple(layout)
            for index, layout in values["layouts"].items()
        }
        return cls(
            {int(index): name for index, name in values["stands"].items()},
            layouts,
            {int(index): names for index, names in values["alike"].items()},
        )


def done(
    operators: Sequence[Mapping[str, Any]], matches: Matches, normal: Normalised
) -> list[tuple[str, ...]]:
    """For each operator the nodes of the given model that it does, alone or with others.

    An operator that gives a tensor of the model does all nodes since the tensors that are there.
    One that gives no such tensor works for the next that does. One that gives what it took, in
    another layout, does no node.
    """
    graph = _Graph(normal.model.proto())
    there = set(matches.stands.values())
    takers: dict[int, list[int]] = {}
    for place, operator in enumerate(operators):
        for index in operator["inputs"]:
            takers.setdefault(index, []).append(place)
    regions: list[dict[str, None]] = [{} for _ in operators]
    for place in reversed(range(len(operators))):
        operator = operators[place]
        taken = {matches.stands[i] for i in operator["inputs"] if i in matches.stands}
        for index in operator["outputs"]:
            name = matches.stands.get(index)
            if name is not None and name not in taken:
                regions[place].update(graph.region(name, there))
            elif name is None and not taken.intersection(matches.alike.get(index, ())):
                for taker in takers.get(index, ()):
                    regions[place].update(regions[taker])
    return [normal.originals(graph.ordered(names)) for names in regions]


class _Graph:
    """The nodes that depend on the inputs."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        known = {value.name for value in proto.graph.input}
        known -= {tensor.name for tensor in proto.graph.initializer}
        self._inputs = frozenset(known)
        self._places = {node.name: place for place, node in enumerate(proto.graph.node)}
        self._makers: dict[str, onnx.NodeProto] = {}
        for node in proto.graph.node:
            nested = any(a.HasField("g") or a.graphs for a in node.attribute)
            if nested or known.intersection(node.input):
                known.update(node.output)
                self._makers.update(dict.fromkeys(node.output, node))

    def region(self, name: str, there: set[str]) -> dict[str, None]:
        """The nodes between tensors that are there and this one."""
        found: dict[str, None] = {}
        left = [name]
        while left:
            each = left.pop()
            node = self._makers.get(each)
            if node is None or node.name in found or (each != name and each in there):
                continue
            found[node.name] = None
            left.extend(node.input)
        return found

    def ordered(self, names: Mapping[str, None]) -> list[str]:
        return sorted(names, key=self._places.__getitem__)


def describe(
    operators: Sequence[Mapping[str, Any]],
    nodes: Sequence[Sequence[str]],
    matches: Matches,
    model: Model,
) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    """The layers, and the layouts of their tensors.

    Args:
        operators: of the file that is shipped; their ``source`` is the place of the one that
            ``nodes`` and ``matches`` are about, and None for those that were added.
        nodes: for each operator of the float file, see `done`.
        matches: of the float file.
        model: the given one, whose names and shapes count.

    Returns:
        The second is ONNX tensor to ``runtime``, ``permutation`` and ``shape``, JSON values.
    """
    shapes = _shapes(model.proto())
    layers: list[Layer] = []
    tensors: dict[str, Any] = {}
    for operator in operators:
        source = operator["source"]
        outputs = {}
        for index, runtime in zip(operator["outputs"], operator["names"], strict=True):
            name = matches.stands.get(index) if source is not None else None
            if name is None or name not in shapes or name in tensors:
                continue
            if index not in matches.layouts:
                continue
            layout = matches.layouts[index]
            outputs[name] = runtime
            tensors[name] = {
                "runtime": runtime,
                "permutation": None if layout is None else list(layout),
                "shape": list(shapes[name]),
            }
        layers.append(
            Layer(
                operator["name"],
                operator["type"],
                tuple(nodes[source]) if source is not None else (),
                outputs,
                operator.get("precision", "fp32"),
            )
        )
    return tuple(layers), tensors


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes of what nodes give, where the model says them."""
    made = {name for node in proto.graph.node for name in node.output}
    found = {}
    for value in (*proto.graph.value_info, *proto.graph.output):
        if value.name in made and value.type.tensor_type.HasField("shape"):
            axes = value.type.tensor_type.shape.dim
            if all(axis.HasField("dim_value") for axis in axes):
                found[value.name] = tuple(axis.dim_value for axis in axes)
    return found
