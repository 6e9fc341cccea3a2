"""MACE on every generated network and form of an operator: right, or refused with words.

What the converter writes is read and run by the independent reader of the format
(``tests/support/mace_net.py``), and, where the environment variable MACE_RUN names one, by a real
mace_run too. What is driven through the agent uses the real one, or the stand-in of the tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mace_tool
import numpy as np
import onnx
import pytest
from loading import load
from mace_net import Interpreter, read

from wherry.artifact import Artifact
from wherry.calibration import Calibration
from wherry.errors import UnsupportedError
from wherry.host import Host
from wherry.model import Model
from wherry.parity import check, compare
from wherry.quantize.form import TENSORRT
from wherry.quantize.qdq import insert_qdq
from wherry.reference import Reference
from wherry.target import Target
from wherry.testing import BackendSuite
from wherry.testing.workshop import Workshop

HERE = Path(__file__).parent
CLASSICS = (
    "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "resnet18", "shufflenet_v1", "shufflenet_v2",
    "squeezenet",
)  # fmt: skip
LEAST_DB = {"fp32": 60.0, "fp16": 40.0, "int8": 12.0}
REFUSED = {  # and a word of the reason
    "activations": "Softplus",
    "class_index": "ArgMax",
    "conditional": "Greater",
    "embedding": "input of type int64",
    "gru": "GRU",
    "segment_index": "ArgMax",
    "transformer": "Erf",
    "video": "two-dimensional windows",
}


@pytest.fixture
def tool(tmp_path, monkeypatch) -> str:
    """The mace_run of the environment, or the stand-in."""
    found = mace_tool.real() or mace_tool.stand_in(tmp_path)
    monkeypatch.setenv("MACE_RUN", found)
    return found


@pytest.mark.backend
@pytest.mark.usefixtures("wherry_home", "tool")
class TestMace(BackendSuite):
    name = "mace"


class Bench:
    """Converts models and runs what came out by the independent reader."""

    def __init__(self, folder: Path, networks: Any) -> None:
        self.host = Host.load()
        self.backend = self.host.backends["mace"]
        self.workshop = Workshop(self.host, folder)
        self.folder, self.networks, self._count = folder, networks, 0

    def model(self, proto: onnx.ModelProto) -> Model:
        self._count += 1
        folder = self.folder / str(self._count)
        (folder / "static").mkdir(parents=True)
        onnx.save(proto, folder / "given.onnx")
        return Model.load(folder / "given.onnx").with_static_shapes({}, folder / "static")

    def samples(self, model: Model, count: int = 2) -> list[dict[str, np.ndarray]]:
        return [self.networks.sample(model.proto(), seed) for seed in range(count)]

    def target(self, precision: str, **options: Any) -> Target:
        return Target("mace", precision, "local", self.backend.options(**options))

    def convert(self, model: Model, precision: str = "fp32", **options: Any) -> Artifact:
        target = self.target(precision, **options)
        return self.workshop.convert(model, target, self.samples(model))

    def sqnr(self, artifact: Artifact, model: Model, count: int = 2) -> float:
        """Of the worst output, dB; shapes are checked."""
        network = read(artifact.directory / "model.pb", artifact.directory / "model.data")
        interpreter, reference = Interpreter(network), Reference(model)
        ours, theirs = [], []
        for sample in self.samples(model, count):
            found = interpreter.run({b.runtime: sample[b.onnx] for b in artifact.inputs})
            ours.append({b.onnx: found[b.runtime] for b in artifact.outputs})
            theirs.append(reference.run(sample))
        return compare(ours, theirs).sqnr_db


@pytest.fixture
def bench(tmp_path, networks, monkeypatch, home_of_trials) -> Bench:
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    return Bench(tmp_path, networks)


def heavy(model: Model) -> set[str]:
    return {n for kind in ("Conv", "Gemm", "MatMul") for n in model.operators().get(kind, ())}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_network(bench, networks, network_name, precision):
    model = bench.model(networks.NETWORKS[network_name]())
    if network_name in REFUSED:
        with pytest.raises(UnsupportedError, match=REFUSED[network_name]):
            bench.convert(model, precision)
        assert bench.backend.preflight(model, bench.target(precision))
        return
    assert not bench.backend.preflight(model, bench.target(precision))
    artifact = bench.convert(model, precision)
    assert bench.sqnr(artifact, model) > LEAST_DB[precision]
    assert set(artifact.files) == {"model.pb", "model.data"}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "fp32") for name in (*CLASSICS, "digits")),
        *((name, "fp16") for name in ("shufflenet_v2", "digits")),
        *((name, "int8") for name in ("mobilenet_v3", "shufflenet_v1", "squeezenet", "digits")),
    ],
)
def test_classics(bench, networks, name, precision):
    """All that a network does is in its layers; every heavy node is in 8 bits where it shall be."""
    if name == "digits":
        model = bench.model(onnx.load(HERE.parents[1] / "manifests" / "digits.onnx"))
    else:
        builder = load(HERE / "classics.py").CLASSICS[name]
        model = bench.model(builder(networks.Net(name), 32))
    artifact = bench.convert(model, precision)
    assert bench.sqnr(artifact, model, count=1) > LEAST_DB[precision]
    nodes = {node for layer in artifact.layers for node in layer.nodes}
    missing = {node.name for node in model.proto().graph.node} - nodes
    kinds = {kind for kind, names in model.operators().items() if missing & set(names)}
    assert kinds <= {"Constant", "Flatten", "Reshape"}, missing
    if precision == "int8":
        whole = {n for layer in artifact.layers if layer.precision == "int8" for n in layer.nodes}
        assert heavy(model) <= whole


def test_no_form_is_converted_wrong_and_the_known_operators_are_those(bench, operators):
    """Every form of every operator; a refusal names the operator and ends in a sentence."""
    right, failing = set(), {}
    for kind, builders in operators.FORMS.items():
        for number, build in enumerate(builders):
            model = bench.model(build())
            found = bench.backend.preflight(model, bench.target("fp32"))
            if found:
                assert all(each.remedy.endswith(".") for each in found)
                continue
            artifact = bench.convert(model)
            if bench.sqnr(artifact, model) > LEAST_DB["fp32"]:
                right.add(kind)
            else:
                failing[f"{kind}-{number}"] = bench.sqnr(artifact, model)
    assert not failing
    known = {name for name, each in bench.backend.operators(None).items() if each.level != "no"}
    assert right - known == set()
    tried = {kind for kind in operators.FORMS if kind in known}
    assert tried - right == set(), "said to be supported, and no form of it is"


def test_a_model_that_comes_with_q_dq(bench, networks):
    """Its own ranges are those of the network, whatever the samples say."""
    float_model = bench.model(networks.NETWORKS["mobilenet"]())
    names = [value for node in float_model.proto().graph.node for value in node.output]
    ranges = dict.fromkeys(("image", *names), (-3.0, 5.0))
    made = insert_qdq(float_model.proto(), Calibration("minmax", 1, ranges), TENSORRT)
    model = bench.model(made.proto)
    assert "QuantizeLinear" in model.operators()
    artifact = bench.convert(model, "int8")
    network = read(artifact.directory / "model.pb", artifact.directory / "model.data")
    steps = {round(scale * 127, 3) for op in network.operations for scale, _ in op.quantised}
    assert steps == {5.0, 2.49}, steps  # -128 to 127 of 5 / 127; and 0 to 5 behind a Relu
    assert bench.sqnr(artifact, model) > 15


def test_nodes_that_stay_in_fp32(bench, networks):
    model = bench.model(networks.NETWORKS["mobilenet"]())
    kept = sorted(heavy(model))[2]
    artifact = bench.convert(model, "int8", keep_fp32=(kept, {"op": "Gemm"}))
    whole = {n for layer in artifact.layers if layer.precision == "int8" for n in layer.nodes}
    assert heavy(model) - whole == {kept, *model.operators()["Gemm"]}
    assert bench.sqnr(artifact, model) > 20


def through_mace_run(bench: Bench, model: Model, precision: str, name: str) -> None:
    """Convert a model and hold what mace_run makes of it against ONNX Runtime."""
    artifact = bench.convert(model, precision)
    given = bench.samples(model)
    outputs = bench.workshop.run(artifact, bench.target(precision), given)
    figures = compare(outputs, [Reference(model).run(sample) for sample in given])
    check(figures, bench.backend.threshold(precision), name, precision=precision)


# The stand-in shows that files and flags fit; what MACE makes of all of them, only a real one does.
THROUGH = CLASSICS if mace_tool.real() else ("shufflenet_v2",)
WHOLE = tuple(filter(None, os.environ.get("MACE_RUN_INT8", "").split(",")))
"""With a real mace_run that was built for int8: the networks to try in it."""


@pytest.mark.backend
@pytest.mark.usefixtures("tool")
@pytest.mark.parametrize(
    ("name", "precision"),
    [*((n, p) for n in THROUGH for p in ("fp32", "fp16")), *((n, "int8") for n in WHOLE)],
)
def test_classics_in_mace_run(bench, networks, name, precision):
    builder = load(HERE / "classics.py").CLASSICS[name]
    through_mace_run(bench, bench.model(builder(networks.Net(name), 64)), precision, name)


@pytest.mark.backend
@pytest.mark.usefixtures("tool")
def test_networks_in_mace_run(bench, networks):
    names = sorted(networks.NETWORKS) if mace_tool.real() else ["inception", "many_outputs"]
    for name in names:
        if name not in REFUSED:
            model = bench.model(networks.NETWORKS[name]())
            through_mace_run(bench, model, "fp32", name)


@pytest.fixture
def streamed(bench, tool, networks) -> Iterator[Any]:
    """A runner over two inputs and outputs, as the agent would load it."""
    runner = load(HERE.parents[1] / "plugins" / "wherry_mace" / "runner.py")
    artifact = bench.convert(bench.model(networks.NETWORKS["two_inputs"]()))
    options = bench.target("fp32").options.model_dump(mode="json")
    about = {"tools": {"mace_run": tool}, "cache": str(bench.folder / "cache")}
    told = runner.prepare(str(artifact.directory), artifact.to_json(), options, about)
    made = runner.load(told["directory"], artifact.to_json(), options)
    yield runner, made, artifact
    made.close()
    assert not Path(told["directory"]).exists()


@pytest.mark.backend
def test_more_samples_than_one_process_takes(bench, streamed, monkeypatch):
    runner, made, artifact = streamed
    monkeypatch.setattr(runner, "SLOTS", 3)
    made._stream.process.end()
    made._stream = made._open()
    outputs = {}
    for number in range(8):
        seed = number % 4
        rng = np.random.default_rng(seed)
        made.set_inputs(
            {b.runtime: rng.normal(size=b.shape).astype(np.float32) for b in artifact.inputs}
        )
        made.run()
        found = {name: array.copy() for name, array in made.get_outputs().items()}
        if seed in outputs:
            for name, array in found.items():
                assert np.array_equal(array, outputs[seed][name])
        outputs[seed] = found
    assert made.peak_memory_bytes() > 1 << 20
    assert made._stream.used == 2


@pytest.mark.backend
def test_times_are_mace_runs_own(streamed):
    _, made, artifact = streamed
    inputs = {b.runtime: np.ones(b.shape, np.float32) for b in artifact.inputs}
    plan = {"warmup_s": 0.0, "warmup_runs": 2, "duration_s": 0.01, "min_runs": 4, "max_runs": 6}
    told = made.measure(inputs, plan)
    assert 4 <= len(told["infer_ns"]) <= 6 and min(told["infer_ns"]) > 0
    assert told["warmup_runs"] == 2 and isinstance(told["steady"], bool)
    assert told["record"]["rounds"] == 1 and told["record"]["mace_run_init_ms"] > 0
    layers = made.time_layers(inputs, 3)
    assert all(len(times) == 3 for times in layers.values())
    assert {layer.name for layer in artifact.layers} <= set(layers)
