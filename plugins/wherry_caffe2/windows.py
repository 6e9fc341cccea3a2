"""Lowerings of convolutions, poolings and norms of channels: ONNX to Caffe2, in NCHW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wherry_caffe2.lowering import Lowering, Refusal, about, lowers

if TYPE_CHECKING:
    import onnx

CHANNELS_FIRST = "NCHW"


def window(node: onnx.NodeProto, axes: int) -> dict[str, Any]:
    """Kernel, strides and pads (all begins, then all ends) of a node, written out.

    Raises:
        Refusal: they are not in numbers (see `wherry.normalise`).
    """
    told = about(node)
    if told.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"} or told.get("ceil_mode", 0):
        raise Refusal(
            "Caffe2 does not pad by auto_pad, nor round up (ceil_mode): write the pads in numbers."
        )
    if "kernel_shape" not in told or "output_shape" in told:
        raise Refusal("Write the node's kernel_shape and pads in numbers.")
    return {
        "kernels": list(told["kernel_shape"]),
        "strides": list(told.get("strides", [1] * axes)),
        "pads": list(told.get("pads", [0] * 2 * axes)),
        "order": CHANNELS_FIRST,
    }


@lowers("Conv")
def convolution(low: Lowering, node: onnx.NodeProto) -> None:
    """Over one, two or three axes; weights as ONNX has them."""
    axes = len(low.shape(node.input[0])) - 2
    if axes not in {1, 2, 3}:
        raise Refusal("Caffe2 convolves over one, two or three axes.")
    numbers = window(node, axes)
    _no_negative(numbers["pads"])
    numbers["dilations"] = list(about(node).get("dilations", [1] * axes))
    low.give("Conv", low.inputs(node), **numbers, group=int(about(node).get("group", 1)))


@lowers("ConvTranspose")
def transposed(low: Lowering, node: onnx.NodeProto) -> None:
    """Over two axes, without dilation."""
    axes = len(low.shape(node.input[0])) - 2
    told = about(node)
    if axes != 2 or any(each != 1 for each in told.get("dilations", ())):
        raise Refusal("Caffe2's ConvTranspose is over two axes and without dilation.")
    numbers = window(node, axes)
    _no_negative(numbers["pads"])
    adjs = list(told.get("output_padding", [0] * axes))
    if any(adj >= stride for adj, stride in zip(adjs, numbers["strides"], strict=True)):
        raise Refusal("Caffe2's ConvTranspose takes output_padding below the stride only.")
    low.give(
        "ConvTranspose",
        low.inputs(node),
        **numbers,
        adjs=adjs,
        group=int(told.get("group", 1)),
    )


@lowers("MaxPool", "AveragePool")
def pool(low: Lowering, node: onnx.NodeProto) -> None:
    """Over one, two or three axes, without dilation."""
    axes = len(low.shape(node.input[0])) - 2
    told = about(node)
    if axes not in {1, 2, 3}:
        raise Refusal("Caffe2 pools over one, two or three axes.")
    if any(each != 1 for each in told.get("dilations", ())):
        raise Refusal("Caffe2's poolings have no dilation: use another backend.")
    if low.view.used.intersection(node.output[1:]):
        raise Refusal("Caffe2 gives no indices: do without the second output.")
    numbers = window(node, axes)
    pads, kernels = numbers["pads"], numbers["kernels"]
    _no_negative(pads)
    if any(pad >= kernel for pad, kernel in zip(pads, kernels * 2, strict=True)):
        raise Refusal("Caffe2 pads less than the kernel's length: pad before the pooling.")
    if node.op_type == "AveragePool" and told.get("count_include_pad", 0):
        numbers["count_include_pad"] = 1
    low.give(node.op_type, low.inputs(node), **numbers)


@lowers("GlobalAveragePool", "GlobalMaxPool")
def whole(low: Lowering, node: onnx.NodeProto) -> None:
    """A pooling over everything behind the channels.

    The kernel is written out: where it is not, PyTorch 1.2 reads memory that it has not set, and
    refuses some networks.
    """
    lengths = list(low.shape(node.input[0])[2:])
    if len(lengths) not in {1, 2, 3}:
        raise Refusal("Caffe2 pools over one, two or three axes.")
    low.give(
        node.op_type.removeprefix("Global"),
        low.inputs(node),
        global_pooling=1,
        kernels=lengths,
        order=CHANNELS_FIRST,
    )


def _no_negative(pads: list[int]) -> None:
    if min(pads, default=0) < 0:
        raise Refusal("Caffe2 does not pad by less than nothing: use Slice.")


@lowers("BatchNormalization")
def batch_norm(low: Lowering, node: onnx.NodeProto) -> None:
    """With its four tables known: a factor and a summand for each channel."""
    if about(node).get("training_mode", 0) or any(node.output[1:]):
        raise Refusal("Export the network for inference, not for training.")
    tables = [low.known(node, index) for index in range(1, 5)]
    if any(table is None for table in tables):
        raise Refusal("Give its parameters as constants; only its data may be computed.")
    scale, shift, mean, variance = (np.asarray(each, np.float64) for each in tables)
    factor = scale / np.sqrt(variance + about(node).get("epsilon", 1e-5))
    rank = len(low.shape(node.input[0]))
    shape = (-1,) + (1,) * max(0, rank - 2)
    x, y = low.use(node.input[0]), node.output[0]
    factors = low.constant(f"{y}/factor", factor.astype(np.float32).reshape(shape))
    shifts = low.constant(f"{y}/shift", (shift - mean * factor).astype(np.float32).reshape(shape))
    low.give("Add", [low.step("Mul", [x, factors]), shifts])


@lowers("InstanceNormalization")
def instance_norm(low: Lowering, node: onnx.NodeProto) -> None:
    """Over what lies behind the channels."""
    if len(low.shape(node.input[0])) < 3:
        raise Refusal("Caffe2 normalises instances of three axes and more.")
    epsilon = float(about(node).get("epsilon", 1e-5))
    low.give("InstanceNorm", low.inputs(node), epsilon=epsilon, order=CHANNELS_FIRST)


@lowers("LRN")
def local_response(low: Lowering, node: onnx.NodeProto) -> None:
    """Over an odd number of channels."""
    told = about(node)
    if told["size"] % 2 == 0 or len(low.shape(node.input[0])) != 4:
        raise Refusal("Caffe2's LRN is over an odd number of channels of pictures.")
    usual = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    numbers = {key: float(told.get(key, value)) for key, value in usual.items()}
    low.give(
        "LRN", low.inputs(node), more=1, size=int(told["size"]), **numbers, order=CHANNELS_FIRST
    )


@lowers("LayerNormalization")
def layer_norm(low: Lowering, node: onnx.NodeProto) -> None:
    """Over all axes from one on, with its scale and shift of these."""
    told, shape = about(node), low.shape(node.input[0])
    if low.view.used.intersection(node.output[1:]):
        raise Refusal("Do without the second and third output.")
    if told.get("stash_type", 1) != 1:
        raise Refusal("Caffe2 computes in float32.")
    axis = told.get("axis", -1) % len(shape)
    rest = shape[axis:]
    count = int(np.prod(rest))
    tables = []
    for index, usual in ((1, 1.0), (2, 0.0)):
        value = low.known(node, index)
        full = np.full(rest, usual) if value is None else np.broadcast_to(value, rest)
        hint = f"{node.output[0]}/{'scale' if index == 1 else 'shift'}"
        tables.append(low.constant(hint, np.ascontiguousarray(full.reshape(count), np.float32)))
    y = node.output[0]
    outputs = [y, low.fresh(f"{y}/mean"), low.fresh(f"{y}/deviation")]
    low.add(
        "LayerNorm",
        [low.use(node.input[0]), *tables],
        outputs,
        low.name(node),
        {"axis": axis, "epsilon": float(told.get("epsilon", 1e-5)), "elementwise_affine": 1},
    )
