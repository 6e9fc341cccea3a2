"""The networks of the papers in torch, for exports: structure as published, widths to be chosen.

``NETWORKS[name](width)`` builds, `built` gives one with weights and statistics that make sense; the
pictures are [3, SIDE, SIDE].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = 10
SIDE = 64


def unit(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1,
         act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:  # fmt: skip
    """A convolution, its batch norm, and an activation unless it is linear."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, act()) if act is not None else nn.Sequential(*parts)


def rounded(channels: float) -> int:
    return max(8, int(channels + 4) // 8 * 8)


class MobileNetV1(nn.Module):
    """Howard et al. 2017, table 1: depthwise and pointwise in turn."""

    def __init__(self, width: float) -> None:
        super().__init__()
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
                (1024, 2), (1024, 1)]  # fmt: skip
        channels = rounded(32 * width)
        parts: list[nn.Module] = [unit(3, channels, stride=2)]
        for outputs, stride in plan:
            parts.append(unit(channels, channels, stride=stride, groups=channels))
            parts.append(unit(channels, rounded(outputs * width), 1))
            channels = rounded(outputs * width)
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(x.view(x.size(0), -1))


class InvertedResidual(nn.Module):
    """Sandler et al. 2018, figure 3; with a gate and another activation it is MobileNetV3's."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int,
                 act: type[nn.Module], gate: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.expand = unit(inputs, hidden, 1, act=act) if hidden != inputs else nn.Identity()
        self.depthwise = unit(hidden, hidden, kernel, stride=stride, groups=hidden, act=act)
        self.gate = Gate(hidden) if gate else nn.Identity()
        self.project = unit(hidden, outputs, 1, act=None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class Gate(nn.Module):
    """Squeeze and excite, with MobileNetV3's hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = rounded(channels / 4)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * nn.functional.hardsigmoid(self.up(torch.relu(self.down(s))))


class MobileNetV2(nn.Module):
    """Sandler et al. 2018, table 2."""

    def __init__(self, width: float) -> None:
        super().__init__()
        plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
        channels = rounded(32 * width)
        parts: list[nn.Module] = [unit(3, channels, stride=2, act=nn.ReLU6)]
        for expansion, outputs, times, first in plan:
            for stride in (first, *[1] * (times - 1)):
                made = rounded(outputs * width)
                parts.append(InvertedResidual(channels, channels * expansion, made, 3, stride,
                                              nn.ReLU6))  # fmt: skip
                channels = made
        last = rounded(1280 * width)
        parts.append(unit(channels, last, 1, act=nn.ReLU6))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV3(nn.Module):
    """Howard et al. 2019, table 2 (small)."""

    def __init__(self, width: float) -> None:
        super().__init__()
        plan = ((3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2),
                (3, 88, 24, False, False, 1), (5, 96, 40, True, True, 2),
                (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
                (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1),
                (5, 288, 96, True, True, 2), (5, 576, 96, True, True, 1),
                (5, 576, 96, True, True, 1))  # fmt: skip
        channels = rounded(16 * width)
        parts: list[nn.Module] = [unit(3, channels, stride=2, act=nn.Hardswish)]
        for kernel, hidden, outputs, gate, swish, stride in plan:
            made = rounded(outputs * width)
            act = nn.Hardswish if swish else nn.ReLU
            parts.append(InvertedResidual(channels, rounded(hidden * width), made, kernel, stride,
                                          act, gate))  # fmt: skip
            channels = made
        hidden = rounded(576 * width)
        parts.append(unit(channels, hidden, 1, act=nn.Hardswish))
        self.features, self.pool = nn.Sequential(*parts), nn.AdaptiveAvgPool2d(1)
        last = rounded(1024 * width)
        self.classifier = nn.Sequential(
            nn.Linear(hidden, last), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(last, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The channels of the groups in turn, written as the papers' authors do."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Zhang et al. 2017, figure 2 b and c."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, *, first: bool) -> None:
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        inner = outputs // 4
        self.groups, self.stride = groups, stride
        self.squeeze = unit(inputs, inner, 1, groups=1 if first else groups)
        self.depthwise = unit(inner, inner, stride=stride, groups=inner, act=None)
        self.expand = unit(inner, made, 1, groups=groups, act=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depthwise(shuffled(self.squeeze(x), self.groups)))
        if self.stride == 2:
            x = nn.functional.avg_pool2d(x, 3, 2, 1)
            return torch.relu(torch.cat([x, y], 1))
        return torch.relu(x + y)


class ShuffleNetV1(nn.Module):
    """Zhang et al. 2017, table 1, three groups."""

    def __init__(self, width: float) -> None:
        super().__init__()
        groups, channels = 3, 24
        self.stem = nn.Sequential(unit(3, channels, stride=2), nn.MaxPool2d(3, 2, 1))
        parts: list[nn.Module] = []
        for times, outputs in ((4, 240), (8, 480), (4, 960)):
            made = max(48, int(outputs * width) // 24 * 24)
            for index in range(times):
                parts.append(ShuffleUnit(channels, made, groups, 2 if index == 0 else 1,
                                         first=channels == 24))  # fmt: skip
                channels = made
        self.stages, self.classifier = nn.Sequential(*parts), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class ShuffleUnitV2(nn.Module):
    """Ma et al. 2018, figure 3 c and d."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        given = inputs if stride == 2 else half
        self.stride = stride
        self.beside = nn.Sequential(
            unit(given, given, stride=2, groups=given, act=None), unit(given, half, 1)
        ) if stride == 2 else nn.Identity()  # fmt: skip
        self.branch = nn.Sequential(
            unit(given, half, 1), unit(half, half, stride=stride, groups=half, act=None),
            unit(half, half, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, taken = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        return shuffled(torch.cat([self.beside(kept), self.branch(taken)], 1), 2)


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018, table 5."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = 24
        self.stem = nn.Sequential(unit(3, channels, stride=2), nn.MaxPool2d(3, 2, 1))
        parts: list[nn.Module] = []
        for times, outputs in ((4, 116), (8, 232), (4, 464)):
            made = rounded(outputs * width)
            for index in range(times):
                parts.append(ShuffleUnitV2(channels, made, 2 if index == 0 else 1))
                channels = made
        last = rounded(1024 * width)
        self.stages, self.last = nn.Sequential(*parts), unit(channels, last, 1)
        self.classifier = nn.Linear(last, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.last(self.stages(self.stem(x))).mean([2, 3]))


class Fire(nn.Module):
    """Iandola et al. 2016, figure 1."""

    def __init__(self, inputs: int, squeezed: int, half: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one, self.three = nn.Conv2d(squeezed, half, 1), nn.Conv2d(squeezed, half, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: no batch norms, and pools that round up."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = rounded(64 * width)
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, 2), nn.ReLU()]
        for step in (None, 16, 16, None, 32, 32, None, 48, 48, 64, 64):
            if step is None:
                parts.append(nn.MaxPool2d(3, 2, ceil_mode=True))
                continue
            squeezed = rounded(step * width)
            parts.append(Fire(channels, squeezed, 4 * squeezed))
            channels = 8 * squeezed
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, CLASSES, 1), nn.ReLU(),
                                        nn.AdaptiveAvgPool2d(1))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class Residual(nn.Module):
    """He et al. 2015, figure 5: two convolutions, or three of which the middle is narrow."""

    def __init__(self, inputs: int, channels: int, stride: int, *, narrow: bool) -> None:
        super().__init__()
        outputs = channels * 4 if narrow else channels
        if narrow:
            self.body = nn.Sequential(
                unit(inputs, channels, 1),
                unit(channels, channels, stride=stride),
                unit(channels, outputs, 1, act=None),
            )
        else:
            self.body = nn.Sequential(
                unit(inputs, channels, stride=stride), unit(channels, outputs, act=None)
            )
        same = stride == 1 and inputs == outputs
        self.beside = nn.Identity() if same else unit(inputs, outputs, 1, stride=stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.beside(x) + self.body(x))


class ResNet(nn.Module):
    """He et al. 2015, table 1."""

    def __init__(self, width: float, blocks: tuple[int, ...], *, narrow: bool) -> None:
        super().__init__()
        channels = rounded(64 * width)
        parts: list[nn.Module] = [unit(3, channels, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
        inputs = channels
        for stage, times in enumerate(blocks):
            for index in range(times):
                stride = 2 if stage and not index else 1
                parts.append(Residual(inputs, channels << stage, stride, narrow=narrow))
                inputs = (channels << stage) * (4 if narrow else 1)
        self.features, self.pool = nn.Sequential(*parts), nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


NETWORKS: dict[str, Callable[[float], nn.Module]] = {
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3": MobileNetV3,
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
    "squeezenet": SqueezeNet,
    "resnet18": lambda width: ResNet(width, (2, 2, 2, 2), narrow=False),
    "resnet50": lambda width: ResNet(width, (3, 4, 6, 3), narrow=True),
}


def built(name: str, width: float = 1.0, seed: int = 0) -> nn.Module:
    """In evaluation mode: seeded weights, and statistics of random pictures, so that the outputs
    are neither near zero nor the same for all pictures."""
    torch.manual_seed(seed)
    network = NETWORKS[name](width)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.8)
            nn.init.normal_(module.bias, 0.5, 0.2)  # mostly above zero, as rounding would grow else
            module.momentum = None  # the mean over all that it has seen
    with torch.no_grad():
        network.train()(torch.randn(16, 3, SIDE, SIDE))
    return network.eval()


EXPORTS = {
    "legacy 13": (13, False), "legacy 17": (17, False), "dynamo 18": (18, True),
    "dynamo 21": (21, True),
}  # fmt: skip
"""Name to the opset, and whether by the exporter that traces with dynamo."""


def export(network: nn.Module, path: Path, way: str, *, dynamic: bool = False, side: int = SIDE,
           channels: int = 3) -> None:  # fmt: skip
    """Write the ONNX file as the exporter makes it; ``dynamic``: the batch has no number."""
    opset, dynamo = EXPORTS[way]
    options: dict[str, object] = {"dynamo": dynamo}
    if dynamic and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim.DYNAMIC},)
    elif dynamic:
        options["dynamic_axes"] = {"image": {0: "batch"}, "logits": {0: "batch"}}
    example = torch.zeros(2 if dynamic else 1, channels, side, side)
    torch.onnx.export(
        network, (example,), str(path), input_names=["image"], output_names=["logits"],
        opset_version=opset, **options,
    )  # fmt: skip
