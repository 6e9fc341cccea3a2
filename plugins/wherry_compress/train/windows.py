"""Operators on maps [batch, channels, ...]: convolutions, pools, norms, padding, resizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wherry_compress.train.node import Function, Node, Rule

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d
)  # fmt: skip
_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVG_POOL = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def _maps(node: Node, function: Function) -> Rule:
    """The stack axis is the batch axis, or each inference is computed for itself."""
    alone = all(node.stack(index) is None for index in range(1, len(node)))
    return Rule(function, 0 if node.stack(0) == 0 and alone else None)


class _Window:
    """Kernel, strides, dilations and padding of a node, in numbers.

    Args:
        node: a convolution or a pool.
        kernel: where the node does not say it.
    """

    def __init__(self, node: Node, kernel: Sequence[int] = ()) -> None:
        about, lengths = node.about, node.shape(0)[2:]
        rank = len(lengths)
        if not 1 <= rank <= 3:
            raise node.refused(f"it has {rank} axes after the channels")
        self.index = rank - 1
        self.kernel = list(about.get("kernel_shape") or kernel)
        self.strides = list(about.get("strides") or [1] * rank)
        self.dilations = list(about.get("dilations") or [1] * rank)
        pads = list(about.get("pads") or [0] * (2 * rank))
        word = about.get("auto_pad", "NOTSET")
        if word in {"SAME_UPPER", "SAME_LOWER"}:
            raise node.refused("its padding is not in numbers (auto_pad)")
        self.begins, self.ends = pads[:rank], pads[rank:]
        self.lengths = lengths

    @property
    def symmetrical(self) -> bool:
        """Whether torch's own padding does it."""
        return self.begins == self.ends

    def pads(self, begins: Sequence[int], ends: Sequence[int]) -> list[int]:
        """As torch pads: the last axis first."""
        pairs = zip(reversed(begins), reversed(ends), strict=True)
        return [each for pair in pairs for each in pair]


def conv(node: Node) -> Rule:
    """Padding that is not the same on both sides is done before."""
    w = _Window(node, node.shape(1)[2:])
    function, groups = _CONV[w.index], node.about.get("group", 1)
    pads = None if w.symmetrical else w.pads(w.begins, w.ends)
    padding = w.begins if w.symmetrical else 0

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x if pads is None else functional.pad(x, pads)
        return function(x, weight, bias, w.strides, padding, w.dilations, groups)

    return _maps(node, run)


def conv_transpose(node: Node) -> Rule:
    """All of it is computed, then cut; what ``output_padding`` adds beyond it is bias alone."""
    w = _Window(node, node.shape(1)[2:])
    if "output_shape" in node.about:
        raise node.refused("its padding is not in numbers (output_shape)")
    function, groups = _CONV_TRANSPOSE[w.index], node.about.get("group", 1)
    extra = node.about.get("output_padding") or [0] * len(w.begins)
    less = [-begin for begin in w.begins]
    more = [each - end for each, end in zip(extra, w.ends, strict=True)]
    pads = w.pads(less, more)
    ones = [1] * len(w.begins)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made = function(x, weight, None, stride=w.strides, groups=groups, dilation=w.dilations)
        made = functional.pad(made, pads) if any(pads) else made
        return made if bias is None else made + bias.reshape(1, -1, *ones)

    return _maps(node, run)


def _sizes(node: Node, w: _Window) -> list[int]:
    """Ends padded further, so that torch rounds as the node's ``ceil_mode`` does."""
    if not node.about.get("ceil_mode", 0):
        return list(w.ends)
    ends = []
    for length, begin, end, kernel, stride, dilation in zip(
        w.lengths, w.begins, w.ends, w.kernel, w.strides, w.dilations, strict=True
    ):
        span = (kernel - 1) * dilation + 1
        padded = length + begin + end
        count = -(-(padded - span) // stride) + 1
        if (count - 1) * stride >= length + begin:  # a window that would begin in the padding
            count -= 1
        ends.append(max(end, (count - 1) * stride + span - length - begin))
    return ends


def max_pool(node: Node) -> Rule:
    """Padded with what is less than everything."""
    if any(node.proto.output[1:]):
        raise node.refused("its places (second output) are used")
    w = _Window(node)
    ends = _sizes(node, w)
    pads = w.pads(w.begins, ends)
    function = _MAX_POOL[w.index]
    own = w.begins == ends and all(
        2 * pad <= kernel for pad, kernel in zip(ends, w.kernel, strict=True)
    )

    def run(x: Tensor) -> Tensor:
        if own:
            return function(x, w.kernel, w.strides, w.begins, w.dilations)
        x = functional.pad(x, pads, value=-math.inf)
        return function(x, w.kernel, w.strides, 0, w.dilations)

    return _maps(node, run)


def average_pool(node: Node) -> Rule:
    """The sum of a window over the number of what counts in it."""
    w = _Window(node)
    if any(each != 1 for each in w.dilations):
        raise node.refused("dilations")
    ends = _sizes(node, w)
    pads = w.pads(w.begins, ends)
    function = _AVG_POOL[w.index]
    if not any(pads):
        return _maps(node, lambda x: function(x, w.kernel, w.strides))
    ones = torch.ones(1, 1, *w.lengths)
    if node.about.get("count_include_pad", 0):
        ones = functional.pad(ones, w.pads(w.begins, w.ends), value=1.0)
        rest = [end - told for end, told in zip(ends, w.ends, strict=True)]
        ones = functional.pad(ones, w.pads([0] * len(rest), rest))
    else:
        ones = functional.pad(ones, pads)
    share = function(ones, w.kernel, w.strides)

    def run(x: Tensor) -> Tensor:
        made = function(functional.pad(x, pads), w.kernel, w.strides)
        return made / share.to(made.device, made.dtype)

    return _maps(node, run)


def global_pool(function: Callable[[Tensor, list[int]], Tensor]) -> Callable[[Node], Rule]:
    """Over all that lies behind the channels."""

    def make(node: Node) -> Rule:
        axes = list(range(2, len(node.shape(0))))
        return Rule(lambda x: function(x, axes), node.stack(0) if node.stack(0) in {0, 1} else None)

    return make


def batch_norm(node: Node) -> Rule:
    """By the batch's own statistics while the network is trained."""
    if any(node.proto.output[1:]) or node.about.get("training_mode", 0):
        raise node.refused("it is in training mode")
    if node.stack(0) not in {0, None}:
        raise node.refused("the inferences of a batch do not lie along its first axis")
    epsilon, mode = node.about.get("epsilon", 1e-5), node.mode

    def run(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return functional.batch_norm(
            x, mean, variance, scale, shift, mode.training, mode.momentum, epsilon
        )

    return Rule(run, node.stack(0))


def instance_norm(node: Node) -> Rule:
    """Each channel of each picture by itself."""
    epsilon = node.about.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return functional.instance_norm(x, weight=scale, bias=shift, eps=epsilon)

    return _maps(node, run)


def group_norm(node: Node) -> Rule:
    """From opset 21 on a scale has a value for each channel."""
    if node.opset < 21:
        raise node.refused("before opset 21 its scale has a value for each group")
    groups, epsilon = node.about["num_groups"], node.about.get("epsilon", 1e-5)
    return _maps(node, lambda x, scale, shift: functional.group_norm(
        x, groups, scale, shift, epsilon
    ))  # fmt: skip


def local_response(node: Node) -> Rule:
    """Over neighbouring channels."""
    about = node.about
    size, alpha = about["size"], about.get("alpha", 1e-4)
    beta, bias = about.get("beta", 0.75), about.get("bias", 1.0)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2

    def run(x: Tensor) -> Tensor:
        flat = x.flatten(2).square().unsqueeze(1)
        padded = functional.pad(flat, [0, 0, before, after])
        total = functional.avg_pool2d(padded, (size, 1), 1).squeeze(1) * size
        return x / (bias + alpha / size * total).pow(beta).reshape(x.shape)

    return _maps(node, run)


def pad(node: Node) -> Rule:
    """Of any axes but the stack axis."""
    rank = len(node.shape(0))
    mode = node.about.get("mode", "constant")
    spelt = node.numbers("pads", 1)
    assert spelt is not None
    axes = node.numbers("axes", 3)
    if axes is not None:
        full = [0] * (2 * rank)
        for place, axis in enumerate(axes):
            full[axis % rank] = spelt[place]
            full[axis % rank + rank] = spelt[place + len(axes)]
        spelt = full
    pairs = list(zip(spelt[:rank], spelt[rank:], strict=True))
    stack = node.stack(0)
    made = None if stack is None or any(pairs[stack]) else stack
    if mode == "constant":
        given = node.about.get("value", 0.0) if node.opset < 11 else node.value(2)
        value = 0.0 if given is None else float(np.asarray(given).ravel()[0])
        pads = [each for pair in reversed(pairs) for each in pair]
        return Rule(lambda x, *_: functional.pad(x, pads, value=value), made)
    if min(spelt) < 0:
        raise node.refused(f"it cuts (pads {spelt}) in mode {mode!r}")
    places = {
        axis: torch.as_tensor(np.pad(np.arange(node.shape(0)[axis]), pair, mode=mode))
        for axis, pair in enumerate(pairs)
        if any(pair)
    }

    def run(x: Tensor, *_: Any) -> Tensor:
        for axis, chosen in places.items():
            x = x.index_select(axis, chosen.to(x.device))
        return x

    return Rule(run, made)


def resize(node: Node) -> Rule:
    """Each axis by itself, by the matrix that ONNX Runtime's own Resize makes of the identity."""
    shape = node.shape(0)
    about = dict(node.about)
    if about.get("coordinate_transformation_mode") == "tf_crop_and_resize" or "axes" in about:
        raise node.refused("it crops, or names its axes")
    scales, sizes = (node.value(1 if node.proto.op_type == "Upsample" else 2), node.value(3))
    given = scales if scales is not None and scales.size else sizes
    if given is None or len(given) != len(shape):
        raise node.refused("it says neither scales nor sizes for all axes")
    matrices: dict[int, Tensor] = {}
    for axis, (size, each) in enumerate(zip(shape, given, strict=True)):
        changes = each != 1 if given is scales else each != size
        if changes:
            matrices[axis] = _matrix(node, size, each, scaled=given is scales)
    nearest = about.get("mode", "nearest") == "nearest"

    def run(x: Tensor, *_: Any) -> Tensor:
        for axis, matrix in matrices.items():
            if nearest:
                x = x.index_select(axis, matrix.argmax(1).to(x.device))
            else:
                moved = x.movedim(axis, -1) @ matrix.T.to(x.device, x.dtype)
                x = moved.movedim(-1, axis)
        return x

    stack = node.stack(0)
    return Rule(run, None if stack in matrices else stack)


def _matrix(node: Node, size: int, each: float, *, scaled: bool) -> Tensor:
    """float32 [size afterwards, size before]."""
    import onnx
    from onnx import helper, numpy_helper

    from wherry.reference import open_session, run_session

    about = {k: v for k, v in node.about.items() if k != "keep_aspect_ratio_policy"}
    value = np.array([1, 1, each, 1], np.float32) if scaled else np.array([1, 1, each, size])
    names = ["x", "", "s"] if scaled else ["x", "", "", "s"]
    graph = helper.make_graph(
        [helper.make_node("Resize", names, ["y"], name=node.proto.name, **about)],
        "resize",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, size, size])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, "s")],
    )
    opset = [helper.make_opsetid("", max(node.opset, 11))]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    where = node.proto.name
    session = open_session(model.SerializeToString(), threads=1, where=where, as_written=True)
    identity = np.eye(size, dtype=np.float32)[None, None]
    made: np.ndarray = run_session(session, {"x": identity}, where=where)["y"]
    return torch.from_numpy(made[0, 0].copy())


def depth_to_space(node: Node) -> Rule:
    """Blocks of channels become pixels."""
    size, crd = node.about["blocksize"], node.about.get("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if crd:
            x = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
        else:
            x = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // size**2, h * size, w * size)

    return _maps(node, run)


def space_to_depth(node: Node) -> Rule:
    """Pixels become blocks of channels."""
    size = node.about["blocksize"]

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * size**2, h // size, w // size)

    return _maps(node, run)


OPERATORS: dict[str, Callable[[Node], Rule]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_pool(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": global_pool(lambda x, axes: x.amax(axes, keepdim=True)),
    "BatchNormalization": batch_norm, "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm, "LRN": local_response, "Pad": pad, "Resize": resize,
    "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth,
}  # fmt: skip
"""ONNX operator to what makes its rule."""
