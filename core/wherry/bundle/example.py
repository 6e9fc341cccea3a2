"""Runs the network of this bundle in Python, without wherry: ``python example.py``.

It needs Python 3.8, numpy, and what requirements.txt names. In your own program::

    from example import Network

    network = Network("path/of/the/bundle")
    outputs = network.run({"input": picture})

Alone, it runs the samples of the bundle and compares with the expected outputs; the exit code is 1
where one is too far off.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class Network:
    """The network, loaded by the runner that was measured.

    Args:
        folder: of the bundle.
        options: of the runtime, in place of those that were measured, e.g. ``{"threads": 4}``.
    """

    def __init__(self, folder: str, options: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.lock = json.loads((self.folder / "bundle.json").read_text(encoding="utf-8"))
        self.labels = self._lines("labels.txt")
        artifact = self.lock["artifact"]
        options = {**self.lock["target"]["options"], **(options or {})}
        self._preprocess = self._module("preprocess")
        binding, runner = self._module("binding"), self._module("runner")
        directory = str(self.folder / "artifact")
        if hasattr(runner, "prepare"):  # this board makes what it runs
            told = runner.prepare(directory, artifact, options, self._board())
            if "unavailable" in told:
                raise RuntimeError(told["unavailable"]["message"])
            directory = told.get("directory", directory)
        specs = self.lock["preprocess"]
        self._raw = [self._input(binding, each, specs) for each in artifact["inputs"]]
        self._ready = [self._input(binding, each, {}) for each in artifact["inputs"]]
        self._outputs = [binding.Output(each) for each in artifact["outputs"]]
        self._runner = runner.load(directory, artifact, options)

    def run(self, inputs: dict[str, np.ndarray], *, ready: bool = False) -> dict[str, np.ndarray]:
        """One inference.

        Args:
            inputs: by the ONNX model's names: raw, as the samples are (pictures are uint8, HWC or
                HW), where a preprocessing is declared; anything else as the model takes it.
            ready: no preprocessing is wanted.

        Returns:
            By the ONNX model's names, in its shapes.
        """
        entries = self._ready if ready else self._raw
        self._runner.set_inputs({each.runtime: each.prepare(inputs[each.onnx]) for each in entries})
        self._runner.run()
        values = self._runner.get_outputs()
        for output in self._outputs:
            output.gather(0, 1, values[output.runtime])
        return {output.onnx: output.gathered()[0] for output in self._outputs}

    def close(self) -> None:
        """Let the runtime go."""
        self._runner.close()

    def _input(self, binding: Any, described: dict[str, Any], specs: dict[str, Any]) -> Any:
        spec = specs.get(described["onnx"], {})
        return binding.Input(described, spec, self._preprocess.apply)

    def _module(self, name: str) -> Any:
        """A file of the folder ``runner``; it may import those beside it."""
        path = self.folder / "runner" / (name + ".py")
        spec = importlib.util.spec_from_file_location(
            "wherry_" + name, str(path), submodule_search_locations=[str(path.parent)]
        )
        if spec is None or spec.loader is None:
            raise ImportError("there is no " + str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    def _board(self) -> dict[str, Any]:
        """What the runner is told of this machine; environment variables name its tools."""
        tools = {}
        for name, usual in self.lock["runtime"]["tools"].items():
            there = [path for path in usual if Path(path).exists()]
            found = os.environ.get(name.upper()) or [*there, shutil.which(name)][0]
            if found:
                tools[name] = found
        cache = os.environ.get("BUNDLE_CACHE") or tempfile.mkdtemp(prefix="bundle-")
        native = self.folder / "native"
        if native.is_dir():  # programs lose their mode in some archives
            for path in native.iterdir():
                path.chmod(0o755)
        return {
            "tools": tools,
            "cache": cache,
            "native": str(native) if native.is_dir() else None,
            "machine": platform.machine(),
        }

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the angle between two tensors; of whole numbers, how many are equal."""
    if theirs.dtype.kind != "f":
        return float(np.mean(ours == theirs))
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))


def main() -> int:
    """Run the samples; 1 where an output is too far from the expected one."""
    network = Network(str(Path(__file__).resolve().parent))
    least, failed = network.lock["thresholds"]["cosine"], False
    samples = network.folder / "samples"

    def load(names: dict[str, str]) -> dict[str, np.ndarray]:
        return {name: np.load(str(samples / file)) for name, file in names.items()}

    for index, sample in enumerate(network.lock["samples"]["entries"]):
        outputs = network.run(load(sample["inputs"]), ready=network.lock["samples"]["ready"])
        for kind in ("outputs", "reference"):
            for name, expected in load(sample[kind]).items():
                found = cosine(outputs[name], expected)
                failed = failed or not found >= least
                what = {"outputs": "expected", "reference": "model in fp32"}[kind]
                print(f"sample {index}, {name}, against the {what}: cosine {found:.6f}")
        if sample["label"] is not None:
            first = int(np.argmax(next(iter(outputs.values()))))
            said = network.labels[first] if first < len(network.labels) else str(first)
            print(f"sample {index} is of class {sample['label']}, and the network says {said}")
    network.close()
    print(f"some outputs are too far off (cosine below {least:g})" if failed else "all is well")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
