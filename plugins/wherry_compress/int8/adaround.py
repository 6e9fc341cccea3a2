"""The pass ``int8.adaround``: weights go up or down on the grid of int8 as their layer wants it.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": layer after
layer, each weight is its floor on the grid plus h(V) between 0 and 1 (the rectified sigmoid, eq.
23), and V is learned by Adam, so that the layer, activation included, gives on what the rounded
network before it makes the results that it has in the float network (eq. 25). A penalty that
sharpens (eq. 24) drives h to 0 and 1.

What is written are float weights that lie on the grid, each channel's greatest at 127 steps: the
writers of int8 (`wherry.quantize.weights`) find the same grid and keep them. Where patches that
were not learned from come out worse than with the writers' own rounding, a layer's weights stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.normalise.graph import Graph
from wherry.quantize.weights import MOST, quantise_weight, weight_scales
from wherry_compress.graph.patches import Window, drawn
from wherry_compress.graph.taps import finite, tapped
from wherry_compress.int8.weighted import Weighted, find, set_constant
from wherry_compress.job import Data, Done, Job, Refusal

if TYPE_CHECKING:
    import onnx

_PATCHES, _BATCH = 4096, 256
_HELD_OUT = 4  # every fourth patch judges
_LOW, _HIGH = -0.1, 1.1  # of the sigmoid, before it is cut to 0 and 1
_RATE = 0.02
_PENALTY = 0.05  # of a channel's weights, over its error where each goes to the nearest
_WARM = 0.2  # of the steps, without the penalty
_SHARP = (20.0, 2.0)  # of the penalty, from and to


@dataclass(frozen=True)
class _Task:
    """One layer to be rounded.

    Attributes:
        real: weights in steps of the grid, float32 [groups, outputs, values].
        steps: of each output channel [groups, outputs, 1].
        fixed: weights that stay at +-127, so that the grid is found again.
        taken: patches of the rounded network, [groups, patches, values].
        wanted: results of the float network before the activation, without the bias, likewise.
        bias: [groups, outputs].
        bounds: of the activation behind.
    """

    real: np.ndarray
    steps: np.ndarray
    fixed: np.ndarray
    taken: np.ndarray
    wanted: np.ndarray
    bias: np.ndarray
    bounds: tuple[float, float]

    def part(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some patches, and what the layer should give for them after its activation."""
        wanted = self.wanted[:, rows] + self.bias[:, None]
        return self.taken[:, rows], np.clip(wanted, *self.bounds)

    def given(self, weights: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """What it gives before the activation with weights in steps."""
        made: np.ndarray = taken @ (weights * self.steps).transpose(0, 2, 1) + self.bias[:, None]
        return made

    def errors(self, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Mean squares over some patches, [groups, outputs]."""
        taken, wanted = self.part(rows)
        off = np.clip(self.given(weights, taken), *self.bounds) - wanted
        squares: np.ndarray = np.mean(off.astype(np.float64) ** 2, axis=1)
        return squares


def apply(job: Job) -> Done:
    """The network with weights on the grid."""
    graph, rounded = Graph(job.load(), {}), Graph(job.load(), {})
    layers, left = find(graph)
    data, count = job.data["calibration"], job.parameters["samples"]
    if not layers or not len(data):
        raise Refusal(
            "there is no sample to round by"
            if layers
            else "there is no layer to round: it takes Conv, Gemm or MatMul nodes with constant "
            "weights of their own",
        )
    floats = Graph(job.load(), {}).proto
    rows, learned = [], 0
    for place, layer in enumerate(layers):
        whole = layer.whole()
        why = _unfit(layer)
        if not why:
            generator = np.random.default_rng((job.seed, place))
            task = _task(graph, floats, rounded.proto, layer, data, count, generator)
            better = _learned(task, _rows(layer, whole), job.parameters["iterations"], generator)
            ratio, found = better
            made = None if found is None else _back(layer, found)
            if made is not None and _is_kept(layer, made):
                whole = made
                set_constant(graph, layer.tensor, layer.real(whole))
                learned += 1
                rows.append({"node": layer.name, "error": round(ratio, 4)})
            else:
                why = "the writers' own rounding is as good"
        if why:
            left[layer.name] = why
        set_constant(rounded, layer.tensor, layer.real(whole))
    told = [{"node": name, "why": text} for name, text in left.items()][:60]
    return Done(graph.proto, {"rounded": learned, "layers": rows[:60], "left": told})


def _unfit(layer: Weighted) -> str:
    """Why a layer's grid is not the same for all backends; empty: it is."""
    if layer.groups > 1 and layer.weights.shape[0] != layer.groups:
        return "it has groups of several outputs, for which ncnn has one scale"
    return ""


def _is_kept(layer: Weighted, whole: np.ndarray) -> bool:
    """The writers make these whole numbers of the weights that are written for them."""
    real = layer.real(whole)
    return bool(
        np.array_equal(quantise_weight(real, weight_scales(real, layer.axis), layer.axis), whole)
    )


def _rows(layer: Weighted, weights: np.ndarray) -> np.ndarray:
    """[groups, outputs of a group, values of a patch]."""
    moved = np.moveaxis(weights, layer.axis, 0)
    return moved.reshape(layer.groups, len(moved) // layer.groups, -1)


def _back(layer: Weighted, rows: np.ndarray) -> np.ndarray:
    """The inverse of `_rows`, int8."""
    shape = np.moveaxis(layer.weights, layer.axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(rows.reshape(shape), 0, layer.axis)).astype(np.int8)


def _task(
    graph: Graph,
    floats: onnx.ModelProto,
    rounded: onnx.ModelProto,
    layer: Weighted,
    data: Data,
    count: int,
    generator: np.random.Generator,
) -> _Task:
    node = graph.nodes[layer.name]
    window = Window.of(node, layer.weights.shape[2:]) if layer.kind == "Conv" else None
    seed = int(generator.integers(2**31))  # the same places in both networks
    theirs, ours = (
        _patches(proto, layer, window, data, count, seed) for proto in (floats, rounded)
    )
    weights = _rows(layer, layer.weights).astype(np.float32)
    scales = layer.scales().reshape(layer.groups, -1, 1)
    real = weights / scales
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = theirs @ weights.transpose(0, 2, 1)
    finite(wanted, layer.result)
    bias = graph.value(node, 2) if len(node.input) > 2 else None
    outputs = layer.weights.shape[layer.axis]
    spread = (
        np.zeros(outputs, np.float32)
        if bias is None
        else np.broadcast_to(bias.reshape(-1), (outputs,))
    )
    return _Task(
        real,
        scales,
        np.abs(real) >= MOST - 1e-3,
        ours,
        wanted,
        spread.reshape(layer.groups, -1),
        _bounds(graph, layer.result),
    )


def _patches(
    proto: onnx.ModelProto,
    layer: Weighted,
    window: Window | None,
    data: Data,
    count: int,
    seed: int,
) -> np.ndarray:
    """Of a layer's input, [groups, patches, values]; nothing behind it is computed."""
    inputs = {value.name for value in proto.graph.input}
    session = None
    if layer.source not in inputs:
        session = tapped(proto, [layer.source])
    generator = np.random.default_rng(seed)
    each = -(-_PATCHES // min(count, len(data)))
    parts = []
    for sample in data.samples(count):
        value = sample[layer.source] if session is None else session.run(None, sample)[0]
        parts.append(drawn(value, window, each, generator))
    found = np.concatenate(parts).astype(np.float32)
    finite(found, layer.source)
    split = found.reshape(len(found), layer.groups, -1).transpose(1, 0, 2)
    return np.ascontiguousarray(split)


def _bounds(graph: Graph, tensor: str) -> tuple[float, float]:
    """Of the Relu or Clip that is the only reader of a tensor."""
    readers = graph.takers.get(tensor, [])
    if len(readers) == 1 and tensor not in graph.kept and readers[0].input[0] == tensor:
        (reader,) = readers
        if reader.op_type == "Relu":
            return 0.0, np.inf
        if reader.op_type == "Clip" and graph.opset >= 11:
            ends = [graph.value(reader, index) for index in (1, 2)]
            given = [len(reader.input) > i and bool(reader.input[i]) for i in (1, 2)]
            if all(end is not None or not said for end, said in zip(ends, given, strict=True)):
                low, high = (
                    other if end is None else float(end.reshape(()))
                    for end, other in zip(ends, (-np.inf, np.inf), strict=True)
                )
                return low, high
    return -np.inf, np.inf


def _learned(
    task: _Task, theirs: np.ndarray, iterations: int, generator: np.random.Generator
) -> tuple[float, np.ndarray | None]:
    """The error over that of the writers' rounding, on held out patches, and whole numbers.

    Output channels do not know of each other: each has its own scale of errors, and the better of
    both roundings. None where that is the writers' for all.
    """
    every = np.arange(task.taken.shape[1])
    judging = every[every % _HELD_OUT == 0]
    learning = every[every % _HELD_OUT != 0]
    if not len(learning):
        judging = learning = every
    floor = np.floor(task.real)
    nearest = np.clip(np.rint(task.real), -MOST, MOST)
    floor = np.where(task.fixed, nearest, floor)
    free = ~task.fixed
    scale = task.errors(nearest, learning)
    reference = task.errors(theirs.astype(np.float32), judging)
    if not reference.any():
        return 1.0, None
    weight = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)[..., None]
    weight = (2 * task.real.shape[-1] * weight * task.steps).astype(np.float32)
    soft = _Soft(np.clip(task.real - floor, 0.01, 0.99))
    for step in range(iterations):
        chosen = generator.choice(learning, min(_BATCH, len(learning)), replace=False)
        taken, wanted = task.part(chosen)
        h = soft.value()
        given = task.given(floor + h * free, taken)
        off = np.clip(given, *task.bounds) - wanted
        off[(given < task.bounds[0]) | (given > task.bounds[1])] = 0
        slope = (off.transpose(0, 2, 1) @ taken) * (weight / np.float32(len(chosen)))
        progress = (step / iterations - _WARM) / (1 - _WARM)
        if progress > 0:
            sharp = _SHARP[1] + (_SHARP[0] - _SHARP[1]) * (1 + np.cos(np.pi * progress)) / 2
            slope += np.float32(_PENALTY) * _penalty_slope(h, float(sharp))
        soft.move(slope * free)
    whole = np.clip(floor + (soft.value() >= 0.5) * free, -MOST, MOST)
    found = task.errors(whole, judging)
    better = found < reference
    ratio = float(np.where(better, found, reference).sum() / reference.sum())
    return ratio, np.where(better[..., None], whole, theirs) if better.any() else None


def _penalty_slope(h: np.ndarray, sharp: float) -> np.ndarray:
    """Of the sum of ``1 - |2 h - 1| ** sharp``, by h."""
    side = 2 * h - 1
    made: np.ndarray = -2 * sharp * np.abs(side) ** (sharp - 1) * np.sign(side)
    return made.astype(np.float32)


class _Soft:
    """V of the paper, and Adam's averages (Kingma and Ba 2015).

    Args:
        start: h at the beginning.
    """

    _DECAYS = (0.9, 0.999)

    def __init__(self, start: np.ndarray) -> None:
        inner = (start - _LOW) / (_HIGH - _LOW)
        self._v = np.log(inner / (1 - inner)).astype(np.float32)
        self._first = np.zeros_like(self._v)
        self._second = np.zeros_like(self._v)
        self._steps = 0

    def value(self) -> np.ndarray:
        """h, 0 to 1."""
        self._sigmoid: np.ndarray = 1 / (1 + np.exp(-self._v))
        self._h: np.ndarray = np.clip(self._sigmoid * (_HIGH - _LOW) + _LOW, 0, 1)
        return self._h

    def move(self, slope: np.ndarray) -> None:
        """A step against the slope by h, which was just given."""
        inside = (self._h > 0) & (self._h < 1)
        slope = slope * self._sigmoid * (1 - self._sigmoid) * np.float32(_HIGH - _LOW) * inside
        self._steps += 1
        one, two = self._DECAYS
        self._first += np.float32(1 - one) * (slope - self._first)
        self._second += np.float32(1 - two) * (slope * slope - self._second)
        fit: Any = np.sqrt(1 - two**self._steps) / (1 - one**self._steps)
        self._v -= np.float32(_RATE * fit) * self._first / (np.sqrt(self._second) + 1e-12)
