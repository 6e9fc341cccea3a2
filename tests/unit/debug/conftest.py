"""A made-up backend whose int8 is noise on the weights of the layers that a test names."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel

from wherry import api, builtins
from wherry.artifact import Artifact, Binding, Layer
from wherry.device import BoardInfo, Transport
from wherry.errors import DeviceLostError, ToolError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.keep import kept_nodes
from wherry.reference import open_session
from wherry.target import Backend, RuntimeOptions, convert_option

WIDTH = 6
MANIFEST = """
wherry: 1
model: {path: net.onnx}
data:
  evaluation: {source: npz, path: evaluation.npz}
metrics: [sqnr_db]
targets: [{backend: noisy, precision: [fp32, int8]}]
"""


class Nothing(BaseModel):
    pass


class Options(RuntimeOptions):
    fuse: bool = convert_option(default=True, description="changes the artifact")


class Noisy:
    """Backend and board in one plugin; its attributes are what tests change.

    Attributes:
        noise: node to the standard deviation of what int8 adds to its weights.
        stubborn: nodes that stay noisy although they are kept in fp32.
        hosted: how many outputs each artifact that was run had.
        losses: how often the board is lost before it stays.
        times: of the layers, ns; None: the runner does not time them; an error: it fails.
    """

    def __init__(self, folder: Path) -> None:
        self.runner = folder / "runner.py"
        self.runner.write_text("")
        self.noise: dict[str, float] = {}
        self.stubborn: set[str] = set()
        self.hosted: list[int] = []
        self.losses = 0
        self.exposes = self.mixes = True
        self.times: dict[str, np.ndarray] | ToolError | None = None

    @hookimpl
    def wherry_backends(self):
        yield Backend(
            name="noisy",
            description="",
            precisions=("fp32", "int8"),
            options=Options,
            runner=self.runner,
            artifact_format="onnx",
            convert_files=(self.runner,),
            mixed=frozenset({"int8"}) if self.mixes else frozenset(),
            expose=expose if self.exposes else None,
        )

    @hookimpl
    def wherry_transports(self):
        yield Transport("here", "", Nothing, connect=lambda spec, services: self, host=True)

    @hookimpl
    def wherry_convert(self, model, target, calibration, context):
        kept = kept_nodes(model, target.options.keep_fp32) - self.stubborn
        proto = model.proto()
        weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            amount = self.noise.get(node.name, 0)
            if not amount or node.name in kept or target.precision == "fp32":
                continue
            tensor = weights[node.input[1]]
            array = numpy_helper.to_array(tensor)
            random = np.random.default_rng(zlib.crc32(node.name.encode()))
            array = array + np.float32(amount) * random.standard_normal(array.shape, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(proto, context.output / "net.onnx")

        def bind(specs):
            return tuple(Binding(s.name, s.name, s.dtype, s.static_shape) for s in specs)

        return Artifact.from_directory(
            context.output,
            backend=target.backend,
            precision=target.precision,
            format="onnx",
            inputs=bind(model.inputs),
            outputs=bind(model.outputs),
            layers=(Layer("entry", "Reorder", ()), *layers(proto, target.precision, kept)),
        )

    # The board

    @contextmanager
    def session(self, *, lease=True, wait=True, report=None):
        yield self

    @property
    def info(self) -> BoardInfo:
        return BoardInfo(
            "board", "here", "x86_64", "Linux", "6", "3.11", "python", "2.36", "CPU", 2, 1
        )

    def runtime_lock(self, backend: Backend) -> str:
        return "a runtime"

    @contextmanager
    def host(self, artifact, target, backend, preprocess):
        if self.losses:
            self.losses -= 1
            raise DeviceLostError("the board went away")
        self.hosted.append(len(artifact.outputs))
        path = str(artifact.directory / "net.onnx")
        yield Runner(open_session(path, threads=1, where=path), artifact, self.times)


class Runner:
    def __init__(self, session, artifact: Artifact, times: Any) -> None:
        self.session, self.artifact, self.times = session, artifact, times

    def time_layers(self, inputs, duration_s):
        assert list(inputs) == ["x"]
        if isinstance(self.times, ToolError):
            raise self.times
        return self.times

    def infer(self, samples) -> Iterator[dict[str, np.ndarray]]:
        names = [binding.runtime for binding in self.artifact.outputs]
        for sample in samples:
            found = self.session.run(names, dict(sample))
            yield {b.onnx: array for b, array in zip(self.artifact.outputs, found, strict=True)}


def layers(proto: onnx.ModelProto, precision: str, kept: frozenset[str]) -> Iterator[Layer]:
    """A Relu is done by the layer of the node before it."""
    nodes = list(proto.graph.node)
    for place, node in enumerate(nodes):
        if node.op_type == "Relu":
            continue
        fused = [node, *(n for n in nodes[place + 1 : place + 2] if n.op_type == "Relu")]
        names = tuple(each.name for each in fused)
        result = fused[-1].output[0]
        word = "fp32" if node.name in kept else precision
        yield Layer(f"layer-{node.name}", node.op_type, names, {result: result}, word)


def expose(artifact, model, context) -> Artifact:
    shutil.copyfile(artifact.directory / "net.onnx", context.output / "net.onnx")
    proto = onnx.load(context.output / "net.onnx")
    own = {value.name for value in proto.graph.output}
    more = [name for layer in artifact.layers for name in layer.outputs if name not in own]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    onnx.save(proto, context.output / "net.onnx")
    bindings = tuple(Binding(name, name, "float32", (1, WIDTH)) for name in more)
    made = Artifact.from_directory(
        context.output,
        backend=artifact.backend,
        precision=artifact.precision,
        format="onnx",
        inputs=artifact.inputs,
        outputs=(*artifact.outputs, *bindings),
        layers=artifact.layers,
    )
    return replace(made, provenance={"exposed": len(more)})


def network(*, deaf: bool = False, count: int = 6) -> onnx.ModelProto:
    """``fc1`` to ``fcN``, each with a Relu behind it but the last.

    Where it is deaf, nothing of what ``fc2`` gives comes out: ``fc3`` multiplies it by zero.
    """
    random = np.random.default_rng(3)
    nodes, weights, tensor = [], [], "x"
    for index in range(1, count + 1):
        array = np.eye(WIDTH) + 0.2 * np.abs(random.standard_normal((WIDTH, WIDTH)))
        if index == 3 and deaf:
            array[:] = 0
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{index}"))
        result = "y" if index == count else f"t{index}"
        inputs = [tensor, f"w{index}"]
        nodes.append(helper.make_node("MatMul", inputs, [result], name=f"fc{index}"))
        if index == 3 and deaf:
            ones = np.ones((1, WIDTH), np.float32)
            weights.append(numpy_helper.from_array(ones, "ones"))
            nodes.append(helper.make_node("Add", [result, "ones"], ["a3"], name="add3"))
            result = "a3"
        if index < count:
            nodes.append(helper.make_node("Relu", [result], [f"r{index}"], name=f"relu{index}"))
        tensor = f"r{index}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", *([end] for end in ends), weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Desk:
    """A manifest, and debugging it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugin = Noisy(folder)
        self.text = MANIFEST
        self.said: list[str] = []
        self.write_network()
        samples = np.abs(np.random.default_rng(1).standard_normal((20, WIDTH), np.float32))
        np.savez(folder / "evaluation.npz", samples)

    def write_network(self, *, deaf: bool = False) -> None:
        onnx.save(network(deaf=deaf), self.folder / "net.onnx")

    @property
    def host(self) -> Host:
        host = Host.load(plugins=(), builtins=False, extra=[builtins, self.plugin])
        assert not host.skipped, host.skipped
        return host

    @property
    def manifest(self) -> Path:
        path = self.folder / "wherry.yaml"
        path.write_text(self.text)
        return path

    def layers(self, **asked):
        """`wherry.api.debug_layers` of the int8 row."""
        asked.setdefault("precision", "int8")
        return api.debug_layers(self.manifest, host=self.host, progress=self.said.append, **asked)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("wherry.store._sync", lambda path: None)  # no power cut is tested here
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (0.0,) * 4)
    return Desk(tmp_path)
