"""ONNX to MACE: walks the normal form of a model and writes MACE's operations.

What MACE does otherwise than ONNX, silently or by refusing, is written with other operations of
MACE that compute the same, or refused with a remedy: the handlers of each operator stand in
``windows.py``, ``elementwise.py`` and ``shapes.py``. The same walk answers a pre-flight, so that
what the plan refuses is what the converter would.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wherry.normalise.graph import STANDARD, Graph, attributes
from wherry.target import Unsupported
from wherry_mace.format import Constant, Net, Op, Tensor, Value

if TYPE_CHECKING:
    import numpy as np
    import onnx

NEWEST_OPSET = 26
EXPANDED = (
    "Celu", "GroupNormalization", "LayerNormalization", "MeanVarianceNormalization",
    "RMSNormalization",
)  # fmt: skip
"""Operators that are written with others, as ONNX defines them."""
ALSO = ("pairs", f"opset {NEWEST_OPSET}", *(f"expand {kind}" for kind in EXPANDED))
"""What MACE wants of `wherry.normalise` besides."""

SAFE = re.compile(r"[A-Za-z0-9_./:\-]+")
"""Names that mace_run's flags can tell."""
CONSTANTS_IN_NHWC = frozenset({"Eltwise", "Concat"})
"""Operations of which MACE takes every constant of four axes for NHWC; of others, the first."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_./:\-]")
_OTHER = "Use another backend for it, or end the network before it."
_FLOAT = "MACE computes in float32: give and take tensors of that type alone."


class RefusedError(Exception):
    """A handler cannot write this form of an operator; the text is the remedy."""


@dataclass(frozen=True)
class Node:
    """A node of the normal form.

    Attributes:
        kind: its operator, with its domain unless that is ONNX's own.
        name: of the node.
        inputs: tensors; those that are left out are empty.
        outputs: likewise.
        about: its attributes.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    about: Mapping[str, Any]

    @classmethod
    def of(cls, node: onnx.NodeProto) -> Node:
        """A node of a graph."""
        domain = "" if node.domain in STANDARD else f"{node.domain}::"
        return cls(
            domain + node.op_type,
            node.name,
            tuple(node.input),
            tuple(node.output),
            attributes(node),
        )


Handler = Callable[["Translator", Node], None]


class Translator:
    """Writes a network, node by node.

    Args:
        proto: the normal form of a model (`ALSO`).
        handlers: operator to what writes it.
        whole: for 8 bits: no operation does more than they can.

    Attributes:
        whole: see above.
        graph: shapes, constants, makers and takers.
        nodes: in order.
        ops: written so far.
        constants: of them.
        refused: what no handler could write.
        shapes: of tensors of wherry's own.
        done: nodes that others do already.
        bounds: tensors of wherry's own to those of the model whose range holds theirs.
        aliases: tensors of wherry's own to those of the model that they are.
    """

    def __init__(
        self, proto: onnx.ModelProto, handlers: Mapping[str, Handler], *, whole: bool = False
    ) -> None:
        self.whole = whole
        self.graph = Graph(proto, {})
        self.nodes = [Node.of(node) for node in proto.graph.node]
        self.ops: list[Op] = []
        self.constants: dict[str, Constant] = {}
        self.refused: list[Unsupported] = []
        self.bounds: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.done: set[str] = set()
        self._handlers = handlers
        self._values: dict[str, np.ndarray] = {}
        self._names: set[str] = set()
        self._opset = self.graph.opset

    def run(self) -> None:
        """Write all nodes; what cannot be is in ``refused``."""
        self.refused.extend(self._tensors())
        for node in self.nodes:
            if node.name in self.done:
                continue
            handler = self._handlers.get(node.kind)
            try:
                if handler is None:
                    raise RefusedError(_OTHER)
                self._check(node)
                handler(self, node)
            except RefusedError as error:
                self.refused.append(Unsupported(node.kind, 1, node.name, str(error)))

    def net(self) -> Net:
        """What was written; nothing may be refused."""
        assert not self.refused
        graph = self.graph.proto.graph
        inputs = [self._tensor(value.name) for value in self._inputs()]
        outputs = [self._tensor(value.name) for value in graph.output]
        self._part_outputs([tensor.name for tensor in outputs])
        return Net(tuple(self.ops), dict(self.constants), tuple(inputs), tuple(outputs))

    def _part_outputs(self, outputs: Sequence[str]) -> None:
        """Give outputs that operations take another name within, and take them at the end.

        MACE uses the memory of a tensor again behind the last operation that takes it, also where
        it is an output.
        """
        taken = {name for op in self.ops for name in op.inputs}
        inner = {name: self.graph.fresh(f"{name}/within") for name in outputs if name in taken}
        for index, op in enumerate(self.ops):
            given, made = (
                tuple(inner.get(name, name) for name in names) for names in (op.inputs, op.outputs)
            )
            self.ops[index] = replace(op, inputs=given, outputs=made)
        for name, within in inner.items():
            shape = self.shape(name)
            about: dict[str, Value] = {"dim": list(shape)}
            own = self._op_name(f"wherry/output/{name}")
            self.ops.append(Op("Reshape", own, (within,), (name,), (shape,), about))
            self.bounds[within] = self.aliases[within] = name

    # --- what handlers ask -----------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """Of the normal form."""
        return self._opset

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; refuses the node where it is not known."""
        found = self.shapes.get(name, self.graph.shape(name))
        if found is None:
            raise RefusedError("Give the model static shapes, which MACE needs here.")
        return found

    def value(self, name: str) -> np.ndarray | None:
        """A constant; None for what is computed."""
        from onnx import numpy_helper

        if name not in self._values:
            tensor = self.graph.constants.get(name)
            if tensor is None:
                return None
            self._values[name] = numpy_helper.to_array(tensor)
        return self._values[name]

    def given(self, node: Node, index: int) -> np.ndarray | None:
        """The constant that is an input; None where there is none or it is left out."""
        if index >= len(node.inputs) or not node.inputs[index]:
            return None
        found = self.value(node.inputs[index])
        if found is None:
            raise RefusedError("Give its parameters as constants; only its data may be computed.")
        return found

    def parameter(self, node: Node, index: int) -> np.ndarray:
        """A constant that has to be there."""
        found = self.given(node, index)
        if found is None:
            raise RefusedError("Give its parameters as constants; only its data may be computed.")
        return found

    def taker(self, name: str) -> Node | None:
        """The one node that takes a tensor that is no output; None: there are others, or none."""
        takers = self.graph.takers.get(name, [])
        if len(takers) != 1 or name in self.graph.kept:
            return None
        return Node.of(takers[0])

    # --- what handlers write ---------------------------------------------------------------------

    def add(
        self,
        kind: str,
        nodes: Node | Sequence[Node],
        inputs: Sequence[str],
        outputs: Sequence[str] | str,
        shapes: Sequence[Sequence[int]] | None = None,
        *,
        free: bool = False,
        about: Mapping[str, Value] | None = None,
        **arguments: Value,
    ) -> None:
        """Write an operation.

        Args:
            kind: MACE's word.
            nodes: that it does, or a part of.
            inputs: tensors of the model or of wherry's own.
            outputs: likewise.
            shapes: of the outputs, in ONNX's order; None: as the model says.
            free: see `Op`.
            about: more of them.
            arguments: see `Op`.
        """
        nodes = (nodes,) if isinstance(nodes, Node) else tuple(nodes)
        outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        if shapes is None:
            shapes = [self.shape(name) for name in outputs]
        sizes = tuple(tuple(int(size) for size in shape) for shape in shapes)
        if any(size == 0 for shape in sizes for size in shape):
            raise RefusedError("Do without tensors that hold nothing.")
        inputs = [
            self._turned(name) if index == 0 or kind in CONSTANTS_IN_NHWC else name
            for index, name in enumerate(inputs)
        ]
        for name in inputs:
            self._take(name)
        self.ops.append(
            Op(
                kind, self._op_name(nodes[-1].name), tuple(inputs), outputs, sizes,
                {**arguments, **(about or {})}, free, nodes=tuple(node.name for node in nodes),
            )
        )  # fmt: skip

    def part(
        self,
        kind: str,
        node: Node,
        inputs: Sequence[str],
        shape: Sequence[int],
        *,
        free: bool = False,
        about: Mapping[str, Value] | None = None,
        **arguments: Value,
    ) -> str:
        """Write an operation that is a part of a node; its result's name."""
        name = self.graph.fresh(f"{node.outputs[0]}/{kind.lower()}")
        self.add(kind, node, inputs, name, [shape], free=free, about=about, **arguments)
        return name

    def constant(self, text: str, values: np.ndarray) -> str:
        """A constant under a name that nothing else has; ``text`` where it is free."""
        name = self.graph.fresh(text)
        self.constants[name] = Constant(values)
        return name

    def reshaped(self, node: Node, name: str, shape: Sequence[int]) -> str:
        """A tensor in another shape; itself where that is its shape."""
        values = self.value(name)
        if values is not None:
            return self.constant(f"{name}/reshaped", values.reshape(tuple(shape)))
        made = self.part("Reshape", node, [name], shape, dim=list(map(int, shape)))
        self.bounds[made] = self.bounds.get(name, name)
        return made

    def reshape_to(self, node: Node, name: str, output: str) -> None:
        """The model's tensor ``output`` as another one in its shape."""
        self.add("Reshape", node, [name], output, dim=list(self.shape(output)))

    # --- within ----------------------------------------------------------------------------------

    def _turned(self, name: str) -> str:
        """A constant of four axes in NHWC, which MACE turns when it loads; others as they are."""
        values = self.constants[name].values if name in self.constants else self.value(name)
        if values is None or values.ndim != 4:
            return name
        turned = f"{name}/nhwc"
        if turned not in self.constants:
            turned = self.constant(turned, values.transpose(0, 2, 3, 1))
        return turned

    def _take(self, name: str) -> None:
        """What an operation takes: a constant of the model is written when it is first taken."""
        import numpy as np

        if name in self.constants:
            return
        values = self.value(name)
        if values is not None:
            if values.dtype != np.float32:
                raise RefusedError(_FLOAT)
            self.constants[name] = Constant(values)

    def _op_name(self, text: str) -> str:
        """A name that MACE's table can show, unique."""
        base = name = _UNSAFE.sub("_", text)
        number = 1
        while name in self._names:
            number += 1
            name = f"{base}:{number}"
        self._names.add(name)
        return name

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        graph = self.graph
        return [value for value in graph.proto.graph.input if value.name not in graph.constants]

    def _tensor(self, name: str) -> Tensor:
        return Tensor(name, self.shape(name))

    def _check(self, node: Node) -> None:
        """Refuse types that MACE does not compute in, and outputs that it does not give."""
        from onnx import TensorProto

        used = {name for name in node.outputs[1:] if name in self.graph.takers}
        used |= set(node.outputs[1:]) & self.graph.kept
        if used and node.kind != "Split":
            raise RefusedError("MACE gives its first output alone: do without the others.")
        if node.kind == "Cast" and self.is_cast_outside(node.inputs[0]):
            return
        computed = [name for name in node.inputs if name and name not in self.graph.constants]
        for name in (*computed, node.outputs[0]):
            if self.graph.kind(name) != TensorProto.FLOAT:
                raise RefusedError(_FLOAT)

    def is_cast_outside(self, name: str) -> bool:
        """An input with which nothing is done but to cast it to float32: that is done before."""
        from onnx import TensorProto

        if name not in {value.name for value in self._inputs()} or name in self.graph.kept:
            return False
        takers = [Node.of(node) for node in self.graph.takers.get(name, [])]
        return all(node.kind == "Cast" and node.about["to"] == TensorProto.FLOAT for node in takers)

    def _tensors(self) -> Iterator[Unsupported]:
        """What is wrong with inputs and outputs."""
        from onnx import TensorProto

        graph = self.graph
        inputs = {value.name for value in self._inputs()}
        whose = {name: node for node in reversed(self.nodes) for name in node.inputs}
        for name in sorted(inputs):
            node = whose.get(name)
            operator, where = (node.kind, node.name) if node else ("no node", name)
            kind = TensorProto.DataType.Name(graph.kind(name)).lower()
            if kind != "float" and not self.is_cast_outside(name):
                yield Unsupported(f"input of type {kind} of {operator}", 1, where, _FLOAT)
            elif not graph.shape(name):
                remedy = "Give it as a constant, or as a vector of one."
                yield Unsupported(f"input without axes of {operator}", 1, where, remedy)
        for value in graph.proto.graph.output:
            made = graph.makers.get(value.name)
            if made is None or value.name in inputs:
                remedy = "Remove this output from the network: it is known without running it."
                words = "output that is an input or a constant of no node"
                yield Unsupported(words, 1, value.name, remedy)
            elif graph.shape(value.name) == ():
                remedy = "Give it an axis, or end the network before it."
                yield Unsupported(f"output without axes of {made.op_type}", 1, made.name, remedy)


def rename(net: Net) -> tuple[Net, Mapping[str, str]]:
    """The network with names of inputs and outputs that mace_run can be told.

    mace_run's flags separate names by commas, and its files are named with each character that is
    no letter or digit as ``_``: two names must not become one. Names that will do stay.

    Returns:
        The network, and the model's name of each input and output to MACE's.
    """
    inner = {name for op in net.ops for name in (*op.inputs, *op.outputs)}
    inner -= {tensor.name for tensor in (*net.inputs, *net.outputs)}
    taken: set[str] = set()
    names: dict[str, str] = {}
    for tensor in (*net.inputs, *net.outputs):
        base = text = _UNSAFE.sub("_", tensor.name)
        number = 1
        while re.sub(r"[^A-Za-z0-9]", "_", text) in taken or text in inner:
            number += 1
            text = f"{base}_{number}"
        taken.add(re.sub(r"[^A-Za-z0-9]", "_", text))
        names[tensor.name] = text

    def renamed(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(names.get(value, value) for value in values)

    ops = tuple(
        replace(op, inputs=renamed(op.inputs), outputs=renamed(op.outputs)) for op in net.ops
    )
    inputs, outputs = (
        tuple(replace(tensor, name=names[tensor.name]) for tensor in tensors)
        for tensors in (net.inputs, net.outputs)
    )
    return replace(net, ops=ops, inputs=inputs, outputs=outputs), names
