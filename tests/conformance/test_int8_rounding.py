"""What ``int8.adaround`` chose stands in the artifacts of all three backends, number for number."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from wherry.host import Host
from wherry.model import Model
from wherry.normalise.graph import Graph
from wherry.passes import PassStep
from wherry.target import Target
from wherry.testing.workshop import Workshop
from wherry_compress.int8.passes import AdaRound
from wherry_compress.int8.weighted import Weighted, find
from wherry_ncnn import param, weights

pytestmark = pytest.mark.backend
TFLITE = Path(__file__).parents[2] / "plugins" / "wherry_tflite"
DUMP = """
import json, sys
sys.path.insert(0, sys.argv[1])
import files, numpy
from pathlib import Path
model = files.read(Path(sys.argv[2]))
found = []
for tensor in model.subgraphs[0].tensors:
    data = model.buffers[tensor.buffer].data
    if tensor.type == files.schema().TensorType.INT8 and data is not None:
        found.append([[int(n) for n in tensor.shape], numpy.frombuffer(bytes(data), "i1").tolist()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def rounded(networks, home_of_trials, tmp_path_factory):
    """The workshop, the rounded model, its samples, and its layers with what they were before."""
    folder = tmp_path_factory.mktemp("rounding")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHERRY_HOME", str(home_of_trials))
        workshop = Workshop(Host.load(), folder)
        onnx.save(networks.NETWORKS["mobilenet"](), folder / "source.onnx")
        model = Model.load(folder / "source.onnx").with_static_shapes({}, folder)
        samples = [networks.sample(model.proto(), seed) for seed in range(8)]
        plain = workshop._context().normalised(model).model
        step = PassStep("int8.adaround", AdaRound(samples=8, iterations=60))
        made, figures = workshop.optimize(model, step, samples)
        learned = {row["node"] for row in figures["layers"]}
        before = {layer.name: layer for layer in find(Graph(plain.proto(), {}))[0]}
        after = [layer for layer in find(Graph(made.proto(), {}))[0] if layer.name in learned]
        assert len(after) >= 4
        assert any((layer.whole() != before[layer.name].whole()).any() for layer in after)
        yield workshop, made, samples, after


def onnxruntime(artifact, _workshop) -> list[np.ndarray]:
    (path,) = artifact.directory.glob("*.onnx")
    tensors = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    return [values for values in tensors if values.dtype == np.int8 and values.ndim > 1]


def tflite(artifact, workshop) -> list[np.ndarray]:
    (path,) = artifact.directory.glob("*.tflite")
    python = workshop.environment(Host.load().backends["tflite"].converter)
    done = subprocess.run(
        [python, "-c", DUMP, TFLITE, path], check=True, capture_output=True, text=True
    )
    found = []
    for shape, values in json.loads(done.stdout):
        array = np.array(values, np.int8).reshape(shape)
        if array.ndim == 4:  # channels last; a depthwise one has 1 in front and its channels behind
            found += [array.transpose(0, 3, 1, 2), array.transpose(3, 0, 1, 2)]
        found.append(array)
    return found


def ncnn(artifact, _workshop) -> list[np.ndarray]:
    (text,) = artifact.directory.glob("*.param")
    (data,) = artifact.directory.glob("*.bin")
    layers = param.parse(text.read_text())
    return [
        arrays[0].values
        for arrays in weights.read(layers, data.read_bytes()).values()
        if arrays[0].tag == weights.INT8
    ]


def form(layer: Weighted, backend: str) -> np.ndarray:
    """A layer's whole numbers as an artifact has them."""
    whole = layer.whole()
    if backend == "onnxruntime":
        return whole
    rows = np.moveaxis(whole, layer.axis, 0)
    return rows.ravel() if backend == "ncnn" else rows


@pytest.mark.parametrize("read", [onnxruntime, tflite, ncnn], ids=lambda read: read.__name__)
def test_rounding_is_handed_through(rounded, home_of_trials, monkeypatch, read):
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    workshop, model, samples, layers = rounded
    backend = read.__name__
    target = Target(backend, "int8", "local", Host.load().backends[backend].options())
    stored = read(workshop.convert(model, target, samples), workshop)
    for layer in layers:
        wanted = form(layer, backend)
        assert any(np.array_equal(wanted, values) for values in stored), layer.name
