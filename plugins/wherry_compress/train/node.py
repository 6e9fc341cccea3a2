"""One ONNX node on its way to torch, and where the samples of a batch lie in its tensors.

A graph is written for the shapes of one inference (mostly a batch of one), and numbers in it say
so: ``Reshape`` to [1, 2, 58, 28, 28]. Here a batch of B inferences is B such tensors, put together
along one axis: the *stack axis*, B times as long as in the graph. Operators that leave that axis
alone work on the whole as they are, and new shapes are known from the numbers: along the stack axis
they are multiplied by B (`stacked_shape`). An operator that does not leave it alone (a mean over
all axes, a sum of tensors that are stacked otherwise) is applied to each inference by
``torch.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wherry.normalise.graph import attributes
from wherry_compress.job import Refusal

if TYPE_CHECKING:
    import onnx

Function = Callable[..., Any]
"""Takes the node's inputs (None where one is left out); gives a tensor or a tuple of them."""

REMEDY = "Leave the pass out, or train the network where it was made and export it again."


@dataclass(frozen=True)
class Rule:
    """How a node is computed.

    Attributes:
        function: on tensors as the graph has them.
        stack: the stack axis of each output if ``stacked`` takes stacked tensors; None: it does
            not, and each inference is computed for itself.
        stacked: called with the number of inferences and then the inputs; None: ``function`` does.
    """

    function: Function
    stack: int | None = None
    stacked: Function | None = None


@dataclass
class Node:
    """What an operator's rule is made from.

    Attributes:
        proto: the node.
        opset: of the model.
        constants: tensors of the graph that are known now.
        examples: name to a tensor as one inference has it.
        stacks: tensor to its stack axis; those that are the same for all inferences are not there.
        mode: of the network, see `Mode`.
    """

    proto: onnx.NodeProto
    opset: int
    constants: Mapping[str, np.ndarray]
    examples: Mapping[str, Tensor]
    stacks: Mapping[str, int]
    mode: Mode

    def __post_init__(self) -> None:
        self.about: dict[str, Any] = attributes(self.proto)

    def __len__(self) -> int:
        return len(self.proto.input)

    def has(self, index: int) -> bool:
        """Whether there is such an input."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def value(self, index: int) -> np.ndarray | None:
        """An input that is constant; None where it is left out; refuses one that is computed."""
        if not self.has(index):
            return None
        name = self.proto.input[index]
        if name not in self.constants:
            raise self.refused(f"its input {name!r} is computed from the data")
        return self.constants[name]

    def numbers(self, word: str, index: int) -> list[int] | None:
        """Whole numbers that are an attribute in old opsets and an input in new ones."""
        if word in self.about:
            found = self.about[word]
            return list(found) if isinstance(found, (list, tuple)) else [found]
        value = self.value(index)
        return None if value is None else [int(each) for each in value.ravel()]

    def example(self, index: int) -> Tensor:
        """An input as one inference has it."""
        return self.examples[self.proto.input[index]]

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an input in one inference."""
        return tuple(self.example(index).shape)

    def stack(self, index: int) -> int | None:
        """The stack axis of an input; None: it is the same for all inferences."""
        return self.stacks.get(self.proto.input[index]) if self.has(index) else None

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute ``axis``, not negative."""
        rank = len(self.shape(0)) if rank is None else rank
        return int(self.about.get("axis", default)) % max(rank, 1)

    def refused(self, text: str) -> Refusal:
        """An error that names the node."""
        kind = self.proto.op_type
        return Refusal(
            f"{kind} (node {self.proto.name!r}) cannot be trained: {text}",
            where=self.proto.name,
            remedy=REMEDY,
        )


@dataclass
class Mode:
    """What the whole network is set to.

    Attributes:
        training: batch norms use the statistics of the batch, and remember them.
        momentum: share of a batch in the statistics that are remembered.
    """

    training: bool = False
    momentum: float = 0.1


def stacked_shape(
    given: Sequence[int], axis: int, made: Sequence[int]
) -> tuple[int, tuple[int, ...]] | None:
    """Where the stack axis goes in a Reshape, and what lies before it there.

    Elements keep their order, so the inferences are told apart at the same place of it: the new
    stack axis is the one that has as many elements before it as the old one.

    Args:
        given: the shape before, of one inference.
        axis: the stack axis there.
        made: the shape afterwards, of one inference.

    Returns:
        The stack axis, and the shape afterwards; None where it would lie within an axis.
    """
    before = int(np.prod(given[:axis], dtype=np.int64))
    for index in range(len(made)):
        if int(np.prod(made[:index], dtype=np.int64)) == before:
            return index, tuple(made)
    return None


def each_by_itself(
    function: Function, stacks: Sequence[int | None], sizes: Sequence[int]
) -> Function:
    """``function`` for every inference, by ``torch.vmap``; outputs are stacked along axis 0.

    Args:
        function: on tensors as one inference has them.
        stacks: stack axis of each input, None for those that are the same for all.
        sizes: of that axis in one inference.
    """

    def run(count: int, *inputs: Tensor | None) -> Any:
        present = [index for index, each in enumerate(inputs) if each is not None]
        parts, axes = [], []
        for index in present:
            value, axis = inputs[index], stacks[index]
            assert value is not None
            if axis is not None:
                value = value.unflatten(axis, (count, sizes[index]))
            parts.append(value)
            axes.append(axis)

        def one(*given: Tensor) -> Any:
            full: list[Tensor | None] = [None] * len(inputs)
            for index, value in zip(present, given, strict=True):
                full[index] = value
            return function(*full)

        made = torch.vmap(one, tuple(axes))(*parts)
        if isinstance(made, tuple):
            return tuple(each.flatten(0, 1) for each in made)
        return made.flatten(0, 1)

    return run
