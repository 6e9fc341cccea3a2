"""Hooks that keep weights zero while a network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wherry_compress.train.loop import Hook, State
from wherry_compress.train.network import Network

Masks = dict[str, Tensor]
"""Weight to ones and zeros of its shape."""


class Masked(Hook):
    """Weights under masks that do not change.

    Args:
        masks: on the device of the training.
    """

    def __init__(self, masks: Masks) -> None:
        self.masks = masks

    def before_step(self, state: State) -> None:
        """What is masked is zero from the first step on."""
        if state.step == 0:
            self._mask(state)

    def after_backward(self, state: State) -> None:
        """No momentum gathers for what is zero."""
        for name, mask in self.masks.items():
            gradient = state.network.weights[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    def after_step(self, state: State) -> None:
        """Nor does anything else move it."""
        self._mask(state)

    def _mask(self, state: State) -> None:
        with torch.no_grad():
            for name, mask in self.masks.items():
                state.network.weights[name].mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        """The masks."""
        return {"masks": dict(self.masks)}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Take them back."""
        self.masks = beside(values["masks"], self.masks)


class KeepZeros(Masked):
    """Weights that are exactly zero at first stay so: what was pruned is not grown again."""

    def __init__(self, network: Network) -> None:
        super().__init__(
            {
                name: (weight.detach() != 0).to(weight.dtype)
                for name, weight in network.weights.items()
                if weight.ndim > 1 and bool((weight == 0).any())
            }
        )


def beside(values: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint, each on the device of its namesake."""
    return {name: value.to(others[name].device) for name, value in values.items()}
