"""Walks an ONNX graph and writes Caffe2's operators: what every lowering of an operator uses.

A lowering is a function that takes the `Lowering` and a node, and emits operators until the node's
outputs exist; or raises `Refusal`. The pre-flight runs the same functions and throws away what they
made, so that what it lets through is what converts. `lowers` enters a function in `TABLE`.

Blobs have the names of the ONNX tensors. Constants are put into ``init_net`` when someone uses
them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.normalise.graph import STANDARD, attributes
from wherry.onnx_file import default_opset
from wherry_caffe2.nets import Operator, Value, fill

if TYPE_CHECKING:
    import onnx

FLOAT = frozenset({"float32"})
NUMBERS = FLOAT | {"int32", "int64"}
ALL = NUMBERS | {"bool"}
"""numpy's names of the types that Caffe2's operators take."""

OTHER = "Write it with other operators, or use another backend."
CUT = "End the network before it, or compute it outside of the network."


class Refusal(Exception):  # noqa: N818 -- it is a word of the plan's, not an error of the program
    """Why a node cannot be lowered.

    Args:
        remedy: what the user can do, a sentence.
        what: words for what is refused, where it is not the operator.
    """

    def __init__(self, remedy: str, what: str = "") -> None:
        super().__init__(remedy)
        self.remedy, self.what = remedy, what


Function = Callable[["Lowering", "onnx.NodeProto"], None]


@dataclass(frozen=True)
class Entry:
    """A lowering, and the types that it knows.

    Attributes:
        function: see the module.
        takes: types of the first input.
        gives: types of the outputs.
    """

    function: Function
    takes: frozenset[str]
    gives: frozenset[str]


TABLE: dict[str, Entry] = {}
"""ONNX operator to its lowering."""


def lowers(
    *operators: str, takes: Collection[str] = FLOAT, gives: Collection[str] | None = None
) -> Callable[[Function], Function]:
    """Enter a function for these operators; ``gives`` is as ``takes`` unless it is said."""

    def enter(function: Function) -> Function:
        entry = Entry(function, frozenset(takes), frozenset(takes if gives is None else gives))
        TABLE.update(dict.fromkeys(operators, entry))
        return function

    return enter


@dataclass
class View:
    """A graph with static shapes, and what follows from it."""

    proto: onnx.ModelProto
    opset: int = field(init=False)

    def __post_init__(self) -> None:
        self.opset = default_opset(self.proto)

    @cached_property
    def tensors(self) -> Mapping[str, onnx.TensorProto]:
        """Constants by name."""
        found = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        for node in self.proto.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                found[node.output[0]] = node.attribute[0].t
        return found

    @cached_property
    def types(self) -> Mapping[str, tuple[str, tuple[int, ...] | None]]:
        """Type (numpy's name) and shape of the tensors that are known."""
        from onnx import shape_inference

        found = self._written(self.proto.graph)
        made = [name for node in self.proto.graph.node for name in node.output if name]
        if any(found.get(name, ("", None))[1] is None for name in made):
            inferred = shape_inference.infer_shapes(self.proto, data_prop=True)
            found = self._written(inferred.graph)
        return found

    def _written(self, graph: onnx.GraphProto) -> dict[str, tuple[str, tuple[int, ...] | None]]:
        from onnx import helper

        found: dict[str, tuple[str, tuple[int, ...] | None]] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            if not tensor.elem_type:
                continue
            kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            axes = tensor.shape.dim
            known = tensor.HasField("shape") and all(axis.HasField("dim_value") for axis in axes)
            found[value.name] = kind, tuple(a.dim_value for a in axes) if known else None
        for name, constant in self.tensors.items():
            kind = helper.tensor_dtype_to_np_dtype(constant.data_type).name
            found[name] = kind, tuple(constant.dims)
        return found

    @cached_property
    def used(self) -> frozenset[str]:
        """Tensors that an output depends on."""
        used = {value.name for value in self.proto.graph.output}
        for node in reversed(self.proto.graph.node):
            if used.intersection(node.output):
                used.update(node.input)
        return frozenset(used - {""})

    @cached_property
    def readers(self) -> Mapping[str, Sequence[onnx.NodeProto]]:
        """Tensor to the nodes that read it."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.graph.node:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def makers(self) -> Mapping[str, onnx.NodeProto]:
        """Tensor to the node that makes it."""
        return {name: node for node in self.proto.graph.node for name in node.output if name}

    def kind(self, name: str) -> str:
        """A tensor's type; empty where it is not known."""
        return self.types.get(name, ("", None))[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; raises `Refusal` where it is not known."""
        shape = self.types.get(name, ("", None))[1]
        if shape is None:
            raise Refusal("Export the network with static shapes.", "a tensor of unknown shape of")
        return shape

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a tensor that is constant; None: it is not."""
        from onnx import numpy_helper

        tensor = self.tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


class Lowering:
    """The networks while they are written.

    Attributes:
        view: the graph.
        operators: of ``predict_net``.
        fills: of ``init_net``, by blob.
        node: that is being lowered.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.operators: list[Operator] = []
        self.fills: dict[str, Operator] = {}
        self.node: onnx.NodeProto | None = None
        self._blobs = {name for node in view.proto.graph.node for name in node.output}
        self._blobs |= {value.name for value in view.proto.graph.input} | view.tensors.keys()
        self._names: set[str] = {node.name for node in view.proto.graph.node}
        self._given: set[str] = set()

    # --- what a lowering reads -------------------------------------------------------------------

    def use(self, name: str) -> str:
        """The blob of a tensor; a constant's is made."""
        if name in self.view.tensors and name not in self.fills:
            value = self.view.constant(name)
            assert value is not None
            if value.dtype.name not in ALL:
                raise Refusal(
                    f"Caffe2 has no operators for {value.dtype.name}: use float32.",
                    f"a constant of type {value.dtype.name} of",
                )
            self.fills[name] = fill(name, value)
        return name

    def inputs(self, node: onnx.NodeProto) -> list[str]:
        """The blobs of all inputs of a node."""
        return [self.use(name) for name in node.input if name]

    def known(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """An input that has to be known in advance; None: the node does not have it."""
        name = node.input[index] if index < len(node.input) else ""
        if not name:
            return None
        value = self.view.constant(name)
        if value is None:
            raise Refusal("Give its parameters as constants; only its data may be computed.")
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """See `View.shape`."""
        return self.view.shape(name)

    # --- what it writes --------------------------------------------------------------------------

    def constant(self, hint: str, value: np.ndarray) -> str:
        """A blob for a constant of ours."""
        name = self.fresh(hint)
        self.fills[name] = fill(name, value)
        return name

    def fresh(self, hint: str) -> str:
        """A blob's name that no other has."""
        name, number = hint, 0
        while name in self._blobs:
            number += 1
            name = f"{hint}_{number}"
        self._blobs.add(name)
        return name

    def step(
        self, kind: str, inputs: Iterable[str], more: int = 0, **arguments: Value | None
    ) -> str:
        """Emit an operator on the way to the node's output; its first output."""
        node = self.node
        assert node is not None
        outputs = [self.fresh(f"{node.output[0]}/{kind}") for _ in range(1 + more)]
        self.add(kind, inputs, outputs, self.own(f"{node.name}/{kind}"), arguments)
        return outputs[0]

    def give(
        self, kind: str, inputs: Iterable[str], more: int = 0, **arguments: Value | None
    ) -> None:
        """Emit the operator that makes the node's outputs."""
        node = self.node
        assert node is not None
        outputs = [name or self.fresh(f"{node.name}/unused") for name in node.output]
        outputs += [self.fresh(f"{outputs[0]}/{kind}") for _ in range(more)]
        self.add(kind, inputs, outputs, self.name(node), arguments)

    def add(
        self,
        kind: str,
        inputs: Iterable[str],
        outputs: Iterable[str],
        name: str,
        arguments: Mapping[str, Value | None],
    ) -> None:
        """Emit an operator."""
        source = "" if self.node is None else self.node.name
        made = Operator(kind, tuple(inputs), tuple(outputs), dict(arguments), name, source)
        self.operators.append(made)

    def name(self, node: onnx.NodeProto) -> str:
        """For an operator: the node's own name for the first operator that gives its output."""
        if node.name not in self._given:
            self._given.add(node.name)
            return node.name
        return self.own(f"{node.name}/more")

    def own(self, hint: str) -> str:
        """For an operator: a name that no other has."""
        name, number = hint, 0
        while name in self._names:
            number += 1
            name = f"{hint}_{number}"
        self._names.add(name)
        return name

    # --- walking ---------------------------------------------------------------------------------

    def lower(self, node: onnx.NodeProto) -> None:
        """Emit a node's operators; raises `Refusal`."""
        entry = None if node.domain not in STANDARD else TABLE.get(node.op_type)
        if entry is None:
            raise Refusal(REMEDIES.get(node.op_type, OTHER))
        self._check_types(node, entry)
        self.node = node
        entry.function(self, node)
        self.node = None

    def _check_types(self, node: onnx.NodeProto, entry: Entry) -> None:
        first = next(filter(None, node.input), "")
        wanted = [(first, entry.takes)] if first else []
        wanted += [(name, entry.gives) for name in node.output if name in self.view.used]
        for name, kinds in wanted:
            kind = self.view.kind(name)
            if kind not in kinds:
                raise Refusal(
                    f"Caffe2's {node.op_type} is for {', '.join(sorted(kinds))}: cast before or "
                    "after it, or use another backend.",
                    f"{kind or 'an unknown type'} in",
                )
            if 0 in self.shape(name):
                raise Refusal("Take what is empty out of the network.", "an empty tensor of")


_RECURRENT = "Caffe2's recurrent networks are not converted: use another backend."
REMEDIES: dict[str, str] = {
    **dict.fromkeys(("TopK", "NonMaxSuppression", "Hardmax", "NonZero", "Unique"), CUT),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _RECURRENT),
    **dict.fromkeys(("If", "Loop", "Scan"), "Export the network without branches and loops."),
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear"),
        "Ask for the precision int8, or give the network in float32.",
    ),
}
"""Operators without a lowering to what to do about them, where there is something to say."""


def about(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes."""
    return attributes(node)
