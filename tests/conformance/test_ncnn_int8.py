"""ncnn in int8: whole networks, names of layers, mixed precision, models that come with Q/DQ."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from loading import load

from wherry.calibration import Calibration
from wherry.errors import ModelError
from wherry.host import Host
from wherry.model import Model
from wherry.quantize.form import TENSORRT
from wherry.quantize.qdq import half_scales, insert_qdq
from wherry.reference import Reference, open_session, run_session
from wherry.target import Target
from wherry.testing.workshop import Workshop
from wherry_ncnn import param

pytestmark = pytest.mark.backend

CLASSICS = ("mobilenet_v2", "shufflenet_v2", "squeezenet", "resnet18")


class Bench:
    """Converts and runs models with ncnn."""

    def __init__(self, folder: Path, networks: Any) -> None:
        self.host = Host.load()
        self.backend = self.host.backends["ncnn"]
        self.workshop = Workshop(self.host, folder)
        self.folder, self.networks = folder, networks

    def model(self, proto: onnx.ModelProto) -> Model:
        onnx.save(proto, self.folder / "given.onnx")
        (self.folder / "static").mkdir(exist_ok=True)
        return Model.load(self.folder / "given.onnx").with_static_shapes({}, self.folder / "static")

    def samples(self, model: Model, count: int = 3) -> list[dict[str, np.ndarray]]:
        return [self.networks.sample(model.proto(), seed) for seed in range(count)]

    def convert(self, model: Model, precision: str = "int8", **options: Any):
        target = Target("ncnn", precision, "local", self.backend.options(**options))
        return self.workshop.convert(model, target, self.samples(model)), target

    def expose(self, artifact, model: Model):
        folder = self.folder / "exposed"
        folder.mkdir()
        return self.backend.expose(artifact, model, SimpleNamespace(output=folder))


@pytest.fixture
def bench(tmp_path, home_of_trials, networks, monkeypatch) -> Bench:
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    return Bench(tmp_path, networks)


def sqnr(values: np.ndarray, wanted: np.ndarray) -> float:
    """Signal to noise, dB."""
    noise = np.sum((values - wanted) ** 2, dtype=np.float64)
    return float(10 * np.log10(np.sum(wanted**2, dtype=np.float64) / max(noise, 1e-30)))


def heavy(model: Model) -> set[str]:
    return {n for kind in ("Conv", "Gemm", "MatMul") for n in model.operators().get(kind, ())}


@pytest.mark.parametrize("name", CLASSICS)
def test_classics(bench, networks, name):
    """They load and run; every node is found in a layer; the file is a quarter, and the scales."""
    classics = load(Path(__file__).with_name("classics.py"))
    model = bench.model(classics.CLASSICS[name](networks.Net(name), 64))
    artifact, target = bench.convert(model)
    nodes = [node for layer in artifact.layers for node in layer.nodes]
    assert sorted(nodes) == sorted(node.name for node in model.proto().graph.node)
    quantised = {n for layer in artifact.layers if layer.precision == "int8" for n in layer.nodes}
    assert heavy(model) <= quantised
    (sample,) = bench.samples(model, 1)
    (outputs,) = bench.workshop.run(artifact, target, [sample])
    assert sqnr(outputs["logits"], Reference(model).run(sample)["logits"]) > 12
    floats = [t for t in model.proto().graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    quarter = sum(int(np.prod(tensor.dims)) for tensor in floats)
    scales = sum(
        4 * (len(line.split()) - 1)
        for line in (artifact.directory / "model.table").read_text().splitlines()
        if "_param_0 " in line
    )
    assert scales > 1000
    size = (artifact.directory / "model.bin").stat().st_size
    assert size == pytest.approx(quarter + scales, rel=0.02)
    assert "model.table" not in artifact.files


def test_exposing(bench, networks):
    """Every tensor comes out near the model's, and what is fused stays fused."""
    model = bench.model(networks.NETWORKS["mobilenet"]())
    artifact, target = bench.convert(model)
    exposed = bench.expose(artifact, model)
    given = bench.samples(model)
    before = bench.workshop.run(artifact, target, given)
    after = bench.workshop.run(exposed, target, given)
    assert any(binding.scale for binding in exposed.outputs)
    proto = model.proto()
    names = [binding.onnx for binding in exposed.outputs]
    assert len(names) == len(set(names)) >= 8
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[1:])
    session = open_session(proto.SerializeToString(), threads=1, where="", as_written=True)
    for sample, old, new in zip(given, before, after, strict=True):
        assert all(np.array_equal(old[name], new[name]) for name in old)
        wanted = run_session(session, sample, where="")
        for name in names:
            assert new[name].shape == wanted[name].shape
            assert sqnr(new[name], wanted[name]) > 20, name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_names_and_exposing_in_floating_point(bench, networks, precision):
    model = bench.model(networks.NETWORKS["shufflenet"]())
    artifact, target = bench.convert(model, precision)
    found = {node for layer in artifact.layers for node in layer.nodes}
    assert found == {node.name for node in model.proto().graph.node}
    assert {layer.precision for layer in artifact.layers} == {precision}
    (outputs,) = bench.workshop.run(bench.expose(artifact, model), target, bench.samples(model, 1))
    assert {name for layer in artifact.layers for name in layer.outputs} <= set(outputs)


def test_nodes_that_stay_in_fp32(bench, networks):
    model = bench.model(networks.NETWORKS["mobilenet"]())
    kept = sorted(heavy(model))[2]
    artifact, target = bench.convert(model, keep_fp32=(kept, {"op": "Gemm"}))
    stay = {layer.nodes for layer in artifact.layers if layer.precision == "fp32"}
    rest = {n for layer in artifact.layers if layer.precision == "int8" for n in layer.nodes}
    assert any(kept in nodes for nodes in stay)
    wanted = {kept, *model.operators()["Gemm"]}
    assert heavy(model) - rest == wanted
    lines = param.parse((artifact.directory / "model.param").read_text())
    terms = {layer.name: layer.parameters.get(8, 0) for layer in lines}
    for layer in artifact.layers:
        assert bool(terms.get(layer.name)) == (layer.precision == "int8")
    assert bench.workshop.run(artifact, target, bench.samples(model, 1))
    with pytest.raises(ModelError, match="no_such"):
        bench.convert(model, keep_fp32=("no_such",))


def test_a_model_that_comes_with_q_dq(bench, networks):
    """Its own scales are those of the network, whatever the samples say."""
    float_model = bench.model(networks.NETWORKS["mobilenet"]())
    names = [value for node in float_model.proto().graph.node for value in node.output]
    ranges = dict.fromkeys(("image", *names), (-3.0, 5.0))
    made = insert_qdq(float_model.proto(), Calibration("minmax", 1, ranges), TENSORRT)
    model = bench.model(made.proto)
    assert "QuantizeLinear" in model.operators()
    artifact, target = bench.convert(model)
    lines = (artifact.directory / "model.table").read_text().splitlines()
    scales = [float(line.split()[1]) for line in lines if "_param_0 " not in line]
    assert len(scales) == len(heavy(model))
    # this form's scales are numbers of float16
    step = float(half_scales(np.float32(5 / 127)))
    assert scales == pytest.approx([1 / step] * len(scales), rel=1e-4)
    given = bench.samples(model, 2)
    found = bench.workshop.run(artifact, target, given)
    for sample, outputs in zip(given, found, strict=True):
        (name,) = outputs
        assert sqnr(outputs[name], Reference(model).run(sample)[name]) > 20


def test_activations_between_two_convolutions(bench, networks):
    """Fused into whole numbers or not, the activation is done."""
    n = networks.Net("pairs")
    x, outputs = n.input("x", 1, 4, 11, 9), {}
    for kind in ("Relu", "LeakyRelu", "Sigmoid", "HardSwish", "Clip", "Tanh", "Elu"):
        y = n.conv(x, 4, 12)
        y = n.relu6(y) if kind == "Clip" else n.op(kind, y)
        outputs[kind] = n.conv(n.conv(y, 12, 12, groups=12), 12, 8, 1)
    model = bench.model(n.model(**outputs))
    artifact, target = bench.convert(model)
    assert len(artifact.provenance["whole_blobs"]) >= 7 + 3
    given = bench.samples(model)
    for sample, found in zip(given, bench.workshop.run(artifact, target, given), strict=True):
        wanted = Reference(model).run(sample)
        assert {kind for kind in outputs if sqnr(found[kind], wanted[kind]) <= 25} == set()


@pytest.mark.parametrize("winograd", ["off", "six_bits", "eight_bits"])
def test_winograd(bench, networks, winograd):
    """Six bits are less exact; without Winograd's algorithm 8 bits are what they are."""
    n = networks.Net("three")
    x = n.op("Relu", n.conv(n.input("x", 1, 16, 24, 20), 16, 16))
    model = bench.model(n.model(y=n.conv(x, 16, 16)))
    artifact, target = bench.convert(model, winograd_int8=winograd)
    (sample,) = bench.samples(model, 1)
    (outputs,) = bench.workshop.run(artifact, target, [sample])
    found = sqnr(outputs["y"], Reference(model).run(sample)["y"])
    assert (found > 33) == (winograd != "six_bits")
    assert found > 22


def test_accuracy_of_the_quickstart(bench, home_of_trials):
    digits = load(Path(__file__).with_name("digits.py"))
    data = digits.load(home_of_trials)
    model = bench.model(onnx.load(digits.MODEL))
    given = [{"input": each} for each in data["mnist"][0][: digits.CALIBRATION]]
    right = {}
    for precision in ("fp32", "int8"):
        target = Target("ncnn", precision, "local", bench.backend.options())
        artifact = bench.workshop.convert(model, target, given)
        for name, (inputs, labels) in data.items():
            used = inputs[digits.CALIBRATION :] if name == "mnist" else inputs
            outputs = bench.workshop.run(artifact, target, [{"input": each} for each in used])
            chosen = np.array([each["logits"].argmax() for each in outputs])
            right[precision, name] = float((chosen == labels[-len(used) :]).mean())
    for name, most_lost in (("mnist", 0.005), ("other", 0.02), ("bold", 0.02)):
        assert right["int8", name] >= right["fp32", name] - most_lost, right
