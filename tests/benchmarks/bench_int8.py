"""int8 against fp32 on networks with ImageNet weights: size, latency, agreement, SQNR.

    python tests/benchmarks/bench_int8.py FOLDER [--method mse] [--backend ...] [--model ...]

FOLDER is what ``export_models.py`` wrote. Each network, as it is and after the pass ``equalize``,
is calibrated on pictures of things and judged on pictures of animals; every backend converts it to
fp32 and int8; all are checked and timed on this machine, interleaved, in one `wherry run` a
network. ncnn, whose activations have no zero point, also keeps the first blocks of MobileNetV2 in
fp32, which `wherry debug layers` names. The table is printed as it stands in the docs. Where the
equalised int8 of a backend, the last of its rows, agrees with fp32 in less than 0.90 of the
pictures, it ends with status 1.
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

KEEPING = {("mobilenet_v2", "ncnn"): "/features/features.[0-2]/*"}
"""Nodes that stay in fp32, in rows of their own."""

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
variants:
  original: []
  equalised: [equalize]
targets:
  - {{backend: [{backends}], precision: fp32, variants: original}}
  - {{backend: [{backends}], precision: int8{keeping}}}
"""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="mse")
    parser.add_argument("--backend", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--model", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    arguments = parser.parse_args()
    heads = "network | backend | precision | variant | size, MB | median, ms | agreement | SQNR, dB"
    say(f"| {heads} |\n|{'---|' * 8}")
    agreements: dict[tuple[str, str], float] = {}
    for name in arguments.model:
        path = arguments.folder / f"{name}.yaml"
        path.write_text(
            MANIFEST.format(
                name=name,
                preprocess=NETWORKS[name],
                method=arguments.method,
                backends=", ".join(arguments.backend),
                keeping="".join(
                    f', {backend}: {{keep_fp32: [[], ["{nodes}"]]}}'
                    for (network, backend), nodes in KEEPING.items()
                    if network == name and backend in arguments.backend
                ),
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
                result["variant"] + (", some in fp32" if target["options"]["keep_fp32"] else ""),
                f"{result['size_bytes'] / 1e6:.2f}",
                f"{result['latency']['median_ms']:.2f}",
                f"{metrics['agreement']:.3f}",
                f"{metrics['sqnr_db']:.1f}",
            )
            say(f"| {' | '.join(row)} |")
            if result["variant"] == "equalised":
                agreements[name, target["backend"]] = metrics["agreement"]
    low = [f"{' '.join(key)} {a:.3f}" for key, a in agreements.items() if a < LEAST_AGREEMENT]
    sys.exit(f"less than {LEAST_AGREEMENT} agree: {', '.join(low)}" if low else 0)


if __name__ == "__main__":
    main()
