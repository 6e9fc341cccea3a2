"""Networks whose channels hang together in ways that `networks` does not show, for pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    from networks import Net

NETWORKS: dict[str, Callable[[Net], onnx.ModelProto]] = {}


def entered(builder: Callable[[Net], onnx.ModelProto]) -> Callable[[Net], onnx.ModelProto]:
    NETWORKS[builder.__name__] = builder
    return builder


@entered
def shufflenet_v1(n: Net) -> onnx.ModelProto:
    """Grouped 1x1 convolutions with a shuffle between them, an addition, a joined pool."""
    x = n.op("Relu", n.conv(n.input("image", 1, 3, 12, 16), 3, 16))
    y = n.op("Relu", n.conv(x, 16, 16, 1, groups=2))
    y = n.op("Reshape", y, n.ints(0, 2, 8, 12, 16))
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3, 4]), n.ints(0, -1, 12, 16))
    y = n.conv(n.conv(y, 16, 16, groups=16), 16, 16, 1, groups=2)
    x = n.op("Relu", n.op("Add", x, y))
    y = n.conv(n.conv(x, 16, 24, groups=2), 24, 24, groups=24, strides=[2, 2])
    pool = n.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return n.model(logits=n.head(n.op("Concat", pool, y, axis=1), 40))


@entered
def mobilenet_v3(n: Net) -> onnx.ModelProto:
    """Gates by ReduceMean and Gemm (Unsqueeze twice), HardSwish and HardSigmoid, a residual."""
    x = n.op("HardSwish", n.bn(n.conv(n.input("image", 1, 3, 14, 10), 3, 8, strides=[2, 2]), 8))
    y = n.op("HardSwish", n.conv(n.conv(x, 8, 16, 1), 16, 16, 5, groups=16))
    s = n.op("Relu", n.gemm(n.op("ReduceMean", y, axes=[2, 3], keepdims=0), 16, 8))
    s = n.op("HardSigmoid", n.gemm(s, 8, 16))
    s = n.op("Unsqueeze", n.op("Unsqueeze", s, n.ints(2)), n.ints(3))
    y = n.conv(n.op("Mul", y, s), 16, 8, 1)
    return n.model(logits=n.head(n.op("Add", x, y), 8))


@entered
def resnext(n: Net) -> onnx.ModelProto:
    """A 3x3 convolution of 4 groups between 1x1 ones, and a bias that is added afterwards."""
    x = n.op("Relu", n.conv(n.input("image", 1, 3, 9, 11), 3, 8))
    y = n.op("Relu", n.conv(n.op("Relu", n.conv(x, 8, 16, 1)), 16, 16, groups=4))
    y = n.op("Add", n.conv(y, 16, 8, 1), n.const(n.rng.normal(0, 1, (8, 1, 1))))
    return n.model(logits=n.head(n.op("Relu", n.op("Add", y, x)), 8))


@entered
def densenet(n: Net) -> onnx.ModelProto:
    """Batch norms over what was joined: nothing to fold them into. PRelu, Pad, Resize by sizes."""
    x = n.conv(n.input("image", 1, 3, 8, 10), 3, 6)
    for channels in (6, 10):
        y = n.op("PRelu", n.bn(x, channels), n.const(n.rng.uniform(0.1, 0.4, (channels, 1, 1))))
        y = n.op("Pad", y, n.ints(0, 0, 1, 1, 0, 0, 1, 1), n.const(0.5))
        x = n.op("Concat", x, n.conv(y, channels, 4, pads=[0] * 4), axis=1)
    x = n.op("Resize", x, "", "", n.ints(1, 14, 16, 20), mode="nearest")
    return n.model(logits=n.head(n.op("Relu", n.bn(x, 14)), 14))


@entered
def gated_halves(n: Net) -> onnx.ModelProto:
    """A Split whose halves are multiplied, Slice and Gather of channels, Where, a Max of two."""
    x = n.conv(n.input("image", 1, 3, 8, 6), 3, 12)
    one, other = n.ops("Split", x, n.ints(6, 6), outputs=2, axis=1)
    x = n.conv(n.op("Mul", one, n.op("Sigmoid", other)), 6, 12)
    low = n.op("Slice", x, n.ints(0), n.ints(5), n.ints(1))
    high = n.op("Slice", x, n.ints(-7), n.ints(2**31), n.ints(1))
    mixed = n.op("Gather", high, n.ints(6, 0, 3, 2, 1, 5, 4), axis=1)
    y = n.conv(n.op("Concat", low, mixed, axis=1), 12, 12)
    z = n.op("Where", n.op("Greater", y, n.const(0.2)), x, n.op("Max", x, y))
    return n.model(logits=n.head(z, 12))


@entered
def turned(n: Net) -> onnx.ModelProto:
    """Channels last: a Transpose, dense layers on each pixel, a Softmax over places, a flat map."""
    x = n.op("Transpose", n.conv(n.input("image", 1, 3, 4, 5), 3, 8), perm=[0, 2, 3, 1])
    x = n.op("Add", n.op("MatMul", x, n.weight(8, 6, fan_in=8)), n.const(n.rng.normal(0, 1, 6)))
    x = n.op("Reshape", n.op("Softmax", x, axis=2), n.ints(1, 20, 6))
    x = n.op("Add", x, n.op("MatMul", n.op("Relu", x), n.weight(6, 6, fan_in=6)))
    flat = n.op("Reshape", x, n.ints(1, -1))
    return n.model(logits=n.gemm(flat, 120, 5))


@entered
def depth_and_space(n: Net) -> onnx.ModelProto:
    """DepthToSpace in both orders, SpaceToDepth, convolutions transposed: plain, deep, grouped."""
    x = n.conv(n.input("image", 1, 3, 4, 6), 3, 16)
    x = n.op("DepthToSpace", x, blocksize=2, mode="DCR")
    x = n.op("SpaceToDepth", n.conv(x, 4, 8), blocksize=2)
    x = n.op("DepthToSpace", n.conv(x, 32, 16, 1), blocksize=2, mode="CRD")
    weights = {"plain": (4, 8, 2, 2), "deep": (8, 1, 3, 3), "grouped": (8, 3, 2, 2)}
    for kind, groups in (("plain", 1), ("deep", 8), ("grouped", 2)):
        bias = n.const(n.rng.normal(0, 0.2, weights[kind][1] * groups))
        x = n.op("ConvTranspose", x, n.weight(*weights[kind], fan_in=8), bias, group=groups)
    return n.model(picture=n.conv(n.op("Elu", x), 6, 3))


@entered
def deep_twice(n: Net) -> onnx.ModelProto:
    """A depthwise convolution that makes two channels of each, an InstanceNormalization, a Tile."""
    x = n.conv(n.conv(n.input("image", 1, 3, 8, 6), 3, 6), 6, 12, groups=6)
    scale, shift = n.const(n.rng.uniform(0.5, 2, 12)), n.const(n.rng.normal(0, 0.5, 12))
    x = n.op("InstanceNormalization", n.op("Tanh", x), scale, shift)
    s = n.op("Expand", n.conv(n.op("GlobalAveragePool", x), 12, 12, 1), n.ints(1, 12, 8, 6))
    x = n.conv(n.op("Sub", x, s), 12, 8)
    s = n.op("Tile", n.conv(n.op("GlobalMaxPool", x), 8, 8, 1), n.ints(1, 1, 8, 6))
    return n.model(logits=n.head(n.op("Div", x, n.op("Exp", s)), 8))


@entered
def shared(n: Net) -> onnx.ModelProto:
    """The same weights in two convolutions, the same slopes in two activations, two outputs."""
    x = n.conv(n.input("image", 1, 8, 7, 9), 8, 8)
    w, slopes = n.weight(8, 8, 3, 3, fan_in=72), n.const(np.linspace(0.1, 0.5, 8).reshape(8, 1, 1))
    for _ in range(2):
        x = n.op("PRelu", n.op("Conv", x, w, pads=[1] * 4), slopes)
    return n.model(logits=n.head(x, 8), other=n.head(n.conv(x, 8, 6), 6, 4))
