"""Whether ONNX Runtime on this machine is faster with a chain: both alone, in turns, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import onnx
from onnx import helper

from wherry.normalise.graph import Graph
from wherry.reference import open_session
from wherry_compress.lowrank.layers import Factor, Layer, Shape, write_chain

_LEAST_GAIN = 0.03  # of the time: less is not told from chance
_ROUNDS, _LEAST_S = 25, 0.0005  # a round is at least so long

HOW = "each layer alone, ONNX Runtime on the host, one thread, medians in ms, in turns"


@dataclass(frozen=True)
class Times:
    """Of one inference, milliseconds.

    Attributes:
        before: the layer.
        after: the chain.
    """

    before: float
    after: float

    @property
    def faster(self) -> bool:
        """The chain is, by more than chance."""
        return self.after < (1 - _LEAST_GAIN) * self.before


def compare(proto: onnx.ModelProto, layer: Layer, shapes: Sequence[Shape]) -> Times:
    """Time a layer and a chain of such links; what weights they have does not matter.

    Args:
        proto: the network, for its opset.
        layer: of it.
        shapes: of the chain.
    """
    generator = np.random.default_rng(0)
    factors = []
    for shape in shapes:
        size = (shape.outputs, shape.inputs // shape.groups, *shape.kernel(layer))
        values = generator.standard_normal(size) / np.sqrt(np.prod(size[1:]))
        factors.append(Factor(values, shape))
    sample = generator.standard_normal(layer.given).astype(np.float32)
    runs = [_runner(alone(proto, layer, chain), sample) for chain in (None, factors)]
    for run in runs:
        run()
    start = time.perf_counter()
    runs[0]()
    each = max(1, int(_LEAST_S / max(time.perf_counter() - start, 1e-7)))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for run, times in zip(runs, taken, strict=True):
            start = time.perf_counter()
            for _ in range(each):
                run()
            times.append((time.perf_counter() - start) / each)
    before, after = (1000 * median(times) for times in taken)
    return Times(before, after)


def alone(proto: onnx.ModelProto, layer: Layer, chain: Sequence[Factor] | None) -> onnx.ModelProto:
    """A network of a layer, or of a chain in its place."""
    node = next(each for each in proto.graph.node if each.name == layer.name)
    used = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name in node.input}
    graph = helper.make_graph(
        [node],
        "alone",
        [helper.make_tensor_value_info(layer.source, onnx.TensorProto.FLOAT, layer.given)],
        [helper.make_empty_tensor_value_info(node.output[0])],
        list(used.values()),
    )
    model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    if chain is not None:
        changed = Graph(model, {})
        write_chain(changed, layer, chain, None)
        changed.drop_unused()
    return model


def _runner(model: onnx.ModelProto, sample: np.ndarray) -> Callable[[], object]:
    session = open_session(model.SerializeToString(), threads=1, where="")
    feeds = {session.get_inputs()[0].name: sample}
    return lambda: session.run(None, feeds)
