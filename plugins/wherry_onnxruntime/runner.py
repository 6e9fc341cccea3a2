"""Runs an ONNX model on a board with ONNX Runtime (Python 3.8, numpy, onnxruntime)."""

from __future__ import annotations

import json
import platform
import re
import tempfile
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
# It quantises float weights between Q/DQ by a rule of its own: nodes that were kept in fp32 too.
UNWANTED = ["WeightBiasQuantization"]
_CPU_INFO = Path("/proc/cpuinfo")
_CPU = "CPUExecutionProvider"
# What ONNX Runtime adds to a name where it casts, changes the layout, or makes it another's.
_ADDED = re.compile(
    r"^InsertedPrecisionFreeCast_|_nchwc$|_new_reshape$|_token_\d+(?=_new_reshape$|$)|/duplicated"
)
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
        self._path = path
        self._artifact = artifact
        self._options = options
        self._session = self._open(_settings(artifact, options))
        self._names: list[str] = [binding["runtime"] for binding in artifact["outputs"]]
        self._inputs: dict[str, np.ndarray] = {}
        self._outputs: list[np.ndarray] = []

    def _open(self, settings: Any) -> Any:
        """A session over the file."""
        provider = _provider(self._options["provider"])
        providers = [provider] if provider == _CPU else [provider, _CPU]
        session = onnxruntime.InferenceSession(
            self._path, settings, providers=providers, disabled_optimizers=UNWANTED
        )
        # A provider that fails to start is dropped with no more than a message on stderr.
        if provider not in session.get_providers():
            raise ValueError(f"ONNX Runtime could not start {provider} on this machine")
        return session

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Keep the arrays, by the model's input names."""
        self._inputs = inputs

    def run(self) -> None:
        """One inference."""
        self._outputs = self._session.run(self._names, self._inputs)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """The arrays of the last run, by the model's output names."""
        return dict(zip(self._names, self._outputs))  # noqa: B905 -- Python 3.8 has no strict

    def time_layers(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[int]]:
        """Nanoseconds of each layer in each of ``runs`` inferences, by ONNX Runtime's profiler.

        It counts whole microseconds. A session of its own is opened, which is warmed up by one
        inference more; layers of the artifact come by its names, all others by ONNX Runtime's.
        """
        with tempfile.TemporaryDirectory() as folder:
            settings = _settings(self._artifact, self._options)
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = self._open(settings)
            for _ in range(runs + 1):
                session.run(self._names, inputs)
            events = json.loads(Path(session.end_profiling()).read_text())
        return layer_times(events, self._artifact.get("layers", []), runs)

    def close(self) -> None:
        """Let the session go."""
        self._session = None


def layer_times(
    events: list[dict[str, Any]], layers: list[dict[str, Any]], runs: int
) -> dict[str, list[int]]:
    """What a profile says of its last ``runs`` inferences; see `Runner.time_layers`."""
    known: dict[str, str] = {}
    for part in (_own_name, _nodes, _tensors):  # a tensor may have the name of a node
        for layer in layers:
            for name in part(layer):
                known.setdefault(name, layer["name"])
    _know_unnamed(known, events, layers)
    started = sorted(event["ts"] for event in events if event["name"] == "model_run")[-runs:]
    times: dict[str, list[int]] = {}
    for event in events:
        whole, _, ending = event["name"].rpartition("_kernel_time")
        run = sum(start <= event["ts"] for start in started) - 1
        if event.get("cat") != "Node" or ending or run < 0:
            continue
        name = plain(whole)
        # A QuantizeLinear that is not fused has the name of what it gives, and of its operator.
        parent = name.rpartition("/")[0]
        owner = known.get(whole) or known.get(name) or known.get(parent) or name
        times.setdefault(owner, [0] * runs)[run] += 1000 * int(event["dur"])
    return times


def _know_unnamed(
    known: dict[str, str], events: list[dict[str, Any]], layers: list[dict[str, Any]]
) -> None:
    """Nodes without a name, of an operator that ONNX Runtime writes as others.

    In a profile they are ``Mul_27``, after their place; the artifact has ``Mul/OUTPUT``. Both are
    in the order of execution, and are matched where there are as many of the one as of the other.
    """
    found: dict[str, dict[str, None]] = {}
    for event in sorted(events, key=_start):
        name = event["name"].rpartition("_kernel_time")[0]
        kind = event.get("args", {}).get("op_name", "")
        if name not in known and re.fullmatch(re.escape(kind) + r"_\d+", name):
            found.setdefault(kind, {})[name] = None
    for kind, names in found.items():
        own = [layer["name"] for layer in layers if layer["name"].startswith(kind + "/")]
        if len(own) == len(names):
            known.update(zip(names, own))  # noqa: B905 -- Python 3.8 has no strict


def _start(event: dict[str, Any]) -> int:
    return int(event["ts"])


def _own_name(layer: dict[str, Any]) -> list[str]:
    return [layer["name"]]


def _nodes(layer: dict[str, Any]) -> list[str]:
    return [plain(layer["name"]), *layer["nodes"]]


def _tensors(layer: dict[str, Any]) -> list[str]:
    return [*layer["outputs"], *layer["outputs"].values()]


def plain(name: str) -> str:
    """A node's or tensor's name without what ONNX Runtime adds to it."""
    return _ADDED.sub("", name)


def saturates() -> bool:
    """Whether ONNX Runtime's fast 8-bit kernels compute something else on this processor.

    On x86 without VNNI they add products in pairs in 16 bits, which are too few. The exact kernels
    take about twice the time where there is VNNI, and are not taken there.
    """
    if platform.machine().lower() not in {"x86_64", "amd64", "i686", "i386"}:
        return False
    try:
        words = set(_CPU_INFO.read_text().split())
    except OSError:
        return True  # not Linux: nobody says
    return not words & {"avx512_vnni", "avx_vnni"}


def _settings(artifact: dict[str, Any], options: dict[str, Any]) -> Any:
    """``SessionOptions`` for an artifact; a new one for every session."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options["threads"]
    settings.inter_op_num_threads = options["inter_threads"]
    settings.graph_optimization_level = _LEVELS[options["graph_optimization"]]
    settings.execution_mode = _MODES[options["execution"]]
    spinning = "1" if options["spinning"] else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    settings.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    if options["exact_int8"] and saturates():
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if artifact.get("provenance", {}).get("quantized") == "weights":
        # Or ONNX Runtime would keep them apart for its 8-bit kernels, of which there are none
        # here, and would dequantise them in every inference instead of once.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    settings.log_severity_level = _ERRORS_ONLY
    return settings


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
