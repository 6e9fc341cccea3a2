"""The pass ``equalize``: the channels of a tensor span alike, so that one scale suits them all.

An int8 activation has one scale, that of its widest channel, and a channel that spans a tenth of
it is left with a tenth of the steps. Between convolutions a channel can be scaled for nothing: its
weights in what makes it are divided by a factor, those in what reads it are multiplied. Sums,
pools, Relu and LeakyRelu pass a positive factor through; everything else (Clip, Sigmoid) does not.

After "Data-Free Quantization Through Weight Equalization and Bias Correction" (Nagel et al. 2019,
section 4.1), which balances the spans of weights before and behind. Here weights have a scale for
each output channel, so that the spans of the activations alone count, and they are measured: the
factor is a channel's greatest |x| on the samples over that of the widest channel.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from wherry.reference import run_session
from wherry_compress.graph.taps import finite, prove, tapped
from wherry_compress.job import Data, Done, Job

_PASSING = {"Add", "AveragePool", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity"} | {
    "LeakyRelu", "MaxPool", "Relu", "Sum"
}  # fmt: skip
_LEAST = 1 / 32  # factor; a channel that the samples hardly showed is not clipped at once
_CLOSE = 1e-3  # of an output's root mean square

NOTHING = (
    "equalize found nothing to scale: it needs convolutions with nothing between them but sums, "
    "pools and Relu"
)

Group = frozenset[str]
"""Tensors whose channels are scaled alike."""


def apply(job: Job) -> Done:
    """The equalised model; its figures are the tensors that were scaled."""
    original, samples = job.load(), job.data["calibration"]
    network = Network(original)
    groups = network.groups()
    spans = measure(original, sorted(set().union(*groups)), samples) if groups else {}
    for group in groups:
        span = np.max([spans[name] for name in group], axis=0)
        if span.max() > 0:
            network.scale(group, np.maximum(span / span.max(), _LEAST).astype(np.float32))
    changed = network.written()
    prove(original, changed, samples, close=_CLOSE, remedy="Leave the pass out.")
    warnings = () if groups else (NOTHING,)
    return Done(changed, {"tensors": sorted(set().union(*groups))}, warnings)


class Network:
    """A graph, and who makes and reads each of its tensors."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = onnx.ModelProto()
        self._proto.CopyFrom(proto)
        graph = self._proto.graph
        self._weights = {t.name: numpy_helper.to_array(t).copy() for t in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._fixed = {value.name for value in graph.output}  # outputs, and what subgraphs read
        for node in graph.node:
            for name in filter(None, node.input):
                self._readers.setdefault(name, []).append(node)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self._fixed |= _names(attribute.g)
        self._shapes = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
        }

    def groups(self) -> list[Group]:
        """All groups that can be scaled, in the order of the graph."""
        found: list[Group] = []
        seen: set[str] = set()
        for name in self._makers:
            if name not in seen:
                group, whole = self._around(name)
                seen |= group
                if whole:
                    found.append(group)
        return found

    def _around(self, name: str) -> tuple[Group, bool]:
        """The tensors whose channels are this one's; and whether all of them may be scaled."""
        group: set[str] = set()
        waiting, whole = [name], True
        while waiting:
            tensor = waiting.pop()
            if tensor in group:
                continue
            group.add(tensor)
            maker = self._makers.get(tensor)
            if maker is None or tensor in self._fixed:
                whole = False
                continue
            if maker.op_type in _PASSING and list(filter(None, maker.output)) == [tensor]:
                waiting += [each for each in maker.input if each and each not in self._weights]
                whole &= not any(each in self._weights for each in maker.input)
            else:
                whole &= self._scales(maker)
            for reader in self._readers.get(tensor, []):
                if reader.op_type in _PASSING:
                    waiting.append(reader.output[0])
                else:
                    whole &= reader.input[0] == tensor and self._scales(reader, read=True)
        sizes = {tuple(self._shapes.get(each, ())[1:2]) for each in group}
        ranks = {len(self._shapes.get(each, ())) for each in group}
        return frozenset(group), whole and len(sizes) == len(ranks) == 1 and sizes != {()}

    def _scales(self, node: onnx.NodeProto, *, read: bool = False) -> bool:
        """Whether the channels that a node gives, or reads, can be scaled by its weights."""
        if node.op_type not in {"Conv", "Gemm"} or node.domain not in {"", "ai.onnx"}:
            return False
        names = [name for name in node.input[1:] if name]
        constant = all(name in self._weights and len(self._readers[name]) == 1 for name in names)
        if not constant or any(self._weights[name].dtype != np.float32 for name in names):
            return False
        weights = self._weights[node.input[1]]
        about = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Gemm":
            bias = [self._weights[name] for name in names[1:]]
            plain = about.get("transA", 0) == 0 and about.get("transB", 0) == 1
            return plain and all(each.shape == weights.shape[:1] for each in bias)
        return not read or about.get("group", 1) == 1 or weights.shape[1] == 1

    def scale(self, group: Group, factors: np.ndarray) -> None:
        """Divide the channels of a group's tensors by factors above 0, [channels]."""
        for name in group:
            maker = self._makers[name]
            if maker.op_type not in _PASSING:
                for each in filter(None, maker.input[1:]):
                    values = self._weights[each]
                    values /= factors.reshape(-1, *[1] * (values.ndim - 1))
            for reader in self._readers.get(name, []):
                if reader.op_type in _PASSING:
                    continue
                values = self._weights[reader.input[1]]
                inner = values.shape[1] == 1 and len(factors) > 1  # a depthwise convolution
                if inner:
                    each_output = np.repeat(factors, values.shape[0] // len(factors))
                    values *= each_output.reshape(-1, *[1] * (values.ndim - 1))
                else:
                    values *= factors.reshape(1, -1, *[1] * (values.ndim - 2))

    def written(self) -> onnx.ModelProto:
        """The model with the weights as they are now."""
        graph = self._proto.graph
        for tensor in graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(self._weights[tensor.name], tensor.name))
        return self._proto


def measure(proto: onnx.ModelProto, tensors: Iterable[str], data: Data) -> dict[str, np.ndarray]:
    """The greatest |x| of each channel over all samples, [channels]."""
    names = list(tensors)
    session = tapped(proto, names, as_written=True)
    spans: dict[str, np.ndarray] = {}
    for sample in data.samples():
        for name, value in run_session(session, sample, where="").items():
            axes = tuple(axis for axis in range(value.ndim) if axis != 1)
            span = np.abs(value).max(axis=axes)
            spans[name] = np.maximum(spans[name], span) if name in spans else span
    for name, span in spans.items():
        finite(span, name)
    return spans


def _names(graph: onnx.GraphProto) -> set[str]:
    """All names in a graph and those inside of its nodes."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _names(attribute.g)
    return found
