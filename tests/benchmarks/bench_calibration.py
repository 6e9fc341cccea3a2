"""Calibration of many samples: time, and memory that does not grow with their number.

    python tests/benchmarks/bench_calibration.py [--method entropy]

The quickstart's network is calibrated on 1,000 and on 10,000 made-up images, each in a process of
its own. Printed are wall time and peak resident memory of wherry's process and of the tool that
runs the samples, and the ratio of the two.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from wherry.calibration import CalibrationSettings
from wherry.dataset import Dataset, Sample
from wherry.host import Host
from wherry.model import Model
from wherry.target import Target
from wherry.testing.workshop import Workshop

DIGITS = Path(__file__).parents[2] / "manifests/digits.onnx"
COUNTS = (1000, 10_000)


class Made(Dataset):
    """Images that are made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.name = "made"
        self._count = count

    @property
    def digest(self) -> str:
        return f"made {self._count}"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        image = np.random.default_rng(index).normal(size=(1, 1, 28, 28))
        return Sample({"input": image.astype(np.float32)})


def calibrate(count: int, method: str) -> None:
    """In a process of its own: one calibration; prints what it took as JSON."""
    host = Host.load()
    target = Target("onnxruntime", "int8", "local", host.backends["onnxruntime"].options())
    with tempfile.TemporaryDirectory() as folder:
        model = Model.load(DIGITS).with_static_shapes({}, Path(folder))
        workshop = Workshop(host, Path(folder))
        begun = time.perf_counter()
        settings = CalibrationSettings(method)
        found = workshop.calibrate(model, target, Made(count), settings)
        spent = time.perf_counter() - begun
    peaks = [
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    sys.stdout.write(json.dumps({"s": spent, "mb": peaks, "tensors": len(found.ranges)}))


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="entropy")
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        calibrate(arguments.count, arguments.method)
        return
    found = []
    for count in COUNTS:
        command = [sys.executable, __file__, "--method", arguments.method, "--count", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
        one = found[-1]
        sys.stdout.write(
            f"{count} samples, {one['tensors']} tensors: {one['s']:.1f} s; peak memory "
            f"{one['mb'][0]:.0f} MB of wherry, {one['mb'][1]:.0f} MB of the tool\n"
        )
    ratios = [after / before for before, after in zip(found[0]["mb"], found[1]["mb"], strict=True)]
    sys.stdout.write(f"10 times the samples: x{ratios[0]:.3f} and x{ratios[1]:.3f} of the memory\n")


if __name__ == "__main__":
    main()
