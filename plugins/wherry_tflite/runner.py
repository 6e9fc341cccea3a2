"""Runs a .tflite file on a board with LiteRT, or tflite-runtime on older ones (Python 3.8)."""

from __future__ import annotations

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
    return Runner(str(Path(directory) / "model.tflite"), artifact, options)


class Runner:
    """One interpreter, allocated once; `run` is the interpreter's own ``invoke``."""

    def __init__(self, path: str, artifact: dict[str, Any], options: dict[str, Any]) -> None:
        resolver = (
            OpResolverType.AUTO
            if options["xnnpack"]
            else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
        self._interpreter = Interpreter(
            model_path=path,
            num_threads=options["threads"],
            experimental_op_resolver_type=resolver,
        )
        self._interpreter.allocate_tensors()
        inputs = {each["name"]: each["index"] for each in self._interpreter.get_input_details()}
        outputs = {each["name"]: each["index"] for each in self._interpreter.get_output_details()}
        names = [binding["runtime"] for binding in artifact["outputs"]]
        self._inputs: dict[str, int] = inputs
        self._outputs: list[tuple[str, int]] = [(name, outputs[name]) for name in names]
        self._set = self._interpreter.set_tensor
        self._get = self._interpreter.get_tensor
        self.run = self._interpreter.invoke

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Copy the arrays into the interpreter, by the file's input names."""
        for name, value in inputs.items():
            self._set(self._inputs[name], value)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """Copies of the outputs of the last run, by the file's output names."""
        return {name: self._get(index) for name, index in self._outputs}

    def close(self) -> None:
        """Let the interpreter go."""
        del self._interpreter, self._set, self._get, self.run
