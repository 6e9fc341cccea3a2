"""The criterion ``taylor``: how much a loss changes, to first order, without a channel.

A gate of 1 on each channel before the weights that read it: the loss's derivative by the gate is
the sum of weight times gradient over those weights, so that no activation has to be kept. A
unit's gates are one gate; its score is the mean over the samples of the square of the derivative.
After Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019, section 3.

The loss of an output of classes, [1, classes], is the cross-entropy of the sample's label, or where
there are no labels of the class that the network itself names; of any other output the mean of
squares. Gradients are torch's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wherry_compress.graph.channels import Channels
from wherry_compress.job import Data, Refusal
from wherry_compress.train.network import Network


def taylor(channels: Channels, data: Data) -> tuple[np.ndarray, ...]:
    """For each group the score of its units, float64 [units].

    Args:
        channels: of the network, which is in fp32.
        data: the samples, with labels or without.

    Raises:
        Refusal: an operator that torch cannot be told, or weights that are not float32.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order: the same for the same samples
    try:
        sums = _squares(channels, data)
    finally:
        torch.set_num_threads(threads)
    return tuple(sums[group.units] for group in channels.groups)


def _squares(channels: Channels, data: Data) -> np.ndarray:
    """For each label that stands for a unit, the mean square of its gate's derivative."""
    network = Network(channels.proto, fixed=True)
    cuts = [cut for cut in channels.cuts if cut.role == "reads"]
    for cut in cuts:
        if cut.tensor not in network.weights:
            raise Refusal(
                f"the constant {cut.tensor!r} is not float32, so that it has no gradient",
                where=f"node {cut.node!r}",
                remedy="Choose another `criterion`.",
            )
    sums = np.zeros(len(channels.roots))
    count = 0
    for count, sample in enumerate(data.samples(), start=1):
        network.zero_grad(set_to_none=True)
        inputs = {name: torch.from_numpy(value) for name, value in sample.items()}
        label = None if data.labels is None else int(data.labels[count - 1])
        loss(network(inputs), label).backward()
        gates = np.zeros(len(channels.roots))
        for cut in cuts:
            weights = network.weights[cut.tensor]
            if weights.grad is not None:
                axes = [axis for axis in range(weights.ndim) if axis != cut.axis]
                product = (weights.detach() * weights.grad).double().sum(dim=axes)
                np.add.at(gates, channels.roots[cut.ids], product.numpy())
        sums += gates**2
    return sums / max(1, count)


def loss(outputs: dict[str, Tensor], label: int | None) -> Tensor:
    """Of one sample; see the module.

    Args:
        outputs: by name, [1, *shape].
        label: of the sample.
    """
    total = torch.zeros(())
    for value in outputs.values():
        if not value.dtype.is_floating_point:
            continue
        rows = value.reshape(-1, value.shape[-1])
        if len(rows) == 1 and value.shape[-1] > 1:
            fits = label is not None and label < value.shape[-1]
            chosen = torch.tensor([label]) if fits else rows.detach().argmax(dim=1)
            total = total + functional.cross_entropy(rows, chosen)
        else:
            total = total + (value**2).mean()
    return total
