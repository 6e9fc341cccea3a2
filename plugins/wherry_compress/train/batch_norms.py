"""``bn.restore`` and ``bn.reestimate``: batch norms put back, and measured anew.

Exporters fold BatchNormalization into the convolution before it. What is left trains badly: without
it a learning rate that is right for one layer is wrong for the next, and after channels were pruned
nothing brings the statistics back in order (Ioffe and Szegedy 2015).

`restore` puts nodes behind convolutions that do nothing: their mean and variance are those of the
channel over the calibration data, their shift is the mean and their scale the deviation.
`reestimate` sets mean and variance to what they are now, layer after layer: each is measured behind
those that have been corrected before it, as in a pass over the data in training mode, and every
node runs once for each sample. It needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wherry.normalise.graph import STANDARD
from wherry.reference import open_session, run_session
from wherry_compress.graph.patterns import meant
from wherry_compress.graph.taps import finite, prove, tapped
from wherry_compress.job import Data, Done, Job, Refusal, tell

EPSILON = 1e-5
_BEFORE = {"Conv", "ConvTranspose"}
_READS = _BEFORE | {"Gemm", "MatMul"}
_CLOSE = 1e-4  # of an output's root mean square


def restore(job: Job) -> Done:
    """The model with batch norms; its figures are how many there were and were put there."""
    model = job.load()
    names = [node.name for node in model.graph.node]
    places = _places(model, meant(job.parameters["exclude"], names, "exclude"))
    there = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not places:
        raise Refusal(
            "bn.restore found no convolution to put a batch norm behind: it looks for Conv and "
            "ConvTranspose nodes with a map larger than one pixel that another layer reads"
            + (f"; the network has {len(there)} batch norms already" if there else ""),
            remedy="Leave the pass out.",
        )
    moments = _moments(model, [node.output[0] for node in places], job)
    for node in places:
        _insert(model, node, moments[node.output[0]])
    remedy = "Leave nodes out with `exclude`, or leave the pass out."
    prove(job.load(), model, job.data["calibration"], close=_CLOSE, remedy=remedy)
    return Done(model, {"batch_norms_before": len(there), "batch_norms_added": len(places)})


def _places(model: onnx.ModelProto, excluded: frozenset[str]) -> list[onnx.NodeProto]:
    """Convolutions with no batch norm behind them, before the last layer."""
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    leads: set[str] = set()  # tensors from which a layer with weights is reached
    for node in reversed(graph.node):
        if node.op_type in _READS or leads.intersection(node.output):
            leads.update(node.input)
    outputs = {value.name for value in graph.output}
    shapes = _shapes(model)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in _BEFORE or node.domain not in STANDARD or node.name in excluded:
            continue
        name = node.output[0]
        after = readers.get(name, [])
        follows = any(reader.op_type == "BatchNormalization" for reader in after)
        large = int(np.prod(shapes.get(name, ())[2:], dtype=np.int64)) > 1
        float32 = kinds.get(node.input[1]) == onnx.TensorProto.FLOAT
        if large and float32 and name in leads and name not in outputs and not follows:
            found.append(node)
    return found


def _insert(model: onnx.ModelProto, node: onnx.NodeProto, moments: Moments) -> None:
    """Behind a node; the tensor that was its output keeps its name and its values."""
    graph = model.graph
    name = node.output[0]
    taken = {each for n in graph.node for each in (*n.input, *n.output, n.name)}
    taken |= {tensor.name for tensor in graph.initializer}
    before = _fresh(f"{name}/convolved", taken)
    mean, variance = moments.mean.astype(np.float32), moments.variance.astype(np.float32)
    deviation = np.sqrt(variance.astype(np.float64) + EPSILON).astype(np.float32)
    names = []
    for word, value in (
        ("scale", deviation), ("shift", mean), ("mean", mean), ("variance", variance)
    ):  # fmt: skip
        names.append(_fresh(f"{name}/{word}", taken))
        graph.initializer.append(numpy_helper.from_array(value, names[-1]))
    node.output[0] = before
    made = helper.make_node(
        "BatchNormalization",
        [before, *names],
        [name],
        name=_fresh(f"{node.name}/batch_norm", taken),
        epsilon=EPSILON,
    )
    index = next(i for i, each in enumerate(graph.node) if each.name == node.name)
    graph.node.insert(index + 1, made)
    del graph.value_info[:]  # the tensor behind the convolution has another name


def _fresh(text: str, taken: set[str]) -> str:
    while text in taken:
        text += "'"
    taken.add(text)
    return text


class Moments:
    """Mean and variance of each channel, over samples and places, in float64.

    Args:
        name: of the tensor.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._sum: np.ndarray = np.zeros(0)
        self._squares: np.ndarray = np.zeros(0)

    def add(self, value: np.ndarray) -> None:
        """The tensor of one sample, [batch, channels, ...]; refuses infinity and NaN."""
        finite(value, self._name)
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        exact = value.astype(np.float64)
        total, squares = exact.sum(axes), np.square(exact).sum(axes)
        first = self._count == 0
        self._sum = total if first else self._sum + total
        self._squares = squares if first else self._squares + squares
        self._count += value.size // value.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """[channels]."""
        return self._sum / self._count

    @property
    def variance(self) -> np.ndarray:
        """[channels]; of the samples as they are (not of what they were drawn from)."""
        found: np.ndarray = np.maximum(self._squares / self._count - self.mean**2, 0)
        return found


def _moments(model: onnx.ModelProto, tensors: Iterable[str], job: Job) -> dict[str, Moments]:
    """Of inner tensors, over the calibration data."""
    names = list(tensors)
    session = tapped(model, names, as_written=True)
    data, moments = job.data["calibration"], {name: Moments(name) for name in names}
    count = min(len(data), job.parameters["samples"] or len(data))
    for index, sample in enumerate(data.samples(count)):
        for name, value in run_session(session, sample, where="").items():
            moments[name].add(value)
        if index % 50 == 0:
            tell(f"sample {index + 1} of {count}")
    return moments


# --- bn.reestimate -------------------------------------------------------------------------------


def reestimate(job: Job) -> Done:
    """The model with other means and variances; its figures tell how far they moved."""
    model = onnx.shape_inference.infer_shapes(job.load())
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not nodes:
        raise Refusal(
            "there is no BatchNormalization in the network",
            remedy="Put `bn.restore` at the beginning of the variant, and before this pass none "
            "but those that prune, or `fit: {fold: false}`: the others fold batch norms.",
        )
    _unshare(model, nodes)
    walk = _Walk(model, job)
    moved: dict[str, float] = {}
    for index, node in enumerate(nodes):
        tell(f"batch norm {index + 1} of {len(nodes)}")
        moments = walk.moments(node)
        moved[node.name] = _set(model, node, moments)
    most = sorted(moved, key=lambda name: -moved[name])[:5]
    figures = {
        "batch_norms": len(nodes),
        "moved_most": {name: round(moved[name], 4) for name in most},
    }
    return Done(model, figures)


def _unshare(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Statistics that are stored once for several nodes become each node's own."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    uses = [name for node in graph.node for name in node.input]
    taken = {*stored, *uses, *(name for node in graph.node for name in node.output)}
    for node in nodes:
        for index in (3, 4):
            name = node.input[index]
            if name not in stored:
                raise Refusal(
                    f"BatchNormalization (node {node.name!r}) computes its statistics",
                    where=node.name,
                )
            if uses.count(name) > 1:
                copy = onnx.TensorProto()
                copy.CopyFrom(stored[name])
                copy.name = node.input[index] = _fresh(f"{name}/{node.name}/{index}", taken)
                graph.initializer.append(copy)


def _set(model: onnx.ModelProto, node: onnx.NodeProto, moments: Moments) -> float:
    """Write a node's statistics; returns how far the mean moved, in deviations."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    mean, variance = stored[node.input[3]], stored[node.input[4]]
    old, spread = numpy_helper.to_array(mean), numpy_helper.to_array(variance)
    moved = np.abs(moments.mean - old) / np.sqrt(spread.astype(np.float64) + EPSILON)
    for tensor, value in ((mean, moments.mean), (variance, moments.variance)):
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return float(moved.mean())


class _Walk:
    """Goes through a network piece by piece; what later pieces need lies in files.

    Args:
        model: with shapes; its batch norms are changed between the pieces.
        job: its calibration data and a place for the files.
    """

    def __init__(self, model: onnx.ModelProto, job: Job) -> None:
        self._model = model
        data = job.data["calibration"]
        self._count = min(len(data), job.parameters["samples"] or len(data))
        self._folder = job.scratch
        self._files: dict[str, Path] = dict(data.inputs)
        self._own: set[str] = set()
        self._done = 0
        self._values = {
            value.name: value
            for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        }

    def moments(self, node: onnx.NodeProto) -> Moments:
        """Of what a node reads; nodes are asked for in the graph's order."""
        nodes = list(self._model.graph.node)
        end = next(i for i, each in enumerate(nodes) if each.name == node.name)
        piece, rest = nodes[self._done : end], nodes[end:]
        if piece:
            self._run(piece, rest)
        self._done = end
        moments = Moments(node.input[0])
        data = Data({node.input[0]: self._files[node.input[0]]})
        for sample in data.samples(self._count):
            moments.add(sample[node.input[0]])
        return moments

    def _run(self, piece: list[onnx.NodeProto], rest: list[onnx.NodeProto]) -> None:
        """The piece on all samples; what the rest reads is kept."""
        made = {name for each in piece for name in each.output if name}
        used = {name for each in piece for name in each.input}
        wanted = {name for each in rest for name in each.input}
        keep = sorted(made & wanted)
        given = sorted(used & self._files.keys())
        if keep:
            model = self._piece(piece, given, keep)
            session = open_session(
                model.SerializeToString(), threads=1, where=piece[0].name, as_written=True
            )
            with ExitStack() as stack:
                files = {}
                for name in keep:
                    path = self._folder / f"tensor{len(self._own)}.npy"
                    self._own.add(name)
                    self._files[name] = path
                    files[name] = stack.enter_context(path.open("wb"))
                data = Data({name: self._files[name] for name in given})
                for index, sample in enumerate(data.samples(self._count)):
                    for name, value in run_session(session, sample, where=piece[0].name).items():
                        if not index:
                            header = {
                                "descr": np.lib.format.dtype_to_descr(value.dtype),
                                "fortran_order": False,
                                "shape": (self._count, *value.shape),
                            }
                            np.lib.format.write_array_header_1_0(files[name], header)
                        files[name].write(np.ascontiguousarray(value).tobytes())
        for name in [each for each in self._files if each in self._own and each not in wanted]:
            self._files.pop(name).unlink()

    def _piece(
        self, nodes: list[onnx.NodeProto], given: list[str], keep: list[str]
    ) -> onnx.ModelProto:
        """Some nodes as a model of their own, with the weights as they are now."""
        used = {name for node in nodes for name in node.input}
        model = onnx.ModelProto()
        model.ir_version = self._model.ir_version
        model.opset_import.extend(self._model.opset_import)
        model.graph.name = "piece"
        model.graph.node.extend(nodes)
        model.graph.input.extend(self._values[name] for name in given)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in keep)
        model.graph.initializer.extend(t for t in self._model.graph.initializer if t.name in used)
        return model


def _shapes(model: onnx.ModelProto) -> Mapping[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
