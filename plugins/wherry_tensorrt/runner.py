"""Runs an artifact on a board with TensorRT (Python 3.8, numpy; TensorRT is the board's own).

`prepare` builds the engine there. Two ways run it: TensorRT's Python module in this process, which
the agent times, and trtexec, a process for each run, which times itself.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import command, engines, inprocess, output

_RUN_S = 600.0  # beyond what a run was asked to last
_STEADY = 0.02  # the medians of both halves differ by no more
_LEAST_WARMUP_MS = 200  # trtexec's own


class Prepared(NamedTuple):
    """What `prepare` found for a folder, for `load` in the same process.

    Attributes:
        artifact: the artifact's folder.
        engine: the engine.
        tool: trtexec; None: the board has none.
        module: TensorRT's Python module and the CUDA runtime; None: they are not used.
    """

    artifact: Path
    engine: engines.Engine
    tool: command.Tool | None
    module: inprocess.Module | None


_prepared: dict[str, Prepared] = {}


def versions() -> dict[str, str]:
    """What runs here, for the record."""
    found = {"numpy": np.__version__}
    for each in _prepared.values():
        found["tensorrt"] = each.engine.about["place"]["version"]
    return found


def prepare(
    directory: str, artifact: dict[str, Any], options: dict[str, Any], board: dict[str, Any]
) -> dict[str, Any]:
    """Build the engine, or find it in the board's cache.

    Raises:
        RuntimeError: TensorRT failed, with its words.
    """
    try:
        found, why_not = _prepare(Path(directory), artifact, options, board)
    except command.Refusal as refusal:
        return {"unavailable": {"message": str(refusal), "where": "", "remedy": refusal.remedy}}
    _prepared.clear()
    _prepared[str(found.engine.directory)] = found
    record = {
        "engine": found.engine.directory.name,
        "engine_is_new": found.engine.is_new,
        **found.engine.about,
        "run_with": "trtexec" if found.module is None else "python",
    }
    if why_not:
        record["not_in_python"] = why_not
    return {"directory": str(found.engine.directory), "record": record}


def _prepare(
    directory: Path, artifact: dict[str, Any], options: dict[str, Any], board: dict[str, Any]
) -> tuple[Prepared, str]:
    """The engine and the way to run it, and why it is not Python's."""
    wanted, tools, cache = options["run_with"], board["tools"], Path(board["cache"])
    tool = engines.tool_at(tools["trtexec"]) if "trtexec" in tools else None
    module, why_not = None, "run_with says so"
    if wanted != "trtexec":
        try:
            module, why_not = inprocess.find(tools.get("tensorrt", "")), ""
        except command.Refusal as refusal:
            if wanted == "python":
                raise
            why_not = str(refusal)
    if tool is not None:
        place = engines.place_of(tool)
        if module is not None and not inprocess.is_same(module, tool.version):
            why_not = f"the Python module is TensorRT {module.version}, trtexec is {tool.version}"
            if wanted == "python":
                raise command.Refusal(why_not, "Name a trtexec of the same version, or none.")
            module = None
        engine = engines.by_trtexec(artifact, directory, cache, options, tool, place)
    elif module is not None:
        engine = inprocess.build(artifact, directory, cache, options, module)
    else:
        raise command.Refusal(
            f"there is no trtexec on this board, and for Python: {why_not}",
            "Install TensorRT, or name its program with `tools: {trtexec: PATH}` in devices.yaml; "
            "on JetPack it is /usr/src/tensorrt/bin/trtexec (package libnvinfer-bin).",
        )
    return Prepared(directory, engine, tool, module), why_not


def load(directory: str, artifact: dict[str, Any], options: dict[str, Any]) -> Any:
    """A runner over the engine that `prepare` left in ``directory``."""
    found = _prepared[directory]
    recipe = engines.plan_of(found.artifact, options)
    shapes = {name: list(spec["opt"]) for name, spec in recipe.shapes.items()}
    path = found.engine.directory / engines.ENGINE
    if found.module is not None:
        return inprocess.Runner(found.module, path, artifact, options, _Names(found, artifact))
    assert found.tool is not None  # `prepare` refuses otherwise
    return TrtexecRunner(found.tool, path, artifact, options, shapes, _Names(found, artifact))


class _Names:
    """A layer of TensorRT's in the names of the artifact's layers."""

    def __init__(self, found: Prepared, artifact: dict[str, Any]) -> None:
        path = found.engine.directory / engines.LAYERS
        self._metadata = output.layer_metadata(path.read_text("utf-8")) if path.is_file() else {}
        self._known = [layer["name"] for layer in artifact.get("layers", [])]
        self._all = frozenset(self._known)

    def learn(self, metadata: dict[str, list[str]]) -> None:
        """Take what the engine's inspector says."""
        self._metadata = metadata

    def of(self, layer: str) -> str:
        """The artifact's layer that it is reported as: the first of those that it does."""
        told = [node for node in self._metadata.get(layer, ()) if node in self._all]
        nodes = set(told or output.nodes_in(layer, self._all))
        return next((name for name in self._known if name in nodes), layer)


class TrtexecRunner:
    """A process of trtexec for each run.

    Args:
        tool: trtexec.
        engine: the file.
        artifact: its description.
        options: the backend's.
        shapes: input to its shape, where the engine takes several.
        names: of layers.
    """

    timed_by = "trtexec"

    def __init__(
        self,
        tool: command.Tool,
        engine: Path,
        artifact: dict[str, Any],
        options: dict[str, Any],
        shapes: dict[str, list[int]],
        names: _Names,
    ) -> None:
        self._tool, self._engine, self._options = tool, engine, options
        self._shapes, self._names = shapes, names
        self._inputs = {b["runtime"]: np.dtype(b["dtype"]) for b in artifact["inputs"]}
        self._bindings = artifact["outputs"]
        self._scratch = tempfile.TemporaryDirectory(prefix="wherry-trt-")
        self._outputs: dict[str, np.ndarray] = {}

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Write the arrays as trtexec reads them: raw, in C order."""
        for index, (name, dtype) in enumerate(self._inputs.items()):
            np.ascontiguousarray(inputs[name], dtype).tofile(str(self._input(index)))

    def run(self) -> int:
        """One inference; its nanoseconds, as trtexec has them."""
        folder = Path(self._scratch.name) / "run"
        _empty(folder)
        raw = "--dumpRawBindingsToFile" in self._tool.flags
        exports = {"times": "times.json", "raw" if raw else "output": "output.json"}
        self._run(folder, command.Timing(0, 0, 1), exports)
        self._outputs = {b["runtime"]: self._value(folder, b, raw=raw) for b in self._bindings}
        times = output.times((folder / "times.json").read_text("utf-8"))
        return round(statistics.median(each["computeMs"] for each in times) * 1e6)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """The arrays of the last run."""
        return self._outputs

    def measure(self, inputs: dict[str, np.ndarray], plan: dict[str, Any]) -> dict[str, Any]:
        """Let trtexec time the inference of one sample; see the plugin's documentation.

        It keeps a query enqueued ahead, so that its latency is not that of one blocking call.
        """
        self.set_inputs(inputs)
        folder = Path(self._scratch.name) / "measure"
        _empty(folder)
        timing = command.Timing(
            max(_LEAST_WARMUP_MS, round(plan["warmup_s"] * 1000)),
            max(1, round(plan["duration_s"])),
            plan["min_runs"],
        )
        text, arguments = self._run(folder, timing, {"times": "times.json"})
        rows = output.times((folder / "times.json").read_text("utf-8"))
        told = output.summary(text)
        infer = [round(row["computeMs"] * 1e6) for row in rows][: plan["max_runs"]]
        held, _ = command.convention(self._tool)
        return {
            "infer_ns": infer,
            "total_ns": [round(row["latencyMs"] * 1e6) for row in rows][: plan["max_runs"]],
            "warmup_runs": told.get("warmup_runs", 0),
            "steady": _is_steady(infer),
            "record": {
                "convention": {name: command.CONVENTION[name] for name in held if held[name]},
                "convention_by": "default" if not _flags(self._tool) else "options",
                "arguments": arguments,
                "runs": len(rows),
                "trtexec": told,
                "warnings": output.warnings(text),
            },
        }

    def time_layers(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[int]]:
        """Nanoseconds of each layer: trtexec tells medians alone, which stand for every run."""
        self.set_inputs(inputs)
        folder = Path(self._scratch.name) / "layers"
        _empty(folder)
        timing = command.Timing(_LEAST_WARMUP_MS, 0, runs)
        self._run(folder, timing, {"profile": "profile.json"})
        _, layers = output.profile((folder / "profile.json").read_text("utf-8", errors="replace"))
        found: dict[str, int] = {}
        for layer in layers:
            name = self._names.of(layer.name)
            found[name] = found.get(name, 0) + round(layer.median_ms * 1e6)
        return {name: [value] * runs for name, value in found.items()}

    def peak_memory_bytes(self) -> None:
        """Not known: it is another process's."""

    def close(self) -> None:
        """Remove the files."""
        self._scratch.cleanup()

    def _input(self, index: int) -> Path:
        return Path(self._scratch.name) / f"input{index}.bin"

    def _run(
        self, folder: Path, timing: command.Timing, exports: dict[str, str]
    ) -> tuple[str, list[str]]:
        inputs = {name: str(self._input(index)) for index, name in enumerate(self._inputs)}
        arguments = command.run_arguments(
            self._tool, str(self._engine), self._options, inputs, self._shapes, timing, exports
        )
        limit_s = _RUN_S + timing.duration_s + timing.warmup_ms / 1000
        status, text = engines.start(self._tool.path, arguments, folder, folder / "log", limit_s)
        if status or not output.passed(text):
            raise RuntimeError(
                f"trtexec of TensorRT {self._tool.version} did not run the engine (status "
                f"{status}): {output.last_words(text)}; its arguments: {' '.join(arguments)}"
            )
        return text, arguments

    def _value(self, folder: Path, binding: dict[str, Any], *, raw: bool) -> np.ndarray:
        """An output: from the file that trtexec dumped, or with six digits from its JSON."""
        name, shape, dtype = binding["runtime"], binding["shape"], np.dtype(binding["dtype"])
        if raw:
            start = output.raw_name(name, tuple(shape))
            found = [path for path in folder.iterdir() if path.name.startswith(start)]
            if len(found) != 1:
                raise RuntimeError(f"trtexec left {len(found)} files {start}*")
            return np.fromfile(str(found[0]), dtype).reshape(shape)
        values = output.outputs((folder / "output.json").read_text("utf-8", errors="replace"))
        return values[name].astype(dtype).reshape(shape)


def _flags(tool: command.Tool) -> list[str]:
    return command.convention(tool)[1]


def _empty(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _is_steady(samples: list[int]) -> bool:
    half = len(samples) // 2
    if not half:
        return False
    before, after = statistics.median(samples[:half]), statistics.median(samples[half:])
    return abs(after - before) <= _STEADY * before
