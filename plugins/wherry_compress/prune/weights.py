"""The pass ``prune.weights``: the weights that are smallest become zero; no shape changes.

By size, in each node, over the whole network, or as much as each node bears; or in a pattern: of
any M neighbours along the inputs N stay, the largest (2:4 is what sparse tensor cores take). Biases
stay. A runtime that does not look for zeros computes them like other numbers.

By magnitude: Han et al., "Learning both weights and connections for efficient neural networks",
NeurIPS 2015. N:M: Mishra et al., "Accelerating sparse deep neural networks", arXiv:2104.08378.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from wherry.normalise.graph import Graph, attributes
from wherry.parity import compare
from wherry_compress.graph import sharing
from wherry_compress.graph.patterns import matching, meant
from wherry_compress.job import Data, Done, Job, Refusal
from wherry_compress.prune.runs import outputs

LEVELS = (0.3, 0.5, 0.7, 0.9)
"""Shares of one node's weights that become zero to see what happens to the outputs."""

_STEPS = 100  # into which a node's weights are parted for an allocation by sensitivity


def apply(job: Job) -> Done:
    """The network with zeros; its figures are how many, and where."""
    about = job.parameters
    proto = job.load()
    copies = sharing.unshare(proto)
    every = _weights(proto)
    wanted = _wanted(every, about)
    told: dict[str, Any] = {}
    if about["pattern"] is not None:
        keep, of = map(int, about["pattern"].split(":"))
        changed = {name: patterned(every[name], keep, of) for name in wanted}
    else:
        shares = _listed(about["ratios"], wanted)
        if about["sparsity"] is not None:
            rest = [name for name in wanted if name not in shares]
            shares |= _shares(job, proto, {n: every[n] for n in rest}, told)
        changed = {name: zeroed(every[name].array, share) for name, share in shares.items()}
    if not any((array == 0).any() for array in changed.values()):
        raise Refusal(
            f"no weight would become zero: the nodes are {', '.join(list(changed)[:5])}, and a "
            "pattern needs as many inputs as it has places",
            remedy="Ask for a higher sparsity or a shorter pattern, or leave the pass out.",
        )
    by_tensor = {every[name].tensor: array for name, array in changed.items()}
    for tensor in proto.graph.initializer:
        if tensor.name in by_tensor:
            tensor.CopyFrom(numpy_helper.from_array(by_tensor[tensor.name], tensor.name))
    sharing.reshare(proto, copies)
    sizes = {name: array.size for name, array in changed.items()}
    zeros = {name: int((array == 0).sum()) for name, array in changed.items()}
    shown = sorted(sizes, key=lambda name: -sizes[name])[:12]
    figures = {
        "weights": sum(sizes.values()),
        "zeros": sum(zeros.values()),
        "sparsity": sum(zeros.values()) / max(1, sum(sizes.values())),
        "nodes": {name: round(zeros[name] / sizes[name], 4) for name in shown},
        **told,
    }
    return Done(proto, figures)


class Weights:
    """Of one node.

    Attributes:
        tensor: the constant's name.
        array: its values.
        inputs: the axis of what is summed over first: a Conv's input channels.
        kernel: elements of a Conv's kernel; 1 for a matrix.
    """

    def __init__(self, node: onnx.NodeProto, array: np.ndarray) -> None:
        self.tensor, self.array = node.input[1], array
        turned = node.op_type == "Gemm" and attributes(node).get("transB", 0)
        self.inputs = 1 if node.op_type == "Conv" or turned else 0
        self.kernel = int(np.prod(array.shape[2:])) if node.op_type.startswith("Conv") else 1
        self.is_convolution = node.op_type.startswith("Conv")


def _weights(proto: onnx.ModelProto) -> dict[str, Weights]:
    """Node to its weights, where they are constants of floats."""
    graph = Graph(proto, {})
    found = {}
    for node in proto.graph.node:
        array = graph.value(node, 1)
        known = node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}
        if known and array is not None and array.dtype.kind == "f" and array.ndim > 1:
            found[node.name] = Weights(node, array)
    return found


def _wanted(every: Mapping[str, Weights], about: Mapping[str, Any]) -> list[str]:
    """The nodes that may lose weights."""
    names = list(every)
    kept = meant(about["exclude"], names, "exclude", "node with weights")
    found = [name for name in names if name not in kept]
    if about["only"] == "1x1":
        found = [name for name in found if every[name].is_convolution and every[name].kernel == 1]
    if not found:
        raise Refusal(
            "there are no constant weights to make zero" + (" in convolutions of 1x1"
            if about["only"] else "") + f"; nodes with weights: {', '.join(names[:5]) or 'none'}",
            remedy="Exclude less, or leave the pass out.",
        )  # fmt: skip
    return found


def _listed(ratios: Mapping[str, float], names: list[str]) -> dict[str, float]:
    """Nodes to shares that are said."""
    found: dict[str, float] = {}
    for pattern, matched in matching(ratios, names, "ratios", "node with weights").items():
        for name in matched:
            found.setdefault(name, ratios[pattern])
    return found


def _shares(
    job: Job,
    proto: onnx.ModelProto,
    every: Mapping[str, Weights],
    told: dict[str, Any],
) -> dict[str, float]:
    """Nodes to the shares of their weights that become zero."""
    about = job.parameters
    share = about["sparsity"]
    if about["allocation"] == "uniform" or not every:
        return dict.fromkeys(every, share)
    if about["allocation"] == "global":
        sizes = np.concatenate([np.abs(each.array).reshape(-1) for each in every.values()])
        gone = np.zeros(sizes.size, bool)
        gone[np.argsort(sizes, kind="stable")[: round(share * sizes.size)]] = True
        ends = np.cumsum([each.array.size for each in every.values()])[:-1]
        parts = zip(every, np.split(gone, ends), strict=True)
        return {name: float(part.mean()) for name, part in parts}
    rows = table(proto, every, job.data["calibration"], about["samples"])
    worst = sorted(rows, key=lambda name: list(rows[name]))[:12]
    told["sensitivity_db"] = {name: [round(value, 1) for value in rows[name]] for name in worst}
    return by_sensitivity(rows, {name: w.array.size for name, w in every.items()}, share)


def table(
    proto: onnx.ModelProto, every: Mapping[str, Weights], data: Data, samples: int
) -> dict[str, list[float]]:
    """Node to the signal-to-noise ratio of the outputs, dB, at each of `LEVELS` in it alone."""
    reference = outputs(proto, data, samples)
    rows: dict[str, list[float]] = {}
    for name, weights in every.items():
        rows[name] = []
        for level in LEVELS:
            trial = onnx.ModelProto()
            trial.CopyFrom(proto)
            tensor = next(t for t in trial.graph.initializer if t.name == weights.tensor)
            values = zeroed(weights.array, level)
            tensor.CopyFrom(numpy_helper.from_array(values, weights.tensor))
            rows[name].append(compare(outputs(trial, data, samples), reference).sqnr_db)
    return rows


def by_sensitivity(
    rows: Mapping[str, list[float]], sizes: Mapping[str, int], share: float
) -> dict[str, float]:
    """As many zeros as are wanted over all, always where the next ones add the least error.

    Args:
        rows: see `table`.
        sizes: node to its weights' count.
        share: of all weights.
    """
    curves = {}
    for name, row in rows.items():
        noise = np.maximum.accumulate([0.0, *(10 ** (-np.array(row) / 10))])
        grid = np.arange(_STEPS) / _STEPS
        last = noise[-1] + (noise[-1] - noise[-2])
        curves[name] = np.interp(grid, [0.0, *LEVELS, 1.0], [*noise, last])
    steps = dict.fromkeys(rows, 0)
    left = share * sum(sizes[name] for name in rows)
    while left > 0:
        open_ = [name for name in rows if steps[name] < _STEPS - 1]
        if not open_:
            break
        best = min(
            open_,
            key=lambda n: (curves[n][steps[n] + 1] - curves[n][steps[n]]) / max(1, sizes[n]),
        )
        steps[best] += 1
        left -= sizes[best] / _STEPS
    return {name: count / _STEPS for name, count in steps.items() if count}


def zeroed(array: np.ndarray, share: float) -> np.ndarray:
    """The smallest become zero, so many of all; of equals the first."""
    count = round(share * array.size)
    found = array.copy()
    found.reshape(-1)[np.argsort(np.abs(array).reshape(-1), kind="stable")[:count]] = 0
    return found


def patterned(weights: Weights, keep: int, of: int) -> np.ndarray:
    """Of any ``of`` neighbours along the inputs the largest ``keep`` stay.

    What is left over at the end, fewer than ``of``, stays as it is.
    """
    moved = np.moveaxis(weights.array, weights.inputs, -1)
    whole = moved.shape[-1] // of * of
    blocks = moved[..., :whole].reshape(*moved.shape[:-1], -1, of).copy()
    order = np.argsort(-np.abs(blocks), axis=-1, kind="stable")
    np.put_along_axis(blocks, order[..., keep:], 0, axis=-1)
    found = moved.copy()
    found[..., :whole] = blocks.reshape(*moved.shape[:-1], whole)
    return np.ascontiguousarray(np.moveaxis(found, -1, weights.inputs))
