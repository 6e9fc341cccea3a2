"""A codebook that is trained: weights that share a value stay together and move together.

After Han et al., "Deep Compression", ICLR 2016, section 3.3: which weight has which value is
settled before, and the gradient of a value is the sum of its weights' gradients. Zeros stay zeros.
The teacher is the original, as in ``fit``; the best state by held-out samples is given, the one
without training among them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import onnx
import torch

from wherry_compress.job import Job, Refusal, tell
from wherry_compress.train.checkpoints import Checkpoints
from wherry_compress.train.fit import set_up, settings, student, teach
from wherry_compress.train.loop import DivergedError, Hook, State, train
from wherry_compress.train.masks import KeepZeros
from wherry_compress.train.network import Network


def trained(
    job: Job, proto: onnx.ModelProto, tensors: Collection[str]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A network with shared weights whose values are trained, and what there is to tell of it.

    Args:
        job: its parameters are those of `wherry_compress.train.passes.Training`.
        proto: the network.
        tensors: initializers whose weights share values.

    Raises:
        Refusal: the network or its data cannot be trained, or the training diverged.
    """
    path = job.scratch / "shared.onnx"
    onnx.save(proto, path)
    job = replace(job, model=path)
    device = set_up(job.parameters)
    network = student(job)
    network.to(device)
    lesson = teach(job, network, device)
    codebooks = Codebooks(network, [name for name in tensors if name in network.weights])
    try:
        state = train(
            network, lesson.samples, lesson.loss, settings(job),
            hooks=[codebooks, KeepZeros(network)],
            score=None if lesson.score is None else lesson.score[1],
            checkpoints=None if job.unfinished is None else Checkpoints(job.unfinished), tell=tell,
        )  # fmt: skip
    except DivergedError as error:
        raise Refusal(
            f"the training of the codebooks did not converge: {error}",
            remedy="Make `learning_rate` smaller, or set `clip: 1`.",
        ) from error
    figures: dict[str, Any] = {
        "steps": state.step,
        "loss_last": round(state.history[-1]["loss"], 6),
    }
    if lesson.score is not None:
        scores = [round(line["score"], 6) for line in state.history]
        figures["held_out"] = {"by": lesson.score[0], "epochs": scores}
    network.to("cpu")
    return network.proto(), figures


class Codebooks(Hook):
    """Weights of one tensor that are equal at first stay equal.

    Args:
        network: on its device.
        names: of its weights.
    """

    def __init__(self, network: Network, names: Collection[str]) -> None:
        self._places: dict[str, torch.Tensor] = {}
        self._firsts: dict[str, torch.Tensor] = {}
        for name in names:
            weight = network.weights[name].detach()
            values, places = torch.unique(weight, return_inverse=True)
            order = torch.arange(weight.numel(), device=weight.device)
            firsts = torch.full((len(values),), weight.numel(), device=weight.device)
            self._places[name] = places
            self._firsts[name] = firsts.scatter_reduce(0, places.reshape(-1), order, "amin")

    def after_backward(self, state: State) -> None:
        """The gradient of a value is the sum of those of its weights."""
        for name, places in self._places.items():
            gradient = state.network.weights[name].grad
            if gradient is not None:
                sums = gradient.new_zeros(len(self._firsts[name]))
                sums.index_add_(0, places.reshape(-1), gradient.reshape(-1))
                gradient.copy_(sums[places])

    def after_step(self, state: State) -> None:
        """The same step has been made for all, up to rounding; of them the first counts."""
        with torch.no_grad():
            for name, places in self._places.items():
                weight = state.network.weights[name]
                weight.copy_(weight.reshape(-1)[self._firsts[name]][places])
