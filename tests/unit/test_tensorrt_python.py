"""TensorRT's Python module in the runner: a module of ours that runs engines with ONNX Runtime, and
a CUDA runtime of ours that is compiled here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from wherry.host import Host
from wherry.model import Model
from wherry.reference import Reference
from wherry.target import Target
from wherry.testing.networks import build, samples
from wherry.testing.workshop import Workshop
from wherry_tensorrt import command, cuda, engines, inprocess, runner

SUPPORT = Path(__file__).parents[1] / "support"
TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32}


class Context:
    """An execution context: tensors are addresses of the host's memory."""

    def __init__(self, engine) -> None:
        self.engine, self.addresses, self.shapes = engine, {}, {}
        self.profiler = None

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert stream
        session = self.engine.session
        feeds = {
            value.name: _view(self.addresses[value.name], self.shapes[value.name], value.type)
            for value in session.get_inputs()
        }
        values = session.run(None, feeds)
        for value, array in zip(session.get_outputs(), values, strict=True):
            _view(self.addresses[value.name], array.shape, value.type)[...] = array
        if self.profiler is not None:
            for layer in self.engine.layers:
                self.profiler.report_layer_time(layer, 0.5)
        return True


def _view(address, shape, kind):
    count = int(np.prod(shape)) * np.dtype(TYPES[kind]).itemsize
    data = (ctypes.c_char * count).from_address(address)
    return np.frombuffer(data, TYPES[kind]).reshape(shape)


class Engine:
    def __init__(self, data: bytes) -> None:
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        nodes = onnx.load_from_string(data).graph.node
        self.layers = ["Reformatting CopyNode for Input Tensor 0 to x", "stranger"]
        self.layers += [f"{node.name} + {node.name}_clone_1" for node in nodes]

    num_io_tensors = get_tensor_name = get_tensor_mode = None

    def get_tensor_dtype(self, name):
        values = (*self.session.get_inputs(), *self.session.get_outputs())
        return next(TYPES[value.type] for value in values if value.name == name)

    def create_execution_context(self):
        return Context(self)


class Base:
    def __init__(self) -> None:
        pass


class Logger(Base):
    ERROR, INTERNAL_ERROR = "error", "internal"


class Runtime:
    def __init__(self, logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data):
        try:
            return Engine(data)
        except Exception:  # noqa: BLE001 -- whatever ONNX Runtime says of it
            self.logger.log("error", "not an engine")
            return None


TRT = SimpleNamespace(
    __version__="10.3.0",
    ICudaEngine=Engine,
    ILogger=Logger,
    IProfiler=Base,
    Runtime=Runtime,
    nptype=np.dtype,
)


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("cuda") / "libcudart.so"
    source = SUPPORT / "fake_cudart.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)
    return path


@pytest.fixture
def gpu(library, monkeypatch):
    monkeypatch.setattr(cuda, "_NAMES", (str(library),))
    monkeypatch.setattr(inprocess, "_loggers", [])
    yield cuda.Cuda()
    sys.modules.pop("tensorrt", None)  # what a test had imported


@pytest.fixture
def artifact(tmp_path, wherry_home):
    """Of a small network, with a folder that holds an engine of ours."""
    build("two_by_two", tmp_path / "net.onnx")
    model = Model.load(tmp_path / "net.onnx")
    host = Host.load()
    target = Target("tensorrt", "fp32", "local", host.backends["tensorrt"].options())
    made = Workshop(host, tmp_path).convert(model, target, [])
    folder = tmp_path / "engine"
    folder.mkdir()
    shutil.copyfile(made.directory / "model.onnx", folder / engines.ENGINE)
    return model, made.to_json(), folder / engines.ENGINE


def names(artifact) -> runner._Names:
    found = runner.Prepared(Path(), engines.Engine(Path("/nowhere"), {}, is_new=False), None, None)
    return runner._Names(found, artifact)


def test_cuda(gpu):
    assert gpu.gpu() == ("Fake Orin", "8.7")
    stream, array = gpu.stream(), np.arange(5, dtype=np.float32)
    address, back = gpu.allocate(array.nbytes), np.empty_like(array)
    gpu.to_device(address, array, stream)
    gpu.to_host(back, address, stream)
    gpu.synchronise(stream)
    assert np.array_equal(back, array)
    gpu.free(address)
    gpu.destroy(stream)
    with pytest.raises(cuda.CudaError, match="cudaMalloc failed: out of memory"):
        gpu.allocate(1 << 50)


def test_no_cuda(monkeypatch):
    monkeypatch.setattr(cuda, "_NAMES", ("/nowhere/libcudart.so",))
    monkeypatch.setattr(cuda, "_PLACES", ())
    with pytest.raises(cuda.CudaError, match="is not on this board"):
        cuda.Cuda()


def test_it_runs_an_engine(gpu, artifact):
    """Two inputs, two outputs, two samples: buffers on the GPU, and copies there and back."""
    model, described, path = artifact
    module = inprocess.Module(TRT, gpu, "100300")
    loaded = inprocess.Runner(module, path, described, {}, names(described))
    reference = Reference(model)
    for sample in samples(model, 2):
        loaded.set_inputs(sample)
        loaded.run()
        for name, wanted in reference.run(sample).items():
            assert np.allclose(loaded.get_outputs()[name], wanted, atol=1e-5)
    assert not hasattr(loaded, "measure"), "the agent times it, as all other backends"
    loaded.close()


def test_layers_by_the_names_of_nodes(gpu, artifact):
    model, described, path = artifact
    module = inprocess.Module(TRT, gpu, "100300")
    loaded = inprocess.Runner(module, path, described, {}, names(described))
    (sample,) = samples(model, 1)
    found = loaded.time_layers(sample, 3)
    assert found["stranger"] == [500_000] * 3
    assert {layer["name"] for layer in described["layers"]} <= found.keys()
    assert all(len(times) == 3 for times in found.values())
    loaded.set_inputs(sample)
    loaded.run()
    assert loaded._context.profiler is None
    loaded.close()


def test_an_engine_that_does_not_load(gpu, artifact):
    _, described, path = artifact
    path.write_bytes(b"no engine")
    module = inprocess.Module(TRT, gpu, "100300")
    with pytest.raises(RuntimeError, match=r"does not load .*: not an engine"):
        inprocess.Runner(module, path, described, {}, names(described))


def test_the_module_is_found_where_the_owner_says(gpu, tmp_path, monkeypatch):
    with pytest.raises(command.Refusal, match="no TensorRT"):
        inprocess.find("")
    folder = tmp_path / "dist-packages" / "tensorrt"
    folder.mkdir(parents=True)
    needed = "".join(f"    {name} = None\n" for name in inprocess._NEEDED)
    text = f"__version__ = '8.6.1'\nclass ICudaEngine:\n{needed}"
    (folder / "__init__.py").write_text(text)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    found = inprocess.find(str(folder))
    assert found.version == "8601"
    assert inprocess.is_same(found, "8601")
    assert not inprocess.is_same(found, "100300")


def test_a_module_that_is_too_old(gpu, tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("__version__ = '7.1'\nclass ICudaEngine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(command.Refusal, match="too old"):
        inprocess.find("")


def options(**values):
    return Host.load().backends["tensorrt"].options(**values).model_dump(mode="json")


def test_prepare_chooses(gpu, artifact, tmp_path, monkeypatch):
    """auto: Python where the board has it in the version of its trtexec; else trtexec, and why."""
    import fake_trtexec

    _, described, _ = artifact
    folder = next(p for p in tmp_path.glob("*/output") if (p / "recipe.json").is_file())
    tool = fake_trtexec.install(tmp_path / "trtexec", "10.3")
    board = {"tools": {"trtexec": str(tool)}, "cache": str(tmp_path / "cache"), "machine": "x"}
    (tmp_path / "cache").mkdir()

    def told(**values):
        return runner.prepare(str(folder), described, options(**values), board)

    assert "no TensorRT" in told()["record"]["not_in_python"]
    assert told(run_with="python")["unavailable"]["remedy"].startswith("On JetPack")
    monkeypatch.setattr(inprocess, "find", lambda _: inprocess.Module(TRT, gpu, "100300"))
    found = told()
    assert found["record"]["run_with"] == "python"
    assert found["record"]["place"] == {
        "version": "100300", "gpu": "Orin", "capability": "8.7", "system": engines.system(),
    }  # fmt: skip
    assert not found["record"]["engine_is_new"], "both run the same engine"
    assert told(run_with="trtexec")["record"]["run_with"] == "trtexec"
    monkeypatch.setattr(inprocess, "find", lambda _: inprocess.Module(TRT, gpu, "8601"))
    assert "is TensorRT 8601" in told()["record"]["not_in_python"]
    assert "is TensorRT 8601" in told(run_with="python")["unavailable"]["message"]
