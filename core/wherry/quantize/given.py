"""Models that are quantised already, by Q/DQ: what their author decided, for backends that map it.

ONNX Runtime runs such a model as it is. Every other int8 backend converts a float model and writes
the ranges in its own form: `read_qdq` gives both, and nothing of the author's is lost. The weights
of the float model are what the whole numbers stand for, and the range of a tensor is what its
scale and zero point span.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wherry.calibration import Calibration
from wherry.errors import UnsupportedError
from wherry.target import Unsupported

if TYPE_CHECKING:
    import onnx

    from wherry.model import Model

METHOD = "the model's own Q/DQ"
"""`Calibration.method` of ranges that a model brought along."""

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})  # the last has them for 16 bits
_BITS = frozenset({np.dtype(name) for name in ("int8", "uint8", "int16", "uint16")})
# They move whole numbers without looking at them, so that they stand for the same as before.
_PASSING = frozenset(
    {"Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
# Never below zero, and never below zero where nothing that they take is.
_ABOVE_ZERO = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Sqrt"})
_KEEPING_SIGN = _PASSING | {
    "Add", "AveragePool", "Concat", "GlobalAveragePool", "GlobalMaxPool", "Mul", "ReduceMean",
}  # fmt: skip
_REMEDY = (
    "Give the network in float32 and let wherry quantise it, or take the backend onnxruntime, "
    "which runs it as it is."
)


def is_quantised(model: Model) -> bool:
    """Whether a model holds Q/DQ, or operators that compute in whole numbers (``QLinearConv``)."""
    return any(
        operator.rpartition("::")[2] in _QDQ or is_whole(operator) for operator in model.operators()
    )


def preflight_float(
    model: Model, look: Callable[[Model], Sequence[Unsupported]]
) -> Sequence[Unsupported]:
    """The pre-flight of a model with Q/DQ, by that of its float network.

    Args:
        model: see `is_quantised`.
        look: the pre-flight of a float model.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            plain, _ = float_model(model, Path(folder))
        except UnsupportedError as error:
            node = (error.where or "").removeprefix("node ")
            kinds = {each: kind for kind, nodes in model.operators().items() for each in nodes}
            kind = kinds.get(node, "QuantizeLinear")
            return (Unsupported(kind, 1, node, error.remedy or _REMEDY),)
        return look(plain)


def is_whole(operator: str) -> bool:
    """Whether an operator, as in `Model.operators`, computes in quantised whole numbers itself."""
    name = operator.rpartition("::")[2]
    return name.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantize")) or name in {
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
    }


def float_model(model: Model, directory: Path) -> tuple[Model, Calibration]:
    """`read_qdq` of a model; the float one becomes ``directory/float.onnx``.

    Args:
        model: for which `is_quantised` holds.
        directory: an existing folder.

    Raises:
        UnsupportedError: see `read_qdq`.
    """
    from wherry.model import Model

    proto, calibration = read_qdq(model.proto())
    path = directory / "float.onnx"
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return Model.load(path), calibration


def read_qdq(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Calibration]:
    """A quantised model as a float one and the ranges of its tensors.

    Nodes and tensors keep their names; Q/DQ nodes are gone, and whoever read a
    DequantizeLinear's output reads the tensor that was quantised. Where that output is the
    model's, an Identity with the node's name stands in its place. Weights are exactly what their
    whole numbers stand for, and have the name of the DequantizeLinear's output.

    Quantisers drop a Relu or Clip whose work the saturation of a QuantizeLinear does. Where a
    tensor is quantised to nothing below zero and may be negative, the float model has it again,
    with the name of the QuantizeLinear: a Clip where the range ends at 6, else a Relu.

    Args:
        proto: with Q/DQ, in topological order; it is not changed.

    Returns:
        The float model, and for each float tensor with Q/DQ the values that the ends of its type
        stand for. (-128 of a symmetric int8 tensor counts for the range, not for the threshold.)
        A tensor that is quantised more than once has the widest of its ranges. Tensors that the
        author left in float have none.

    Raises:
        UnsupportedError: something computes in whole numbers, or takes or gives them as the
            model's input or output: the node is named.
    """
    return _Reader(proto).read()


@dataclass(frozen=True)
class _Whole:
    """A tensor of whole numbers: the float tensor that it stands for, and how."""

    real: str
    scale: np.ndarray
    zero_point: np.ndarray


class _Reader:
    """Walks the nodes of a copy once, in their order."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        import onnx
        from onnx import numpy_helper

        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.ranges: dict[str, tuple[float, float]] = {}
        self.thresholds: dict[str, float] = {}
        self._whole: dict[str, _Whole] = {}
        self._renamed: dict[str, str] = {}
        self._made: list[onnx.TensorProto] = []
        self._kept: list[onnx.NodeProto] = []
        self._positive: set[str] = set()
        self._inputs = {value.name for value in self.proto.graph.input}
        self._constants = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.proto.graph.initializer
        }
        for node in self.proto.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def read(self) -> tuple[onnx.ModelProto, Calibration]:
        graph = self.proto.graph
        outputs = {value.name for value in graph.output}
        kept = self._kept
        for node in graph.node:
            if node.op_type == "QuantizeLinear" and node.domain in _DOMAINS:
                self._quantise(node)
            elif node.op_type == "DequantizeLinear" and node.domain in _DOMAINS:
                self._dequantise(node)
                if node.output[0] in outputs:
                    kept.append(self._identity(node))
            else:
                self._keep(node)
                kept.append(node)
        for name in outputs & self._whole.keys():
            if self._whole[name].real != name:
                raise UnsupportedError(
                    f"the output {name!r} is of quantised whole numbers",
                    where=f"output {name}",
                    remedy=_REMEDY,
                )
        del graph.node[:]
        graph.node.extend(kept)
        self._tidy()
        return self.proto, Calibration(METHOD, 0, self.ranges, self.thresholds)

    # --- nodes -----------------------------------------------------------------------------------

    def _quantise(self, node: onnx.NodeProto) -> None:
        scale, zero_point = self._parameters(node)
        real = self._renamed.get(node.input[0], node.input[0])
        if real in self._constants:
            values = self._constants[real]
            limits = np.iinfo(zero_point.dtype)
            steps = np.rint(values / _along(scale, values, node))
            whole = steps + _along(zero_point, values, node)
            self._constants[node.output[0]] = np.clip(whole, limits.min, limits.max).astype(
                zero_point.dtype
            )
            return
        self._note(real, scale, zero_point)
        low, high = self.ranges[real]
        if low == 0 and not self._is_positive(real) and real not in self._inputs:
            self._kept.append(self._clipped(node, real, high))
            real = node.output[0]
            self._positive.add(real)
            self._note(real, scale, zero_point)
        self._whole[node.output[0]] = _Whole(real, scale, zero_point)

    def _clipped(self, node: onnx.NodeProto, real: str, high: float) -> onnx.NodeProto:
        """The activation that a QuantizeLinear's saturation stands for."""
        import onnx
        from onnx import numpy_helper

        out = node.output[0]
        if not math.isclose(high, 6.0, rel_tol=1e-5):
            return onnx.helper.make_node("Relu", [real], [out], name=node.name)
        bounds = [f"{out}_least", f"{out}_greatest"]
        for name, value in zip(bounds, (0.0, 6.0), strict=True):
            self._made.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return onnx.helper.make_node("Clip", [real, *bounds], [out], name=node.name)

    def _is_positive(self, name: str) -> bool:
        constant = self._constants.get(name)
        return name in self._positive if constant is None else bool((constant >= 0).all())

    def _dequantise(self, node: onnx.NodeProto) -> None:
        from onnx import numpy_helper

        scale, zero_point = self._parameters(node)
        name, out = node.input[0], node.output[0]
        if name in self._constants:
            values = self._constants[name]
            steps = values.astype(np.int64) - _along(zero_point, values, node).astype(np.int64)
            real = (steps.astype(scale.dtype) * _along(scale, values, node)).astype(scale.dtype)
            self._constants[out] = real
            self._made.append(numpy_helper.from_array(real, out))
            return
        whole = self._whole.get(name)
        if whole is None:
            raise self._refusal(node, f"takes {name!r}, whole numbers that nothing quantised")
        if not (
            np.array_equal(whole.scale, scale) and np.array_equal(whole.zero_point, zero_point)
        ):
            raise self._refusal(node, "has another scale than what it takes was quantised with")
        self._renamed[out] = whole.real

    def _keep(self, node: onnx.NodeProto) -> None:
        """Its inputs are the float tensors; whole numbers may only be passed on."""
        inner = [name for graph in _nested(node) for each in graph.node for name in each.input]
        read = [name for name in (*node.input, *inner) if name in self._whole]
        for nested in (each for graph in _nested(node) for each in graph.node):
            if nested.op_type in _QDQ:
                raise self._refusal(nested, "stands in a graph inside of a node")
        if is_whole(node.op_type):
            raise self._refusal(node, "computes in whole numbers")
        if read:
            whole = self._whole[read[0]]
            passing = node.op_type in _PASSING and read == [node.input[0]]
            if not passing or whole.scale.size > 1:
                raise self._refusal(node, f"computes on the whole numbers {read[0]!r}")
            node.input[0] = whole.real
            out = node.output[0]
            self._whole[out] = _Whole(out, whole.scale, whole.zero_point)
            self._note(out, whole.scale, whole.zero_point)
        _rename_inputs(node, self._renamed)
        if node.op_type == "Clip":
            least = self._constants.get(node.input[1]) if len(node.input) > 1 else None
            positive = least is not None and bool(least >= 0)
        elif node.op_type in _KEEPING_SIGN:
            numbers = node.input[:1] if node.op_type in _PASSING else node.input
            positive = all(map(self._is_positive, numbers))
        else:
            positive = node.op_type in _ABOVE_ZERO
        if positive:
            self._positive.update(node.output)

    def _identity(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """What stands for a DequantizeLinear whose output is the model's."""
        import onnx

        real = self._renamed.pop(node.output[0], None)
        if real is None:  # a constant
            real = f"{node.output[0]}_constant"
            self._made[-1].name = real
        elif real in self.ranges:
            self.ranges[node.output[0]] = self.ranges[real]
            self.thresholds[node.output[0]] = self.thresholds[real]
        return onnx.helper.make_node("Identity", [real], [node.output[0]], name=node.name)

    # --- what nodes say --------------------------------------------------------------------------

    def _parameters(self, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point; the type of the latter is that of the whole numbers."""
        scale = self._constants.get(node.input[1])
        if scale is None:
            raise self._refusal(node, "has a scale that is worked out at run time")
        if len(node.input) > 2 and node.input[2]:
            zero_point = self._constants.get(node.input[2])
            if zero_point is None:
                raise self._refusal(node, "has a zero point that is worked out at run time")
        else:
            values = self._constants.get(node.input[0])
            quantising = node.op_type == "QuantizeLinear"
            wanted = _output_dtype(node) if quantising else None
            if values is not None and not quantising:
                wanted = values.dtype
            elif node.input[0] in self._whole:
                wanted = self._whole[node.input[0]].zero_point.dtype
            zero_point = np.zeros(scale.shape, wanted or np.uint8)
        allowed = _BITS | {np.dtype(np.int32)} if node.op_type == "DequantizeLinear" else _BITS
        if zero_point.dtype not in allowed:
            raise self._refusal(node, f"is of {zero_point.dtype}")
        return scale, zero_point

    def _note(self, real: str, scale: np.ndarray, zero_point: np.ndarray) -> None:
        """The widest range of a float tensor so far."""
        limits = np.iinfo(zero_point.dtype)
        steps = scale.astype(np.float64)
        zeros = zero_point.astype(np.int64)
        low, high = (
            float(((limits.min - zeros) * steps).min()),
            float(((limits.max - zeros) * steps).max()),
        )
        symmetric = limits.min < 0 and not zeros.any()
        threshold = high if symmetric else max(-low, high)
        before = self.ranges.get(real, (low, high))
        self.ranges[real] = (min(low, before[0]), max(high, before[1]))
        self.thresholds[real] = max(threshold, self.thresholds.get(real, 0.0))

    def _refusal(self, node: onnx.NodeProto, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"the model is quantised already in a way that no other backend can take over: "
            f"{node.op_type} {node.name!r} {what}",
            where=f"node {node.name}",
            remedy=_REMEDY,
        )

    # --- afterwards ------------------------------------------------------------------------------

    def _tidy(self) -> None:
        """Weights that are float now come in; what nobody reads or makes any more goes."""
        import onnx

        graph = self.proto.graph
        made = {tensor.name for tensor in self._made}
        used = {name for node in graph.node for name in _reads(node)}
        used |= {value.name for value in graph.output}
        initializers = [t for t in graph.initializer if t.name in used and t.name not in made]
        initializers += [tensor for tensor in self._made if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(initializers)
        nodes = [n for n in graph.node if n.op_type != "Constant" or n.output[0] in used]
        del graph.node[:]
        graph.node.extend(nodes)
        there = {name for node in graph.node for name in node.output}
        values = [value for value in graph.value_info if value.name in there]
        for value in values:
            if value.name in self._whole:
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        del graph.value_info[:]
        graph.value_info.extend(values)


def _output_dtype(node: onnx.NodeProto) -> np.dtype | None:
    """QuantizeLinear's attribute ``output_dtype``, since opset 21."""
    import onnx

    for attribute in node.attribute:
        if attribute.name == "output_dtype" and attribute.i:
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(attribute.i))
    return None


def _along(parameter: np.ndarray, values: np.ndarray, node: onnx.NodeProto) -> np.ndarray:
    """A scale or zero point in a shape that fits ``values``: of the tensor, its axis or blocks."""
    attributes: Mapping[str, int] = {a.name: a.i for a in node.attribute}
    axis = attributes.get("axis", 1)
    if parameter.size == 1:
        return parameter.reshape(())
    if block := attributes.get("block_size", 0):
        repeated = np.repeat(parameter, block, axis)
        return repeated.take(range(values.shape[axis]), axis)
    shape = [1] * values.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _nested(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside of a node, at any depth."""
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield graph
            for inner in graph.node:
                yield from _nested(inner)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """All names that a node reads, those inside of its graphs too."""
    yield from node.input
    for graph in _nested(node):
        for inner in graph.node:
            yield from inner.input
        yield from (value.name for value in graph.output)


def _rename_inputs(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for each in (node, *(inner for graph in _nested(node) for inner in graph.node)):
        for index, name in enumerate(each.input):
            if name in names:
                each.input[index] = names[name]
