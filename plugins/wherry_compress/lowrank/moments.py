"""What a layer takes on the calibration data: mean and covariance of its patches.

A patch is what one result of a layer sums over, [inputs, *kernel], flat. With the covariance C of
patches, a kernel W and another one V differ in their results by tr((W - V) C (W - V)^T) on average,
when the bias makes up for the mean: all that data tells of a reconstruction stands in C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry_compress.graph.patches import drawn
from wherry_compress.graph.taps import finite, tapped
from wherry_compress.job import Data, Refusal

if TYPE_CHECKING:
    import onnx

    from wherry_compress.lowrank.layers import Layer

_LEAST = 3000  # patches of a layer
_MOST = 9000
_RIDGE = 1e-3  # of the mean variance: what few patches did not show is not worth nothing


@dataclass(frozen=True)
class Moments:
    """Of the patches of a layer.

    Attributes:
        mean: float64 [values of a patch]; zeros where the layer's bias cannot make up for it.
        covariance: float64, about that mean, with a little added on its diagonal.
    """

    mean: np.ndarray
    covariance: np.ndarray


def measure(
    proto: onnx.ModelProto, layers: Sequence[Layer], data: Data, seed: int
) -> Iterator[tuple[Layer, Moments]]:
    """The moments of each layer, from patches at places that are drawn by chance.

    Args:
        proto: the network of the layers.
        layers: of it.
        data: samples; all are run.
        seed: of the draw.

    Raises:
        Refusal: there are no samples, or values that are not finite.
    """
    patches = collect(proto, layers, data, seed)
    for layer in layers:
        yield layer, _moments(layer, np.concatenate(patches.pop(layer.name)))


def collect(
    proto: onnx.ModelProto, layers: Sequence[Layer], data: Data, seed: int
) -> dict[str, list[np.ndarray]]:
    """Patches [patches, values] of each layer by its name, a part for each sample."""
    count = len(data)
    if not count:
        raise Refusal("there is no sample to reconstruct by", remedy="Give data with samples.")
    sources = list(dict.fromkeys(layer.source for layer in layers))
    inner = [name for name in sources if name not in {value.name for value in proto.graph.input}]
    session = tapped(proto, inner) if inner else None
    generator = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    for sample in data.samples():
        values: Mapping[str, np.ndarray] = sample
        if session is not None:
            values = {**sample, **dict(zip(inner, session.run(inner, sample), strict=True))}
        for layer in layers:
            size = layer.weights[0].size
            each = -(-min(max(_LEAST, 2 * size), _MOST) // count)
            part = drawn(values[layer.source], layer.window, each, generator)
            finite(part, layer.source)
            found[layer.name].append(part)
    return found


def _moments(layer: Layer, patches: np.ndarray) -> Moments:
    size = patches.shape[1]
    kind: type[Any] = np.float64 if size < 1500 else np.float32  # half the memory and time
    values: np.ndarray = patches.astype(kind)
    mean = values.mean(axis=0) if layer.intercept else np.zeros(size, values.dtype)
    values = values - mean
    covariance = (values.T @ values).astype(np.float64) / len(values)
    spread = float(np.trace(covariance)) / size
    covariance[np.diag_indices(size)] += _RIDGE * spread if spread > 0 else 1.0
    return Moments(mean.astype(np.float64), covariance)
