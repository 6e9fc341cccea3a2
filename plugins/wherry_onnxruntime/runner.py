"""Runs an ONNX model on a board with ONNX Runtime (Python 3.8, numpy, onnxruntime)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_MODES = {
    "sequential": onnxruntime.ExecutionMode.ORT_SEQUENTIAL,
    "parallel": onnxruntime.ExecutionMode.ORT_PARALLEL,
}
_CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3  # below it, ONNX Runtime warns on stderr about whatever it optimised


def versions() -> dict[str, str]:
    """What runs here, for the record."""
    return {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}


def load(directory: str, artifact: dict[str, Any], options: dict[str, Any]) -> Runner:
    """A runner over ``model.onnx`` in ``directory``; ValueError where an option cannot be had."""
    return Runner(str(Path(directory) / "model.onnx"), artifact, options)


class Runner:
    """One session; inputs and outputs are ordinary arrays."""

    def __init__(self, path: str, artifact: dict[str, Any], options: dict[str, Any]) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        settings.inter_op_num_threads = options["inter_threads"]
        settings.graph_optimization_level = _LEVELS[options["graph_optimization"]]
        settings.execution_mode = _MODES[options["execution"]]
        spinning = "1" if options["spinning"] else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        settings.add_session_config_entry("session.inter_op.allow_spinning", spinning)
        settings.log_severity_level = _ERRORS_ONLY
        provider = _provider(options["provider"])
        providers = [provider] if provider == _CPU else [provider, _CPU]
        self._session = onnxruntime.InferenceSession(path, settings, providers=providers)
        # A provider that fails to start is dropped with no more than a message on stderr.
        if provider not in self._session.get_providers():
            raise ValueError(f"ONNX Runtime could not start {provider} on this machine")
        self._names: list[str] = [binding["runtime"] for binding in artifact["outputs"]]
        self._inputs: dict[str, np.ndarray] = {}
        self._outputs: list[np.ndarray] = []

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Keep the arrays, by the model's input names."""
        self._inputs = inputs

    def run(self) -> None:
        """One inference."""
        self._outputs = self._session.run(self._names, self._inputs)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """The arrays of the last run, by the model's output names."""
        return dict(zip(self._names, self._outputs))  # noqa: B905 -- Python 3.8 has no strict

    def close(self) -> None:
        """Let the session go."""
        self._session = None


def _provider(name: str) -> str:
    """The provider that ``name`` means: ``cuda`` is CUDAExecutionProvider."""
    available: list[str] = onnxruntime.get_available_providers()
    for provider in available:
        if name.lower() in {provider.lower(), provider.lower().replace("executionprovider", "")}:
            return provider
    raise ValueError(
        f"this ONNX Runtime ({onnxruntime.__version__}) has no provider {name!r}; "
        f"it has {', '.join(available)}"
    )
