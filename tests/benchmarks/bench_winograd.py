"""ncnn's int8 with and without Winograd's algorithm: latency of the forms, and how near they are.

    WHERRY_HOME=/tmp/home python tests/benchmarks/bench_winograd.py [--network resnet18 squeezenet]

The networks have random weights. At 224 x 224 fp32 and the forms of ``winograd_int8`` are timed in
one `wherry run`, interleaved, one thread; at 96 x 96 the forms are compared with fp32. It takes
about five minutes; the figures are in ``docs/backends/ncnn.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from wherry import api

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from loading import load  # noqa: E402 -- its folder has to be on the path first

networks = load(HERE.parent / "conformance" / "networks.py")
classics = load(HERE.parent / "conformance" / "classics.py")

FORMS = ("off", "six_bits", "eight_bits")
MANIFEST = """wherry: 1
model: {{path: net.onnx}}
data: {{calibration: {{source: npz, path: data.npz}}}}
targets:
  - {{backend: ncnn, precision: fp32}}
  - {{backend: ncnn, precision: int8, ncnn: {{winograd_int8: [{forms}]}}}}
measure: {{rounds: 5, duration_s: 1}}
parity: {{samples: 4}}
"""


def measured(name: str, size: int) -> dict[str, dict[str, Any]]:
    """The results of a network: ``fp32`` and each form to its row of the report."""
    with tempfile.TemporaryDirectory() as folder:
        build = getattr(classics, name)
        onnx.save(build(networks.Net(name), size), Path(folder, "net.onnx"))
        random = np.random.default_rng(0)
        images = random.normal(size=(16, 3, size, size)).astype(np.float32)
        np.savez(Path(folder, "data.npz"), image=images)
        Path(folder, "m.yaml").write_text(MANIFEST.format(forms=", ".join(FORMS)))
        results = api.run(Path(folder, "m.yaml")).values["results"]
    return {
        row["target"]["options"]["winograd_int8"]
        if row["target"]["precision"] == "int8"
        else "fp32": row
        for row in results
    }


def main() -> None:
    """Print a line for each network and form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["resnet18", "squeezenet"])
    for name in parser.parse_args().network:
        timed, near = measured(name, 224), measured(name, 96)
        for form in ("fp32", *FORMS):
            sqnr = near[form]["parity"]["sqnr_db"]
            median = timed[form]["latency"]["median_ms"]
            sys.stdout.write(f"{name}, {form}: {median:.2f} ms, {sqnr:.1f} dB at 96 x 96\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
