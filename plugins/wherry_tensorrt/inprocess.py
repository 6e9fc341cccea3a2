"""TensorRT's Python module in the agent's process (Python 3.8, numpy, the board's tensorrt).

Only what 8.5 to 11 have alike is called, and what a version can do is asked of the module itself
by names. It may also build, where a board has no trtexec: it then does what trtexec's arguments
say, so that both are told by the same rules what a version can do.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import command, engines, output
from .cuda import Cuda, CudaError

_INSTALL = (
    "On JetPack: apt install python3-libnvinfer; or name the folder of the module with "
    "`tools: {tensorrt: PATH}` in devices.yaml."
)
_TOO_OLD = "Install TensorRT 8.5 or newer, or set run_with: trtexec."
_NEEDED = ("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype")
_MEGABYTE = 1 << 20


class Module(NamedTuple):
    """TensorRT in this process.

    Attributes:
        trt: the module.
        cuda: the CUDA runtime; None: nothing is run.
        version: digits, as trtexec writes them: ``8502``, ``100300``.
    """

    trt: Any
    cuda: Cuda | None
    version: str


def find(folder: str) -> Module:
    """Import TensorRT and load CUDA.

    Args:
        folder: of the module ``tensorrt``, where it is not where this Python looks; "": nowhere.

    Raises:
        command.Refusal: one of them is not there, or too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        if not folder:
            raise _absent(error) from error
        sys.path.append(str(Path(folder).parent))
        try:
            trt = importlib.import_module("tensorrt")
        except ImportError as inner:
            raise _absent(inner) from inner
    if not all(hasattr(trt.ICudaEngine, name) for name in _NEEDED):
        raise command.Refusal(f"TensorRT {trt.__version__} in Python is too old", _TOO_OLD)
    try:
        cuda = Cuda()
        cuda.gpu()
    except CudaError as error:
        raise command.Refusal(str(error), "Install CUDA, or set run_with: trtexec.") from error
    return Module(trt, cuda, digits(trt.__version__))


def _absent(error: ImportError) -> command.Refusal:
    return command.Refusal(f"this board's Python has no TensorRT: {error}", _INSTALL)


def digits(version: str) -> str:
    """``8.5.2.2`` as ``8502``, ``10.3.0`` as ``100300``."""
    major, minor, patch = (
        int("".join(filter(str.isdigit, each))) for each in version.split(".")[:3]
    )
    return f"{major}{minor}{patch:02}" if major < 10 else f"{major}{minor:02}{patch:02}"


def is_same(module: Module, version: str) -> bool:
    """Whether an engine of that version is the module's too."""
    return module.version == version


# --- building ------------------------------------------------------------------------------------


def capabilities(trt: Any) -> frozenset[str]:
    """What the module can do, in trtexec's words."""
    flags, network = trt.BuilderFlag, trt.NetworkDefinitionCreationFlag
    config = trt.IBuilderConfig
    has = {
        "--fp16": hasattr(flags, "FP16"),
        "--bf16": hasattr(flags, "BF16"),
        "--int8": hasattr(flags, "INT8"),
        "--calib": hasattr(trt, "IInt8EntropyCalibrator2"),
        "--stronglyTyped": hasattr(network, "STRONGLY_TYPED"),
        "--noTF32": hasattr(flags, "TF32"),
        "--sparsity": hasattr(flags, "SPARSE_WEIGHTS"),
        "--precisionConstraints": hasattr(flags, "OBEY_PRECISION_CONSTRAINTS"),
        "--layerPrecisions": hasattr(trt.ILayer, "precision"),
        "--memPoolSize": hasattr(config, "set_memory_pool_limit"),
        "--builderOptimizationLevel": hasattr(config, "builder_optimization_level"),
        "--useDLACore": hasattr(config, "DLA_core"),
        "--allowGPUFallback": hasattr(flags, "GPU_FALLBACK"),
        "--timingCacheFile": hasattr(config, "create_timing_cache"),
        "--profilingVerbosity": hasattr(config, "profiling_verbosity"),
        "--exportLayerInfo": hasattr(trt.ICudaEngine, "create_engine_inspector"),
        "--skipInference": True,
    }
    return frozenset(name for name, there in has.items() if there)


def build(
    artifact: dict[str, Any],
    directory: Path,
    cache: Path,
    options: dict[str, Any],
    module: Module,
) -> engines.Engine:
    """As `engines.by_trtexec`, by the module."""
    assert module.cuda is not None  # `find` loads it
    gpu = module.cuda.gpu()
    place = engines.Place(module.version, gpu.name, gpu.capability, engines.system())
    tool = command.Tool("tensorrt", module.version, capabilities(module.trt))
    plan = engines.with_ranges(engines.plan_of(directory, options), directory, cache, tool)
    files = command.Files(engines.ENGINE, engines.LAYERS, str(engines.timing_cache(cache, place)))
    arguments = command.build_arguments(plan, tool, files)
    # the same decisions, whatever the paths are
    bare = plan._replace(
        model=Path(plan.model).name,
        typed=Path(plan.typed).name if plan.typed else "",
        calibration="",
    )
    key = {"way": "python", "plan": {**bare._asdict(), "keep": list(bare.keep)}}
    return engines.kept(
        artifact, cache, place, key, lambda folder: build_into(folder, arguments, module.trt)
    )


def build_into(folder: Path, arguments: list[str], trt: Any) -> None:
    """Do what trtexec's arguments say; relative files are in ``folder``.

    Raises:
        RuntimeError: TensorRT failed, with its words.
    """
    asked = {name: value for name, _, value in (each.partition("=") for each in arguments)}
    log = _logger(trt)
    del log.errors[:]
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, typed="--stronglyTyped" in asked))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(asked["--onnx"]):
        told = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise RuntimeError(f"TensorRT {trt.__version__} does not parse the model: {told}")
    config = builder.create_builder_config()
    _configure(trt, config, network, asked)
    _add_profile(builder, config, asked)
    timing = folder / asked["--timingCacheFile"] if "--timingCacheFile" in asked else None
    if timing is not None:
        before = timing.read_bytes() if timing.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(before), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(
            f"TensorRT {trt.__version__} built no engine: {'; '.join(log.errors) or 'it is silent'}"
        )
    (folder / asked["--saveEngine"]).write_bytes(bytes(plan))
    if timing is not None:
        part = timing.with_suffix(".part")
        part.write_bytes(bytes(config.get_timing_cache().serialize()))
        part.replace(timing)


def write_layers(trt: Any, engine: Any, path: Path) -> None:
    """What the engine's inspector says, as trtexec exports it."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    path.write_text(text, encoding="utf-8")


def _network_flags(trt: Any, *, typed: bool) -> int:
    kinds, bits = trt.NetworkDefinitionCreationFlag, 0
    if hasattr(kinds, "EXPLICIT_BATCH"):
        bits |= 1 << int(kinds.EXPLICIT_BATCH)
    if typed:
        bits |= 1 << int(kinds.STRONGLY_TYPED)
    return bits


def _configure(trt: Any, config: Any, network: Any, asked: dict[str, str]) -> None:
    """Flags, limits, and what single layers compute in."""
    flags = trt.BuilderFlag
    for option, flag in (
        ("--fp16", "FP16"),
        ("--bf16", "BF16"),
        ("--int8", "INT8"),
        ("--sparsity", "SPARSE_WEIGHTS"),
        ("--allowGPUFallback", "GPU_FALLBACK"),
        ("--precisionConstraints", "OBEY_PRECISION_CONSTRAINTS"),
    ):
        if option in asked:
            config.set_flag(getattr(flags, flag))
    if "--noTF32" in asked:
        config.clear_flag(flags.TF32)
    if "--memPoolSize" in asked:
        size = int(asked["--memPoolSize"].rpartition(":")[2]) * _MEGABYTE
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    if "--builderOptimizationLevel" in asked:
        config.builder_optimization_level = int(asked["--builderOptimizationLevel"])
    if "--profilingVerbosity" in asked:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if "--useDLACore" in asked:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = int(asked["--useDLACore"])
    if "--calib" in asked:
        config.int8_calibrator = _calibrator(trt, Path(asked["--calib"]).read_bytes())
    if "--layerPrecisions" in asked:
        kept = {
            word.rpartition(":")[0].strip("'") for word in asked["--layerPrecisions"].split(",")
        }
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.name in kept:
                layer.precision = trt.float32


def _add_profile(builder: Any, config: Any, asked: dict[str, str]) -> None:
    """The range of shapes, where an engine takes several."""
    if "--minShapes" not in asked:
        return
    profile = builder.create_optimization_profile()
    kinds = [_shapes(asked[f"--{kind}Shapes"]) for kind in ("min", "opt", "max")]
    for name in kinds[0]:
        profile.set_shape(name, *(each[name] for each in kinds))
    config.add_optimization_profile(profile)


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    """``x:1x3,y:2`` by name."""
    found = {}
    for each in text.split(","):
        name, _, axes = each.rpartition(":")
        found[name] = tuple(map(int, axes.split("x")))
    return found


def _calibrator(trt: Any, cache: bytes) -> Any:
    """One that has its cache, and is never asked for a batch."""

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc] # known at run time
        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, _names: Any) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, _cache: Any) -> None:
            return None

    return Calibrator()


_loggers: list[Any] = []


def _logger(trt: Any) -> Any:
    """The process's one logger: it keeps errors."""
    if not _loggers:

        class Log(trt.ILogger):  # type: ignore[misc] # known at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                    self.errors.append(message)
                    sys.stderr.write(f"TensorRT: {message}\n")

        _loggers.append(Log())
    return _loggers[0]


# --- running -------------------------------------------------------------------------------------


class Runner:
    """One engine and its buffers on the GPU; the agent times it.

    Args:
        module: TensorRT and CUDA.
        engine: the file.
        artifact: its description.
        options: the backend's.
        names: of layers; see ``runner.py``.

    Raises:
        RuntimeError: the engine does not load.
    """

    def __init__(
        self,
        module: Module,
        engine: Path,
        artifact: dict[str, Any],
        options: dict[str, Any],
        names: Any,
    ) -> None:
        assert module.cuda is not None  # `find` loads it
        self._trt, self._cuda, self._names = module.trt, module.cuda, names
        runtime = self._trt.Runtime(_logger(self._trt))
        if options.get("dla") is not None:
            runtime.DLA_core = options["dla"]
        self._runtime = runtime
        self._engine = runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            told = "; ".join(_logger(self._trt).errors)
            raise RuntimeError(f"TensorRT {module.version} does not load {engine}: {told}")
        layers = engine.with_name(engines.LAYERS)
        if not layers.is_file() and hasattr(self._engine, "create_engine_inspector"):
            write_layers(self._trt, self._engine, layers)
            names.learn(output.layer_metadata(layers.read_text("utf-8")))
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.stream()
        self._addresses: dict[str, int] = {}
        self._given: dict[str, np.ndarray] = {}
        self._values: dict[str, np.ndarray] = {}
        for side in ("inputs", "outputs"):
            for binding in artifact[side]:
                self._bind(binding, is_input=side == "inputs")

    def _bind(self, binding: dict[str, Any], *, is_input: bool) -> None:
        """A buffer for a tensor of the engine's."""
        name, shape = binding["runtime"], tuple(binding["shape"])
        dtype = np.dtype(binding["dtype"])
        own = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        if own != dtype:
            raise RuntimeError(f"the engine has {name!r} as {own}, the artifact as {dtype}")
        if is_input:
            self._context.set_input_shape(name, shape)
            self._given[name] = np.zeros(shape, dtype)
        else:
            self._values[name] = np.empty(shape, dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._addresses[name] = self._cuda.allocate(size)
        self._context.set_tensor_address(name, self._addresses[name])

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Copy the arrays to the GPU."""
        for name in self._given:
            self._given[name] = inputs[name]
            self._cuda.to_device(self._addresses[name], inputs[name], self._stream)
        self._cuda.synchronise(self._stream)

    def run(self) -> None:
        """One inference: put it into the stream, and wait for it."""
        if not self._context.execute_async_v3(self._stream):
            told = "; ".join(_logger(self._trt).errors)
            raise RuntimeError(f"TensorRT did not run the engine: {told}")
        self._cuda.synchronise(self._stream)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """Copies of the last run's outputs; valid until they are asked for again."""
        for name, array in self._values.items():
            self._cuda.to_host(array, self._addresses[name], self._stream)
        self._cuda.synchronise(self._stream)
        return self._values

    def time_layers(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[int]]:
        """Nanoseconds of each layer in each of ``runs`` inferences, by TensorRT's profiler."""
        trt = self._trt
        told: list[tuple[str, float]] = []

        class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined] # known at run time
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                told.append((layer_name, ms))

        profiler = Profiler()
        self._context.profiler = profiler
        self.set_inputs(inputs)
        times: dict[str, list[int]] = {}
        for run in range(runs + 1):
            del told[:]
            self.run()
            if not run:  # it warms up
                continue
            sums: dict[str, float] = {}
            for layer, milliseconds in told:
                name = self._names.of(layer)
                sums[name] = sums.get(name, 0.0) + milliseconds
            for name, value in sums.items():
                times.setdefault(name, []).append(round(value * 1e6))
        self._context = self._engine.create_execution_context()  # without a profiler again
        for name, address in self._addresses.items():
            if name in self._given:
                self._context.set_input_shape(name, self._given[name].shape)
            self._context.set_tensor_address(name, address)
        return times

    def close(self) -> None:
        """Give the GPU's memory back, and all that points into it before."""
        self._context = None
        self._engine = None
        self._runtime = None
        for address in self._addresses.values():
            self._cuda.free(address)
        self._cuda.destroy(self._stream)
