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
_CONVOLUTIONS = {"Conv", "FusedConv"}
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
    kernels = [
        (event["name"].rpartition("_kernel_time")[0], event)
        for event in sorted(events, key=_start)
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    _know_unnamed(known, kernels, layers)
    _know_fused(known, kernels, layers)
    started = [event["ts"] for event in sorted(events, key=_start) if event["name"] == "model_run"]
    started = started[-runs:]
    times: dict[str, list[int]] = {}
    for name, event in kernels:
        run = sum(start <= event["ts"] for start in started) - 1
        if run >= 0:
            owner = _owner(known, name) or plain(name)
            times.setdefault(owner, [0] * runs)[run] += 1000 * int(event["dur"])
    return times


def _owner(known: dict[str, str], name: str) -> str:
    """The layer that a kernel's name means; empty: none is known.

    A QuantizeLinear that is not fused has the name of what it gives, and of its operator.
    """
    short = plain(name)
    return known.get(name) or known.get(short) or known.get(short.rpartition("/")[0]) or ""


def _know_unnamed(
    known: dict[str, str],
    kernels: list[tuple[str, dict[str, Any]]],
    layers: list[dict[str, Any]],
) -> None:
    """Enter the kernels that are named after their operator alone.

    Such are operators that ONNX Runtime writes as others (``Mul_27``), and what the older of its
    versions put into another layout (``QLinearConv_token_3``). Kernels and layers both are in the
    order of execution: those of an operator that have no name yet are matched where there are as
    many of the one as of the other.
    """
    timed = {_owner(known, name) for name, _ in kernels}
    unnamed: dict[str, dict[str, None]] = {}
    for name, event in kernels:
        kind = event.get("args", {}).get("op_name", "")
        if not _owner(known, name) and re.fullmatch(re.escape(kind) + r"(_\d+)?", plain(name)):
            unnamed.setdefault(kind, {})[name] = None
    for kind, names in unnamed.items():
        own = [each["name"] for each in layers if each["type"] == kind]
        own = [name for name in own if name not in timed]
        if len(own) == len(names):
            known.update(zip(names, own))  # noqa: B905 -- Python 3.8 has no strict


def _know_fused(
    known: dict[str, str],
    kernels: list[tuple[str, dict[str, Any]]],
    layers: list[dict[str, Any]],
) -> None:
    """Enter convolutions that took the name of the activation which they do too.

    In another layout ONNX Runtime fuses what the artifact has as two layers, and names the kernel
    after what it gives. Its time is the convolution's, which has no other.
    """
    places = {layer["name"]: place for place, layer in enumerate(layers)}
    timed = {_owner(known, name) for name, _ in kernels}
    for name, event in kernels:
        place = places.get(_owner(known, name), 0)
        is_one = event.get("args", {}).get("op_name", "") in _CONVOLUTIONS
        if not is_one or layers[place]["type"] in _CONVOLUTIONS:
            continue
        before = [layer for layer in layers[:place] if layer["type"] in _CONVOLUTIONS]
        if before and before[-1]["name"] not in timed:
            known[name] = before[-1]["name"]


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
