"""What the passes before int8 bring: SQNR and agreement with fp32, on the three backends.

    python tests/benchmarks/bench_int8_passes.py [FOLDER] [--variant ...] [--target ...]

Without FOLDER: the quickstart's network on digits that it never saw, MNIST's and bolder ones,
calibrated with 200. With FOLDER, which ``export_models.py`` wrote: MobileNetV2 with ImageNet
weights, calibrated on pictures of things and judged on pictures of animals. Each backend's own
artifact runs on this machine; nothing is timed. It ends with status 1 where ``int8.adaround`` has
an SQNR that is lower by more than 0.2 dB than the same without it, on any backend.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wherry.calibration import CalibrationSettings
from wherry.home import home
from wherry.host import Host
from wherry.model import Model
from wherry.parity import compare
from wherry.passes import PassStep
from wherry.reference import Reference
from wherry.target import Target
from wherry.testing.workshop import Workshop, _Samples

sys.path[:0] = [str(Path(__file__).parents[1] / "conformance")]

TARGETS = {
    "onnxruntime": ("onnxruntime", {}),
    "tflite": ("tflite", {}),
    "ncnn": ("ncnn", {}),
    "weights": ("onnxruntime", {"quantize": "weights"}),
}
"""To backend and options; ``weights``: activations stay in float."""
VARIANTS = {
    "original": (),
    "corrected": ("int8.bias-correction",),
    "adarounded": ("int8.adaround",),
    "both": ("int8.adaround", "int8.bias-correction"),
    "equalised": ("equalize",),
    "equalised, corrected": ("equalize", "int8.bias-correction"),
    "equalised, adarounded": ("equalize", "int8.adaround"),
}
PAIRS = (("adarounded", "original"), ("equalised, adarounded", "equalised"))
MEAN, STD = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
JUDGED = 1000
SLACK_DB = 0.2

Samples = Sequence[Mapping[str, np.ndarray]]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def digits() -> tuple[Path, Samples, dict[str, Samples]]:
    """The model, what calibrates, and what judges."""
    import digits as source

    sets = {name: inputs for name, (inputs, _) in source.load(home()).items()}
    mnist = sets["mnist"]
    judged = {"mnist": mnist[200 : 200 + JUDGED], "bold": sets["bold"][:JUDGED]}
    named = {name: [{"input": each} for each in inputs] for name, inputs in judged.items()}
    return source.MODEL, [{"input": each} for each in mnist[:200]], named


def pictures(folder: Path) -> tuple[Path, Samples, dict[str, Samples]]:
    """Likewise."""

    def ready(name: str) -> Samples:
        values = np.load(folder / f"{name}.npz")["input"].astype(np.float32) / 255
        values = (values - np.float32(MEAN)) / np.float32(STD)
        return [{"input": np.ascontiguousarray(v.transpose(2, 0, 1)[None])} for v in values]

    return (
        folder / "mobilenet_v2.onnx",
        ready("calibration"),
        {"animals": ready("evaluation")},
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--target", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--method", default="mse")
    arguments = parser.parse_args()
    host = Host.load()
    path, calibration, judged = digits() if arguments.folder is None else pictures(arguments.folder)
    found: dict[tuple[str, str, str], float] = {}
    say("| variant | target | judged on | agreement | SQNR, dB |\n|---|---|---|--:|--:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = Model.load(path).with_static_shapes({}, folder)
        workshop = Workshop(host, folder)
        reference = Reference(model)
        wanted = {name: [reference.run(s) for s in samples] for name, samples in judged.items()}
        made: dict[tuple[str, ...], Model] = {(): model}
        for variant in arguments.variant:
            steps = VARIANTS[variant]
            for end in range(1, len(steps) + 1):
                if steps[:end] not in made:
                    step = PassStep(steps[end - 1], host.passes[steps[end - 1]].parameters())
                    made[steps[:end]], _ = workshop.optimize(
                        made[steps[: end - 1]], step, calibration
                    )
            for word in arguments.target:
                backend, options = TARGETS[word]
                target = Target(backend, "int8", "local", host.backends[backend].options(**options))
                ranges = None
                if host.backends[backend].needs_calibration(target):
                    asked = CalibrationSettings(arguments.method)
                    data = _Samples(calibration)
                    ranges = workshop.calibrate(made[steps], target, data, asked)
                artifact = host.convert(made[steps], target, ranges, workshop._context())
                for name, samples in judged.items():
                    ours = workshop.run(artifact, target, samples)
                    sqnr = compare(ours, wanted[name]).sqnr_db
                    same = [
                        np.argmax(a[key]) == np.argmax(b[key])
                        for a, b in zip(ours, wanted[name], strict=True)
                        for key in b
                    ]
                    found[variant, word, name] = sqnr
                    say(f"| {variant} | {word} | {name} | {np.mean(same):.4f} | {sqnr:.1f} |")
    worse = [
        f"{better} on {key[1]}, {key[2]}: {found[better, *key[1:]]:.1f} dB, {value:.1f} without it"
        for key, value in found.items()
        for better, plain in PAIRS
        if key[0] == plain and found.get((better, *key[1:]), value) < value - SLACK_DB
    ]
    sys.exit("; ".join(worse) if worse else 0)


if __name__ == "__main__":
    main()
