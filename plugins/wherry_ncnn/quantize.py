"""Writes the int8 form of a network: what ncnn's own ``ncnn2int8`` does with a table of scales.

Convolutions, depthwise ones and inner products are computed in int8, with a scale for each output
channel's weights (for each group's, where the convolution has groups) and one for the input; all
else stays in float32. An activation's whole number is ``round(x * scale)``, held within -127 and
127; weights are rounded as `wherry.quantize.weights` says. Where the only reader of a convolution's
result is another convolution in int8, the result is written in the reader's whole numbers (100 is
added to the scale term), and no float tensor lies between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from wherry.quantize.weights import quantise_weight
from wherry_ncnn.weights import INT8, Weight

if TYPE_CHECKING:
    import numpy as np

    from wherry_ncnn.param import Layer

Winograd = Literal["six_bits", "eight_bits", "off"]
"""How 3x3 convolutions that ncnn may do by Winograd's algorithm are quantised."""

LAYERS = frozenset({"Convolution", "ConvolutionDepthWise", "InnerProduct"})
"""Those that ncnn computes in int8 by a scale of the input that is known in advance."""

_CONVOLUTIONS = frozenset({"Convolution", "ConvolutionDepthWise"})
_SCALE_TERM, _FEATURES = 8, 31  # keys
_NO_WINOGRAD = 1 << 6  # in the features that a layer does without
_FUSED = 100
_MOST, _MOST_SIX_BITS = 127, 31


@dataclass(frozen=True)
class Quantised:
    """A network in int8.

    Attributes:
        layers: of it.
        weights: of its layers.
        table: layer to (scales of its weights, scale of its input).
        whole: blob to the scale of the whole numbers in it, of those that hold some.
    """

    layers: tuple[Layer, ...]
    weights: Mapping[str, Sequence[Weight]]
    table: Mapping[str, tuple[np.ndarray, float]] = field(default_factory=dict)
    whole: Mapping[str, float] = field(default_factory=dict)


def quantise(
    layers: Sequence[Layer],
    weights: Mapping[str, Sequence[Weight]],
    thresholds: Mapping[str, float],
    winograd: Winograd,
) -> Quantised:
    """Quantise some layers of a network.

    Args:
        layers: of a network in float32.
        weights: of its layers.
        thresholds: layers that become int8, to the greatest |x| of their input.
        winograd: see `Winograd`.
    """
    inputs = {name: _MOST / threshold for name, threshold in thresholds.items() if threshold > 0}
    table: dict[str, tuple[np.ndarray, float]] = {}
    made = dict(weights)
    for layer in layers:
        if layer.name in inputs:
            scales = _weight_scales(layer, weights[layer.name][0].values, _most(layer, winograd))
            table[layer.name] = (scales, inputs[layer.name])
    fused = _fused(layers, table)
    changed = []
    for layer in layers:
        if layer.name not in table:
            changed.append(layer)
            continue
        scales, scale = table[layer.name]
        outputs = [fused[layer.name]] if layer.name in fused else []
        whole_weights = _whole(layer, weights[layer.name][0].values, scales, _most(layer, winograd))
        made[layer.name] = _arrays(weights[layer.name], whole_weights, scales, [scale, *outputs])
        term = (1 if layer.type == "ConvolutionDepthWise" else 2) + _FUSED * len(outputs)
        parameters = {**layer.parameters, _SCALE_TERM: term}
        if winograd == "off" and may_be_winograd(layer):
            parameters[_FEATURES] = _NO_WINOGRAD
        changed.append(replace(layer, parameters=parameters))
    whole = {layer.outputs[0]: fused[layer.name] for layer in layers if layer.name in fused}
    return Quantised(tuple(changed), made, table, whole)


def may_be_quantised(layer: Layer, weights: Mapping[str, Sequence[Weight]]) -> bool:
    """Whether ncnn can compute a layer in int8; not where its weights are an input."""
    return layer.type in LAYERS and layer.name in weights and len(layer.inputs) == 1


def breaks_in_int8(layer: Layer) -> bool:
    """Whether ncnn's int8 kernel of a layer reads beyond its weights.

    Seen in ncnn 20261020 on x86: a grouped convolution that is not depthwise, whose groups have
    outputs in multiples of 8, gives NaN or noise, unless its sums go straight to another int8
    convolution. 4, 6 and 12 outputs a group are right.
    """
    outputs, groups = (int(layer.parameters.get(key, 1)) for key in (0, 7))  # type: ignore[arg-type] # no array stands there
    return layer.type == "ConvolutionDepthWise" and outputs // max(1, groups) % 8 == 0


def may_be_winograd(layer: Layer) -> bool:
    """Whether a convolution is 3x3, with a stride and a dilation of 1."""
    get = layer.parameters.get
    return layer.type == "Convolution" and all(
        (get(key, default), get(key + 10, get(key, default))) == (wanted, wanted)
        for key, default, wanted in ((1, 0, 3), (2, 1, 1), (3, 1, 1))
    )


def _most(layer: Layer, winograd: Winograd) -> int:
    """The greatest whole number of a layer's weights."""
    return _MOST_SIX_BITS if winograd == "six_bits" and may_be_winograd(layer) else _MOST


def _weight_scales(layer: Layer, values: np.ndarray, most: int) -> np.ndarray:
    """For every output channel or group: whole numbers to one of the weights' own."""
    import numpy as np

    get = layer.parameters.get
    rows = int(get(7, 1) if layer.type == "ConvolutionDepthWise" else get(0, 0))  # type: ignore[arg-type] # no array stands there
    greatest = np.abs(values.reshape(rows, -1)).max(axis=1).astype(np.float32)
    # Weights that are all zero stay so by any scale.
    scales: np.ndarray = np.where(
        greatest > 0, np.float32(most) / np.where(greatest > 0, greatest, 1), 1
    )
    return scales.astype(np.float32)


def _whole(layer: Layer, values: np.ndarray, scales: np.ndarray, most: int) -> np.ndarray:
    """A layer's weights in int8, in their order."""
    width = int(layer.parameters.get(1, 1)) if layer.type in _CONVOLUTIONS else 1  # type: ignore[arg-type] # no array stands there
    height = int(layer.parameters.get(11, width)) if layer.type in _CONVOLUTIONS else 1  # type: ignore[arg-type] # nor there
    rows = values.reshape(len(scales), -1, width * height)
    return quantise_weight(rows, 1 / scales.astype("f8"), 0, most).ravel()


def _arrays(
    weights: Sequence[Weight], whole: np.ndarray, scales: np.ndarray, others: list[float]
) -> tuple[Weight, ...]:
    import numpy as np

    added = [scales, *(np.array([scale], np.float32) for scale in others)]
    return (Weight(whole, INT8), *weights[1:], *map(Weight, added))


def _fused(
    layers: Sequence[Layer], table: Mapping[str, tuple[np.ndarray, float]]
) -> dict[str, float]:
    """Convolutions that write whole numbers for the next one, to the scale of these."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        for blob in layer.inputs:
            readers.setdefault(blob, []).append(layer)
    found = {}
    for layer in layers:
        if layer.name not in table or layer.type not in _CONVOLUTIONS:
            continue
        reading = readers.get(layer.outputs[0], [])
        if len(reading) == 1 and reading[0].type in _CONVOLUTIONS and reading[0].name in table:
            found[layer.name] = table[reading[0].name][1]
    return found


def table_text(table: Mapping[str, tuple[np.ndarray, float]]) -> str:
    """The scales in the form of ncnn's own tools (``ncnn2table``, ``ncnn2int8``)."""
    weights = [f"{name}_param_0 {_numbers(scales)}" for name, (scales, _) in table.items()]
    inputs = [f"{name} {_numbers([scale])}" for name, (_, scale) in table.items()]
    return "\n".join([*weights, *inputs]) + "\n"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:f}" for value in values)
