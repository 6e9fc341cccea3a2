"""The pass ``prune.weights-trained``: weights become zero while the network is trained.

- ``gradual``: more and more of the smallest, s(t) = s (1 - (1 - t)^3) of them; what is zero stays
  so until the next choice (Zhu and Gupta, "To prune, or not to prune", arXiv:1710.01878).
- ``surgery``: the same rise, but weights that are zero in the network live on beside it, learn on,
  and come back where they grow (Guo et al., "Dynamic network surgery", NeurIPS 2016, section 3).
- ``lottery``: trained, the smallest chosen, all others set back to what they were, and again, each
  round the same share of what is left; at last what is left is trained (Frankle and Carbin, "The
  lottery ticket hypothesis", ICLR 2019, with the given network as the beginning to go back to).

The teacher is the original, as in ``fit``. The last state counts: earlier ones have fewer zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wherry_compress.graph.patterns import meant
from wherry_compress.job import Done, Job, Refusal, tell
from wherry_compress.train.checkpoints import Checkpoints
from wherry_compress.train.fit import Settle, set_up, settings, student, teach
from wherry_compress.train.loop import DivergedError, Hook, State, train
from wherry_compress.train.masks import Masked, Masks, beside
from wherry_compress.train.network import Network
from wherry_compress.train.processes import Group

_PRUNED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_BAND = 0.1  # of the bound: surgery changes nothing within it


def apply(job: Job) -> Done:
    """The trained network with zeros; its figures are how many, and what held-out samples say."""
    about = job.parameters
    device = set_up(about)
    network = student(job)
    names = _chosen(network, about["exclude"])
    network.to(device)
    lesson = teach(job, network, device)
    before = _score(network, lesson.score)

    def run(hook: Hook, place: str = "") -> None:
        settle = Settle(lesson.samples, about["batch"], Group())
        folder = None if job.unfinished is None else Checkpoints(job.unfinished / place)
        train(
            network, lesson.samples, lesson.loss, settings(job), hooks=[hook, settle], tell=tell,
            checkpoints=folder,
        )  # fmt: skip

    try:
        if about["method"] == "lottery":
            masks = _lottery(network, names, about, run)
        else:
            kind = Gradual if about["method"] == "gradual" else Surgery
            hook = kind(network, names, about)
            run(hook)
            masks = hook.masks
    except DivergedError as error:
        raise Refusal(
            f"the training did not converge: {error}",
            remedy="Make `learning_rate` smaller, or set `clip: 1`.",
        ) from error
    after = _score(network, lesson.score)
    network.to("cpu")
    with torch.no_grad():
        for name in masks:
            network.weights[name].add_(0.0)  # a negative weight under a mask is -0.0
    size = sum(mask.numel() for mask in masks.values())
    zeros = sum(int((mask == 0).sum()) for mask in masks.values())
    figures: dict[str, Any] = {"weights": size, "zeros": zeros, "sparsity": zeros / size}
    if lesson.score is not None:
        figures["held_out"] = {"by": lesson.score[0], "before": before, "after": after}
    return Done(network.proto(), figures)


def _chosen(network: Network, exclude: Sequence[str]) -> list[str]:
    """The weights that may become zero."""
    nodes = {
        node.name: node.input[1]
        for node in network.proto().graph.node
        if node.op_type in _PRUNED and node.input[1] in network.weights
    }
    kept = meant(exclude, list(nodes), "exclude", "node with weights")
    found = [weight for name, weight in nodes.items() if name not in kept]
    if not found:
        raise Refusal("there are no weights to make zero", remedy="Exclude less.")
    return list(dict.fromkeys(found))


def _score(network: Network, score: tuple[str, Any] | None) -> float | None:
    network.eval()
    with torch.no_grad():
        return None if score is None else round(float(score[1]()), 6)


def rising(sparsity: float, done: float) -> float:
    """The share that is zero when a share of the rise is done."""
    return float(sparsity * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3))


def smallest(weights: Mapping[str, Tensor], share: float, allocation: str) -> Masks:
    """Masks that are zero where weights are smallest.

    Args:
        weights: by name.
        share: that becomes zero, of each (``uniform``) or of all (``global``).
        allocation: which of these.
    """
    sizes = {name: weight.detach().abs() for name, weight in weights.items()}
    if allocation == "uniform":
        return {name: _bounded(size, share) for name, size in sizes.items()}
    whole = _bounded(torch.cat([size.reshape(-1) for size in sizes.values()]), share)
    parts = whole.split([size.numel() for size in sizes.values()])
    return {
        name: part.reshape(size.shape)
        for (name, size), part in zip(sizes.items(), parts, strict=True)
    }


def _bounded(size: Tensor, share: float) -> Tensor:
    """Zero for the smallest, exactly so many; of equals the first."""
    order = size.reshape(-1).argsort(stable=True)
    mask = torch.ones(size.numel(), dtype=size.dtype, device=size.device)
    mask[order[: round(share * size.numel())]] = 0
    return mask.reshape(size.shape)


class Gradual(Masked):
    """More and more of the smallest weights are zero.

    Args:
        network: on its device.
        names: of its weights.
        about: parameters of the pass.
    """

    def __init__(self, network: Network, names: Sequence[str], about: Mapping[str, Any]) -> None:
        weights = {name: network.weights[name] for name in names}
        super().__init__({name: torch.ones_like(w).detach() for name, w in weights.items()})
        self._about = about

    def before_step(self, state: State) -> None:
        """Choose anew where it is time; the last choice is exact, at the end of the rise."""
        end = min(int(self._about["rise"] * state.steps), state.steps - 1)
        last = state.step == end
        if last or (state.step < end and state.step % self._about["every"] == 0):
            share = rising(self._about["sparsity"], 1 if last else state.step / end)
            self._choose(state, share, last=last)

    def _choose(self, state: State, share: float, *, last: bool) -> None:
        del last  # what is zero has stayed zero: every choice is exact
        weights = {name: state.network.weights[name] for name in self.masks}
        self.masks = smallest(weights, share, self._about["allocation"])
        self._mask(state)


class Surgery(Gradual):
    """The same, with weights that live on while the network has zeros in their places."""

    def __init__(self, network: Network, names: Sequence[str], about: Mapping[str, Any]) -> None:
        super().__init__(network, names, about)
        self._whole = {name: network.weights[name].detach().clone() for name in names}

    def _choose(self, state: State, share: float, *, last: bool) -> None:
        new = smallest(self._whole, share, self._about["allocation"])
        if not last:
            for name, mask in new.items():
                size = self._whole[name].abs()
                bound = size[mask == 0].max() if bool((mask == 0).any()) else size.new_zeros(())
                near = (size > (1 - _BAND) * bound) & (size < (1 + _BAND) * bound)
                new[name] = torch.where(near, self.masks[name], mask)
        self.masks = new
        self._show(state)

    def after_backward(self, state: State) -> None:
        """The gradients are those of the network with zeros; the whole weights take them."""
        self._set(state, self._whole)

    def after_step(self, state: State) -> None:
        """Keep the whole weights, and go on with zeros."""
        for name in self._whole:
            self._whole[name] = state.network.weights[name].detach().clone()
        self._show(state)

    def _show(self, state: State) -> None:
        self._set(state, {name: w * self.masks[name] for name, w in self._whole.items()})

    @staticmethod
    def _set(state: State, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                state.network.weights[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The masks and the whole weights."""
        return {**super().state_dict(), "whole": dict(self._whole)}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(values)
        self._whole = beside(values["whole"], self._whole)


def _lottery(network: Network, names: Sequence[str], about: Mapping[str, Any], run: Any) -> Masks:
    """Rounds of training, choosing and going back; at last what is left is trained.

    Each has a checkpoint of its own: that of a round which is done holds what came out of it.
    """
    given = {name: value.detach().clone() for name, value in network.state_dict().items()}
    masks = {name: torch.ones_like(network.weights[name]).detach() for name in names}
    rounds = about["rounds"]
    for number in range(1, rounds + 1):
        run(Masked(masks), f"round{number}")
        left = (1 - about["sparsity"]) ** (number / rounds)
        weights = {name: network.weights[name] for name in names}
        masks = smallest(weights, 1 - left, about["allocation"])
        network.load_state_dict(given)
    run(Masked(masks))
    return masks
