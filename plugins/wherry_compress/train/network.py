"""An ONNX graph as a torch module that can be trained, and the graph again with its weights.

`Network` computes what the graph computes, for batches of any number of inferences (see node.py),
and its weights are parameters under the names of the ONNX initializers. `Network.proto` is the
graph it was made from, with the weights as they are now: names and structure stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from wherry.normalise.graph import STANDARD
from wherry.onnx_file import default_opset
from wherry_compress.job import Refusal
from wherry_compress.train.node import REMEDY, Mode, Node, Rule, each_by_itself
from wherry_compress.train.operators import OPERATORS

if TYPE_CHECKING:
    from collections.abc import Callable

TRAINED: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "PRelu": (1,),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
}  # fmt: skip
"""Operator to the inputs that are weights; a constant that is added to a MatMul is one, too."""

STATISTICS = (3, 4)
"""Inputs of BatchNormalization that training moves and no gradient does."""


@dataclass(frozen=True)
class _Step:
    """A node that is ready to run."""

    node: onnx.NodeProto
    run: Callable[..., Any]  # on the number of inferences, then the inputs
    free: tuple[str, ...]  # tensors that nobody takes any more


class Network(nn.Module):
    """A graph to be trained, or to be asked (a teacher).

    Args:
        proto: with static shapes and a name for every node; best the normal form
            (`wherry.normalise`) with its batch norms kept. It is not changed.
        outputs: tensors that `forward` gives besides the graph's outputs.
        momentum: of batch norms: the share of a batch in the statistics that are remembered.
        fixed: batch norms use their own statistics in training, too.

    Attributes:
        weights: initializer name to the parameter.
        batch_norms: the names of the BatchNormalization nodes.

    Raises:
        Refusal: an operator is not known here, or one of its forms; it names the node.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        *,
        outputs: Iterable[str] = (),
        momentum: float = 0.1,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self._proto = onnx.ModelProto()
        self._proto.CopyFrom(proto)
        trained, statistics = unshare(self._proto)
        graph = self._proto.graph
        self.outputs = list(dict.fromkeys([*(value.name for value in graph.output), *outputs]))
        self.inputs = {
            value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
            for value in graph.input
        }
        self.batch_norms = tuple(n.name for n in graph.node if n.op_type == "BatchNormalization")
        self._mode = Mode(momentum=momentum)
        self._fixed = fixed
        self._own: dict[str, str] = {}  # initializer to the module's own name of it
        self.weights: dict[str, nn.Parameter] = {}
        constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        for index, (name, value) in enumerate(constants.items()):
            tensor = torch.from_numpy(np.array(value))
            if name in trained and value.dtype == np.float32:
                self.weights[name] = nn.Parameter(tensor)
                self.register_parameter(f"weight{index}", self.weights[name])
                self._own[name] = f"weight{index}"
            else:
                self.register_buffer(f"constant{index}", tensor, persistent=name in statistics)
                self._own[name] = f"constant{index}"
        self._statistics = statistics
        self._stacks: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._steps = self._built(constants)

    # --- making it ---------------------------------------------------------------------------

    def _built(self, constants: Mapping[str, np.ndarray]) -> list[_Step]:
        """Every node's step, tried on one inference; it tells all shapes."""
        graph = self._proto.graph
        opset = default_opset(self._proto)
        examples: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        for value in graph.input:
            shape, kind = self.inputs[value.name], value.type.tensor_type.elem_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
            if not shape:
                raise Refusal(
                    f"the input {value.name!r} is a single number, and a batch of those has no "
                    "axis",
                    remedy=REMEDY,
                )
            if dtype.kind == "f":
                made = torch.randn(shape, generator=generator)
                examples[value.name] = made.to(torch.from_numpy(np.zeros(0, dtype)).dtype)
            else:
                examples[value.name] = torch.from_numpy(np.zeros(shape, dtype))
            self._stacks[value.name] = 0
        for name in constants:
            examples[name] = self._stored(name).detach()
        last = {name: node.name for node in graph.node for name in node.input}
        self._shapes = {name: tuple(value.shape) for name, value in examples.items()}
        steps = []
        for proto in graph.node:
            maker = OPERATORS.get(proto.op_type) if proto.domain in STANDARD else None
            if maker is None:
                raise Refusal(
                    f"{proto.op_type} (node {proto.name!r}) cannot be trained: torch's network is "
                    "made from ONNX's, and this operator is not known here",
                    where=proto.name,
                    remedy=REMEDY,
                )
            node = Node(proto, opset, constants, examples, self._stacks, self._mode)
            free = {n for n in proto.input if n and last[n] == proto.name}
            free -= {*self.outputs, *constants}
            unused = {n for n in proto.output if n and n not in last and n not in self.outputs}
            steps.append(_Step(proto, self._step(node, maker, examples), tuple(free | unused)))
            for name in free:
                examples.pop(name, None)
        for name in self.outputs:
            if name not in self._shapes:
                raise Refusal(f"the network has no tensor {name!r}", remedy="Correct the name.")
        return steps

    def _step(
        self, node: Node, maker: Callable[[Node], Rule], examples: dict[str, Tensor]
    ) -> Callable[..., Any]:
        """How a node runs on stacked tensors; its outputs become examples."""
        proto = node.proto
        given = [examples[name] if name else None for name in proto.input]
        stacks = [self._stacks.get(name) if name else None for name in proto.input]
        rule = maker(node)
        try:
            with torch.no_grad():
                made = rule.function(*given)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            text = str(error).partition("\n")[0]
            raise node.refused(f"torch does not compute it: {text}") from error
        values = made if isinstance(made, tuple) else (made,)
        varies = any(axis is not None for axis in stacks)
        for name, value in zip(proto.output, values, strict=False):
            if not name:
                continue
            examples[name] = value
            self._shapes[name] = tuple(value.shape)
            if varies:
                if rule.stack is None and not value.ndim:
                    raise node.refused("it makes a single number of each inference")
                self._stacks[name] = 0 if rule.stack is None else rule.stack
        if not varies or (rule.stack is not None and rule.stacked is None):
            return lambda _count, *inputs: rule.function(*inputs)
        if rule.stack is not None:
            stacked: Callable[..., Any] | None = rule.stacked
            assert stacked is not None
            return stacked
        sizes = [
            1 if axis is None or value is None else value.shape[axis]
            for axis, value in zip(stacks, given, strict=True)
        ]
        return each_by_itself(rule.function, stacks, sizes)

    # --- running it --------------------------------------------------------------------------

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch of B inferences.

        Args:
            inputs: name to [B * n, ...] where the graph's input is [n, ...]; other names are not
                looked at.

        Returns:
            Output name to [B, *shape in the graph].
        """
        values: dict[str, Tensor] = {name: inputs[name] for name in self.inputs}
        first = next(iter(self.inputs))
        count = values[first].shape[0] // self.inputs[first][0]
        for step in self._steps:
            given = [
                None if not name else values[name] if name in values else self._stored(name)
                for name in step.node.input
            ]
            made = step.run(count, *given)
            outputs = made if isinstance(made, tuple) else (made,)
            values.update(zip(step.node.output, outputs, strict=False))
            for name in step.free:
                values.pop(name, None)
        return {name: self._apart(name, values, count) for name in self.outputs}

    def _apart(self, name: str, values: Mapping[str, Tensor], count: int) -> Tensor:
        """An output, its inferences along an axis of their own, which comes first."""
        value = values[name] if name in values else self._stored(name)
        shape, axis = self._shapes[name], self._stacks.get(name)
        if axis is None:
            return value.expand(count, *shape)
        return value.unflatten(axis, (count, shape[axis])).movedim(axis, 0)

    def train(self, mode: bool = True) -> Network:
        """Batch norms use the batch's statistics, and remember them."""
        self._mode.training = mode and not self._fixed
        super().train(mode)
        return self

    def idle_biases(self) -> list[str]:
        """Biases that a batch norm behind them takes away again, while it uses the batch's mean.

        Their gradient is rounding alone, and an optimiser that scales gradients (Adam) makes steps
        of it, after which the means that are remembered limp.
        """
        readers: dict[str, set[str]] = {}
        for node in self._proto.graph.node:
            for name in node.input:
                readers.setdefault(name, set()).add(node.op_type)
        return [
            node.input[2]
            for node in self._proto.graph.node
            if node.op_type in {"Conv", "ConvTranspose"}
            and len(node.input) > 2
            and node.input[2] in self.weights
            and readers.get(node.output[0]) == {"BatchNormalization"}
            and node.output[0] not in self.outputs
        ]

    def settle(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Set the statistics of batch norms to their mean over some batches; weights stay."""
        if not self.batch_norms or self._fixed:
            return
        kept = self._mode.momentum
        self.train()
        with torch.no_grad():
            for index, batch in enumerate(batches):
                self._mode.momentum = 1 / (index + 1)
                self(batch)
        self._mode.momentum = kept

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Tensor to its shape in one inference."""
        return self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor in one inference."""
        return self._shapes[name]

    def _stored(self, name: str) -> Tensor:
        found: Tensor = getattr(self, self._own[name])
        return found

    # --- and back ----------------------------------------------------------------------------

    def load(self, weights: Mapping[str, np.ndarray | Tensor]) -> None:
        """Set weights by initializer name; the others stay."""
        with torch.no_grad():
            for name, value in weights.items():
                self.weights[name].copy_(torch.as_tensor(np.asarray(value)))

    def proto(self) -> onnx.ModelProto:
        """The graph with the weights and the statistics as they are now."""
        made = onnx.ModelProto()
        made.CopyFrom(self._proto)
        changed = {**self.weights, **{name: self._stored(name) for name in self._statistics}}
        for tensor in made.graph.initializer:
            if tensor.name in changed:
                value = changed[tensor.name].detach().cpu().contiguous().numpy()
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return made


def unshare(proto: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """Give weights that exporters have put together a tensor of their own, in place.

    Exporters store equal tensors once: all biases that are zero, the scales of new batch norms.
    Those are told apart: vectors, and whatever is a weight here and a plain constant there. A
    kernel or matrix that several nodes share stays shared, as it was meant.

    Returns:
        The names of the weights, and of the statistics of batch norms.
    """
    graph = proto.graph
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses: dict[str, list[tuple[onnx.NodeProto, int, bool, bool]]] = {}
    for node in graph.node:
        places = _trained(node, makers, ranks)
        for index, name in enumerate(node.input):
            if name in ranks:
                moved = node.op_type == "BatchNormalization" and index in STATISTICS
                uses.setdefault(name, []).append((node, index, index in places, moved))
    trained: set[str] = set()
    statistics: set[str] = set()
    outputs = {value.name for value in graph.output}
    for name, found in uses.items():
        kept = name in outputs or any(not (weight or moved) for _, _, weight, moved in found)
        apart = ranks[name] <= 1 or kept or len({(w, m) for _, _, w, m in found}) > 1
        for number, (node, index, weight, moved) in enumerate(found):
            if not (weight or moved):
                continue
            own = name
            if apart and (number > 0 or kept):
                own = _copied(graph, name, node.name, index)
                node.input[index] = own
            (trained if weight else statistics).add(own)
    return trained, statistics


def _trained(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, int]
) -> Sequence[int]:
    """The inputs of a node that are weights."""
    if node.op_type == "Add":
        for index in (0, 1):
            other = makers.get(node.input[1 - index])
            if node.input[index] in constants and other is not None and other.op_type == "MatMul":
                return (index,)
    return TRAINED.get(node.op_type, ()) if node.domain in STANDARD else ()


def _copied(graph: onnx.GraphProto, name: str, node: str, index: int) -> str:
    """A copy of an initializer, under a name that tells whose it is."""
    taken = {tensor.name for tensor in graph.initializer}
    taken |= {each for n in graph.node for each in (*n.input, *n.output)}
    own = f"{name}/{node}/{index}"
    while own in taken:
        own += "'"
    source = next(tensor for tensor in graph.initializer if tensor.name == name)
    copy = onnx.TensorProto()
    copy.CopyFrom(source)
    copy.name = own
    graph.initializer.append(copy)
    return own
