"""ONNX operators in torch: for each a `Rule`, made from the node. The windows are in windows.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wherry_compress.train import windows
from wherry_compress.train.node import Function, Node, Rule, stacked_shape

Maker = Callable[[Node], Rule]


def elementwise(function: Function) -> Maker:
    """Operators that compute each element by itself, with broadcasting."""

    def make(node: Node) -> Rule:
        return _broadcast(node, function)

    return make


def _broadcast(node: Node, function: Function) -> Rule:
    present = [index for index in range(len(node)) if node.has(index)]
    shapes = {index: node.shape(index) for index in present}
    found = {
        (axis - len(shapes[index]), shapes[index][axis])  # broadcasting counts from the end
        for index in present
        if (axis := node.stack(index)) is not None
    }
    if len(found) != 1:
        return Rule(function)
    ((place, size),) = found
    rank = max(map(len, shapes.values()))
    repeated = []
    for index in present:
        if node.stack(index) is None and len(shapes[index]) >= -place:
            own = shapes[index][place]
            if own not in {1, size}:
                return Rule(function)
            if own > 1:
                repeated.append(index)
    if not repeated:
        return Rule(function, rank + place)

    def stacked(count: int, *inputs: Any) -> Any:
        given = list(inputs)
        for index in repeated:
            times = [1] * given[index].ndim
            times[place] = count
            given[index] = given[index].repeat(times)
        return function(*given)

    return Rule(function, rank + place, stacked)


def unary(make_function: Callable[[Node], Function]) -> Maker:
    """Operators on each element of one tensor; what else they are told is known in advance."""

    def make(node: Node) -> Rule:
        return Rule(_first(make_function(node)), node.stack(0))

    return make


def _first(function: Function) -> Function:
    return lambda x, *_: function(x)


def plain(function: Function) -> Maker:
    """Those without attributes."""
    return unary(lambda _node: function)


def _clip(node: Node) -> Function:
    def bound(word: str, index: int) -> float | None:
        if word in node.about:
            return float(node.about[word])
        value = node.value(index)
        return None if value is None else float(value.ravel()[0])

    low, high = bound("min", 1), bound("max", 2)
    if low is not None and high is not None and node.example(0).is_floating_point():
        return lambda x: functional.hardtanh(x, low, high)  # its gradient costs less than clamp's
    return lambda x: x if low is None and high is None else torch.clamp(x, low, high)


def _hard_sigmoid(node: Node) -> Function:
    slope, middle = node.about.get("alpha", 0.2), node.about.get("beta", 0.5)
    return lambda x: torch.clamp(x * slope + middle, 0.0, 1.0)


def _selu(node: Node) -> Function:
    alpha = node.about.get("alpha", 1.6732632423543772)
    gamma = node.about.get("gamma", 1.0507009873554805)
    return lambda x: gamma * functional.elu(x, alpha)


def _gelu(node: Node) -> Function:
    way = node.about.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=way)


_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _cast(node: Node) -> Function:
    kind = node.about["to"]
    if kind not in _TYPES:
        raise node.refused(f"torch has no type for ONNX's type {kind}")
    return lambda x: x.to(_TYPES[kind])


def _thresholded(node: Node) -> Function:
    alpha = node.about.get("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


def _mean(*given: Tensor) -> Tensor:
    return _summed(*given) / len(given)


def _summed(*given: Tensor) -> Tensor:
    total = given[0]
    for each in given[1:]:
        total = total + each
    return total


def _extreme(function: Function) -> Function:
    def run(*given: Tensor) -> Tensor:
        found = given[0]
        for each in given[1:]:
            found = function(found, each)
        return found

    return run


def _div(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


# --- shapes ------------------------------------------------------------------------------------


def reshape(node: Node) -> Rule:
    """Reshape, Flatten, Squeeze, Unsqueeze: the elements stay in order."""
    kind, given = node.proto.op_type, node.shape(0)
    if kind == "Reshape":
        wanted = node.numbers("shape", 1)
        assert wanted is not None
        zero_is_zero = node.about.get("allowzero", 0)
        made = [
            given[index] if size == 0 and not zero_is_zero else size
            for index, size in enumerate(wanted)
        ]
    elif kind == "Flatten":
        axis = int(node.about.get("axis", 1))
        axis = axis + len(given) if axis < 0 else axis
        made = [math.prod(given[:axis]), math.prod(given[axis:])]
    elif kind == "Squeeze":
        axes = node.numbers("axes", 1)
        gone = (
            {axis % len(given) for axis in axes}
            if axes is not None
            else {axis for axis, size in enumerate(given) if size == 1}
        )
        made = [size for axis, size in enumerate(given) if axis not in gone]
    else:
        axes = node.numbers("axes", 1)
        assert axes is not None
        new = {axis % (len(given) + len(axes)) for axis in axes}
        rest = iter(given)
        made = [1 if axis in new else next(rest) for axis in range(len(given) + len(axes))]
    made = list(node.example(0).reshape(made).shape)
    axis_before = node.stack(0)
    found = None if axis_before is None else stacked_shape(given, axis_before, made)
    if found is None:
        return Rule(lambda x, *_: x.reshape(made))
    axis, _ = found

    def stacked(count: int, x: Tensor, *_: Any) -> Tensor:
        return x.reshape([size * count if at == axis else size for at, size in enumerate(made)])

    return Rule(lambda x, *_: x.reshape(made), axis, stacked)


def transpose(node: Node) -> Rule:
    """The stack axis goes where its axis goes."""
    order = list(node.about.get("perm") or range(len(node.shape(0)))[::-1])
    axis = node.stack(0)
    return Rule(lambda x: x.permute(order), None if axis is None else order.index(axis))


def concat(node: Node) -> Rule:
    """Along another axis than the stack axis of all; what is constant is repeated."""
    rank = len(node.shape(0))
    axis, stacks = node.axis(0, rank), {node.stack(index) for index in range(len(node))}

    def run(*inputs: Tensor) -> Tensor:
        return torch.cat(inputs, axis)

    fixed = [index for index in range(len(node)) if node.stack(index) is None]
    stacks.discard(None)
    if len(stacks) != 1 or axis in stacks:
        return Rule(run)
    (place,) = stacks
    assert place is not None

    def stacked(count: int, *inputs: Tensor) -> Tensor:
        given = list(inputs)
        for index in fixed:
            times = [1] * rank
            times[place] = count
            given[index] = given[index].repeat(times)
        return torch.cat(given, axis)

    return Rule(run, place, stacked)


def split(node: Node) -> Rule:
    """Into parts whose lengths are known."""
    axis, length = node.axis(0), node.shape(0)[node.axis(0)]
    sizes = node.numbers("split", 1)
    if sizes is None:
        count = len(node.proto.output)
        each = -(-length // count)
        sizes = [each] * (count - 1) + [length - each * (count - 1)]
    stack = node.stack(0)
    return Rule(lambda x, *_: torch.split(x, sizes, axis), None if stack == axis else stack)


def slice_(node: Node) -> Rule:
    """Starts, ends and steps are known."""
    shape = node.shape(0)
    starts, ends = node.numbers("starts", 1), node.numbers("ends", 2)
    assert starts is not None
    assert ends is not None
    axes = node.numbers("axes", 3) or list(range(len(starts)))
    steps = node.numbers("steps", 4) or [1] * len(starts)
    cuts: list[tuple[int, Any]] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        low = max(-size - 1, min(start, size))
        # beyond the first element, for a step that goes backwards
        high = None if step < 0 and end < -size else max(-size - 1, min(end, size))
        cuts.append((axis % len(shape), np.arange(size)[low:high:step]))

    def run(x: Tensor, *_: Any) -> Tensor:
        for axis, kept in cuts:
            x = _taken(x, axis, kept)
        return x

    stack = node.stack(0)
    whole = [axis for axis, kept in cuts if list(kept) != list(range(shape[axis]))]
    cuts = [(axis, kept) for axis, kept in cuts if axis in whole]
    return Rule(run, None if stack in whole else stack)


def _taken(x: Tensor, axis: int, kept: np.ndarray) -> Tensor:
    if len(kept) and np.array_equal(kept, np.arange(kept[0], kept[0] + len(kept))):
        return x.narrow(axis, int(kept[0]), len(kept))
    return x.index_select(axis, torch.as_tensor(kept.copy(), device=x.device))


def gather(node: Node) -> Rule:
    """Rows of a table, or a tensor's parts at known places."""
    rank, axis = len(node.shape(0)), node.axis(0)
    inner = len(node.shape(1))

    def run(data: Tensor, places: Tensor) -> Tensor:
        shape = (*data.shape[:axis], *places.shape, *data.shape[axis + 1 :])
        flat = places.reshape(-1).long()
        flat = torch.where(flat < 0, flat + data.shape[axis], flat)
        return data.index_select(axis, flat).reshape(shape)

    of_data, of_places = node.stack(0), node.stack(1)
    if of_data is not None and of_places is None and of_data != axis:
        return Rule(run, of_data if of_data < axis else of_data + inner - 1)
    if of_data is None and of_places is not None:
        return Rule(run, axis + of_places)
    del rank
    return Rule(run)


def expand(node: Node) -> Rule:
    """To a shape that is known."""
    wanted = node.numbers("shape", 1)
    assert wanted is not None
    shape = np.broadcast_shapes(node.shape(0), tuple(wanted))
    stack = node.stack(0)
    place = None if stack is None else stack - len(node.shape(0)) + len(shape)
    if place is None or shape[place] != node.shape(0)[stack or 0]:
        return Rule(lambda x, *_: x.expand(shape))

    def stacked(count: int, x: Tensor, *_: Any) -> Tensor:
        return x.expand([size * count if at == place else size for at, size in enumerate(shape)])

    return Rule(lambda x, *_: x.expand(shape), place, stacked)


def tile(node: Node) -> Rule:
    """Repeated along axes other than the stack axis."""
    times = node.numbers("repeats", 1)
    assert times is not None
    stack = node.stack(0)
    alone = stack is not None and times[stack] == 1
    return Rule(lambda x, *_: x.repeat(times), stack if alone else None)


# --- sums and reductions -------------------------------------------------------------------------


def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Maker:
    """Over axes that are known; all of them where none is named."""

    def make(node: Node) -> Rule:
        rank = len(node.shape(0))
        axes = node.numbers("axes", 1)
        if not axes and node.about.get("noop_with_empty_axes", 0):
            axes, found = [], []
        else:
            found = sorted({axis % rank for axis in axes or range(rank)})
        keep = bool(node.about.get("keepdims", 1))
        stack = node.stack(0)
        made = None
        if stack is not None and stack not in found:
            made = stack if keep else stack - sum(axis < stack for axis in found)
        return Rule(lambda x, *_: function(x, found, keep) if found else x, made)

    return make


def _norm2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.square().sum(axes, keep).sqrt()


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep)
    return x


def softmax(function: Callable[..., Tensor]) -> Maker:
    """Softmax and LogSoftmax."""

    def make(node: Node) -> Rule:
        rank = len(node.shape(0))
        axis = node.axis(1 if node.opset < 13 else -1, rank)
        rest = node.shape(0)[axis + 1 :]
        if node.opset < 13 and any(size != 1 for size in rest):
            raise node.refused("before opset 13 it runs over several axes")
        stack = node.stack(0)
        return Rule(lambda x: function(x, dim=axis), None if stack == axis else stack)

    return make


def arg_extreme(largest: bool) -> Maker:
    """ArgMax and ArgMin; they have no gradient."""

    def make(node: Node) -> Rule:
        if node.about.get("select_last_index", 0):
            raise node.refused("select_last_index")
        axis, keep = node.axis(0), bool(node.about.get("keepdims", 1))
        function = torch.argmax if largest else torch.argmin
        stack = node.stack(0)
        made = None if stack in {None, axis} else stack
        if made is not None and not keep and made > axis:
            made -= 1
        return Rule(lambda x: function(x, dim=axis, keepdim=keep), made)

    return make


def matmul(node: Node) -> Rule:
    """The stack axis is not the one that is summed over."""
    (a, b), (left, right) = (node.shape(0), node.shape(1)), (node.stack(0), node.stack(1))
    if len(a) < 2 or len(b) < 2:
        return Rule(torch.matmul)
    rank = max(len(a), len(b))
    places = [
        None if axis is None else axis - len(shape)
        for axis, shape in ((left, a), (right, b))
    ]  # fmt: skip

    def free(shape: Sequence[int], place: int) -> bool:
        return len(shape) < -place or shape[place] == 1

    first, second = places
    place = None
    if first is not None and second is not None:
        if first == second and first <= -3 and a[first] == b[second]:
            place = first
    elif first is not None:
        fits = first == -2 and len(b) == 2 if first > -3 else free(b, first)
        place = first if fits else None
    elif second is not None:
        place = second if second <= -3 and free(a, second) else None
    return Rule(torch.matmul, None if place is None else rank + place)


def gemm(node: Node) -> Rule:
    """``alpha * A * B + beta * C``."""
    about = node.about
    alpha, beta = about.get("alpha", 1.0), about.get("beta", 1.0)
    turn_a, turn_b = about.get("transA", 0), about.get("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        if turn_b and not turn_a and alpha == beta == 1.0 and (c is None or c.ndim == 1):
            return functional.linear(a, b, c)
        made = (a.T if turn_a else a) @ (b.T if turn_b else b)
        made = made if alpha == 1.0 else made * alpha
        return made if c is None else made + (c if beta == 1.0 else c * beta)

    single = not node.has(2) or len(node.shape(2)) < 2 or node.shape(2)[0] == 1
    alone = node.stack(1) is None and node.stack(2) is None
    simple = node.stack(0) == 0 and not turn_a and alone and single
    return Rule(run, 0 if simple else None)


def layer_norm(node: Node) -> Rule:
    """Over all axes from ``axis`` on."""
    if any(node.proto.output[1:]):
        raise node.refused("its mean or its deviation is used")
    shape = node.shape(0)
    axis, epsilon = node.axis(-1), node.about.get("epsilon", 1e-5)
    over = shape[axis:]
    stack = node.stack(0)

    def run(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        made = functional.layer_norm(x, over, eps=epsilon) * scale
        return made if shift is None else made + shift

    return Rule(run, stack if stack is not None and stack < axis else None)


def einsum(node: Node) -> Rule:
    """By its equation."""
    equation = node.about["equation"]
    return Rule(lambda *inputs: torch.einsum(equation, *inputs))


OPERATORS: dict[str, Maker] = {
    # each element
    "Abs": plain(torch.abs), "Ceil": plain(torch.ceil), "Cos": plain(torch.cos),
    "Erf": plain(torch.erf), "Exp": plain(torch.exp), "Floor": plain(torch.floor),
    "Identity": plain(lambda x: x), "Dropout": plain(lambda x: x), "Log": plain(torch.log),
    "Neg": plain(torch.neg), "Not": plain(torch.logical_not),
    "Reciprocal": plain(torch.reciprocal), "Relu": plain(torch.relu),
    "Round": plain(torch.round), "Sigmoid": plain(torch.sigmoid), "Sign": plain(torch.sign),
    "Sin": plain(torch.sin), "Softplus": plain(functional.softplus),
    "Softsign": plain(functional.softsign), "Sqrt": plain(torch.sqrt), "Tanh": plain(torch.tanh),
    "HardSwish": plain(functional.hardswish), "Mish": plain(functional.mish),
    "Cast": unary(_cast), "Clip": unary(_clip), "Gelu": unary(_gelu), "Selu": unary(_selu),
    "HardSigmoid": unary(_hard_sigmoid), "ThresholdedRelu": unary(_thresholded),
    "LeakyRelu": unary(lambda n: lambda x: functional.leaky_relu(x, n.about.get("alpha", 0.01))),
    "Elu": unary(lambda n: lambda x: functional.elu(x, n.about.get("alpha", 1.0))),
    "Celu": unary(lambda n: lambda x: functional.celu(x, n.about.get("alpha", 1.0))),
    # several tensors, element by element
    "Add": elementwise(torch.add), "Sub": elementwise(torch.sub), "Mul": elementwise(torch.mul),
    "Div": elementwise(_div), "Pow": elementwise(torch.pow), "PRelu": elementwise(_prelu),
    "Sum": elementwise(_summed), "Mean": elementwise(_mean),
    "Max": elementwise(_extreme(torch.maximum)), "Min": elementwise(_extreme(torch.minimum)),
    "Where": elementwise(torch.where), "And": elementwise(torch.logical_and),
    "Or": elementwise(torch.logical_or), "Equal": elementwise(torch.eq),
    "Less": elementwise(torch.lt), "LessOrEqual": elementwise(torch.le),
    "Greater": elementwise(torch.gt), "GreaterOrEqual": elementwise(torch.ge),
    # shapes
    "Reshape": reshape, "Flatten": reshape, "Squeeze": reshape, "Unsqueeze": reshape,
    "Transpose": transpose, "Concat": concat, "Split": split, "Slice": slice_, "Gather": gather,
    "Expand": expand, "Tile": tile,
    # sums
    "MatMul": matmul, "Gemm": gemm, "Einsum": einsum,
    "Softmax": softmax(torch.softmax), "LogSoftmax": softmax(torch.log_softmax),
    "LayerNormalization": layer_norm,
    "ArgMax": arg_extreme(True), "ArgMin": arg_extreme(False),
    "ReduceMean": reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": reduction(_product), "ReduceL2": reduction(_norm2),
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: x.logsumexp(axes, keep)),
    **windows.OPERATORS,
}  # fmt: skip
"""ONNX operator to what makes its rule."""
