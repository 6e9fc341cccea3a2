"""Training against the original: its outputs as targets, labels and inner tensors beside them.

Distillation after Hinton, Vinyals and Dean 2015 (section 2): both logits are divided by a
temperature T, and the loss is the divergence of the distributions times T squared, as its gradient
shrinks by that. Inner tensors are compared by their squared error over their mean square, after
Romero et al. 2014 (section 2.2); they have to be of one shape in both networks.

Where pictures are not changed by chance and no inner tensors are asked for, the original's outputs
are computed once, by ONNX Runtime; else the original runs in torch beside the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from wherry.reference import open_session, run_session
from wherry.scoring import class_axis
from wherry_compress.job import Data, Refusal, tell
from wherry_compress.train.loop import Batch
from wherry_compress.train.network import Network

TAUGHT = "taught:"
"""Before a tensor's name in a batch: what the original gives."""

LABELS = "labels:"
"""In a batch: int64 [samples]."""

_LEAST = 1e-30  # of a probability, before its logarithm is taken


@dataclass(frozen=True)
class Target:
    """An output that is learnt.

    Attributes:
        output: its name; in the original, too.
        tensor: of the network being trained: the output, or the logits that its Softmax reads.
        axis: of the classes, in [batch, *shape]; None: the values count.
        probabilities: the output holds probabilities, not logits.
        shape: of the output in one inference.
    """

    output: str
    tensor: str
    axis: int | None
    probabilities: bool
    shape: tuple[int, ...]


def find_targets(proto: onnx.ModelProto, kind: str) -> list[Target]:
    """The outputs of floats, and what they are.

    Args:
        proto: the network, with static shapes.
        kind: ``auto``, ``classes`` or ``values``, see the parameter ``outputs``.

    Raises:
        Refusal: no output can be learnt.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    found = []
    for value in proto.graph.output:
        tensor = value.type.tensor_type
        if tensor.elem_type != onnx.TensorProto.FLOAT or value.name not in makers:
            continue
        shape = tuple(each.dim_value for each in tensor.shape.dim)
        place = class_axis(shape, None) if shape else 0
        many = bool(shape) and shape[place] > 1
        classes = many and (kind == "classes" or (kind == "auto" and len(shape) <= 2))
        maker = makers[value.name]
        soft = classes and maker.op_type == "Softmax"
        inner = maker.input[0] if soft else value.name
        axis = place % len(shape) + 1 if classes else None
        found.append(Target(value.name, inner, axis, soft, shape))
    if not found:
        raise Refusal(
            "the network has no output of float32 that could be learnt",
            remedy="Leave the pass out.",
        )
    return found


class Taught:
    """Training samples with what the original gives for them.

    Args:
        data: the samples.
        indices: of those that are taken.
        answers: output to a file of [samples, *shape] (`ask`); None: ``teacher`` is asked.
        teacher: the original in torch, on the device of the training.
        device: on which batches are given.
        shift: pixels by which pictures, [batch, channels, height, width], are moved at random.
    """

    def __init__(
        self,
        data: Data,
        indices: np.ndarray,
        *,
        answers: Mapping[str, Path] | None,
        teacher: Network | None,
        device: torch.device,
        shift: int = 0,
    ) -> None:
        self._data = data
        self._indices = indices
        self._answers = answers
        self._teacher = teacher
        self._device = device
        self._shift = shift
        self._labels = None if data.labels is None else torch.from_numpy(data.labels)

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Sequence[int], generator: torch.Generator | None) -> Batch:
        """See `wherry_compress.train.loop.Samples`."""
        chosen = self._indices[np.asarray(indices, np.int64)]
        made: dict[str, Tensor] = {}
        for name in self._data.inputs:
            value = torch.from_numpy(self._data.array(name)[chosen]).flatten(0, 1)
            if self._shift and generator is not None and value.ndim == 4:
                value = shifted(value, self._shift, generator)
            made[name] = value.to(self._device)
        if self._labels is not None:
            made[LABELS] = self._labels[torch.from_numpy(chosen)].to(self._device)
        if self._answers is not None:
            for name, path in self._answers.items():
                answers = np.load(path, mmap_mode="r", allow_pickle=False)[chosen]
                made[TAUGHT + name] = torch.from_numpy(answers).to(self._device)
        if self._teacher is not None:
            with torch.no_grad():
                answered = self._teacher(made)
            made |= {TAUGHT + name: value for name, value in answered.items()}
        return made


def shifted(pictures: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each picture of [batch, channels, height, width] moved; its edges are continued."""
    count, _, height, width = pictures.shape
    moves = torch.randint(-most, most + 1, (2, count), generator=generator)
    rows = (torch.arange(height) + moves[0][:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) + moves[1][:, None]).clamp(0, width - 1)
    each = torch.arange(count)[:, None, None]
    return pictures.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def ask(model: Path, names: Sequence[str], data: Data, folder: Path) -> dict[str, Path]:
    """The original's outputs for all samples, by ONNX Runtime.

    Returns:
        Output to a file of [samples, *shape].
    """
    threads = max(1, torch.get_num_threads())
    session = open_session(str(model), threads=threads, where=str(model))
    files = {name: folder / f"answer{index}.npy" for index, name in enumerate(names)}
    answers: dict[str, np.ndarray] = {}
    told = time.monotonic()
    for index, sample in enumerate(data.samples()):
        made = run_session(session, sample, where=str(model))
        for name in names:
            if index == 0:
                shape = (len(data), *made[name].shape)
                answers[name] = np.lib.format.open_memmap(
                    files[name], "w+", made[name].dtype, shape
                )
            answers[name][index] = made[name]
        if time.monotonic() - told > 1:
            told = time.monotonic()
            tell(f"the original's outputs: sample {index + 1} of {len(data)}")
    for each in answers.values():
        each.flush()  # type: ignore[attr-defined]  # a memmap
    return files


@dataclass(frozen=True)
class Distillation:
    """The loss: how far the outputs are from the original's.

    Attributes:
        targets: the outputs.
        temperature: by which logits are divided.
        labels: share of the labels' cross-entropy, of the first output with classes.
        features: inner tensor to its weight.
    """

    targets: Sequence[Target]
    temperature: float = 1.0
    labels: float = 0.0
    features: Mapping[str, float] | None = None

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean over the batch; see `wherry_compress.train.loop.Loss`."""
        total = outputs[self.targets[0].tensor].new_zeros((), dtype=torch.float32)
        labelled = self.labels > 0
        for target in self.targets:
            given, wanted = outputs[target.tensor].float(), batch[TAUGHT + target.output].float()
            if target.axis is None:
                total = total + _error(given, wanted)
                continue
            taught = self._divergence(target, given, wanted)
            if labelled:
                labelled = False
                flat = given.reshape(len(given), -1)
                told = functional.cross_entropy(flat, batch[LABELS])
                taught = (1 - self.labels) * taught + self.labels * told
            total = total + taught
        for name, weight in (self.features or {}).items():
            total = total + weight * _error(outputs[name].float(), batch[TAUGHT + name].float())
        return total

    def _divergence(self, target: Target, given: Tensor, wanted: Tensor) -> Tensor:
        logits = wanted.clamp_min(_LEAST).log() if target.probabilities else wanted
        t, axis = self.temperature, target.axis
        assert axis is not None
        theirs = functional.log_softmax(logits / t, axis)
        ours = functional.log_softmax(given / t, axis)
        each = (theirs.exp() * (theirs - ours)).sum(axis)
        return each.mean() * t**2


def _error(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the mean square of what is wanted."""
    scale = wanted.square().mean().clamp_min(1e-12)
    return (given - wanted).square().mean() / scale


def scorer(
    network: Network, samples: Taught, targets: Sequence[Target], *, labels: bool, batch: int
) -> tuple[str, Callable[[], float]]:
    """How good a network is on the held-out samples: the name of the figure, and a function.

    ``top1`` with labels, else ``agreement`` with the original (share of the places with the same
    best class); ``accuracy of values``, 1 less the relative squared error, where no output holds
    classes.
    """
    target = next((each for each in targets if each.axis is not None), targets[0])

    def each_batch(judge: Callable[[Tensor, Tensor, Batch], Tensor]) -> float:
        total, count = 0.0, 0
        for start in range(0, len(samples), batch):
            chosen = range(start, min(start + batch, len(samples)))
            given = samples.batch(list(chosen), None)
            outputs = network(given)
            value = judge(outputs[target.tensor], given[TAUGHT + target.output], given)
            total, count = total + float(value) * len(chosen), count + len(chosen)
        return total / count

    def agrees(given: Tensor, wanted: Tensor, _batch: Batch) -> Tensor:
        assert target.axis is not None
        same = given.argmax(target.axis) == wanted.argmax(target.axis)
        return same.double().mean()

    def right(given: Tensor, _wanted: Tensor, told: Batch) -> Tensor:
        best = given.reshape(len(given), -1).argmax(1)
        return (best == told[LABELS]).double().mean()

    def close(given: Tensor, wanted: Tensor, _batch: Batch) -> Tensor:
        return 1 - _error(given.double(), wanted.double())

    if target.axis is None:
        return "accuracy of values", lambda: each_batch(close)
    if labels:
        return "top1", lambda: each_batch(right)
    return "agreement", lambda: each_batch(agrees)


def check_same(student: Network, teacher: Mapping[str, tuple[int, ...]], names: Any) -> None:
    """Raise `Refusal` unless both networks have these tensors, in one shape."""
    for name in names:
        if name not in teacher:
            raise Refusal(f"the original has no tensor {name!r}", remedy="Correct `features`.")
        if student.shape(name) != teacher[name]:
            raise Refusal(
                f"the tensor {name!r} is {list(student.shape(name))}, and in the original "
                f"{list(teacher[name])}",
                where=name,
                remedy="Name tensors in `features` that no pass has changed the width of.",
            )
