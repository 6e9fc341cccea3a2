"""How much each weight matters: a diagonal of the Fisher information, estimated without gradients.

For a weight between input x and output y of a layer, the diagonal is the mean of (dL/dy x)^2. The
part of the input is measured: the mean square of x on the calibration data. The part of the output
is one figure a layer: noise is added to y, and what comes out of the network differs by so much, as
a share of the noise (Kronecker's form, as in Martens and Grosse, "K-FAC", 2015, with all outputs of
a layer alike). All weights of a kernel that meet the same channel matter alike. What a true
gradient would tell beyond that, between the output channels of a layer, is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from wherry.normalise.graph import attributes
from wherry_compress.graph.taps import tapped
from wherry_compress.job import Job, Refusal
from wherry_compress.share.layers import Layer, Network

_SAMPLES = 32
_NOISE = 0.05  # of the root mean square of what a layer gives
_TAPPED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def importances(network: Network, job: Job) -> dict[str, np.ndarray]:
    """For the tensors of convolutions and dense layers, each weight's importance; float64.

    They can be compared between layers. Of other layers nothing is said.
    """
    samples = list(job.data["calibration"].samples(_SAMPLES))
    layers = [layer for layer in network.layers if layer.node.op_type in _TAPPED]
    layers = [layer for layer in layers if layer.tensor == layer.node.input[1]]
    squares = _squares(network.proto, layers, samples)
    outputs = [value.name for value in network.proto.graph.output]
    wanted = list(values_of(network.proto, outputs, samples))
    found = {}
    for layer in layers:
        inputs, given = squares[layer.tensor]
        gain = _gain(network.proto, layer, given, samples, wanted)
        found[layer.tensor] = gain * _spread(layer, inputs)
    if not any(importance.any() for importance in found.values()):
        raise Refusal(
            "the calibration data say nothing of the weights: no layer's input, or no change of "
            "it, reaches the outputs",
            remedy="Use other samples, or leave `fisher` out.",
        )
    least = min(float(each[each > 0].min()) for each in found.values() if each.any())
    return {name: np.maximum(each, least * 1e-3) for name, each in found.items()}


def _squares(
    proto: onnx.ModelProto, layers: list[Layer], samples: list[dict[str, np.ndarray]]
) -> dict[str, tuple[np.ndarray, float]]:
    """For each tensor: sums of x^2 by the channel that a weight meets, and the mean of y^2."""
    names = list(dict.fromkeys(n for each in layers for n in (each.node.input[0], _output(each))))
    found: dict[str, tuple[np.ndarray, float]] = {}
    inputs = {value.name for value in proto.graph.input}
    for sample, values in zip(samples, values_of(proto, names, samples), strict=True):
        for layer in layers:
            name = layer.node.input[0]
            x = sample[name] if name in inputs else values[name]
            axis = 1 if layer.node.op_type in {"Conv", "ConvTranspose"} else x.ndim - 1
            if layer.node.op_type == "Gemm" and attributes(layer.node).get("transA", 0):
                axis = 0
            rest = tuple(index for index in range(x.ndim) if index != axis)
            square = np.sum(np.square(x, dtype=np.float64), axis=rest)
            y = float(np.mean(np.square(values[_output(layer)], dtype=np.float64)))
            before, power = found.get(layer.tensor, (0.0, 0.0))
            found[layer.tensor] = (before + square / len(samples), power + y / len(samples))
    return found


def _gain(
    proto: onnx.ModelProto,
    layer: Layer,
    power: float,
    samples: list[dict[str, np.ndarray]],
    wanted: list[dict[str, np.ndarray]],
) -> float:
    """The mean square of the derivatives of what the network gives by what a layer gives."""
    if power <= 0:
        return 0.0
    noisy = onnx.ModelProto()
    noisy.CopyFrom(proto)
    name = _output(layer)
    scale = _NOISE * float(np.sqrt(power))
    clean, noise = f"{name}/wherry/clean", f"{name}/wherry/noise"
    place = next(i for i, n in enumerate(noisy.graph.node) if n.output and n.output[0] == name)
    noisy.graph.node[place].output[0] = clean
    added = [
        onnx.helper.make_node("RandomNormalLike", [clean], [noise], scale=scale, seed=1.0),
        onnx.helper.make_node("Add", [clean, noise], [name]),
    ]
    rest = list(noisy.graph.node)[place + 1 :]
    del noisy.graph.node[place + 1 :]
    noisy.graph.node.extend([*added, *rest])
    outputs = [value.name for value in proto.graph.output]
    change, size = 0.0, 1
    for found, clean_outputs in zip(
        values_of(noisy, [*outputs, clean], samples), wanted, strict=True
    ):
        size = found[clean].size
        for output in outputs:
            if clean_outputs[output].dtype.kind == "f":
                difference = found[output].astype(np.float64) - clean_outputs[output]
                change += float(np.sum(difference**2))
    return change / len(samples) / scale**2 / size


def _spread(layer: Layer, squares: np.ndarray) -> np.ndarray:
    """The input's part for each weight, in the layout of the weights."""
    shape, kind = layer.values.shape, layer.node.op_type
    kernel = (1,) * (len(shape) - 2)
    if kind == "Conv":  # [out, in / groups, *kernel]
        groups = attributes(layer.node).get("group", 1)
        grouped = squares.reshape(groups, shape[1])
        rows = np.repeat(grouped, shape[0] // groups, axis=0)
        return np.broadcast_to(rows.reshape(shape[:2] + kernel), shape)
    if kind == "ConvTranspose":  # [in, out / groups, *kernel]
        return np.broadcast_to(squares.reshape(-1, 1, *kernel), shape)
    if kind == "Gemm" and attributes(layer.node).get("transB", 0):
        return np.broadcast_to(squares, shape)
    return np.broadcast_to(squares[:, None], shape)


def _output(layer: Layer) -> str:
    return str(layer.node.output[0])


def values_of(
    proto: onnx.ModelProto, names: list[str], samples: list[dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """The values of some tensors for each sample."""
    inputs = {value.name for value in proto.graph.input}
    asked = [name for name in names if name not in inputs]
    session = tapped(proto, asked, as_written=True)
    feeds = {value.name for value in session.get_inputs()}
    for sample in samples:
        given: Mapping[str, np.ndarray] = {k: v for k, v in sample.items() if k in feeds}
        yield dict(zip(asked, session.run(asked, given), strict=True))
