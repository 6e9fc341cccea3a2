"""tflite in int8: right, in all its kinds and on its older runtime; layers, exposing, times."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from loading import load
from onnx import TensorProto, helper, numpy_helper

from wherry.host import Host
from wherry.model import Model
from wherry.reference import open_session, run_session
from wherry.target import Target
from wherry.testing import workshop as workshops
from wherry_tflite.plugin import RUNTIMES, TfliteOptions

LEAST_DB = 28.0
"""SQNR of every network in int8: a wrong scale of one tensor costs more than what is left."""

REFUSED = {"unused_and_shared"}
KINDS = [{}, {"io": "integer"}, {"quantize": "dynamic"}, {"quantize": "weights"}]

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def try_many(try_all):
    """`try_all` in int8."""

    def run(cases, **options):
        return try_all("tflite", cases, "int8", **options)

    return run


@pytest.fixture(scope="module")
def trials(try_many, networks):
    return try_many(networks.NETWORKS)


def check(trial, least_db=LEAST_DB):
    assert trial.status == "right", trial.words
    assert trial.parity.sqnr_db >= least_db


def test_network(trials, network_name):
    trial = trials[network_name]
    if network_name in REFUSED:
        assert trial.status == "refused"
    else:
        check(trial)


def test_a_tool_started_anew_makes_the_same(trials, made_anew):
    """As of the last network that tools made which went on running."""
    last = [trial for trial in trials.values() if trial.artifact][-1]
    assert made_anew(last).digest == last.artifact.digest


def uneven(networks):
    """Every kind of weights, with channels from a hundredth to ten, and one of zeros."""
    n = networks.Net("uneven")

    def weights(*shape, axis=0, fan_in):
        name = n.weight(*shape, fan_in=fan_in)
        value = numpy_helper.to_array(n.weights[-1]).copy()
        along = [1] * value.ndim
        along[axis] = -1
        value *= np.logspace(-2, 0, value.shape[axis]).reshape(along).astype(np.float32)
        np.moveaxis(value, axis, 0)[1] = 0
        n.weights[-1].CopyFrom(numpy_helper.from_array(value, name))
        return name

    x = n.input("image", 1, 3, 8, 8)
    bias = n.const(np.linspace(-1, 1, 16))
    x = n.op("Conv", x, weights(16, 3, 3, 3, fan_in=27), bias, kernel_shape=[3, 3], pads=[1] * 4)
    w = weights(16, 1, 3, 3, fan_in=9)
    x = n.op("Conv", n.op("Relu", x), w, kernel_shape=[3, 3], pads=[1] * 4, group=16)
    w = weights(16, 16, 2, 2, axis=1, fan_in=64)
    x = n.op("ConvTranspose", x, w, kernel_shape=[2, 2], strides=[2, 2])
    x = n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    x = n.op("Flatten", n.op("AveragePool", x, kernel_shape=[4, 4], strides=[4, 4]))
    return n.model(y=n.op("Gemm", x, weights(40, 64, fan_in=64), n.weight(40), transB=1))


def older(home, folder, monkeypatch):
    monkeypatch.setenv("WHERRY_HOME", str(home))
    trials = sys.modules["wherry_conformance_trials"].Trials("tflite", folder)
    runtime = next(each for each in RUNTIMES if "tflite-runtime==2.14.0" in each.no_deps)
    trials.backend = dataclasses.replace(trials.backend, runtime=(runtime,))
    return trials


@pytest.mark.parametrize("options", [*KINDS, {"xnnpack": False}])
def test_channels_of_their_own_scales(try_many, networks, options):
    trial = try_many({"uneven": lambda: uneven(networks)}, **options)["uneven"]
    check(trial)
    kinds = {layer.type for layer in trial.artifact.layers if layer.precision == "int8"}
    wanted = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
    if "quantize" in options:  # small weights stay, and TRANSPOSE_CONV has no kernel for it
        wanted = {"CONV_2D", "FULLY_CONNECTED"} if options["quantize"] == "dynamic" else set()
    assert wanted <= kinds
    for binding in (*trial.artifact.inputs, *trial.artifact.outputs):
        assert binding.dtype == ("int8" if "io" in options else "float32")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime ends at Python 3.11")
@pytest.mark.parametrize("options", KINDS)
def test_the_older_runtime(try_all, networks, home_of_trials, tmp_path, monkeypatch, options):
    try_all("tflite", {"mlp": networks.NETWORKS["mlp"]})  # loads the machinery
    trials = older(home_of_trials, tmp_path, monkeypatch)
    models = {"uneven": uneven(networks), "mobilenet": networks.NETWORKS["mobilenet"]()}
    samples = {name: [networks.sample(model)] for name, model in models.items()}
    for trial in trials.run(models, samples, "int8", **options).values():
        check(trial)


def test_integers_outside_want_static():
    with pytest.raises(ValueError, match="io: integer cannot be had with quantize: weights"):
        TfliteOptions(quantize="weights", io="integer")


# --- single artifacts ----------------------------------------------------------------------------


class Bench:
    """Converts and runs one network."""

    def __init__(self, proto, folder, networks):
        self.host = Host.load()
        self.backend = self.host.backends["tflite"]
        onnx.save(proto, folder / "model.onnx")
        (folder / "static").mkdir()
        given = Model.load(folder / "model.onnx")
        self.model = given.with_static_shapes({}, folder / "static")
        self.samples = [networks.sample(proto, seed) for seed in range(4)]
        self.workshop = workshops.Workshop(self.host, folder)

    def convert(self, precision="int8", **options):
        target = Target("tflite", precision, "local", self.backend.options(**options))
        return self.workshop.convert(self.model, target, self.samples), target

    def reference(self, names):
        """The model's tensors over all samples, one array for each name."""
        proto = self.model.proto()
        own = {value.name for value in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in own)
        session = open_session(proto.SerializeToString(), threads=1, where="test")
        runs = [run_session(session, sample, where="test") for sample in self.samples]
        return {name: np.stack([run[name] for run in runs]) for name in names}


@pytest.fixture
def bench(networks, tmp_path, wherry_home):
    return Bench(networks.NETWORKS["mobilenet"](), tmp_path, networks)


WEIGHTS = {"quantize": "weights"}


def sqnr_db(value, wanted):
    return 10 * np.log10((wanted**2).sum() / max(((value - wanted) ** 2).sum(), 1e-20))


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 100), ("fp16", 55), ("int8", 28)])
def test_exposed_tensors_are_the_models_and_change_nothing(bench, precision, least_db):
    artifact, target = bench.convert(precision)
    nodes = {node.name for node in bench.model.proto().graph.node}
    assert {name for layer in artifact.layers for name in layer.nodes} == nodes
    exposed = bench.backend.expose(artifact, bench.model, bench.workshop._context())
    before = bench.workshop.run(artifact, target, bench.samples)
    after = bench.workshop.run(exposed, target, bench.samples)
    names = [binding.onnx for binding in exposed.outputs]
    assert len(names) > 8
    for name in before[0]:
        assert all(np.array_equal(a[name], b[name]) for a, b in zip(before, after, strict=True))
    for name, wanted in bench.reference(names).items():
        got = np.stack([outputs[name] for outputs in after])
        assert sqnr_db(got, wanted) > least_db, name


@pytest.mark.parametrize(
    ("precision", "options"), [("fp32", {}), ("fp16", {}), ("int8", {}), ("int8", WEIGHTS)]
)
def test_every_operator_is_timed(bench, precision, options):
    """What makes float weights of stored ones runs once, at load, and is none."""
    artifact, target = bench.convert(precision, **options)
    times, _ = bench.workshop.time_layers(artifact, target, bench.samples[0])
    assert list(times) == [layer.name for layer in artifact.layers]


def test_kept_nodes_are_float_and_the_others_are_not(bench):
    names = [node.name for node in bench.model.proto().graph.node]
    kept = names[:3]  # the first convolution and what is fused with it
    artifact, _ = bench.convert(keep_fp32=kept[:1])
    for layer in artifact.layers:
        if set(layer.nodes) & set(kept):
            assert layer.precision == "fp32"
        elif layer.nodes:
            assert layer.precision == "int8", layer


def test_ranges_of_a_quantised_model_are_its_own(networks, tmp_path, wherry_home):
    """Scale and zero point of its input and output stand in the file as they are."""
    n = networks.Net("given")

    def through(x, scale, zero):
        about = n.const(scale), n.const(zero, "uint8")
        return n.op("DequantizeLinear", n.op("QuantizeLinear", x, *about), *about)

    x = through(n.input("image", 1, 3, 8, 8), 0.04, 120)
    y = n.op("Conv", x, n.weight(4, 3, 3, 3, fan_in=27), kernel_shape=[3, 3], pads=[1] * 4)
    proto = n.model(y=through(y, 0.06, 131))
    bench = Bench(proto, tmp_path, networks)
    target = Target("tflite", "int8", "local", bench.backend.options(io="integer"))
    assert not bench.backend.preflight(bench.model, target)
    plain = Target("tflite", "fp32", "local", bench.backend.options())
    assert bench.backend.preflight(bench.model, plain)
    artifact = bench.workshop.convert(bench.model, target, bench.samples)
    (taken,), (given,) = artifact.inputs, artifact.outputs
    assert taken.scale == pytest.approx(0.04, rel=1e-6)
    assert taken.zero_point == 120 - 128
    assert given.scale == pytest.approx(0.06, rel=1e-6)
    assert given.zero_point == 131 - 128
    outputs = bench.workshop.run(artifact, target, bench.samples)
    wanted = bench.reference(["y"])["y"]
    assert sqnr_db(np.stack([each["y"] for each in outputs]), wanted) > LEAST_DB


def test_whole_numbers_in_the_model_are_refused_with_their_node(networks, tmp_path, wherry_home):
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 4])
    w = numpy_helper.from_array(np.eye(4, dtype=np.uint8), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="/product")
    graph = helper.make_graph([node], "whole", [x], [y], [w])
    opset = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    bench = Bench(proto, tmp_path, networks)
    target = Target("tflite", "int8", "local", bench.backend.options())
    (found,) = bench.backend.preflight(bench.model, target)
    assert (found.op_type, found.node) == ("MatMulInteger", "/product")


# --- accuracy ------------------------------------------------------------------------------------


def test_accuracy_of_the_quickstart(networks, home_of_trials, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    digits = load(Path(__file__).with_name("digits.py"))
    data = digits.load(home_of_trials)
    bench = Bench(onnx.load(digits.MODEL), tmp_path, networks)
    pictures = data["mnist"][0]
    bench.samples = [{"input": each} for each in pictures[: digits.CALIBRATION]]
    right = {}
    for precision in ("fp32", "int8"):
        artifact, target = bench.convert(precision)
        for name, (inputs, labels) in data.items():
            used = inputs[digits.CALIBRATION :] if name == "mnist" else inputs
            outputs = bench.workshop.run(artifact, target, [{"input": each} for each in used])
            chosen = np.array([each["logits"].argmax() for each in outputs])
            right[precision, name] = float((chosen == labels[-len(used) :]).mean())
    for name, most_lost in (("mnist", 0.005), ("other", 0.02), ("bold", 0.02)):
        assert right["int8", name] >= right["fp32", name] - most_lost, right
