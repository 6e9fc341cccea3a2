"""Every network by every exporter of torch, into torch and back: 64 ways and the quickstart's.

``pip install torch==2.13.0 onnxscript``, then ``python tests/benchmarks/bench_import.py [--width
0.25]``. For each it prints how far torch is from ONNX Runtime, how far the exported network is, and
how far it is after all weights were moved, over the outputs' root mean square. Exits with 1 where
one is further than 1e-5, or where nodes have other names.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import torch_networks  # noqa: E402 -- of the folder above
import torch_trips  # noqa: E402 -- likewise

CLOSE = 1e-5


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    failed = 0

    def tried(title: str, path: Path, folder: Path) -> None:
        nonlocal failed
        began = time.monotonic()
        found = torch_trips.trip(path, folder)
        right = max(found.there, found.back, found.trained) < CLOSE and found.names
        failed += not right
        say(
            f"{title:38s} there {found.there:.1e} back {found.back:.1e} trained "
            f"{found.trained:.1e} {time.monotonic() - began:4.1f} s {'' if right else 'FAILS'}",
        )

    with tempfile.TemporaryDirectory() as name:
        tried("digits.onnx", ROOT / "manifests" / "digits.onnx", Path(name))
    for network in torch_networks.NETWORKS:
        built = torch_networks.built(network, options.width)
        for way in torch_networks.EXPORTS:
            for dynamic in (False, True):
                with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the exporters say that they change
                    path = Path(name) / "exported.onnx"
                    torch_networks.export(built, path, way, dynamic=dynamic)
                    batch = "batch of any size" if dynamic else ""
                    tried(f"{network} {way} {batch}", path, Path(name) / "work")
    say(f"{failed} fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
