"""Every pass on every test network: what the backends make of the results; prints the matrix.

Run it as a script (it is no test: it takes an hour and more on two cores)::

    WHERRY_HOME=/tmp/home python tests/benchmarks/bench_passes.py [--network ...] [--backend ...]

ok: valid ONNX with the inputs and outputs of the given model, converted, and run with the parity
that wherry asks of the precision. refused: by the pass, or by the backend before anything is made,
with words that are printed. WRONG: anything else, and the exit status is 1. MACE's runtime is not
here: what its converter writes is run by the independent reader of the tests.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from click import echo

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from loading import load  # noqa: E402 -- its folder has to be on the path first

sweep = load(HERE.parent / "conformance" / "sweep.py")
networks = load(HERE.parent / "conformance" / "networks.py")

BACKENDS = ("onnxruntime", "tflite", "ncnn", "caffe2", "mace")


def fed(model):
    """Samples of a model."""
    return [networks.sample(model.proto(), seed) for seed in range(sweep.SAMPLES)]


def main() -> None:
    """Make, convert, run, and print."""
    classics, generated = sweep.classics(networks), sweep.generated(networks)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", nargs="+", default=list(classics), help="or `generated`")
    parser.add_argument("--pass", nargs="+", dest="rows", default=list(sweep.PASSES))
    parser.add_argument("--backend", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    builders = classics | generated
    names = [n for name in asked.network for n in (generated if name == "generated" else [name])]
    cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    refusals: dict[str, list[str]] = defaultdict(list)
    wrong: list[str] = []
    for name in names:
        start, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="sweep-"))
        with sweep.warm():
            try:
                model, samples, made = sweep.make(builders[name](), fed, asked.rows, folder)
                models = {row: each.model for row, each in made.items() if each.model}
                for row, each in made.items():
                    if each.wrong:
                        wrong.append(f"{name}, {row}: {each.words}")
                        echo(f"WRONG {wrong[-1]}")
                    elif each.model is None:
                        cells[row, "pass"]["refused"] += 1
                        refusals[f"{row}: {each.words}"].append(name)
                for backend in asked.backend:
                    place = sweep.temporary(folder, backend)
                    given = {"(as it is)": model, **models}
                    found = sweep.judge(backend, given, samples, asked.precision, place)
                    spent = time.monotonic() - start
                    echo(f"{name}, {backend}: {spent:.0f} s since it began", err=True)
                    for row, verdict in found.items():
                        cells[row, backend][verdict.status] += 1
                        if verdict.status == "WRONG":
                            wrong.append(f"{name}, {row}, {backend}: {verdict.words}")
                            echo(f"WRONG {wrong[-1]}")
                        elif verdict.status == "refused":
                            refusals[f"{backend}: {verdict.words}"].append(name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    for words, where in refusals.items():
        echo(f"refused ({len(where)}: {', '.join(dict.fromkeys(where))}) {words}")
    echo(f"\n{asked.precision}, {len(names)} networks\n")
    echo(f"| pass | refused by it | {' | '.join(asked.backend)} |")
    echo("|---" * (2 + len(asked.backend)) + "|")
    for row in ("(as it is)", *asked.rows):
        told = [cells[row, "pass"]["refused"], *(cells[row, b] for b in asked.backend)]
        echo(f"| {row} | {told[0] or ''} | {' | '.join(map(_cell, told[1:]))} |")
    sys.exit(f"{len(wrong)} wrong" if wrong else 0)


def _cell(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
