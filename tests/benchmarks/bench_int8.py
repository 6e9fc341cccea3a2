"""int8 against fp32 on networks with ImageNet weights: size, latency, agreement, SQNR.

    python tests/benchmarks/bench_int8.py FOLDER [--method minmax] [--backend ...] [--model ...]

FOLDER is what ``export_models.py`` wrote. Each network is calibrated on a quarter of the pictures,
converted to fp32 and int8 by every backend, checked and timed on this machine, interleaved, in one
`wherry run`; the table is printed as it stands in the docs. A run without agreement of 0.90 for
every int8 row ends with status 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wherry import api

NETWORKS = {
    "mobilenet_v2": {
        "scale": 1 / 255,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "efficientnet_lite0": {"mean": [127], "std": [128]},
}
"""To the preprocessing that each was trained with."""

BACKENDS = ("onnxruntime", "tflite", "ncnn")
LEAST_AGREEMENT = 0.9

MANIFEST = """wherry: 1
model:
  path: {name}.onnx
  inputs: {{input: {{preprocess: {preprocess}}}}}
data:
  calibration: {{source: npz, path: calibration.npz}}
  evaluation: {{source: npz, path: evaluation.npz}}
metrics: [agreement, sqnr_db]
calibrate: {{method: {method}}}
targets:
  - {{backend: [{backends}], precision: [fp32, int8]}}
"""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="minmax")
    parser.add_argument("--backend", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--model", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    arguments = parser.parse_args()
    heads = "network | backend | precision | size, MB | median, ms | agreement | SQNR, dB"
    say(f"| {heads} |\n|{'---|' * 7}")
    worst = 1.0
    for name in arguments.model:
        path = arguments.folder / f"{name}.yaml"
        path.write_text(
            MANIFEST.format(
                name=name,
                preprocess=NETWORKS[name],
                method=arguments.method,
                backends=", ".join(arguments.backend),
            )
        )
        for result in api.run(path).values["results"]:
            target, metrics = result["target"], result["metrics"]
            if result["status"] != "ok":
                sys.exit(f"{result['name']}: {result['error']}")
            row = (
                name,
                target["backend"],
                target["precision"],
                f"{result['size_bytes'] / 1e6:.2f}",
                f"{result['latency']['median_ms']:.2f}",
                f"{metrics['agreement']:.3f}",
                f"{metrics['sqnr_db']:.1f}",
            )
            say(f"| {' | '.join(row)} |")
            if target["precision"] == "int8":
                worst = min(worst, metrics["agreement"])
    sys.exit(0 if worst >= LEAST_AGREEMENT else f"an int8 agrees in {worst:.3f} of the pictures")


if __name__ == "__main__":
    main()
