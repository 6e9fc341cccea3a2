"""The networks that everybody deploys, whole, with seeded weights; batch norms are folded.

What counts here is their structure and size: every layer has the shape that the papers give it.
``size`` is the side of the pictures: convolutions do not care, and tests want to be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from networks import Net

MOBILENET_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5,
                (1024, 2), (1024, 1))  # fmt: skip
"""Howard et al. 2017, table 1: channels and stride of each separable convolution."""

MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
"""Sandler et al. 2018, table 2: expansion, channels, repetitions, first stride."""

MOBILENET_V3 = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2), *((5, 240, 40, True, True, 1),) * 2, (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2), *((5, 576, 96, True, True, 1),) * 2,
)  # fmt: skip
"""Howard et al. 2019, table 2 (small): kernel, expansion, channels, whether channels are weighed
(squeeze and excite), whether by HardSwish, stride."""

SHUFFLENET_V1 = ((4, 240), (8, 480), (4, 960))
"""Zhang et al. 2018, table 1, 1x with 3 groups: repetitions and channels of each stage."""

SHUFFLENET_V2 = ((4, 116), (8, 232), (4, 464))
"""Ma et al. 2018, table 5, 1x: repetitions and channels of each stage."""

SQUEEZENET = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192),
              (64, 256), (64, 256))  # fmt: skip
"""SqueezeNet 1.1: squeezed channels and each half's; None: a pool."""

RESNET18 = (64, 128, 256, 512)
"""He et al. 2015, table 1: channels of each stage of two blocks."""


def mobilenet_v1(n: Net, size: int) -> onnx.ModelProto:
    x, inputs = n.input("image", 1, 3, size, size), 32
    x = n.op("Relu", n.conv(x, 3, inputs, strides=[2, 2]))
    for channels, stride in MOBILENET_V1:
        x = n.op("Relu", n.conv(x, inputs, inputs, groups=inputs, strides=[stride, stride]))
        x, inputs = n.op("Relu", n.conv(x, inputs, channels, 1)), channels
    return n.model(logits=n.head(x, 1024, 1000))


def mobilenet_v2(n: Net, size: int) -> onnx.ModelProto:
    x, channels = n.input("image", 1, 3, size, size), 32
    x = n.relu6(n.conv(x, 3, channels, strides=[2, 2]))
    for expansion, outputs, repetitions, first in MOBILENET_V2:
        for stride in (first, *[1] * (repetitions - 1)):
            hidden = channels * expansion
            y = x if expansion == 1 else n.relu6(n.conv(x, channels, hidden, 1))
            y = n.relu6(n.conv(y, hidden, hidden, groups=hidden, strides=[stride, stride]))
            y = n.conv(y, hidden, outputs, 1)
            x = n.op("Add", x, y) if stride == 1 and channels == outputs else y
            channels = outputs
    x = n.relu6(n.conv(x, channels, 1280, 1))
    return n.model(logits=n.head(x, 1280, 1000))


def mobilenet_v3(n: Net, size: int) -> onnx.ModelProto:
    def weighed(x: str, channels: int) -> str:
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)
        y = n.conv(n.op("GlobalAveragePool", x), channels, squeezed, 1)
        y = n.conv(n.op("Relu", y), squeezed, channels, 1)
        return n.op("Mul", x, n.op("HardSigmoid", y, alpha=1 / 6, beta=0.5))

    x, inputs = n.input("image", 1, 3, size, size), 16
    x = n.op("HardSwish", n.conv(x, 3, inputs, strides=[2, 2]))
    for kernel, hidden, outputs, weigh, swish, stride in MOBILENET_V3:
        kind = "HardSwish" if swish else "Relu"
        y = x if hidden == inputs else n.op(kind, n.conv(x, inputs, hidden, 1))
        y = n.conv(y, hidden, hidden, kernel, groups=hidden, strides=[stride, stride])
        y = n.op(kind, y)
        y = n.conv(weighed(y, hidden) if weigh else y, hidden, outputs, 1)
        x = n.op("Add", x, y) if stride == 1 and inputs == outputs else y
        inputs = outputs
    x = n.op("HardSwish", n.conv(x, inputs, 576, 1))
    x = n.op("Flatten", n.op("GlobalAveragePool", x))
    return n.model(logits=n.gemm(n.op("HardSwish", n.gemm(x, 576, 1024)), 1024, 1000))


def shufflenet_v1(n: Net, size: int) -> onnx.ModelProto:
    groups = 3

    def shuffled(x: str, channels: int, side: int) -> str:
        x = n.op("Reshape", x, n.ints(1, groups, channels // groups, side, side))
        x = n.op("Transpose", x, perm=[0, 2, 1, 3, 4])
        return n.op("Reshape", x, n.ints(1, channels, side, side))

    x = n.op("Relu", n.conv(n.input("image", 1, 3, size, size), 3, 24, strides=[2, 2]))
    x = n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inputs, side = 24, -(-size // 4)
    for repetitions, channels in SHUFFLENET_V1:
        for stride in (2, *[1] * (repetitions - 1)):
            hidden, outputs = channels // 4, channels - inputs if stride == 2 else channels
            y = n.conv(x, inputs, hidden, 1, groups=1 if inputs == 24 else groups)
            y = shuffled(n.op("Relu", y), hidden, side)
            side = -(-side // stride)
            y = n.conv(y, hidden, hidden, groups=hidden, strides=[stride, stride])
            # little is added: without batch norms the sums would double in every unit
            fan_in = 16 * hidden // groups
            w = n.weight(outputs, hidden // groups, 1, 1, fan_in=fan_in)
            y = n.op("Conv", y, w, n.const(n.rng.normal(0, 0.2, outputs)), group=groups)
            if stride == 2:
                x = n.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
                x = n.op("Concat", x, y, axis=1)
            else:
                x = n.op("Add", x, y)
            x, inputs = n.op("Relu", x), channels
    return n.model(logits=n.head(x, 960, 1000))


def shufflenet_v2(n: Net, size: int) -> onnx.ModelProto:
    def relu(x: str) -> str:
        return n.op("Relu", x)

    def branch(x: str, inputs: int, outputs: int, stride: int) -> str:
        x = relu(n.conv(x, inputs, outputs, 1))
        x = n.conv(x, outputs, outputs, groups=outputs, strides=[stride, stride])
        return relu(n.conv(x, outputs, outputs, 1))

    def shuffled(one: str, other: str, channels: int, side: int) -> str:
        x = n.op("Concat", one, other, axis=1)
        x = n.op("Reshape", x, n.ints(1, 2, channels // 2, side, side))
        x = n.op("Transpose", x, perm=[0, 2, 1, 3, 4])
        return n.op("Reshape", x, n.ints(1, channels, side, side))

    x = relu(n.conv(n.input("image", 1, 3, size, size), 3, 24, strides=[2, 2]))
    x = n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels, side = 24, -(-size // 4)
    for repetitions, outputs in SHUFFLENET_V2:
        side, half = -(-side // 2), outputs // 2
        beside = n.conv(x, channels, channels, groups=channels, strides=[2, 2])
        beside = relu(n.conv(beside, channels, half, 1))
        x = shuffled(beside, branch(x, channels, half, 2), outputs, side)
        for _ in range(repetitions - 1):
            kept, taken = n.ops("Split", x, n.ints(half, half), outputs=2, axis=1)
            x = shuffled(kept, branch(taken, half, half, 1), outputs, side)
        channels = outputs
    x = relu(n.conv(x, channels, 1024, 1))
    return n.model(logits=n.head(x, 1024, 1000))


def squeezenet(n: Net, size: int) -> onnx.ModelProto:
    def pool(x: str) -> str:
        return n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])

    x = n.input("image", 1, 3, size, size)
    x = pool(n.op("Relu", n.conv(x, 3, 64, strides=[2, 2])))
    channels = 64
    for fire in SQUEEZENET:
        if fire is None:
            x = pool(x)
            continue
        squeezed, half = fire
        x = n.op("Relu", n.conv(x, channels, squeezed, 1))
        one, three = (n.op("Relu", n.conv(x, squeezed, half, k)) for k in (1, 3))
        x, channels = n.op("Concat", one, three, axis=1), 2 * half
    x = n.op("GlobalAveragePool", n.op("Relu", n.conv(x, channels, 1000, 1)))
    return n.model(logits=n.op("Flatten", x))


def resnet18(n: Net, size: int, widths: Sequence[int] = RESNET18) -> onnx.ModelProto:
    inputs = widths[0]
    x = n.op("Relu", n.conv(n.input("image", 1, 3, size, size), 3, inputs, 7, strides=[2, 2]))
    x = n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for channels in widths:
        for stride in (1 if channels == inputs else 2, 1):
            y = n.op("Relu", n.conv(x, inputs, channels, strides=[stride, stride]))
            y = n.conv(y, channels, channels)
            if inputs != channels:
                x = n.conv(x, inputs, channels, 1, strides=[stride, stride])
            x, inputs = n.op("Relu", n.op("Add", x, y)), channels
    return n.model(logits=n.head(x, inputs, 1000))


CLASSICS = {
    builder.__name__: builder
    for builder in (
        *(mobilenet_v1, mobilenet_v2, mobilenet_v3),
        *(shufflenet_v1, shufflenet_v2),
        *(squeezenet, resnet18),
    )
}
