"""Caffe2 in int8: whole networks, mixed precision, exposed layers, models that come with Q/DQ."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from loading import load

from wherry.calibration import Calibration
from wherry.errors import ModelError
from wherry.host import Host
from wherry.model import Model
from wherry.native import compiler
from wherry.quantize.form import ONNXRUNTIME
from wherry.quantize.qdq import insert_qdq
from wherry.reference import Reference, open_session, run_session
from wherry.target import Target
from wherry.testing.workshop import Workshop

pytestmark = [pytest.mark.backend, pytest.mark.caffe2]

LEAST_DB = {"mobilenet_v2": 14}
"""With random weights, one scale for a tensor of weights; the others reach twice as much."""


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    if compiler(platform.machine()) is None:
        pytest.skip("no C++ compiler here: apt install g++")


class Bench:
    """Converts and runs models with Caffe2."""

    def __init__(self, folder: Path, networks) -> None:
        self.host = Host.load()
        self.backend = self.host.backends["caffe2"]
        self.workshop = Workshop(self.host, folder)
        self.folder, self.networks = folder, networks

    def model(self, proto: onnx.ModelProto) -> Model:
        onnx.save(proto, self.folder / "given.onnx")
        (self.folder / "static").mkdir(exist_ok=True)
        return Model.load(self.folder / "given.onnx").with_static_shapes({}, self.folder / "static")

    def samples(self, model: Model, count: int = 3):
        return [self.networks.sample(model.proto(), seed) for seed in range(count)]

    def convert(self, model: Model, precision: str = "int8", **options):
        target = Target("caffe2", precision, "local", self.backend.options(**options))
        return self.workshop.convert(model, target, self.samples(model)), target

    def expose(self, artifact, model: Model):
        folder = self.folder / "exposed"
        folder.mkdir()
        return self.backend.expose(artifact, model, SimpleNamespace(output=folder))


@pytest.fixture
def bench(tmp_path, home_of_trials, networks, monkeypatch):
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    return Bench(tmp_path, networks)


def sqnr(values: np.ndarray, wanted: np.ndarray) -> float:
    """Signal to noise, dB."""
    noise = np.sum((values - wanted) ** 2, dtype=np.float64)
    return float(10 * np.log10(np.sum(wanted**2, dtype=np.float64) / max(noise, 1e-30)))


def int8_nodes(artifact) -> set[str]:
    return {n for layer in artifact.layers if layer.precision == "int8" for n in layer.nodes}


def test_classics(try_all, networks):
    """Everything heavy is in 8 bits, and the files are a quarter."""
    classics = load(Path(__file__).with_name("classics.py")).CLASSICS
    builders = {name: lambda name=name: classics[name](networks.Net(name), 64) for name in classics}
    for name, trial in try_all("caffe2", builders, "int8").items():
        assert trial.status == "right", (name, trial.words)
        assert trial.parity.sqnr_db > LEAST_DB.get(name, 25), name
        heavy = {n for kind in ("Conv", "Gemm") for n in trial.model.operators().get(kind, ())}
        assert heavy <= int8_nodes(trial.artifact)
        floats = sum(
            int(np.prod(tensor.dims))
            for tensor in trial.model.proto().graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT
        )
        size = (trial.artifact.directory / "init_net.pb").stat().st_size
        assert floats < size < 1.1 * floats + 100_000


def test_shuffles_stay_in_8_bits(bench, networks):
    """ShuffleNet between its first and last operators: nothing is made float and whole again."""
    classics = load(Path(__file__).with_name("classics.py")).CLASSICS
    model = bench.model(classics["shufflenet_v2"](networks.Net("shufflenet_v2"), 64))
    artifact, _ = bench.convert(model)
    kinds = [layer.type for layer in artifact.layers]
    assert kinds.count("Int8ChannelShuffle") == 16
    assert kinds.count("Int8Slice") == 26
    assert kinds.count("Int8Quantize") == kinds.count("Int8Dequantize") == 1


@pytest.mark.parametrize("network", ["mobilenet", "shufflenet", "inception"])
def test_exposing(bench, networks, network):
    """Every tensor comes out near the model's, in its layout, and nothing changes by it."""
    model = bench.model(networks.NETWORKS[network]())
    artifact, target = bench.convert(model)
    exposed = bench.expose(artifact, model)
    given = bench.samples(model)
    before = bench.workshop.run(artifact, target, given)
    after = bench.workshop.run(exposed, target, given)
    names = [binding.onnx for binding in exposed.outputs]
    assert len(names) == len(set(names)) > 6
    proto = model.proto()
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[1:])
    session = open_session(proto.SerializeToString(), threads=1, where="", as_written=True)
    for sample, old, new in zip(given, before, after, strict=True):
        assert all(np.array_equal(old[name], new[name]) for name in old)
        wanted = run_session(session, sample, where="")
        for name in names:
            assert new[name].shape == wanted[name].shape
            assert sqnr(new[name], wanted[name]) > 20, name


def test_exposing_in_float(bench, networks):
    model = bench.model(networks.NETWORKS["shufflenet"]())
    artifact, target = bench.convert(model, "fp32")
    found = {node for layer in artifact.layers for node in layer.nodes}
    assert found == {node.name for node in model.proto().graph.node}
    assert {layer.precision for layer in artifact.layers} == {"fp32"}
    (outputs,) = bench.workshop.run(bench.expose(artifact, model), target, bench.samples(model, 1))
    assert {name for layer in artifact.layers for name in layer.outputs} <= set(outputs)


def test_nodes_that_stay_in_fp32(bench, networks):
    model = bench.model(networks.NETWORKS["mobilenet"]())
    everything = int8_nodes(bench.convert(model)[0])
    kept = model.operators()["Conv"][3]
    artifact, target = bench.convert(model, keep_fp32=(kept, {"op": "Gemm"}))
    assert {kept, *model.operators()["Gemm"]} <= everything - int8_nodes(artifact)
    assert set(model.operators()["Conv"][:2]) <= int8_nodes(artifact)
    kinds = {node: layer.type for layer in artifact.layers for node in layer.nodes}
    assert kinds[kept] == "Conv"
    given = bench.samples(model)
    for sample, found in zip(given, bench.workshop.run(artifact, target, given), strict=True):
        wanted = Reference(model).run(sample)
        assert all(sqnr(found[name], wanted[name]) > 20 for name in wanted)
    with pytest.raises(ModelError, match="no_such"):
        bench.convert(model, keep_fp32=("no_such",))


def test_a_model_that_comes_with_q_dq(bench, networks):
    """Its own ranges are those of the network, whatever the samples say."""
    from wherry_caffe2.nets import PREDICT_NET, messages

    given_model = bench.model(networks.NETWORKS["mobilenet"]())
    names = [value for node in given_model.proto().graph.node for value in node.output]
    ranges = dict.fromkeys(("image", *names), (-3.0, 5.0))
    made = insert_qdq(given_model.proto(), Calibration("minmax", 1, ranges), ONNXRUNTIME)
    model = bench.model(made.proto)
    assert "QuantizeLinear" in model.operators()
    artifact, target = bench.convert(model)
    net = messages()["NetDef"]()
    net.ParseFromString((artifact.directory / PREDICT_NET).read_bytes())
    scales = {a.f for op in net.op for a in op.arg if a.name == "Y_scale"}
    assert sorted(scales) == pytest.approx([8 / 255], rel=1e-4)
    given = bench.samples(model, 2)
    for sample, found in zip(given, bench.workshop.run(artifact, target, given), strict=True):
        (name,) = found
        assert sqnr(found[name], Reference(model).run(sample)[name]) > 15


def test_accuracy_of_the_quickstart(bench, home_of_trials):
    """Real digits: int8 agrees with fp32, and is as often right."""
    digits = load(Path(__file__).with_name("digits.py"))
    inputs, labels = digits.load(home_of_trials)["mnist"]
    model = bench.model(onnx.load(digits.MODEL))
    given = [{"input": each} for each in inputs[: digits.CALIBRATION]]
    used = inputs[digits.CALIBRATION :]
    chosen = {}
    for precision in ("fp32", "int8"):
        target = Target("caffe2", precision, "local", bench.backend.options())
        artifact = bench.workshop.convert(model, target, given)
        outputs = bench.workshop.run(artifact, target, [{"input": each} for each in used])
        chosen[precision] = np.array([each["logits"].argmax() for each in outputs])
    right = {name: float((found == labels[-len(used) :]).mean()) for name, found in chosen.items()}
    agreement = float((chosen["fp32"] == chosen["int8"]).mean())
    assert agreement >= 0.9
    assert right["int8"] >= right["fp32"] - 0.005, (right, agreement)
