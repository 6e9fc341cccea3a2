"""Which channels of a network hang together, which must stay and why, and how to cut them out.

`trace` walks an ONNX graph once (`rules`) and follows every channel from the filter that makes it
to the weights that read it: through sums and products, concatenations, splits, shuffles, flattened
maps, grouped and depthwise convolutions. What can only be cut together is a unit; units that are
made and read by the same nodes, alike, are a group. `Channels.slice` cuts units out for good.

Cutting is exact: the result is the network in which the removed channels are multiplied by zero
before every weight that reads them. What an activation makes of zero does not matter therefore.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from wherry.normalise.graph import STANDARD, Graph, attributes
from wherry_compress.graph import rules, sharing
from wherry_compress.graph.ties import FIXED, Along, Reason, Ties
from wherry_compress.job import Refusal

Role = Literal["filters", "passes", "reads", "bias", "values"]


@dataclass(frozen=True)
class Cut:
    """A constant whose positions on one axis are channels.

    Attributes:
        node: its reader (each constant has one).
        tensor: its name.
        axis: of the channels.
        ids: the label of each position.
        role: ``filters`` make the channels, ``passes`` are depthwise weights, ``reads`` are
            weights that take them, ``values`` one for each channel (scales, slopes).
    """

    node: str
    tensor: str
    axis: int
    ids: np.ndarray
    role: Role


@dataclass(frozen=True)
class Group:
    """Units that are made, passed on and read by the same nodes, the same number of times.

    Attributes:
        name: the first node that makes their channels.
        units: the label that stands for each, int64 [units], in the order of the first node.
        makers: node to the channels of one unit among its outputs.
        readers: node to the channels of one unit among the inputs of its weights.
    """

    name: str
    units: np.ndarray
    makers: Mapping[str, int]
    readers: Mapping[str, int]


@dataclass(frozen=True)
class Channels:
    """What `trace` found.

    Attributes:
        proto: the model, every constant with one reader.
        cuts: all of them, in the graph's order.
        along: tensor to where its channels lie, for those that have some.
        groups: what may be cut.
        frozen: nodes with filters of which none may be cut, to the reason.
        roots: label to the label that stands for its unit, [labels].
        needed: sets of labels of which one each has to stay.
    """

    proto: onnx.ModelProto
    cuts: tuple[Cut, ...]
    along: Mapping[str, Along]
    groups: tuple[Group, ...]
    frozen: Mapping[str, Reason]
    roots: np.ndarray
    needed: tuple[np.ndarray, ...]
    shapes: Mapping[str, tuple[int, ...]]
    _copies: Mapping[str, str]
    _edits: tuple[Callable[[Slicer], None], ...]

    def positions(self, cut: Cut, group: Group) -> np.ndarray:
        """Where the units of a group lie in a cut, int64 [units, channels of each]."""
        roots = self.roots[cut.ids]
        order = np.argsort(roots, kind="stable")
        wanted = np.searchsorted(roots[order], group.units)
        count = int((roots == group.units[0]).sum())
        found: np.ndarray = order[wanted[:, None] + np.arange(count)]
        return found

    def kept(self, removed: Collection[int]) -> np.ndarray:
        """Whether each label stays when units are removed, bool [labels]."""
        return ~np.isin(self.roots, np.fromiter(removed, np.int64, len(removed)))

    def slice(self, removed: Collection[int]) -> onnx.ModelProto:
        """The network without some units.

        Args:
            removed: labels that stand for units, of `Group.units`.

        Raises:
            Refusal: a tensor would be left without channels.
        """
        known = {int(unit) for group in self.groups for unit in group.units}
        assert set(removed) <= known, "of the groups"
        kept = self.kept(removed)
        for ids in (*(each.ids for each in self.along.values()), *self.needed):
            if not kept[ids].any():
                raise Refusal(
                    "no channel of a tensor would be left",
                    where=self._where(ids),
                    remedy="Ask for less, or exclude that node.",
                )
        slicer = Slicer(self.proto, kept)
        slicer.cut(self.cuts)
        for edit in self._edits:
            edit(slicer)
        return self._checked(slicer.proto, kept)

    def changed(self, values: Mapping[str, np.ndarray]) -> Channels:
        """The same channels with other values of some constants, of the same shapes."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in proto.graph.initializer:
            if tensor.name in values:
                assert tuple(tensor.dims) == values[tensor.name].shape, tensor.name
                tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
        return replace(self, proto=proto)

    def _where(self, ids: np.ndarray) -> str:
        names = (name for name, each in self.along.items() if np.isin(each.ids, ids).any())
        return f"tensor {next(names, '?')!r}"

    def _checked(self, proto: onnx.ModelProto, kept: np.ndarray) -> onnx.ModelProto:
        """With the shapes written into it; every tensor must have the one that was foreseen."""
        sharing.reshare(proto, self._copies)
        del proto.graph.value_info[:]
        made = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        graph = made.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            found = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            wanted = list(self.shapes.get(value.name, found))
            if value.name in self.along:
                along = self.along[value.name]
                wanted[along.axis] = int(kept[along.ids].sum())
            assert found == wanted, f"{value.name} became {found}, not {wanted}"
        return made


def trace(proto: onnx.ModelProto) -> Channels:
    """Follow all channels of a model; it is not changed.

    Args:
        proto: the normal form, with static shapes and a name for each node.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copies = sharing.unshare(copy)
    tracer = Tracer(Graph(copy, {}))
    for node in copy.graph.node:
        rules.apply(tracer, node)
    for value in copy.graph.output:
        tracer.freeze_tensor(
            value.name, Reason(f"output {value.name!r}", "are the model's outputs")
        )
    for name in sorted(tracer.graph.kept - {value.name for value in copy.graph.output}):
        tracer.freeze_tensor(name, Reason(f"tensor {name!r}", "are read by a nested graph"))
    return tracer.found(copies)


class Tracer:
    """What the rules know and say.

    Args:
        graph: with unshared constants.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.opset = graph.opset
        self.ties = Ties()
        self._along: dict[str, Along] = {}
        self._cuts: list[Cut] = []
        self._edits: list[Callable[[Slicer], None]] = []
        self._needed: list[np.ndarray] = []
        self._computed: dict[str, Reason] = {}

    # --- what is there ---------------------------------------------------------------------------

    def is_standard(self, node: onnx.NodeProto) -> bool:
        """ONNX's own operator, in a form that the rules know."""
        return node.domain in STANDARD and self.opset >= 7

    def along(self, name: str) -> Along | None:
        """Where the channels of a tensor lie; None: no filter made it."""
        return self._along.get(name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor."""
        return self.graph.shape(name) if name else None

    def constant(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """An input of a node, where it is a constant of the main graph."""
        return self.graph.value(node, index)

    def weight(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """The same for weights: where they are not constant floats, what the node reads stays."""
        value = self.constant(node, index)
        if value is not None and value.dtype.kind == "f":
            return value
        self.freeze(node, "multiplies by what is no constant")
        self._computed[node.name] = self.reason(node, "has weights that are no constants")
        return None

    def attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        """Of a node."""
        return attributes(node).get(name, default)

    def integers(self, node: onnx.NodeProto, index: int, name: str) -> list[int] | None:
        """Whole numbers: a constant input, or in older opsets an attribute."""
        value = self.constant(node, index)
        if value is not None and value.dtype.kind == "i":
            return [int(each) for each in value.reshape(-1)]
        found = self.attribute(node, name, None) if name else None
        return None if found is None else [int(each) for each in found]

    # --- what a rule says ------------------------------------------------------------------------

    def reason(self, node: onnx.NodeProto, why: str) -> Reason:
        """In the words of the report."""
        return Reason(f"node {node.name!r}", why)

    def given_along(self, node: onnx.NodeProto, axis: int) -> bool:
        """Whether the channels of the first input lie there, if it has any; else they stay."""
        given = self.along(node.input[0])
        if given is None or given.axis == axis:
            return True
        self.freeze(node, f"is a {node.op_type} that has them on another axis than its own")
        return False

    def fresh(self, count: int) -> np.ndarray:
        """Labels of channels that a node makes."""
        return self.ties.fresh(count)

    def across_groups(self, node: onnx.NodeProto, ids: np.ndarray, groups: int) -> np.ndarray:
        """Tie each channel of a group to those at its place in the others; [channels/groups]."""
        table = ids.reshape(groups, -1).T
        return self.ties.tie_rows(table, self.reason(node, "is grouped, with some that are fixed"))

    def cut(self, node: onnx.NodeProto, index: int, axis: int, ids: np.ndarray, role: Role) -> None:
        """Say that a constant input, if there is one, is cut along an axis."""
        name = node.input[index] if index < len(node.input) else ""
        if name in self.graph.constants:
            self._cuts.append(Cut(node.name, name, axis, ids, role))
        elif name:
            self.freeze_ids(ids, node, f"takes {name!r}, which is no constant")

    def edit(self, change: Callable[[Slicer], None]) -> None:
        """Say what else is to be changed when channels have been cut."""
        self._edits.append(change)

    def give(self, node: onnx.NodeProto, name: str, axis: int, ids: np.ndarray) -> None:
        """Say where the channels of an output lie. A single channel cannot be cut."""
        if len(ids) == 1:
            self.freeze_ids(ids, node, "makes a single channel")
            return
        shape = self.shape(name)
        assert shape is None or shape[axis] == len(ids), f"{name}: {shape}, axis {axis}, {len(ids)}"
        self._along[name] = Along(axis, ids)

    def keep_one(self, ids: np.ndarray) -> None:
        """Say that one of these has to stay."""
        self._needed.append(ids)

    def freeze(self, node: onnx.NodeProto, why: str) -> None:
        """Say that all channels that a node is given have to stay."""
        for name in node.input:
            self.freeze_tensor(name, self.reason(node, why))

    def freeze_ids(self, ids: np.ndarray, node: onnx.NodeProto, why: str) -> None:
        """Say that these have to stay."""
        self.ties.freeze(ids, self.reason(node, why))

    def freeze_tensor(self, name: str, reason: Reason) -> None:
        """Say that the channels of a tensor have to stay."""
        along = self.along(name)
        if along is not None:
            self.ties.freeze(along.ids, reason)

    # --- the result ------------------------------------------------------------------------------

    def found(self, copies: Mapping[str, str]) -> Channels:
        """Groups and frozen nodes, after all rules."""
        roots, reasons = self.ties.roots(), self.ties.reasons()
        counted = [cut for cut in self._cuts if cut.role in {"filters", "passes", "reads"}]
        free = np.unique(roots)
        free = free[[root != FIXED and root not in reasons for root in free.tolist()]]
        table = np.stack(
            [np.bincount(roots[cut.ids], minlength=len(roots))[free] for cut in counted]
            or [np.zeros(len(free), np.int64)]
        )
        kinds: dict[bytes, list[int]] = {}
        for column in range(len(free)):
            kinds.setdefault(table[:, column].tobytes(), []).append(column)
        groups, frozen = [], dict(self._computed)
        for columns in kinds.values():
            group = self._group(free[columns], table[:, columns[0]], counted)
            if len(columns) > 1:
                groups.append(group)
            else:
                alone = Reason(f"node {group.name!r}", "makes channels that are all tied together")
                reasons[int(free[columns[0]])] = alone
        for cut in self._cuts:
            if cut.role == "filters":
                held = [reasons.get(int(root)) for root in roots[cut.ids]]
                if held[0] is not None and all(held):
                    frozen.setdefault(cut.node, held[0])
        shapes = {
            name: shape
            for name in (*self.graph.makers, *(v.name for v in self.graph.proto.graph.input))
            if (shape := self.shape(name)) is not None
        }
        return Channels(
            self.graph.proto,
            tuple(self._cuts),
            self._along,
            tuple(groups),
            frozen,
            roots,
            tuple(self._needed),
            shapes,
            copies,
            tuple(self._edits),
        )

    @staticmethod
    def _group(units: np.ndarray, counts: np.ndarray, cuts: Sequence[Cut]) -> Group:
        sides: dict[str, dict[str, int]] = {"filters": {}, "reads": {}, "passes": {}}
        for cut, count in zip(cuts, counts.tolist(), strict=True):
            if count:
                sides[cut.role][cut.node] = count
        return Group(next(iter(sides["filters"])), units, sides["filters"], sides["reads"])


@dataclass
class Slicer:
    """A model while channels are cut out of it.

    Args:
        given: unshared; it is not changed.
        keep: whether each label stays, bool [labels].
    """

    given: onnx.ModelProto
    keep: np.ndarray
    proto: onnx.ModelProto = field(default_factory=onnx.ModelProto)

    def __post_init__(self) -> None:
        self.proto.CopyFrom(self.given)
        self._nodes = {node.name: node for node in self.proto.graph.node}
        self._tensors = {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def kept(self, ids: np.ndarray) -> np.ndarray:
        """Whether each of some labels stays, bool."""
        found: np.ndarray = self.keep[ids]
        return found

    def left(self, ids: np.ndarray) -> int:
        """How many of some labels stay."""
        return int(self.kept(ids).sum())

    def cut(self, cuts: Iterable[Cut]) -> None:
        """Cut all constants."""
        values: dict[str, np.ndarray] = {}
        for cut in cuts:
            if cut.tensor not in values:
                values[cut.tensor] = numpy_helper.to_array(self._tensors[cut.tensor])
            values[cut.tensor] = values[cut.tensor].compress(self.kept(cut.ids), axis=cut.axis)
        for name, array in values.items():
            self._set(name, array)

    def set_attribute(self, node: onnx.NodeProto, name: str, value: int | Sequence[int]) -> None:
        """Change an attribute of a node of the given model."""
        new, node = onnx.helper.make_attribute(name, value), self._nodes[node.name]
        found = [attribute for attribute in node.attribute if attribute.name == name]
        (found[0] if found else node.attribute.add()).CopyFrom(new)

    def set_integers(
        self, node: onnx.NodeProto, index: int, values: Sequence[int], name: str = ""
    ) -> None:
        """Change a constant input of a node, or the attribute that stood for it once."""
        tensor = node.input[index] if index < len(node.input) else ""
        if tensor in self._tensors:
            old = numpy_helper.to_array(self._tensors[tensor])
            self._set(tensor, np.array(values, old.dtype))
        else:
            self.set_attribute(node, name, values)

    def _set(self, name: str, array: np.ndarray) -> None:
        self._tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
