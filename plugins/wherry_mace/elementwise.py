"""Operators that compute each element by itself: activations, arithmetic of one and two tensors."""

from __future__ import annotations

import math

from wherry_mace.format import Value
from wherry_mace.translate import Handler, Node, RefusedError, Translator
from wherry_mace.windows import limits

SUM, SUB, PROD, DIV, MIN, MAX, NEG, ABS, POW, CLIP, SIGN = 0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13
"""MACE's EltwiseType."""
SELU = 1.67326319217681884765625, 1.05070102214813232421875
"""ONNX's defaults: alpha, gamma."""


def _free(t: Translator, name: str) -> dict[str, int]:
    """What an operation on four axes says so that MACE may choose their order."""
    return {"has_data_format": 1} if len(t.shape(name)) == 4 else {}


def activate(t: Translator, node: Node, x: str, output: str, word: str, **about: Value) -> None:
    """Write an Activation of a tensor of the model."""
    more = _free(t, output)
    t.add(
        "Activation", node, [x], output, [t.shape(output)], free=bool(more),
        activation=word, about={**about, **more},
    )  # fmt: skip


def scalar(
    t: Translator, node: Node, x: str, output: str, kind: int, number: float = 1.0, index: int = 1
) -> None:
    """Write an Eltwise of a tensor and a number, which is operand ``index``."""
    more = _free(t, output)
    t.add(
        "Eltwise", node, [x], output, [t.shape(output)], free=bool(more),
        type=kind, scalar_input=float(number), scalar_input_index=index, about=more,
    )  # fmt: skip


def _part(t: Translator, node: Node, text: str) -> str:
    """A name for a tensor in the middle of a node; it has the shape of its output."""
    name = t.graph.fresh(f"{node.outputs[0]}/{text}")
    t.shapes[name] = t.shape(node.outputs[0])
    return name


def _plain(word: str) -> Handler:
    def write(t: Translator, node: Node) -> None:
        activate(t, node, node.inputs[0], node.outputs[0], word)

    return write


def _unary(kind: int, number: float = 1.0, index: int = 1) -> Handler:
    def write(t: Translator, node: Node) -> None:
        scalar(t, node, node.inputs[0], node.outputs[0], kind, number, index)

    return write


def _leaky(t: Translator, node: Node) -> None:
    slope = float(node.about.get("alpha", 0.01))
    activate(t, node, node.inputs[0], node.outputs[0], "LEAKYRELU", activation_coefficient=slope)


def _elu(t: Translator, node: Node) -> None:
    slope = float(node.about.get("alpha", 1.0))
    activate(t, node, node.inputs[0], node.outputs[0], "ELU", activation_coefficient=slope)


def _selu(t: Translator, node: Node) -> None:
    """``gamma * Elu(x, alpha)``."""
    alpha, gamma = (
        float(node.about.get(w, d)) for w, d in zip(("alpha", "gamma"), SELU, strict=True)
    )
    inner = _part(t, node, "elu")
    activate(t, node, node.inputs[0], inner, "ELU", activation_coefficient=alpha)
    scalar(t, node, inner, node.outputs[0], PROD, gamma)


def _hard_sigmoid(t: Translator, node: Node) -> None:
    alpha, beta = (float(node.about.get(w, d)) for w, d in (("alpha", 0.2), ("beta", 0.5)))
    activate(
        t, node, node.inputs[0], node.outputs[0], "HARDSIGMOID",
        hardsigmoid_alpha=alpha, hardsigmoid_beta=beta,
    )  # fmt: skip


def _hard_swish(t: Translator, node: Node) -> None:
    """``x * HardSigmoid(x)``: MACE has the latter alone."""
    x, gate = node.inputs[0], _part(t, node, "gate")
    activate(t, node, x, gate, "HARDSIGMOID", hardsigmoid_alpha=1 / 6, hardsigmoid_beta=0.5)
    _two(t, node, x, gate, node.outputs[0], PROD)


def _swish(t: Translator, node: Node) -> None:
    """``x * Sigmoid(alpha * x)``."""
    x, gate = node.inputs[0], _part(t, node, "gate")
    alpha, inner = float(node.about.get("alpha", 1.0)), x
    if alpha != 1.0:
        inner = _part(t, node, "scaled")
        scalar(t, node, x, inner, PROD, alpha)
    activate(t, node, inner, gate, "SIGMOID")
    _two(t, node, x, gate, node.outputs[0], PROD)


def _softsign(t: Translator, node: Node) -> None:
    """``x / (1 + |x|)``."""
    x, size, below = node.inputs[0], _part(t, node, "size"), _part(t, node, "below")
    scalar(t, node, x, size, ABS)
    scalar(t, node, size, below, SUM, 1.0)
    _two(t, node, x, below, node.outputs[0], DIV)


def _prelu(t: Translator, node: Node) -> None:
    """A slope for each channel of a picture."""
    import numpy as np

    x, shape = node.inputs[0], t.shape(node.inputs[0])
    slope = t.parameter(node, 1)
    if not 2 <= len(shape) <= 4:
        raise RefusedError("MACE has the PRelu of 2 to 4 axes.")
    wide = slope.reshape((1,) * (len(shape) - slope.ndim) + slope.shape)
    if wide.size != wide.shape[1]:
        raise RefusedError("MACE has one slope for each channel: use LeakyRelu, or one each.")
    values = np.broadcast_to(wide.reshape(-1), (shape[1],)).astype(np.float32)
    inputs = [x, t.constant(f"{node.inputs[1]}/slopes", values)]
    about: dict[str, Value] = {"activation": "PRELU", "has_data_format": 1}
    if len(shape) == 4:
        t.add("Activation", node, inputs, node.outputs[0], free=True, about=about)
        return
    picture = (*shape, *[1] * (4 - len(shape)))
    inputs[0] = t.reshaped(node, x, picture)
    made = t.part("Activation", node, inputs, picture, free=True, about=about)
    t.bounds[made] = node.outputs[0]
    t.reshape_to(node, made, node.outputs[0])


def _clip(t: Translator, node: Node) -> None:
    bounds = limits(t, node)
    if bounds is None:
        raise RefusedError("Give its bounds as constants.")
    low, high = bounds
    x, output = node.inputs[0], node.outputs[0]
    if low == 0 and 0 < high < math.inf:
        activate(t, node, x, output, "RELUX", max_limit=high)
    elif low == 0 and high == math.inf:
        activate(t, node, x, output, "RELU")
    elif high == math.inf:
        scalar(t, node, x, output, MAX, low)
    elif low == -math.inf:
        scalar(t, node, x, output, MIN, high)
    elif low < high:
        more = _free(t, output)
        t.add(
            "Eltwise", node, [x], output, free=bool(more),
            type=CLIP, coeff=[low, high], about=more,
        )  # fmt: skip
    else:
        raise RefusedError("A Clip whose bounds meet is a constant: write it as one.")


def _binary(kind: int) -> Handler:
    def write(t: Translator, node: Node) -> None:
        if len(node.inputs) != 2:
            raise RefusedError("Write it with two operands at a time.")
        _two(t, node, node.inputs[0], node.inputs[1], node.outputs[0], kind)

    return write


def _two(t: Translator, node: Node, x: str, y: str, output: str, kind: int) -> None:
    """Write an Eltwise of two tensors, which are broadcast as ONNX does."""
    shape, shapes = t.shape(output), (t.shape(x), t.shape(y))
    values = (t.value(x), t.value(y))
    for index in (0, 1):
        value, other = values[index], (x, y)[1 - index]
        if value is None or t.shape(other) != shape:
            continue
        if value.size == 1:
            scalar(t, node, other, output, kind, float(value.reshape(-1)[0]), index)
            return
        wide = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
        if len(shape) == 4 and wide.size == shape[1] == wide.shape[1]:
            name = t.constant(f"{(x, y)[index]}/channels", wide.reshape(-1))
            pair = [name, other] if index == 0 else [other, name]
            t.add("Eltwise", node, pair, output, [shape], free=True, type=kind, has_data_format=1)
            return
    computed = values[0] is None and values[1] is None
    if computed and shapes == (shape, shape):
        more = _free(t, output)
        t.add("Eltwise", node, [x, y], output, [shape], free=bool(more), type=kind, about=more)
        return
    # MACE aligns the front of tensors of 2 and 3 axes with one of 4: give both the same number.
    pair = []
    for name in (x, y):
        given = t.shape(name)
        wide_shape = (*[1] * (len(shape) - len(given)), *given)
        pair.append(name if wide_shape == given else t.reshaped(node, name, wide_shape))
    t.add("Eltwise", node, pair, output, [shape], type=kind)


def _mean(t: Translator, node: Node) -> None:
    """A sum of many, and a product."""
    total = node.inputs[0]
    for index, name in enumerate(node.inputs[1:]):
        made = _part(t, node, f"sum{index}")
        _two(t, node, total, name, made, SUM)
        total = made
    scalar(t, node, total, node.outputs[0], PROD, 1 / len(node.inputs))


def _batch_norm(t: Translator, node: Node) -> None:
    """A factor and a summand for each channel; most are part of a convolution by now."""
    import numpy as np

    scale, shift, mean, variance = (
        t.parameter(node, index).astype(np.float64) for index in range(1, 5)
    )
    factor = scale / np.sqrt(variance + float(node.about.get("epsilon", 1e-5)))
    summand = shift - mean * factor
    x, shape, output = node.inputs[0], t.shape(node.inputs[0]), node.outputs[0]
    if node.about.get("training_mode", 0) or (t.opset < 7 and not node.about.get("is_test", 0)):
        raise RefusedError("Export the model for inference.")
    pair = [values.astype(np.float32) for values in (factor, summand)]
    if len(shape) == 4:
        names = [
            t.constant(f"{output}/{word}", values)
            for word, values in zip(("factors", "summands"), pair, strict=True)
        ]
        t.add("BatchNorm", node, [x, *names], output, free=True)
        return
    axes = [1] * len(shape)
    axes[1 if len(shape) > 1 else 0] = -1
    inner = _part(t, node, "scaled")
    for kind, given, made, values in (
        (PROD, x, inner, pair[0]), (SUM, inner, output, pair[1])
    ):  # fmt: skip
        name = t.constant(f"{made}/channels", values.reshape(axes))
        t.add("Eltwise", node, [given, name], made, [shape], type=kind)


def _instance_norm(t: Translator, node: Node) -> None:
    scale, shift = t.parameter(node, 1), t.parameter(node, 2)
    shape, output = t.shape(node.inputs[0]), node.outputs[0]
    if len(shape) not in {3, 4}:
        raise RefusedError("MACE has the InstanceNormalization of pictures.")
    picture = shape if len(shape) == 4 else (*shape, 1)
    inputs = [
        node.inputs[0] if len(shape) == 4 else t.reshaped(node, node.inputs[0], picture),
        t.constant(f"{node.inputs[1]}/factors", scale),
        t.constant(f"{node.inputs[2]}/summands", shift),
    ]
    about = {"epsilon": float(node.about.get("epsilon", 1e-5)), "affine": 1}
    if len(shape) == 4:
        t.add("InstanceNorm", node, inputs, output, free=True, about=about)
        return
    made = t.part("InstanceNorm", node, inputs, picture, free=True, about=about)
    t.reshape_to(node, made, output)


def _lrn(t: Translator, node: Node) -> None:
    size, shape = int(node.about["size"]), t.shape(node.inputs[0])
    if len(shape) != 4 or size % 2 == 0:
        raise RefusedError("MACE has the LRN of pictures, over an odd number of channels.")
    t.add(
        "LocalResponseNorm", node, [node.inputs[0]], node.outputs[0],
        depth_radius=size // 2, bias=float(node.about.get("bias", 1.0)),
        alpha=float(node.about.get("alpha", 1e-4)) / size,
        beta=float(node.about.get("beta", 0.75)),
    )  # fmt: skip


HANDLERS: dict[str, Handler] = {
    "Abs": _unary(ABS),
    "Add": _binary(SUM),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Div": _binary(DIV),
    "Elu": _elu,
    "Exp": _unary(POW, math.e, 0),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LeakyRelu": _leaky,
    "Max": _binary(MAX),
    "Mean": _mean,
    "Min": _binary(MIN),
    "Mul": _binary(PROD),
    "Neg": _unary(NEG),
    "PRelu": _prelu,
    "Pow": _binary(POW),
    "Reciprocal": _unary(DIV, 1.0, 0),
    "Relu": _plain("RELU"),
    "Selu": _selu,
    "Sigmoid": _plain("SIGMOID"),
    "Sign": _unary(SIGN),
    "Softsign": _softsign,
    "Sqrt": _unary(POW, 0.5),
    "Sub": _binary(SUB),
    "Sum": _binary(SUM),
    "Swish": _swish,
    "Tanh": _plain("TANH"),
}
