"""Lowerings to Caffe2's 8-bit operators: uint8 with a zero point, pictures in NHWC.

What is quantised is decided by `wherry.quantize.qdq`, as for other runtimes. Here stands what
Caffe2's operators can do of it (QNNPACK's limits among them), and how they are written. A tensor
may exist as a float blob in ONNX's layout, under its own name, and as an 8-bit one; the way from
one to the other is emitted where somebody asks for it.

Weights have one scale each, for Caffe2 knows no scales of channels; they are uint8 around 128.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.quantize.form import QdqForm
from wherry.quantize.qdq import Quantised, Scale, decide
from wherry.quantize.weights import quantise_weight, weight_scales
from wherry_caffe2.lowering import Lowering, Refusal, View, about
from wherry_caffe2.nets import Operator, Value, fill_int8
from wherry_caffe2.products import dense_weights
from wherry_caffe2.windows import window

if TYPE_CHECKING:
    import onnx

    from wherry.calibration import Calibration

FORM = QdqForm(
    symmetric=False,
    heavy=frozenset({"Conv", "Gemm", "MatMul"}),
    light=frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu"}),
    passing=frozenset({"ChannelShuffle", "Flatten", "MaxPool", "Relu", "Reshape"})
    | {"Slice", "Split", "Squeeze", "Unsqueeze"},
)
"""What Caffe2 has in 8 bits of what `wherry.quantize.qdq` knows."""

MIDDLE = 128  # the zero point of weights
ADD_LIMITS = (2.0**-10, 2.0**8)
POOL_LIMITS = (2.0**-8, 2.0**8)
"""QNNPACK's: the scale of what is taken by that of what is given lies between."""

PICTURE = (0, 2, 3, 1)
"""Axes of ONNX's pictures in the order of Caffe2's 8-bit ones."""


@dataclass(frozen=True)
class Plan:
    """What is quantised.

    Attributes:
        nodes: names of the nodes in 8 bits.
        scales: tensor to its scale, where it exists in 8 bits.
        results: name of a node to the tensor that its operator gives, where that is not its own
            output but that of an activation which saturation does.
        absorbed: names of these activations to the node that does them.
        beyond: names of nodes that stay float because their scales are beyond QNNPACK's.
    """

    nodes: frozenset[str]
    scales: Mapping[str, Scale]
    results: Mapping[str, str]
    absorbed: Mapping[str, str]
    beyond: tuple[str, ...]


def plan(view: View, calibration: Calibration, keep: frozenset[str]) -> Plan:
    """Decide what becomes 8 bits.

    Args:
        view: the graph that is lowered.
        calibration: of the model that it was made of; tensors keep their names.
        keep: names of nodes that stay float.
    """
    unfit = frozenset(node.name for node in view.proto.graph.node if not _fits(view, node))
    tied = replace(calibration, ranges=_tied(view, calibration, unfit), thresholds={})
    beyond: list[str] = []
    while True:
        made = decide(view.proto, tied, FORM, keep, unfit)
        nodes = {node.name: node for node in view.proto.graph.node}
        results = {
            base: nodes[activation].output[0] for base, (activation,) in made.absorbed.items()
        }
        wrong = [
            name
            for name in sorted(made.nodes)
            if not _is_within(view, nodes[name], made, results.get(name, nodes[name].output[0]))
        ]
        if not wrong:
            absorbed = {names[0]: base for base, names in made.absorbed.items()}
            return Plan(made.nodes, made.scales, results, absorbed, tuple(beyond))
        beyond += [name for name in wrong if nodes[name].op_type != "Concat"]
        unfit |= set(wrong)


# --- what Caffe2 can do -----------------------------------------------------------------------


def _fits(view: View, node: onnx.NodeProto) -> bool:
    """Whether there is an 8-bit operator for this form of an operator."""
    check = _FORMS.get(node.op_type)
    if check is None:
        return node.op_type not in FORM.heavy | FORM.light | FORM.passing
    try:
        return check(view, node)
    except Refusal:
        return False


def _fits_conv(view: View, node: onnx.NodeProto) -> bool:
    window(node, 2)
    weights = view.constant(node.input[1])
    return len(view.shape(node.input[0])) == 4 and weights is not None


def _fits_dense(view: View, node: onnx.NodeProto) -> bool:
    return len(view.shape(node.input[0])) == 2 and not about(node).get("transA", 0)


def _fits_add(view: View, node: onnx.NodeProto) -> bool:
    shapes = [view.shape(name) for name in node.input]
    constant = any(name in view.tensors for name in node.input)
    return not constant and shapes[0] == shapes[1] and len(shapes[0]) in {2, 4}


def _fits_pool(view: View, node: onnx.NodeProto) -> bool:
    if len(view.shape(node.input[0])) != 4:
        return False
    if node.op_type == "GlobalAveragePool":
        return True
    told, numbers = about(node), window(node, 2)
    plain = all(each == 1 for each in told.get("dilations", ()))
    # Padding of an average counts in 8 bits, and does not in float.
    return (
        plain and len(node.output) == 1 and (node.op_type == "MaxPool" or not any(numbers["pads"]))
    )


def _fits_concat(view: View, node: onnx.NodeProto) -> bool:
    rank = len(view.shape(node.output[0]))
    constant = any(name in view.tensors for name in node.input)
    return not constant and rank in {2, 4} and about(node)["axis"] % rank == 1


def _fits_alone(view: View, node: onnx.NodeProto) -> bool:
    return len(view.shape(node.input[0])) in {2, 4}


def _fits_reshape(view: View, node: onnx.NodeProto) -> bool:
    """The values lie in the same order in NHWC, before and after."""
    shapes = [view.shape(name) for name in (node.input[0], node.output[0])]
    return all(
        len(shape) == 2 or (len(shape) == 4 and shape[2] == shape[3] == 1) for shape in shapes
    )


def _fits_cut(view: View, node: onnx.NodeProto) -> bool:
    """Runs of channels."""
    shape = view.shape(node.input[0])
    if len(shape) != 4 or any(len(view.shape(name)) != 4 for name in node.output):
        return False
    others = [view.shape(name) for name in node.output]
    if any(other[axis] != shape[axis] for other in others for axis in (0, 2, 3)):
        return False
    return node.op_type == "Split" or _first_channel(view, node) is not None


def _first_channel(view: View, node: onnx.NodeProto) -> int | None:
    """Of a Slice of channels in steps of 1; None: it is another one, or not known."""
    values = [view.constant(name) if name else None for name in node.input[1:]]
    if len(values) < 2 or values[0] is None or values[0].size != 1:
        return None
    axes = values[2] if len(values) > 2 else None
    steps = values[3] if len(values) > 3 else None
    if axes is None or int(axes[0]) % 4 != 1 or (steps is not None and int(steps[0]) != 1):
        return None
    channels = view.shape(node.input[0])[1]
    return slice(int(values[0][0]), None).indices(channels)[0]


_FORMS: Mapping[str, Callable[[View, onnx.NodeProto], bool]] = {
    "Conv": _fits_conv,
    **dict.fromkeys(("Gemm", "MatMul"), _fits_dense),
    "Add": _fits_add,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool"), _fits_pool),
    "Concat": _fits_concat,
    **dict.fromkeys(("ChannelShuffle", "LeakyRelu", "Relu"), _fits_alone),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _fits_reshape),
    **dict.fromkeys(("Slice", "Split"), _fits_cut),
}


def _tied(
    view: View, calibration: Calibration, unfit: frozenset[str]
) -> dict[str, tuple[float, float]]:
    """The ranges, one for all that a Concat joins: Caffe2 joins what has one scale.

    What passes values on has one scale on both sides, and ties its tensors too.
    """
    leaders: dict[str, str] = {}

    def leader(name: str) -> str:
        while leaders.get(name, name) != name:
            name = leaders[name]
        return name

    joined: set[str] = set()
    for node in view.proto.graph.node:
        passing = node.op_type in FORM.passing and node.op_type != "Relu"
        if node.name in unfit or not (passing or node.op_type == "Concat"):
            continue
        names = [*(node.input[:1] if passing else node.input), *node.output]
        for name in names:
            leaders[leader(name)] = leader(names[0])
        if node.op_type == "Concat":
            joined.update(names)
    groups: dict[str, list[tuple[float, float]]] = {}
    for name in {leader(name) for name in joined}:
        groups[name] = []
    for name, each in calibration.ranges.items():
        if leader(name) in groups:
            groups[leader(name)].append(each)
    ranges = dict(calibration.ranges)
    for name in ranges:
        if group := groups.get(leader(name)):
            ranges[name] = min(low for low, _ in group), max(high for _, high in group)
    return ranges


def _is_within(view: View, node: onnx.NodeProto, made: Quantised, result: str) -> bool:
    """Whether QNNPACK takes the scales of a node."""
    given = made.scales[result].scale
    taken = [made.scales[name].scale for name in node.input if name in made.scales]
    if node.op_type in FORM.heavy:
        return taken[0] * _weights(view, node, taken[0])[1] / given < 1
    if node.op_type == "Concat":
        scales = [made.scales[name] for name in (*node.input, result)]
        return len(set(scales)) == 1
    if node.op_type == "Add":
        limits = ADD_LIMITS
    elif node.op_type in {"AveragePool", "GlobalAveragePool", "LeakyRelu"}:
        limits = POOL_LIMITS
    else:
        return True
    return all(limits[0] <= scale / given < limits[1] for scale in taken)


def _weights(
    view: View, node: onnx.NodeProto, step: float
) -> tuple[np.ndarray, float, np.ndarray | None]:
    """Weights with output channels first, their scale, and the bias of these channels.

    Args:
        view: the graph.
        node: a Conv, Gemm or MatMul that is quantised.
        step: the scale of what it takes.
    """
    weights = view.constant(node.input[1])
    assert weights is not None
    if node.op_type != "Conv":
        weights = dense_weights(weights, transposed=bool(about(node).get("transB", 0)))
    bias = None
    if len(node.input) > 2 and node.input[2]:
        value = view.constant(node.input[2])
        assert value is not None
        bias = np.broadcast_to(value.reshape(-1), (len(weights),))
    return weights, float(weight_scales(weights, 0, bias, step).max()), bias


# --- writing ----------------------------------------------------------------------------------


class Int8Lowering(Lowering):
    """Writes the nodes of a plan in 8 bits, and all others in float.

    Attributes:
        plan: see `plan`.
        whole: tensor to its 8-bit blob.
    """

    def __init__(self, view: View, planned: Plan) -> None:
        super().__init__(view)
        inputs = {value.name for value in view.proto.graph.input}
        self.plan = planned
        self.whole: dict[str, str] = {}
        self._floats = inputs  # tensors that exist as float blobs

    def use(self, name: str) -> str:
        """The float blob of a tensor, made from the 8-bit one where that is all there is."""
        if name in self.whole and name not in self._floats:
            self._floats.add(name)
            picture = len(self.shape(name)) == 4
            out = self.fresh(f"{name}/real") if picture else name
            self._convert("Int8Dequantize", self.whole[name], out, {})
            if picture:
                self._convert("NHWC2NCHW", out, name, {})
        return super().use(name)

    def lower(self, node: onnx.NodeProto) -> None:
        """See `Lowering.lower`; an activation that saturation does is no operator of its own."""
        if node.name in self.plan.absorbed:
            return
        if node.name not in self.plan.nodes:
            super().lower(node)
            self._floats.update(node.output)
            return
        self.node = node
        _WRITERS[node.op_type](self, node)
        self.node = None

    def quantised(self, name: str) -> str:
        """The 8-bit blob of a tensor, made from the float one where that is all there is."""
        if name not in self.whole:
            given, picture = self.use(name), len(self.shape(name)) == 4
            if picture:
                turned = self.fresh(f"{name}/nhwc")
                self._convert("NCHW2NHWC", given, turned, {})
                given = turned
            self.whole[name] = self.fresh(f"{name}/int8")
            self._convert("Int8Quantize", given, self.whole[name], self.scale(name))
        return self.whole[name]

    def scale(self, name: str) -> dict[str, Value | None]:
        """The arguments that say how a tensor's whole numbers stand for real ones."""
        scale = self.plan.scales[name]
        return {"Y_scale": float(scale.scale), "Y_zero_point": int(scale.zero_point)}

    def give_whole(
        self, kind: str, inputs: Sequence[str], more: int = 0, **arguments: Value | None
    ) -> None:
        """Emit the 8-bit operator that makes the node's (or its activation's) tensor."""
        node = self.node
        assert node is not None
        result = self.plan.results.get(node.name, node.output[0])
        self.whole[result] = self.fresh(f"{result}/int8")
        outputs = [self.whole[result], *(self.fresh(f"{result}/more") for _ in range(more))]
        self.add(kind, inputs, outputs, self.name(node), {**arguments, **self.scale(result)})

    def fill_whole(self, hint: str, values: np.ndarray, scale: float, zero_point: int) -> str:
        """A blob for weights or a bias."""
        name = self.fresh(hint)
        self.fills[name] = fill_int8(name, values, scale, zero_point)
        return name

    def _convert(
        self, kind: str, given: str, made: str, arguments: Mapping[str, Value | None]
    ) -> None:
        """An operator that does no node."""
        name = self.own(f"{made}/{kind}")
        self.operators.append(Operator(kind, (given,), (made,), dict(arguments), name))


def _heavy(low: Int8Lowering, node: onnx.NodeProto, kind: str, **arguments: Any) -> None:
    """Weights as uint8 around 128, biases as int32 of the product of both scales."""
    x = low.quantised(node.input[0])
    step = low.plan.scales[node.input[0]].scale
    weights, scale, bias = _weights(low.view, node, step)
    whole = quantise_weight(weights, np.asarray([scale], np.float32), 0).astype(np.int16) + MIDDLE
    if weights.ndim == 4:
        whole = whole.transpose(PICTURE)
    stored = np.ascontiguousarray(whole.astype(np.uint8))
    product = float(np.float32(step) * np.float32(scale))
    real = np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
    sums = np.rint(real / product).astype(np.int32)
    y = node.output[0]
    names = [x, low.fill_whole(f"{y}/weights", stored, scale, MIDDLE)]
    names.append(low.fill_whole(f"{y}/bias", sums, product, 0))
    low.give_whole(kind, names, **arguments)


def _conv(low: Int8Lowering, node: onnx.NodeProto) -> None:
    numbers = {**window(node, 2), "order": "NHWC", "group": int(about(node).get("group", 1))}
    numbers["dilations"] = list(about(node).get("dilations", [1, 1]))
    _heavy(low, node, "Int8Conv", **numbers)


def _dense(low: Int8Lowering, node: onnx.NodeProto) -> None:
    _heavy(low, node, "Int8FC")


def _add(low: Int8Lowering, node: onnx.NodeProto) -> None:
    low.give_whole("Int8Add", [low.quantised(name) for name in node.input])


def _pool(low: Int8Lowering, node: onnx.NodeProto) -> None:
    kind = "Int8MaxPool" if node.op_type == "MaxPool" else "Int8AveragePool"
    if node.op_type == "GlobalAveragePool":
        # Of the kernel's size: a library of 1.2 wants a kernel, whatever global_pooling says.
        numbers: dict[str, Any] = {"kernels": list(low.shape(node.input[0])[2:]), "order": "NHWC"}
        numbers |= {"strides": [1, 1], "pads": [0] * 4}
    else:
        numbers = {**window(node, 2), "order": "NHWC"}
    low.give_whole(kind, [low.quantised(node.input[0])], **numbers)


def _concat(low: Int8Lowering, node: onnx.NodeProto) -> None:
    axis = len(low.shape(node.output[0])) - 1
    low.give_whole("Int8Concat", [low.quantised(name) for name in node.input], more=1, axis=axis)


def _leaky(low: Int8Lowering, node: onnx.NodeProto) -> None:
    alpha = float(about(node).get("alpha", 0.01))
    low.give_whole("Int8LeakyRelu", [low.quantised(node.input[0])], alpha=alpha)


def _relu(low: Int8Lowering, node: onnx.NodeProto) -> None:
    low.give_whole("Int8Relu", [low.quantised(node.input[0])])


def _shuffle(low: Int8Lowering, node: onnx.NodeProto) -> None:
    group = int(about(node)["group"])
    # It pools nothing, and wants a kernel all the same.
    low.give_whole(
        "Int8ChannelShuffle",
        [low.quantised(node.input[0])],
        group=group,
        kernels=[1, 1],
        order="NHWC",
    )


def _reshape(low: Int8Lowering, node: onnx.NodeProto) -> None:
    shape = low.shape(node.output[0])
    wanted = [shape[axis] for axis in PICTURE] if len(shape) == 4 else list(shape)
    low.give_whole("Int8Reshape", [low.quantised(node.input[0])], more=1, shape=wanted)


def _cut(low: Int8Lowering, node: onnx.NodeProto) -> None:
    """A run of channels for each output."""
    x = low.quantised(node.input[0])
    channels = low.shape(node.input[0])[1]
    start = 0 if node.op_type == "Split" else _first_channel(low.view, node)
    assert start is not None
    for name in node.output:
        if not name:
            continue
        end = start + low.shape(name)[1]
        low.whole[name] = low.fresh(f"{name}/int8")
        limits = [-1, -1, -1, -1 if end == channels else end]
        arguments = {"starts": [0, 0, 0, start], "ends": limits, **low.scale(name)}
        low.add("Int8Slice", [x], [low.whole[name]], low.name(node), arguments)
        start = end


_WRITERS: Mapping[str, Callable[[Int8Lowering, onnx.NodeProto], None]] = {
    "Conv": _conv,
    **dict.fromkeys(("Gemm", "MatMul"), _dense),
    "Add": _add,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool"), _pool),
    "Concat": _concat,
    "LeakyRelu": _leaky,
    "Relu": _relu,
    "ChannelShuffle": _shuffle,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Slice", "Split"), _cut),
}
