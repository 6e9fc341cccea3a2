"""Runs a .tflite file on a board with LiteRT, or tflite-runtime on older ones (Python 3.8)."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    _PACKAGE = "ai-edge-litert"
except ImportError:
    from tflite_runtime.interpreter import Interpreter, OpResolverType

    _PACKAGE = "tflite-runtime"


def versions() -> dict[str, str]:
    """What runs here, for the record."""
    return {_PACKAGE: version(_PACKAGE), "numpy": np.__version__}


def load(directory: str, artifact: dict[str, Any], options: dict[str, Any]) -> Runner:
    """A runner over ``model.tflite`` in ``directory``."""
    return Runner(Path(directory), artifact, options)


class Runner:
    """One interpreter, allocated once; `run` is the interpreter's own ``invoke``."""

    def __init__(self, directory: Path, artifact: dict[str, Any], options: dict[str, Any]) -> None:
        self._directory = directory
        self._options = options
        self._interpreter = self._open(directory / "model.tflite")
        inputs = {each["name"]: each["index"] for each in self._interpreter.get_input_details()}
        outputs = {each["name"]: each["index"] for each in self._interpreter.get_output_details()}
        names = [binding["runtime"] for binding in artifact["outputs"]]
        self._inputs: dict[str, int] = inputs
        self._outputs: list[tuple[str, int]] = [(name, outputs[name]) for name in names]
        self._set = self._interpreter.set_tensor
        self._get = self._interpreter.get_tensor
        self.run = self._interpreter.invoke

    def _open(self, path: Path) -> Any:
        resolver = (
            OpResolverType.AUTO
            if self._options["xnnpack"]
            else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
        interpreter = Interpreter(
            model_path=str(path),
            num_threads=self._options["threads"],
            experimental_op_resolver_type=resolver,
        )
        interpreter.allocate_tensors()
        return interpreter

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Copy the arrays into the interpreter, by the file's input names."""
        for name, value in inputs.items():
            self._set(self._inputs[name], value)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """Copies of the outputs of the last run, by the file's output names."""
        return {name: np.asarray(self._get(index)) for name, index in self._outputs}  # of scalars

    def time_layers(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[int]]:
        """Nanoseconds of each run of each operator, alone in a file of its own.

        TensorFlow Lite tells no times of operators in Python: the artifact comes with a file for
        each (``layers/``), which is run on random values. ``inputs`` are the network's, which none
        of these files takes.
        """
        del inputs
        folder = self._directory / "layers"
        entries = json.loads((folder / "layers.json").read_text())
        return {entry["name"]: self._time(folder / entry["file"], runs) for entry in entries}

    def _time(self, path: Path, runs: int) -> list[int]:
        interpreter = self._open(path)
        random = np.random.default_rng(0)
        for detail in interpreter.get_input_details():
            shape, dtype = detail["shape"], detail["dtype"]
            if dtype == np.int8:
                value = random.integers(-128, 128, shape).astype(dtype)
            elif np.issubdtype(dtype, np.floating):
                value = random.standard_normal(shape).astype(dtype)
            else:  # an index, say, for which 0 is always right
                value = np.zeros(shape, dtype)
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()  # the first one is slower
        times = []
        for _ in range(runs):
            start = time.perf_counter_ns()
            interpreter.invoke()
            times.append(time.perf_counter_ns() - start)
        return times

    def close(self) -> None:
        """Let the interpreter go."""
        del self._interpreter, self._set, self._get, self.run
