"""Lowerings of matrix products, reductions, Softmax and the greatest: ONNX to Caffe2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wherry_caffe2.lowering import Lowering, Refusal, about, lowers

if TYPE_CHECKING:
    import onnx


@lowers("Gemm")
def gemm(low: Lowering, node: onnx.NodeProto) -> None:
    """FC, with its factors in the weights; a product and a sum where these are computed."""
    told, shape = about(node), low.shape(node.output[0])
    alpha, beta = float(told.get("alpha", 1.0)), float(told.get("beta", 1.0))
    has_bias = len(node.input) > 2 and bool(node.input[2])
    weights = low.view.constant(node.input[1])
    bias = low.view.constant(node.input[2]) if has_bias else np.zeros(1, np.float32)
    x = low.use(node.input[0])
    if told.get("transA", 0):
        x = low.step("Transpose", [x], axes=[1, 0])
    y = node.output[0]
    if weights is not None and bias is not None:
        w = dense_weights(weights, transposed=bool(told.get("transB", 0)), alpha=alpha)
        rows = np.broadcast_to(bias * np.float32(beta), shape)
        same = bool((rows == rows[:1]).all())
        first = np.ascontiguousarray(rows[0]) if same else np.zeros(shape[1], np.float32)
        names = [x, low.constant(f"{y}/weights", w), low.constant(f"{y}/bias", first)]
        if same:
            low.give("FC", names)
        else:
            rest = low.constant(f"{y}/rows", np.ascontiguousarray(rows))
            low.give("Add", [low.step("FC", names), rest])
        return
    product = low.step(
        "MatMul", [x, low.use(node.input[1])], trans_b=int(bool(told.get("transB", 0)))
    )
    product = _times(low, product, alpha, y)
    if not has_bias:
        low.give("Copy", [product])
        return
    low.give("Add", [product, _times(low, low.use(node.input[2]), beta, y)])


def dense_weights(weights: np.ndarray, *, transposed: bool, alpha: float = 1.0) -> np.ndarray:
    """Weights as FC has them, [outputs, inputs]."""
    rows = weights if transposed else weights.T
    return np.ascontiguousarray(rows * np.float32(alpha), np.float32)


def _times(low: Lowering, name: str, factor: float, hint: str) -> str:
    if factor == 1:
        return name
    number = low.constant(f"{hint}/factor", np.full(1, factor, np.float32))
    return low.step("Mul", [name, number])


@lowers("MatMul")
def product(low: Lowering, node: onnx.NodeProto) -> None:
    """A matrix of weights as FC; anything else as a batch of products."""
    left, right = (low.shape(name) for name in node.input)
    made, y = low.shape(node.output[0]), node.output[0]
    weights = low.view.constant(node.input[1])
    if not made and len(left) == len(right) == 1:
        total = low.step("Mul", low.inputs(node))
        low.give("ReduceSum", [total], axes=[0], keepdims=0)
        return
    if weights is not None and weights.ndim == 2 and len(left) == 2:
        w = dense_weights(weights, transposed=False)
        zeros = np.zeros(weights.shape[1], np.float32)
        names = [low.constant(f"{y}/weights", w), low.constant(f"{y}/bias", zeros)]
        low.give("FC", [low.use(node.input[0]), *names])
        return
    names = low.inputs(node)
    for index, shape in enumerate((left, right)):
        if len(shape) == 1:  # a row, or a column
            wide = [1, *shape] if index == 0 else [*shape, 1]
            names[index] = low.step("Reshape", [names[index]], more=1, shape=wide)
    if 1 in {len(left), len(right)}:
        found = low.step("BatchMatMul", names, broadcast=1)
        low.give("Reshape", [found], more=1, shape=list(made))
    else:
        low.give("BatchMatMul", names, broadcast=1)


_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")


@lowers(*_REDUCTIONS, "ReduceSumSquare", "ReduceLogSum")
def reduction(low: Lowering, node: onnx.NodeProto) -> None:
    """Over axes that are known."""
    told, rank = about(node), len(low.shape(node.input[0]))
    axes = told.get("axes")
    if axes is None and (value := low.known(node, 1)) is not None:
        axes = value.reshape(-1).tolist()
    if not axes and told.get("noop_with_empty_axes", 0):
        raise Refusal("Take a reduction over nothing out of the network.")
    over = sorted(axis % rank for axis in axes or range(rank))
    keep = int(told.get("keepdims", 1))
    x = low.use(node.input[0])
    if node.op_type == "ReduceSumSquare":
        x = low.step("Sqr", [x])
    kind = node.op_type if node.op_type in _REDUCTIONS else "ReduceSum"
    if not rank:
        raise Refusal("Take a reduction over nothing out of the network.")
    if node.op_type == "ReduceLogSum":
        low.give("Log", [low.step(kind, [x], axes=over, keepdims=keep)])
    else:
        low.give(kind, [x], axes=over, keepdims=keep)


@lowers("ReduceLogSumExp")
def log_sum_exp(low: Lowering, node: onnx.NodeProto) -> None:
    """In parts, so that nothing overflows."""
    told, shape = about(node), low.shape(node.input[0])
    axes = told.get("axes")
    if axes is None and (value := low.known(node, 1)) is not None:
        axes = value.reshape(-1).tolist()
    over = sorted(axis % len(shape) for axis in axes or range(len(shape)))
    x = low.use(node.input[0])
    most = low.step("ReduceMax", [x], axes=over, keepdims=1)
    powers = low.step("Exp", [low.step("Sub", [x, most])])
    logs = low.step("Log", [low.step("ReduceSum", [powers], axes=over, keepdims=1)])
    total = low.step("Add", [logs, most])
    low.give("Reshape", [total], more=1, shape=list(low.shape(node.output[0])))


@lowers("Softmax")
def softmax(low: Lowering, node: onnx.NodeProto) -> None:
    """Caffe2 takes all axes from one on together, as ONNX did before opset 13."""
    shape = low.shape(node.input[0])
    rank, told = len(shape), about(node)
    if not rank:
        raise Refusal("Give it an axis at least.")
    x = low.use(node.input[0])
    if low.view.opset < 13:
        axis = told.get("axis", 1)
        axis = axis % rank if axis < rank else rank
        if axis == rank:
            raise Refusal("Give it an axis that there is.")
        low.give("Softmax", [x], axis=axis)
        return
    axis = told.get("axis", -1) % rank
    if all(size == 1 for size in shape[axis + 1 :]):
        low.give("Softmax", [x], axis=axis)
        return
    order = [each for each in range(rank) if each != axis] + [axis]
    turned = low.step("Transpose", [x], axes=order)
    found = low.step("Softmax", [turned], axis=rank - 1)
    low.give("Transpose", [found], axes=np.argsort(order).tolist())


@lowers("ArgMax", "ArgMin", gives={"int64"})
def greatest(low: Lowering, node: onnx.NodeProto) -> None:
    """The first place of the greatest or least."""
    told = about(node)
    if told.get("select_last_index", 0):
        raise Refusal("Caffe2 gives the first of several, not the last.")
    axis = told.get("axis", 0) % len(low.shape(node.input[0]))
    low.give(
        node.op_type, [low.use(node.input[0])], axis=axis, keepdims=int(told.get("keepdims", 1))
    )
