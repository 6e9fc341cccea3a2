"""The pass ``int8.bias-correction``: biases make up for what rounded weights shift on average.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2, in its empirical form (appendix D): layer after layer, the mean of each output channel
on the calibration data, with the weights of this layer and of all before it rounded and their
biases corrected, is brought back to what it is in the float network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.normalise.graph import Graph, attributes
from wherry_compress.graph.taps import finite, tapped
from wherry_compress.int8.weighted import Weighted, find, set_constant
from wherry_compress.job import Data, Done, Job, Refusal

if TYPE_CHECKING:
    import onnx


def apply(job: Job) -> Done:
    """The network with other biases; its weights are as they were."""
    graph, rounded = Graph(job.load(), {}), Graph(job.load(), {})
    layers, left = find(graph)
    able = []
    for layer in layers:
        if why := _fixed(graph, layer):
            left[layer.name] = why
        else:
            able.append(layer)
    if not able:
        raise Refusal(
            "there is no layer with a bias to correct: it takes Conv or Gemm nodes with constant "
            "weights"
        )
    data, count = job.data["calibration"], job.parameters["samples"]
    wanted = _means(graph.proto, [layer.result for layer in able], data, count)
    for layer in layers:
        set_constant(rounded, layer.tensor, layer.real(layer.whole()))
    shifts = []
    for layer in able:
        found = _means(rounded.proto, [layer.result], data, count)[layer.result]
        shift = found - wanted[layer.result]
        for each in (graph, rounded):
            _add(each, layer, -shift)
        spread = max(float(np.sqrt((wanted[layer.result] ** 2).mean())), 1e-30)
        shifts.append({"node": layer.name, "shift": round(float(np.abs(shift).max() / spread), 6)})
    figures = {"corrected": len(able), "layers": shifts[:60], "left": _told(left)}
    return Done(graph.proto, figures)


def _told(left: dict[str, str]) -> list[dict[str, str]]:
    return [{"node": name, "why": why} for name, why in left.items()][:60]


def _fixed(graph: Graph, layer: Weighted) -> str:
    """Why a layer's bias cannot be changed; empty: it can."""
    node = graph.nodes[layer.name]
    if layer.kind == "MatMul":
        return "a MatMul has no bias"
    if attributes(node).get("beta", 1.0) != 1.0:
        return "it has a factor beta"
    bias = graph.value(node, 2)
    if len(node.input) > 2 and node.input[2]:
        if bias is None or bias.dtype != np.float32:
            return "its bias is computed"
        if bias.size not in {1, layer.weights.shape[layer.axis]}:
            return "its bias is not one number a channel"
    elif layer.kind == "Gemm" and graph.opset < 11:
        return "it has no bias"
    return ""


def _means(
    proto: onnx.ModelProto, tensors: list[str], data: Data, count: int
) -> dict[str, np.ndarray]:
    """The mean of each channel, [channels], of tensors [batch, channels, ...]."""
    session = tapped(proto, tensors)
    sums: dict[str, Any] = {}
    samples = 0
    for sample in data.samples(count):
        samples += 1
        for name, value in zip(tensors, session.run(tensors, sample), strict=True):
            axes = tuple(axis for axis in range(value.ndim) if axis != 1)
            sums[name] = sums.get(name, 0.0) + value.astype(np.float64).mean(axis=axes)
    if not samples:
        raise Refusal("there is no sample to correct by", remedy="Give data with samples.")
    for name, total in sums.items():
        finite(total, name)
    return {name: np.asarray(total / samples) for name, total in sums.items()}


def _add(graph: Graph, layer: Weighted, change: np.ndarray) -> None:
    """Add to a layer's bias, [channels]; a bias that others read becomes one of its own."""
    node = graph.nodes[layer.name]
    old = graph.value(node, 2)
    bias = (change if old is None else old.reshape(-1).astype(np.float64) + change).astype("f4")
    name = node.input[2] if len(node.input) > 2 else ""
    if name and len(graph.takers[name]) == 1 and old is not None and old.shape == bias.shape:
        set_constant(graph, name, bias)
        return
    del node.input[2:]
    node.input.append(graph.constant(f"{layer.result}/bias", bias))
    graph.refresh()
