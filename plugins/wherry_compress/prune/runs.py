"""Runs of a network on samples: what its outputs are, and what its channels carry."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx

from wherry.reference import open_session, run_session
from wherry_compress.graph.channels import Channels
from wherry_compress.graph.taps import finite, tapped
from wherry_compress.job import Data


def outputs(
    proto: onnx.ModelProto, data: Data, count: int | None = None
) -> list[dict[str, np.ndarray]]:
    """Of the first samples, all for None."""
    session = open_session(proto.SerializeToString(), threads=1, where="")
    return [run_session(session, sample, where="") for sample in data.samples(count)]


def tensors(
    proto: onnx.ModelProto, names: Sequence[str], data: Data, count: int | None = None
) -> Iterator[Mapping[str, np.ndarray]]:
    """Inner tensors, sample by sample.

    Args:
        proto: the network; its constants are not among the names, its inputs may be.
        names: of tensors.
        data: the samples.
        count: so many; all for None.
    """
    inputs = {value.name for value in proto.graph.input}
    inner = [name for name in dict.fromkeys(names) if name not in inputs]
    session = tapped(proto, inner) if inner else None
    for sample in data.samples(count):
        found = {name: sample[name] for name in names if name in inputs}
        if session is not None:
            found |= run_session(session, sample, where="", names=inner)
        for name, value in found.items():
            finite(value, name)
        yield found


def second_moments(channels: Channels, data: Data) -> dict[str, np.ndarray]:
    """The mean square of each channel that a node's weights read: node to float64 [channels]."""
    readers = {cut.node for cut in channels.cuts if cut.role == "reads"}
    return _over(channels, readers, data, 2)


def means(channels: Channels, readers: Collection[str], data: Data) -> dict[str, np.ndarray]:
    """The mean of each channel that some nodes' weights read: node to float64 [channels]."""
    return _over(channels, readers, data, 1)


def _over(
    channels: Channels, readers: Collection[str], data: Data, power: int
) -> dict[str, np.ndarray]:
    """The mean of a power over samples and places."""
    given = {node.name: node.input[0] for node in channels.proto.graph.node if node.name in readers}
    names = sorted(set(given.values()))
    sums: dict[str, np.ndarray] = {}
    count = 0
    for sample in tensors(channels.proto, names, data):
        count += 1
        for name in names:
            rows = np.moveaxis(sample[name].astype(np.float64), channels.along[name].axis, 0)
            mean = (rows.reshape(len(rows), -1) ** power).mean(axis=1)
            sums[name] = sums[name] + mean if name in sums else mean
    return {node: sums[name] / count for node, name in given.items()}
