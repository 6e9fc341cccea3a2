"""What the agent costs: its latencies and its throughput against a plain loop's, in pairs.

Run it as a script (it is no test: it takes minutes and wants a quiet machine)::

    python tests/benchmarks/bench_agent.py --backend onnxruntime

In every round an agent and a plain loop (`plain_loop.py`) start afresh, each in a process of its
own on the same runtime, and take turns, pair by pair in random order. A round's figure is the
median of its pairs' ratios agent / plain; printed is the median over the rounds, with its bootstrap
interval of 95 %. What is timed: ``inference`` is ``run()`` alone, ``with copies`` from before the
inputs are set to after the outputs are fetched.
``evaluation`` is the time for 4,800 pictures of 28 x 28, preprocessing included.

Both sides run with an allocator that gives nothing back: where a process's large buffers happen to
lie moves ncnn's times by some per cent, for as long as the process lives.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import wherry
from wherry.artifact import Artifact
from wherry.device import DeviceSpec
from wherry.host import Host
from wherry.measurement import MeasureSettings
from wherry.model import Model
from wherry.target import Target
from wherry.testing.workshop import Workshop

PLAIN_LOOP = Path(__file__).with_name("plain_loop.py")
PREPROCESS = Path(wherry.__file__).with_name("preprocess.py")
DIGITS = Path(__file__).parents[2] / "manifests" / "digits.onnx"
SPEC = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
UNITS = {10.0: (32, 56), 0.2: (16, 14)}  # wanted ms: channels and side of the layers
IMAGES = 4800
PAIRS = 10  # of a turn of each, in a round
TURN_S = 0.15


def tower(path: Path, channels: int, side: int, layers: int) -> None:
    """A network of equal convolutions."""
    rng = np.random.default_rng(0)
    shape = [1, channels, side, side]
    nodes, weights, last = [], [], "x"
    for index in range(layers):
        scale = np.sqrt(2 / (9 * channels))
        weight = rng.normal(0, scale, (channels, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], **conv))
        last = "y" if index == layers - 1 else f"r{index}"
        nodes.append(helper.make_node("Relu", [f"c{index}"], [last]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "tower", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


class Bench:
    """Converts networks for one backend and starts pairs of an agent and a plain loop."""

    def __init__(self, host: Host, backend: str, folder: Path) -> None:
        self.backend = host.backends[backend]
        self.target = Target(backend, "fp32", "local", self.backend.options())
        self.workshop = Workshop(host, folder)
        self.folder = folder
        transport = host.transports["local"]
        spec = DeviceSpec("local", "local", transport.parameters())
        self.device = transport.connect(spec, self.workshop)
        self.images = np.random.default_rng(1).integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
        np.save(folder / "images.npy", self.images)

    def convert(self, model: Model) -> Artifact:
        shapes = {spec.name: spec.static_shape for spec in model.inputs}
        rng = np.random.default_rng(0)
        sample = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
        return self.workshop.convert(model, self.target, [sample])

    def of_duration(self, wanted_ms: float) -> Artifact:
        """A tower that takes about so long."""
        channels, side = UNITS[wanted_ms]
        layers = 4
        for _ in range(6):  # guess, then correct
            path = self.folder / f"{wanted_ms}-{layers}.onnx"
            tower(path, channels, side, layers)
            artifact = self.convert(Model.load(path))
            with self.plain(artifact) as ask:
                found_ms = np.median(ask({"time": TURN_S})["infer_ns"]) / 1e6
            if abs(found_ms / wanted_ms - 1) < 0.05:
                break
            layers = max(1, round(layers * wanted_ms / found_ms))
        return artifact

    def digits(self) -> Artifact:
        source = Model.load(DIGITS)
        shapes = {source.inputs[0].name: (1, 1, 28, 28)}
        return self.convert(source.with_static_shapes(shapes, self.folder))

    @contextlib.contextmanager
    def plain(self, artifact: Artifact) -> Iterator[Any]:
        """A plain loop in its own process; call what this yields with a question."""
        (python,) = {self.device.provision(self.backend.runtime)}
        config = {
            "backend": self.backend.name,
            "directory": str(artifact.directory),
            "artifact": artifact.to_json(),
            "threads": self.target.options.threads,
            "preprocess_file": str(PREPROCESS),
            "preprocess": SPEC,
            "images_file": str(self.folder / "images.npy"),
        }
        file = self.folder / "plain.json"
        file.write_text(json.dumps(config))
        process = subprocess.Popen(
            [python, str(PLAIN_LOOP), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def ask(question: dict[str, Any]) -> dict[str, Any]:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        try:
            yield ask
        finally:
            stdin.close()
            process.wait(30)
            stdout.close()

    @contextlib.contextmanager
    def agent(self, artifact: Artifact, session: Any) -> Iterator[Any]:
        """The agent, asked in the same words."""
        (binding,) = artifact.inputs
        sample = {binding.onnx: np.random.default_rng(0).random(binding.shape, np.float32)}
        settings = MeasureSettings(warmup_s=0.05, warmup_runs=3, duration_s=TURN_S, min_runs=5)
        timing = session.host(artifact, self.target, self.backend, {})
        evaluating = session.host(artifact, self.target, self.backend, {binding.onnx: SPEC})

        def ask(question: dict[str, Any]) -> dict[str, Any]:
            if "time" in question:
                timed = timer.time(sample, settings)
                return {"infer_ns": timed.infer_ns, "total_ns": timed.total_ns}
            begun = time.perf_counter()
            count = sum(1 for _ in evaluator.infer({binding.onnx: x} for x in self.images))
            assert count == IMAGES
            return {"seconds": time.perf_counter() - begun}

        with timing as timer, evaluating as evaluator:
            yield ask

    def compare(self, artifact: Artifact, rounds: int, evaluate: bool) -> dict[str, Any]:
        """Ratios agent / plain per round, and the plain loop's medians."""
        order = random.Random(0)
        found: dict[str, list[float]] = {}
        with self.device.session() as session:
            for number in range(rounds):
                ratios: dict[str, list[float]] = {}
                with self.plain(artifact) as plain, self.agent(artifact, session) as agent:
                    sides = {"plain": plain, "agent": agent}
                    questions = [{"time": TURN_S}] * PAIRS + [{"evaluate": True}] * evaluate
                    for question in questions:
                        medians = {
                            side: {
                                key: float(np.median(v)) for key, v in sides[side](question).items()
                            }
                            for side in order.sample(sorted(sides), 2)
                        }
                        for key, value in medians["plain"].items():
                            ratios.setdefault(key, []).append(medians["agent"][key] / value)
                            found.setdefault(f"plain {key}", []).append(value)
                for key, values in ratios.items():
                    found.setdefault(key, []).append(float(np.median(values)))
                sys.stderr.write(f"\r  round {number + 1}/{rounds} ")
        return found


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median and bootstrap interval of 95 %."""
    values = np.array(ratios)
    picks = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", action="append", help="default: all three")
    parser.add_argument("--network", action="append", help="10 ms, 0.2 ms, digits; default: all")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.update(ALLOCATOR)  # of the processes that are started
    host = Host.load()
    wanted = arguments.backend or ["onnxruntime", "tflite", "ncnn"]
    if absent := [name for name in wanted if name not in host.backends]:
        parser.error(f"no such backend: {', '.join(absent)}; there are {', '.join(host.backends)}")
    words = {"infer_ns": "inference", "total_ns": "with copies", "seconds": "evaluation"}
    say(f"agent / plain loop, {arguments.rounds} shuffled rounds, median [95 % interval]")
    for backend in wanted:
        with tempfile.TemporaryDirectory() as name:
            bench = Bench(host, backend, Path(name))
            networks = {f"{ms:g} ms": functools.partial(bench.of_duration, ms) for ms in UNITS}
            networks["digits"] = bench.digits
            for label in arguments.network or networks:
                artifact = networks[label]()
                found = bench.compare(artifact, arguments.rounds, evaluate=label == "digits")
                sys.stderr.write("\r" + " " * 20 + "\r")
                for key, word in words.items():
                    if key in found:
                        ratio, low, high = interval(found[key])
                        plain = np.median(found[f"plain {key}"])
                        unit = f"{plain:.2f} s" if key == "seconds" else f"{plain / 1e6:.3f} ms"
                        say(
                            f"{backend:12} {label:7} {word:12} "
                            f"{ratio:.4f} [{low:.4f}, {high:.4f}]  plain {unit}"
                        )


if __name__ == "__main__":
    main()
