"""Lowerings of what works on one value at a time, alone or with others: ONNX to Caffe2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wherry_caffe2.lowering import ALL, FLOAT, NUMBERS, Lowering, Refusal, about, lowers

if TYPE_CHECKING:
    import onnx

RENAMED = {
    "Identity": "Copy", "Neg": "Negative", "Equal": "EQ", "Greater": "GT", "GreaterOrEqual": "GE",
    "Less": "LT", "LessOrEqual": "LE",
}  # fmt: skip
_TYPES = {"float32": 1, "int32": 2, "bool": 5, "int64": 10}  # of TensorProto.DataType


@lowers(
    *("Abs", "Acos", "Asin", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log", "Neg"),
    *("Reciprocal", "Relu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt"),
    *("Tan", "Tanh"),
)
def alone(low: Lowering, node: onnx.NodeProto) -> None:
    """The same in Caffe2, but for some names."""
    low.give(RENAMED.get(node.op_type, node.op_type), low.inputs(node)[:1])


@lowers("Identity", takes=ALL)
def identity(low: Lowering, node: onnx.NodeProto) -> None:
    """A copy."""
    low.give("Copy", low.inputs(node))


@lowers("Not", takes={"bool"})
def negation(low: Lowering, node: onnx.NodeProto) -> None:
    """Of truth."""
    low.give("Not", low.inputs(node))


@lowers("Elu", "LeakyRelu", "Selu", "ThresholdedRelu", "HardSigmoid")
def with_numbers(low: Lowering, node: onnx.NodeProto) -> None:
    """The same in Caffe2, with all numbers written out."""
    usual = {
        "Elu": {"alpha": 1.0},
        "LeakyRelu": {"alpha": 0.01},
        "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
        "ThresholdedRelu": {"alpha": 1.0},
        "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    }[node.op_type]
    numbers: dict[str, Any] = {
        key: float(about(node).get(key, value)) for key, value in usual.items()
    }
    if "gamma" in numbers:
        numbers["scale"] = numbers.pop("gamma")
    low.give(node.op_type, low.inputs(node), **numbers)


@lowers("HardSwish")
def hard_swish(low: Lowering, node: onnx.NodeProto) -> None:
    """Caffe2 has none: x times its HardSigmoid."""
    (x,) = low.inputs(node)
    gate = low.step("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
    low.give("Mul", [x, gate])


@lowers("Swish")
def swish(low: Lowering, node: onnx.NodeProto) -> None:
    """X times the Sigmoid of a multiple of it."""
    (x,) = low.inputs(node)
    alpha, inner = float(about(node).get("alpha", 1.0)), x
    if alpha != 1:
        number = low.constant(f"{node.output[0]}/alpha", np.full(1, alpha, np.float32))
        inner = low.step("Mul", [x, number])
    low.give("Mul", [x, low.step("Sigmoid", [inner])])


@lowers("Shrink")
def shrink(low: Lowering, node: onnx.NodeProto) -> None:
    """Nearer to zero by the bias beyond a bound, and nothing within."""
    (x,) = low.inputs(node)
    bound, bias = (
        float(about(node).get(key, value)) for key, value in (("lambd", 0.5), ("bias", 0.0))
    )
    numbers = {
        key: low.constant(f"{node.output[0]}/{key}", np.full(1, value, np.float32))
        for key, value in (("high", bound), ("low", -bound), ("bias", bias))
    }
    parts = []
    for compare, limit, move in (("GT", "high", "Sub"), ("LT", "low", "Add")):
        beyond = low.step("Cast", [low.step(compare, [x, numbers[limit]])], to=_TYPES["float32"])
        parts.append(low.step("Mul", [beyond, low.step(move, [x, numbers["bias"]])]))
    low.give("Add", parts)


@lowers("IsNaN", gives={"bool"})
def is_nan(low: Lowering, node: onnx.NodeProto) -> None:
    """What differs from itself."""
    (x,) = low.inputs(node)
    low.give("NE", [x, x])


@lowers("Clip")
def clip(low: Lowering, node: onnx.NodeProto) -> None:
    """Bounds that are known, or none."""
    bounds: dict[str, Any] = {}
    for index, word in enumerate(("min", "max"), 1):
        value = about(node).get(word)
        if value is None and (known := low.known(node, index)) is not None:
            value = known.reshape(-1)[0]
        if value is not None:
            bounds[word] = float(value)
    if bounds.get("min", -np.inf) > bounds.get("max", np.inf):  # ONNX: all is the upper bound then
        bounds["min"] = bounds["max"]
    low.give("Clip", [low.use(node.input[0])], **bounds)


@lowers("PRelu")
def prelu(low: Lowering, node: onnx.NodeProto) -> None:
    """A slope for all, or one for each channel; other ones in parts."""
    x, shape = low.use(node.input[0]), low.shape(node.input[0])
    slope = low.view.constant(node.input[1])
    channels = shape[1] if len(shape) > 1 else 0
    fits = slope is not None and (
        slope.size == 1
        or (slope.size == channels and slope.ndim in {len(shape), len(shape) - 1}
            and slope.shape[slope.ndim - len(shape) + 1] == channels)
    )  # fmt: skip
    if fits and slope is not None and len(shape) > 1:
        name = low.constant(f"{node.input[1]}/slope", slope.reshape(-1))
        low.give("PRelu", [x, name], order="NCHW")
        return
    below = low.step("Clip", [x], max=0.0)
    low.give("Add", [low.step("Relu", [x]), low.step("Mul", [below, low.use(node.input[1])])])


@lowers("Add", "Mul", "Sub", "Div", takes=NUMBERS)
def arithmetic(low: Lowering, node: onnx.NodeProto) -> None:
    """Of two, which are broadcast as ONNX does."""
    if node.op_type == "Div" and low.view.kind(node.input[0]) != "float32":
        raise Refusal("Caffe2 divides floating point numbers: cast before it.", "whole numbers in")
    low.give(node.op_type, low.inputs(node))


@lowers("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", takes=NUMBERS, gives={"bool"})
def comparison(low: Lowering, node: onnx.NodeProto) -> None:
    """Of two, which are broadcast as ONNX does."""
    low.give(RENAMED[node.op_type], low.inputs(node))


@lowers("And", "Or", "Xor", takes={"bool"})
def logic(low: Lowering, node: onnx.NodeProto) -> None:
    """Of two, which are broadcast as ONNX does."""
    low.give(node.op_type, low.inputs(node))


@lowers("Pow")
def power(low: Lowering, node: onnx.NodeProto) -> None:
    """A number as exponent, or one for each value."""
    x, exponent = low.use(node.input[0]), low.view.constant(node.input[1])
    made = low.shape(node.output[0])
    if exponent is not None and exponent.size == 1 and made == low.shape(node.input[0]):
        number = float(exponent.reshape(-1)[0])
        if number == 2:
            low.give("Sqr", [x])
        elif number == 3:
            low.give("Cube", [x])
        else:
            low.give("Pow", [x], exponent=number)
        return
    if low.view.kind(node.input[1]) != "float32":
        raise Refusal("Give the exponent in float32.")
    low.give("Pow", [widened(low, name, made) for name in node.input])


@lowers("Max", "Min", "Sum", "Mean")
def of_many(low: Lowering, node: onnx.NodeProto) -> None:
    """Of any number, of one shape in Caffe2; more than two one after the other."""
    made = low.shape(node.output[0])
    names = [widened(low, name, made) for name in node.input]
    kind = node.op_type if node.op_type in {"Max", "Min"} else "Add"
    if len(names) == 1:
        low.give("Copy", names)
        return
    total = names[0]
    for name in names[1:-1]:
        total = low.step(kind, [total, name])
    if node.op_type == "Mean":
        share = low.constant(f"{node.output[0]}/share", np.float32(1 / len(names)).reshape(1))
        low.give("Mul", [low.step("Add", [total, names[-1]]), share])
    else:
        low.give(kind, [total, names[-1]])


@lowers("Where", takes={"bool"}, gives=FLOAT)
def where(low: Lowering, node: onnx.NodeProto) -> None:
    """Of three of one shape."""
    made = low.shape(node.output[0])
    if low.shape(node.input[0]) != made:
        raise Refusal("Give the condition the shape of the result.")
    low.give("Where", [low.use(node.input[0]), *(widened(low, n, made) for n in node.input[1:])])


def widened(low: Lowering, name: str, shape: tuple[int, ...]) -> str:
    """The blob of a float tensor that is broadcast to a shape."""
    given = low.shape(name)
    if given == shape:
        return low.use(name)
    value = low.view.constant(name)
    if value is not None:
        wide = np.ascontiguousarray(np.broadcast_to(value, shape))
        return low.constant(f"{name}/wide", wide)
    zeros = low.constant(f"{name}/zeros", np.zeros(shape, np.float32))
    return low.step("Add", [low.use(name), zeros])


@lowers("Cast", takes={*ALL, "uint8"}, gives=ALL)
def cast(low: Lowering, node: onnx.NodeProto) -> None:
    """To the types that Caffe2 computes in."""
    kind = low.view.kind(node.output[0])
    given = low.view.kind(node.input[0])
    if kind == "bool" and given == "float32":
        zero = low.constant(f"{node.output[0]}/zero", np.zeros(1, np.float32))
        low.give("Not", [low.step("EQ", [low.use(node.input[0]), zero])])
        return
    low.give("Cast", low.inputs(node), to=_TYPES[kind])
