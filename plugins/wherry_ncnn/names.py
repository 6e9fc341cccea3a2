"""Which ONNX nodes a layer of ncnn's does: found by running both, since pnnx keeps no names.

Model and network run on the same random inputs. A blob stands for an ONNX tensor where both have
the same values, in the same order; that is evidence and no guess. A layer does the nodes that lie
between the tensors that its result stands for and those that other blobs stand for. Layers whose
result stands for no tensor do none that can be named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

    from wherry_ncnn.param import Layer

_INFINITE = 1e30
_OWN = frozenset({"Input", "MemoryData", "Split", "Noop"})
"""Layers that do nothing of the model's."""


@dataclass(frozen=True)
class Names:
    """What is known of a network.

    Attributes:
        tensors: blob to the ONNX tensors that it stands for, in their order.
        nodes: layer to the ONNX nodes that it does, in their order.
        outputs: layer to (ONNX tensor to its blob).
    """

    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def activations(graph: onnx.GraphProto) -> list[str]:
    """The tensors that depend on an input, inputs first."""
    reached = dict.fromkeys(value.name for value in graph.input)
    for node in graph.node:
        if any(name in reached for name in node.input):
            reached.update(dict.fromkeys(name for name in node.output if name))
    return list(reached)


def match(
    graph: onnx.GraphProto,
    tensors: Mapping[str, Sequence[np.ndarray]],
    layers: Sequence[Layer],
    blobs: Mapping[str, Sequence[np.ndarray]],
    most: float,
) -> Names:
    """Find the layers in the model.

    Args:
        graph: of the model, in topological order.
        tensors: the model's float tensors to their values, one array a sample, in the order of
            the nodes that make them.
        layers: of the network.
        blobs: its blobs to their values on the same samples.
        most: the relative error up to which values are the same.
    """
    sources = _sources(layers)
    made = [
        blob
        for layer in layers
        for blob in layer.outputs
        if sources[blob] == blob and blob in blobs
    ]
    ours = {blob: _Values(blobs[blob]) for blob in made}
    theirs = {name: _Values(arrays) for name, arrays in tensors.items()}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, values in theirs.items():
        same = tuple(blob for blob in made if ours[blob].same(values, most))
        if same:
            groups.setdefault(same, []).append(name)
    stands: dict[str, list[str]] = {}
    for same, names in groups.items():
        # Several with the same values: one after the other, on both sides.
        for place, name in enumerate(names):
            stands.setdefault(same[min(place, len(same) - 1)], []).append(name)
    return _named(graph, layers, stands, sources)


def _named(
    graph: onnx.GraphProto,
    layers: Sequence[Layer],
    stands: Mapping[str, Sequence[str]],
    sources: Mapping[str, str],
) -> Names:
    blob_of = {name: blob for blob, names in stands.items() for name in names}
    walk = _Walk(graph, blob_of)
    nodes: dict[str, tuple[str, ...]] = {}
    outputs: dict[str, dict[str, str]] = {}
    for layer in layers:
        if layer.type in _OWN:
            continue
        found = {name: blob for blob in layer.outputs for name in stands.get(blob, ())}
        if found:
            outputs[layer.name] = found
            nodes[layer.name] = walk.claim(found)
    return Names(
        {blob: tuple(stands[source]) for blob, source in sources.items() if source in stands},
        nodes,
        outputs,
    )


def _sources(layers: Iterable[Layer]) -> dict[str, str]:
    """Each blob to the one that it is a copy of."""
    found: dict[str, str] = {}
    for layer in layers:
        for blob in layer.outputs:
            copied = layer.type in {"Split", "Noop"} and len(layer.inputs) == 1
            found[blob] = found[layer.inputs[0]] if copied else blob
    return found


class _Walk:
    """Goes back from results to what other layers made; every node is claimed once."""

    def __init__(self, graph: onnx.GraphProto, blob_of: Mapping[str, str]) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._places = {node.name: place for place, node in enumerate(graph.node)}
        self._reached = set(activations(graph))
        self._blob_of = blob_of
        self._claimed: set[str] = set()

    def claim(self, results: Mapping[str, str]) -> tuple[str, ...]:
        """The nodes between some tensors of one layer and those of others."""
        own, found = set(results.values()), set()
        todo = list(results)
        while todo:
            node = self._makers.get(todo.pop())
            if node is None or node.name in self._claimed:
                continue
            self._claimed.add(node.name)
            found.add(node.name)
            todo += [
                name
                for name in node.input
                if name in self._reached and self._blob_of.get(name) in {None, *own}
            ]
        return tuple(sorted(found, key=self._places.__getitem__))


class _Values:
    """A tensor's values on all samples, and a number that tells most different ones apart."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.shape = tuple(axis for axis in arrays[0].shape if axis != 1)
        self._flat = np.concatenate([array.ravel() for array in arrays]).astype(np.float32)
        # Infinite, or a bound that means it.
        self._infinite = ~(np.abs(self._flat) < _INFINITE)
        zeroed = np.where(self._infinite, 0, self._flat) if self._infinite.any() else self._flat
        self.norm = float(np.linalg.norm(zeroed.astype(np.float64)))
        # What is constant says nothing about where it comes from.
        self.speaks = bool(zeroed.size) and bool(np.ptp(zeroed) > 0)
        self._mark = float(_noise(zeroed.size) @ zeroed)

    def same(self, other: _Values, most: float) -> bool:
        """Whether two are the same up to a relative error; constants never are."""
        if self.shape != other.shape or self._flat.size != other._flat.size:
            return False
        if not (self.speaks and other.speaks):
            return False
        allowed = most * other.norm
        if abs(self._mark - other._mark) > 6 * allowed:  # six standard deviations
            return False
        if not np.array_equal(self._infinite, other._infinite):
            return False
        return error(self._flat, other._flat) <= most


@lru_cache(maxsize=4)
def _noise(size: int) -> np.ndarray:
    """Normal values; always the same."""
    return np.random.default_rng(0).standard_normal(size, np.float32)


def error(value: np.ndarray, wanted: np.ndarray) -> float:
    """The length of the difference over that of what is wanted, where that is finite."""
    value, wanted = value.ravel().astype(np.float64), wanted.ravel().astype(np.float64)
    finite = np.abs(wanted) < _INFINITE
    value, wanted = value[finite], wanted[finite]
    if not np.isfinite(value).all():
        return float("inf")
    return float(np.linalg.norm(value - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))


def unclaimed(graph: onnx.GraphProto, names: Names) -> Iterator[Any]:
    """Nodes that depend on an input and that no layer is known to do, in their order."""
    claimed: Collection[str] = {name for found in names.nodes.values() for name in found}
    reached = set(activations(graph))
    for node in graph.node:
        if reached.intersection(node.output) and node.name not in claimed:
            yield node
