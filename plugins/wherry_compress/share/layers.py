"""The weights of a network by layer, which of them a pass is to change, and writing them back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from wherry.normalise.graph import STANDARD
from wherry_compress.graph.patterns import meant
from wherry_compress.job import Refusal

_WEIGHTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Gather": (0,),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip
_BIASES = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
_CODEBOOK_BITS = 11

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Layer:
    """Weights that are a constant of a node.

    Attributes:
        node: the first node that takes them.
        tensor: name of the initializer.
        values: float32, in ONNX's layout.
    """

    node: onnx.NodeProto
    tensor: str
    values: np.ndarray


class Network:
    """A model whose weights are replaced.

    Args:
        proto: is changed.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.layers = self._found(_WEIGHTS, 2)
        self.biases = self._found({name: (place,) for name, place in _BIASES.items()}, 1)
        if not self.layers:
            raise Refusal(
                "the network has no layer with float32 weights in the file: "
                f"{', '.join(_WEIGHTS)} are looked at",
                remedy="Leave the pass out of this variant.",
            )

    def _found(self, places: Mapping[str, tuple[int, ...]], axes: int) -> list[Layer]:
        found: dict[str, Layer] = {}
        for node in self.proto.graph.node:
            for place in places.get(node.op_type, ()) if node.domain in STANDARD else ():
                name = node.input[place] if place < len(node.input) else ""
                tensor = self._tensors.get(name)
                if tensor is None or name in found or tensor.data_type != tensor.FLOAT:
                    continue
                values = numpy_helper.to_array(tensor)
                if values.ndim >= axes and values.size:
                    found[name] = Layer(node, name, values)
        return list(found.values())

    @property
    def parameters(self) -> int:
        """Numbers in all float32 initializers."""
        return sum(
            int(np.prod(tensor.dims, dtype=np.int64))
            for tensor in self.proto.graph.initializer
            if tensor.data_type == tensor.FLOAT
        )

    def settings(self, usual: Setting, patterns: Mapping[str, Setting]) -> dict[str, Setting]:
        """What holds for each layer, by the name of its node.

        Args:
            usual: for layers that no pattern names.
            patterns: names of nodes, or patterns over them, to what holds there; of several that
                fit, the last.

        Raises:
            Refusal: a pattern names no layer.
        """
        found = {layer.node.name: usual for layer in self.layers}
        for pattern, setting in patterns.items():
            names = meant([pattern], list(found), "layers", "layer with weights")
            found.update(dict.fromkeys(names, setting))
        return found

    def chosen(self, settings: Mapping[str, object], least: int) -> list[Layer]:
        """The layers that are changed: with a setting, and so many weights.

        Raises:
            Refusal: there is none.
        """
        found = [
            layer
            for layer in self.layers
            if settings[layer.node.name] and layer.values.size >= least
        ]
        if not found:
            raise Refusal(
                "no layer is left to be shared: `layers` sets them to 0, or they have fewer than "
                f"{least} weights",
                remedy="Set fewer of `layers` to 0, or lower `least`.",
            )
        return found

    def replace(self, layer: Layer, values: np.ndarray) -> None:
        """Give a layer other weights of the same shape."""
        whole = np.ascontiguousarray(values, np.float32).reshape(layer.values.shape)
        whole = whole + np.float32(0)  # a zero of either sign is one value
        self._tensors[layer.tensor].CopyFrom(numpy_helper.from_array(whole, layer.tensor))

    def round_biases(self, bits: int) -> None:
        """Biases as multiples of one step for all of the network; 0 bits: leave them."""
        if not bits or not self.biases:
            return
        most = max(float(np.abs(layer.values).max()) for layer in self.biases)
        step = np.float32(most / max(1, (1 << (bits - 1)) - 1))
        if step > 0:
            for layer in self.biases:
                self.replace(layer, multiples(np.rint(layer.values / np.float64(step)), step))


def multiples(numbers: np.ndarray, step: np.float32) -> np.ndarray:
    """Multiples of a step, float32, each rounded once: what a container writes as a step."""
    return (numbers * np.float64(step)).astype(np.float32)


def short(values: np.ndarray) -> np.ndarray:
    """Values of a codebook, float32, to 11 bits of the greatest.

    A container writes them in half the bytes, as multiples of a power of two.
    """
    most = float(np.abs(values).max(initial=0))
    if not most:
        return values.astype(np.float32)
    step = 2.0 ** (np.frexp(most)[1] - _CODEBOOK_BITS)
    found: np.ndarray = (np.rint(values / step) * step).astype(np.float32)
    return found


def entropy_bits(values: np.ndarray) -> float:
    """What an ideal code needs for all the indices of some weights, bits."""
    _, counts = np.unique(values, return_counts=True)
    return float(np.sum(counts * (np.log2(values.size) - np.log2(counts))))


def told(
    network: Network, layers: Sequence[Layer], made: Mapping[str, np.ndarray]
) -> dict[str, object]:
    """Figures of what was done.

    Args:
        network: after it.
        layers: that were changed, with their weights as they were.
        made: tensor to its new weights.
    """
    several = Counter(layer.node.name for layer in layers)  # a GRU has weights twice
    rows = {}
    bits = total = 0.0
    for layer in layers:
        values, was = made[layer.tensor], layer.values.astype(np.float64)
        own, power = entropy_bits(values), float(np.sum(was**2))
        bits, total = bits + own, total + values.size
        name = layer.node.name
        rows[f"{name}, {layer.tensor}" if several[name] > 1 else name] = {
            "values": len(np.unique(values)),
            "bits": round(own / values.size, 3),
            "error": round(float(np.sum((values - was) ** 2)) / power, 6) if power else 0.0,
        }
    return {
        "params_before": network.parameters,
        "params_after": network.parameters,
        "shared": int(total),
        "bits_per_weight": round(bits / total, 4),
        "layers": rows,
    }
