"""Writes Q/DQ into a float graph: QuantizeLinear and DequantizeLinear where the ranges say.

Weights are int8, symmetric, within +-127, a scale for each output channel: no product of a kernel
of 16-bit sums can overflow that could not without quantisation. Activations have one scale. A
tensor whose range nobody knows stays float, and so does every node that reads it; between float
nodes there are no Q/DQ.

A node that is kept in float reads and gives float tensors, or the rounding that it was kept from
would stand before it and behind it. So its neighbours, which would read or give whole numbers
there, stay float too; their other neighbours do not.

Nodes keep their names, and float tensors too. For a tensor ``t`` there are ``t/quantized``, the
whole numbers, and ``t/dequantized``; where ``t`` is an output of the model, that is the name of
the dequantised values, and the float ones are ``t/float``. Where the model has such a name
already, a number is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wherry.quantize.form import QdqForm
from wherry.quantize.weights import LEAST_SCALE, MOST, quantise_weight, weight_scales

if TYPE_CHECKING:
    import onnx

    from wherry.calibration import Calibration

_MS_DOMAIN = "com.microsoft"
_AXES_SINCE = 13  # opset with which DequantizeLinear has an axis; before, the domain above has it
_POOL_SINCE = 12  # opset with which MaxPool takes 8 bits
_WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}  # axis of output channels
_NEAR = 1e-5  # of a range: an end beyond a Clip's bound by that much is the bound, rounded


class Scale(NamedTuple):
    """How a tensor's whole numbers stand for real ones: ``(whole - zero_point) * scale``."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Quantised:
    """A graph with Q/DQ, and what was done.

    Attributes:
        proto: the model.
        nodes: names of the nodes that take and give whole numbers.
        scales: ONNX tensor to its scale, of those that are quantised.
        stored: name of a tensor of whole numbers to the ONNX tensor that it stands for.
        absorbed: name of a quantised node to those of the activations that it does too.
    """

    proto: onnx.ModelProto
    nodes: frozenset[str] = frozenset()
    scales: Mapping[str, Scale] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    absorbed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def insert_qdq(
    proto: onnx.ModelProto,
    calibration: Calibration,
    form: QdqForm,
    keep: frozenset[str] = frozenset(),
) -> Quantised:
    """A quantised copy of a float model.

    Args:
        proto: with named nodes in topological order, weights inside
            (`wherry.model.Model.with_static_shapes`).
        calibration: of this model.
        form: the runtime's.
        keep: names of nodes that stay float.
    """
    return _Writer(proto, calibration, form, keep).write()


def decide(
    proto: onnx.ModelProto,
    calibration: Calibration,
    form: QdqForm,
    keep: frozenset[str] = frozenset(),
    unfit: frozenset[str] = frozenset(),
) -> Quantised:
    """What `insert_qdq` would quantise, for runtimes that are not told by Q/DQ.

    Args:
        proto: as for `insert_qdq`.
        calibration: of this model.
        form: the runtime's; of it ``whole_bias`` says nothing here.
        keep: names of nodes that stay float.
        unfit: names of nodes that the runtime only has in float. Unlike those that are kept, they
            may read and give what is rounded.

    Returns:
        The model as it is given, and the rest as `insert_qdq` gives it.
    """
    return _Writer(proto, calibration, form, keep, unfit).decide()


def quantise_weights(proto: onnx.ModelProto, keep: frozenset[str] = frozenset()) -> Quantised:
    """A copy with int8 weights and a DequantizeLinear behind each; all sums stay in float.

    Args:
        proto: as for `insert_qdq`.
        keep: names of nodes whose weights stay float.
    """
    from wherry.calibration import Calibration

    form = QdqForm(symmetric=False, heavy=frozenset(), light=frozenset())
    writer = _Writer(proto, Calibration("", 0, {}), form, keep)
    return writer.write_weights()


def scale_of(low: float, high: float, *, symmetric: bool, threshold: float = 0.0) -> Scale:
    """The scale of a range, which is extended to hold 0: affine uint8, or symmetric int8.

    Args:
        low: its least value.
        high: its greatest.
        symmetric: int8 without a zero point.
        threshold: on |x|; of ``symmetric`` alone.
    """
    if symmetric:
        return Scale(_float32(threshold / MOST) if threshold > 0 else 1.0, 0)
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return Scale(1.0, 0)
    scale = _float32((high - low) / 255)
    return Scale(scale, round(min(max(-low / scale, 0), 255)))


def half_scales(scales: np.ndarray) -> np.ndarray:
    """The least numbers of float16, as float32, that are no less than some scales and not 0.

    Scales beyond float16 become its greatest number.
    """
    most = np.finfo(np.float16).max
    near = np.minimum(scales, most).astype(np.float16)
    with np.errstate(over="ignore"):  # of those that are the greatest, which is not needed
        above = np.nextafter(near, np.float16(np.inf))
    up = np.where(near.astype(np.float32) < np.minimum(scales, most), above, near)
    found: np.ndarray = np.maximum(up, np.finfo(np.float16).smallest_subnormal).astype(np.float32)
    return found


def _float32(value: float) -> float:
    return max(float(np.float32(value)), LEAST_SCALE)


class _Writer:
    """One graph; nodes are looked at once, in their order, and then written anew."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        calibration: Calibration,
        form: QdqForm,
        keep: frozenset[str],
        unfit: frozenset[str] = frozenset(),
    ) -> None:
        import onnx
        from onnx import numpy_helper

        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.form = form
        self.calibration = calibration
        graph = self.proto.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.outputs = {value.name for value in graph.output}
        self.opset = next(o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"})
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.makers: dict[str, onnx.NodeProto] = {}
        self._inner: set[str] = set()  # read by graphs inside of nodes
        for node in graph.node:
            for name in node.output:
                self.makers[name] = node
            for name in filter(None, node.input):
                self.readers.setdefault(name, []).append(node)
            self._inner.update(_read_inside(node))
        self.keep = set(keep)
        self.unfit = unfit
        self.floats = self._kept_tensors()
        self.absorbed: dict[str, onnx.NodeProto] = {}  # tensor before to the activation
        self.chosen: dict[str, onnx.NodeProto] = {}  # by name
        self.whole: dict[str, Scale] = {}  # tensors that exist as whole numbers
        self.wanted: set[str] = set()  # tensors that a quantised node reads
        self.added: list[onnx.TensorProto] = []
        self._before: list[onnx.NodeProto] = []  # nodes on constants: they come first
        self._taken = set(_names(graph))
        self._stored: dict[str, str] = {}  # whole numbers to their tensor
        self._names: dict[tuple[str, str], str] = {}  # see `_name`

    def write(self) -> Quantised:
        made = self.decide()
        self._place()
        return replace(made, stored=self._stored)

    def decide(self) -> Quantised:
        for node in self.proto.graph.node:
            if node.name not in self.unfit:
                self._consider(node)
        return Quantised(
            self.proto,
            frozenset(self.chosen),
            self.whole,
            absorbed={
                self.makers[tensor].name: (activation.name,)
                for tensor, activation in self.absorbed.items()
            },
        )

    def write_weights(self) -> Quantised:
        touched = set()
        for node in self.proto.graph.node:
            if node.name in self.keep or node.domain not in {"", "ai.onnx"}:
                continue
            weights = self.constants.get(node.input[1]) if node.op_type in _WEIGHTED else None
            if weights is None or weights.dtype != np.float32 or weights.ndim < 2:
                continue
            axis = _channels(node, weights)
            node.input[1] = self._weight(node.input[1], weights, axis, weight_scales(weights, axis))
            touched.add(node.name)
        self._finish([*self._before, *self.proto.graph.node])
        return Quantised(self.proto, frozenset(touched))

    # --- which -----------------------------------------------------------------------------------

    def _kept_tensors(self) -> set[str]:
        """What kept nodes read and give, also past a Relu or Clip, and what only moves it."""
        floats: set[str] = set()
        for node in self.proto.graph.node:
            behind = node.op_type in {"Clip", "Relu"} and node.input[0] in floats
            if behind and self.makers.get(node.input[0], node).name in self.keep:
                self.keep.add(node.name)
            if node.name in self.keep:
                floats.update((*node.input, *node.output))
        before = -1
        while len(floats) > before:
            before = len(floats)
            for node in self.proto.graph.node:
                ends = {node.input[0], *node.output} if node.input else set()
                if node.op_type in self.form.passing and ends & floats:
                    floats |= ends
        return floats - {""} - self.constants.keys()

    def _consider(self, node: onnx.NodeProto) -> None:
        """Note a node that is to be quantised, its tensors and the activation behind it."""
        form = self.form
        if node.name in self.keep or node.domain not in {"", "ai.onnx"} or not node.output:
            return
        if node.op_type in form.passing:
            self._consider_passing(node)
            return
        if node.op_type not in form.heavy | form.light or _is_odd_pool(node):
            return
        activations = self._activations(node)
        if activations is None or any(self._known(name) is None for name in activations):
            return
        if node.op_type in form.light and not any(self._is_made(name) for name in activations):
            return
        result = node.output[0]
        if form.results:
            activation = self._absorbable(node)
            if activation is not None:
                result = activation.output[0]
            if self._known(result) is None:
                return
            if activation is not None:
                self.absorbed[node.output[0]] = activation
            self._mark(result)
        self.chosen[node.name] = node
        for name in activations:
            if not (form.residual and self._is_added_within(node, name)):
                self._mark(name)
                self.wanted.add(name)

    def _consider_passing(self, node: onnx.NodeProto) -> None:
        """What moves whole numbers around gives whole numbers of the same scale."""
        taken = node.input[0]
        if taken in self.constants or not self._is_given_whole(taken):
            return
        if node.op_type == "MaxPool" and (self.opset < _POOL_SINCE or len(node.output) > 1):
            return
        if node.op_type == "Resize" and _attribute(node, "mode", b"nearest") != b"nearest":
            return
        self.chosen[node.name] = node
        self.wanted.add(taken)
        for name in filter(None, node.output):
            self.whole[name] = self.whole[taken]

    def _activations(self, node: onnx.NodeProto) -> list[str] | None:
        """The tensors that a node reads as whole numbers; None where it cannot be quantised."""
        if node.op_type in _WEIGHTED:
            weights = self.constants.get(node.input[1])
            if node.input[0] in self.constants:
                return None
            if weights is None:
                return list(node.input[:2]) if node.op_type == "MatMul" else None
            fits = weights.dtype == np.float32 and weights.ndim >= 2
            if node.op_type == "MatMul":
                fits &= weights.ndim == 2
            if node.op_type == "ConvTranspose":
                fits &= _attribute(node, "group", 1) == 1
            fits &= _attribute(node, "alpha", 1.0) == 1.0
            if len(node.input) > 2 and node.input[2]:
                fits &= self._bias(node, weights) is not None
            return [node.input[0]] if fits else None
        names = [name for name in node.input if name not in self.constants]
        constants = [self.constants[name] for name in node.input if name in self.constants]
        if not names or any(c.dtype != np.float32 or not c.size for c in constants):
            return None
        if node.op_type == "Mul" and any(c.size > 1 for c in constants):
            return None  # factors of channels differ widely, and one scale holds them all
        return names

    def _bias(self, node: onnx.NodeProto, weights: np.ndarray) -> np.ndarray | None:
        """A node's bias as a number a channel; None where it is not that."""
        bias = self.constants.get(node.input[2])
        channels = weights.shape[_channels(node, weights)]
        if bias is None or bias.dtype != np.float32 or not np.isfinite(bias).all():
            return None
        if _attribute(node, "beta", 1.0) != 1.0 or bias.size not in {1, channels}:
            return None
        if bias.ndim > 1 and bias.shape[-1] != bias.size:
            return None
        return np.broadcast_to(bias.reshape(-1), (channels,))

    def _known(self, name: str) -> Scale | None:
        """The scale of a tensor: it has one already, or its range is known."""
        if name in self.whole:
            return self.whole[name]
        if name in self.floats:
            return None
        if name in self.constants:
            value = self.constants[name]
            low, high = float(value.min()), float(value.max())
            threshold = max(-low, high)
        elif name in self.calibration.ranges:
            low, high = self.calibration.ranges[name]
            threshold = self.calibration.threshold(name)
        else:
            return None
        scale = scale_of(low, high, symmetric=self.form.symmetric, threshold=threshold)
        if self.form.half_scales:
            scale = scale._replace(scale=float(half_scales(np.asarray(scale.scale, np.float32))))
        return scale

    def _mark(self, name: str) -> None:
        scale = self._known(name)
        assert scale is not None
        self.whole[name] = scale

    def _is_made(self, name: str) -> bool:
        """Whether a quantised node makes a tensor."""
        maker = self.makers.get(name)
        return maker is not None and (
            maker.name in self.chosen
            or (maker.op_type in {"Clip", "Relu"} and maker.input[0] in self.absorbed)
        )

    def _is_given_whole(self, name: str) -> bool:
        """Whether a quantised node gives a tensor as whole numbers, which all then read."""
        return self.form.results and name in self.whole and self._is_made(name)

    def _absorbable(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The only reader of a node, where it is a Relu or Clip that saturation replaces."""
        out = node.output[0]
        readers = self.readers.get(out, [])
        if not self.form.absorb or len(readers) != 1 or out in self.outputs | self._inner:
            return None
        (reader,) = readers
        if reader.name in self.keep or reader.op_type not in {"Clip", "Relu"}:
            return None
        bounds = self._bounds(reader)
        known = self.calibration.ranges.get(reader.output[0])
        if bounds is None or known is None or reader.output[0] in self._inner:
            return None
        low, high = min(known[0], 0.0), max(known[1], 0.0)
        slack = _NEAR * (high - low)
        return reader if low >= bounds[0] - slack and high <= bounds[1] + slack else None

    def _bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """Of a Relu or Clip; None where they are worked out at run time."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        found = []
        for index, (word, unbounded) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
            name = node.input[index] if len(node.input) > index else ""
            value = self.constants.get(
                name, _attribute(node, word, unbounded) if not name else None
            )
            if value is None:
                return None
            found.append(float(np.asarray(value).reshape(())))
        return found[0], found[1]

    def _is_added_within(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether this input of an Add is a convolution's, and nobody else's."""
        if node.op_type != "Add":
            return False
        maker = self.makers.get(name)
        alone = len(self.readers.get(name, [])) == 1 and name not in self.outputs | self._inner
        first = next((each for each in node.input if self._is_convolution(each)), None)
        return alone and maker is not None and maker.op_type == "Conv" and name == first

    def _is_convolution(self, name: str) -> bool:
        maker = self.makers.get(name)
        return maker is not None and maker.op_type == "Conv" and len(self.readers[name]) == 1

    # --- where -----------------------------------------------------------------------------------

    def _place(self) -> None:
        """Write all nodes anew, each followed by the Q/DQ of what it gives."""
        gone = {activation.name for activation in self.absorbed.values()}
        placed: list[onnx.NodeProto] = []
        for value in self.proto.graph.input:
            if value.name in self.wanted:
                placed += self._pair(value.name, value.name, self._dequantised(value.name))
        for node in self.proto.graph.node:
            if node.name in gone:
                continue
            if node.name in self.chosen:
                self._rewrite(node)
            else:
                for index, name in enumerate(node.input):
                    if name in self.whole and self._is_given_whole(name):
                        node.input[index] = self._dequantised(name)
            pairs: list[onnx.NodeProto] = []
            for index, name in enumerate(node.output):
                if name in self.absorbed:
                    name = node.output[index] = self.absorbed[name].output[0]  # noqa: PLW2901 -- the node gives that now
                if name not in self.whole or name in self.constants:
                    continue
                if not (self._is_given_whole(name) or name in self.wanted):
                    continue
                real = name
                if name in self.outputs and self._is_given_whole(name):
                    real = node.output[index] = self._name(name, "float")
                pairs += self._pair(name, real, self._dequantised(name))
            placed += [node, *pairs]
        self._finish([*self._before, *placed])

    def _dequantised(self, name: str) -> str:
        is_output = name in self.outputs and self._is_given_whole(name)
        return name if is_output else self._name(name, "dequantized")

    def _rewrite(self, node: onnx.NodeProto) -> None:
        """Let a node read dequantised values and weights."""
        data = node.input[0]
        if node.op_type in _WEIGHTED and node.input[1] in self.constants:
            weights = self.constants[node.input[1]]
            axis = _channels(node, weights)
            step = self.whole[data].scale if self.form.whole_bias else 0.0
            has_bias = len(node.input) > 2 and bool(node.input[2])
            bias = self._bias(node, weights) if has_bias else None
            scales = weight_scales(weights, axis, bias, step)
            if self.form.half_scales:
                scales = half_scales(scales)
            node.input[1] = self._weight(node.input[1], weights, axis, scales)
            if bias is not None and self.form.whole_bias:
                node.input[2] = self._whole_bias(node, bias, scales, step)
            node.input[0] = self._dequantised(data)
            return
        passing = node.op_type in self.form.passing
        for index, name in enumerate(node.input[:1] if passing else node.input):
            if name in self.constants:
                node.input[index] = self._constant(name)
            elif name in self.wanted and not (
                self.form.residual and self._is_added_within(node, name)
            ):
                node.input[index] = self._dequantised(name)

    def _pair(self, tensor: str, real: str, out: str) -> list[onnx.NodeProto]:
        """Q/DQ behind a float tensor."""
        scale = self.whole[tensor]
        parameters = self._parameters(tensor, scale)
        whole = self._name(tensor, "quantized")
        self._stored[whole] = tensor
        return [
            self._node("QuantizeLinear", [real, *parameters], whole),
            self._node("DequantizeLinear", [whole, *parameters], out),
        ]

    def _parameters(self, name: str, scale: Scale) -> list[str]:
        kind = np.int8 if self.form.symmetric else np.uint8
        return [
            self._add(self._name(name, "scale"), np.asarray(scale.scale, np.float32)),
            self._add(self._name(name, "zero_point"), np.asarray(scale.zero_point, kind)),
        ]

    def _constant(self, name: str) -> str:
        """A constant that is an operand, quantised as activations are."""
        out = self._name(name, "dequantized")
        if not any(node.output[0] == out for node in self._before):
            scale = self._known(name)
            assert scale is not None
            limits = np.iinfo(np.int8 if self.form.symmetric else np.uint8)
            steps = np.rint(self.constants[name] / np.float32(scale.scale)) + scale.zero_point
            whole = np.clip(steps, -MOST if self.form.symmetric else 0, limits.max)
            stored = self._add(self._name(name, "quantized"), whole.astype(limits.dtype))
            parameters = self._parameters(name, scale)
            self._before.append(self._node("DequantizeLinear", [stored, *parameters], out))
        return out

    def _weight(self, name: str, weights: np.ndarray, axis: int, scales: np.ndarray) -> str:
        """The dequantised form of weights.

        Each node has its own, though another may read the same weights: where ONNX Runtime
        rewrites shared ones for processors without VNNI (1.32), it fails to load the model.
        """
        out = self._fresh(f"{name}/dequantized")
        inputs = [
            self._add(self._fresh(f"{out}/whole"), quantise_weight(weights, scales, axis)),
            self._add(self._fresh(f"{out}/scale"), scales),
            self._add(self._fresh(f"{out}/zero_point"), np.zeros(scales.shape, np.int8)),
        ]
        self._before.append(self._node("DequantizeLinear", inputs, out, axis=axis))
        return out

    def _whole_bias(
        self, node: onnx.NodeProto, bias: np.ndarray, scales: np.ndarray, step: float
    ) -> str:
        product = np.float32(step) * scales
        whole = np.rint(bias.astype(np.float64) / product)
        out = self._fresh(f"{node.name}/bias")
        inputs = [
            self._add(self._fresh(f"{out}/whole"), whole.astype(np.int32)),
            self._add(self._fresh(f"{out}/scale"), product),
            self._add(self._fresh(f"{out}/zero_point"), np.zeros(product.shape, np.int32)),
        ]
        self._before.append(self._node("DequantizeLinear", inputs, out, axis=0))
        return out

    # --- writing ---------------------------------------------------------------------------------

    def _node(
        self, kind: str, inputs: list[str], out: str, axis: int | None = None
    ) -> onnx.NodeProto:
        import onnx

        domain = "" if self.opset >= _AXES_SINCE else _MS_DOMAIN
        name = self._fresh(f"{out}/{kind}")
        node = onnx.helper.make_node(kind, inputs, [out], name=name, domain=domain)
        if axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        return node

    def _name(self, tensor: str, part: str) -> str:
        """The name of what belongs to a tensor; the same whenever it is asked for."""
        found = self._names.get((tensor, part))
        if found is None:
            found = self._names[tensor, part] = self._fresh(f"{tensor}/{part}")
        return found

    def _fresh(self, name: str) -> str:
        """A name that nothing has, like this one."""
        found, number = name, 0
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found

    def _add(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        self.added.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def _finish(self, nodes: list[onnx.NodeProto]) -> None:
        """Put the nodes in place, and leave out what nobody reads."""
        import onnx

        graph = self.proto.graph
        used = {name for node in nodes for name in (*node.input, *_read_inside(node))}
        used |= self.outputs
        kept = [t for t in graph.initializer if t.name in used]
        written = [n for n in nodes if n.op_type != "Constant" or n.output[0] in used]
        made = {name for node in written for name in node.output}
        values = [value for value in graph.value_info if value.name in made]
        for part, filling in (
            (graph.node, written),
            (graph.initializer, [*kept, *{t.name: t for t in self.added}.values()]),
            (graph.value_info, values),
        ):
            del part[:]
            part.extend(filling)
        domains = {entry.domain for entry in self.proto.opset_import}
        if self.opset < _AXES_SINCE and _MS_DOMAIN not in domains:
            self.proto.opset_import.append(onnx.helper.make_opsetid(_MS_DOMAIN, 1))


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Of all tensors and nodes, those of graphs inside of nodes too."""
    for part in (graph.input, graph.output, graph.initializer):
        yield from (entry.name for entry in part)
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                yield from _names(inner)


def _channels(node: onnx.NodeProto, weights: np.ndarray) -> int:
    """The axis of a node's weights that its output channels are on."""
    if node.op_type == "Gemm" and _attribute(node, "transB", 0):
        return 0
    return weights.ndim - 1 if node.op_type == "MatMul" else _WEIGHTED[node.op_type]


def _is_odd_pool(node: onnx.NodeProto) -> bool:
    """An AveragePool that ONNX Runtime's 8-bit kernel (1.32) computes otherwise, or refuses."""
    return node.op_type == "AveragePool" and bool(
        _attribute(node, "ceil_mode", 0)
        or _attribute(node, "count_include_pad", 0)
        or any(d != 1 for d in _attribute(node, "dilations", ()))  # type: ignore[attr-defined] # whole numbers
    )


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    import onnx

    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _read_inside(node: onnx.NodeProto) -> set[str]:
    """Names that graphs inside of a node read."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            names.update(value.name for value in graph.output)
            for inner in graph.node:
                names.update(inner.input)
                names.update(_read_inside(inner))
    return names
