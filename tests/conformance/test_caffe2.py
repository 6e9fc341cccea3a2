"""Caffe2 on every generated network and form of an operator: right, or refused with words."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from loading import load

from wherry.errors import ToolError
from wherry.host import Host
from wherry.model import Model
from wherry.native import Wanted, compiler
from wherry.parity import compare
from wherry.reference import Reference
from wherry.target import Target
from wherry.testing import BackendSuite
from wherry.testing.workshop import Workshop
from wherry_caffe2 import library, nets, operators, runner

pytestmark = [pytest.mark.backend, pytest.mark.caffe2]

REFUSED = {  # and a word of the reason
    "conditional": "branches",
    "gru": "recurrent",
}
LEAST_DB = 100  # of networks in float32, whatever wherry asks
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC = (2, 17)


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    if compiler(platform.machine()) is None:
        pytest.skip("no C++ compiler here: apt install g++")


@pytest.fixture
def home(home_of_trials, monkeypatch):
    """One home for all: the library is fetched and shipped once."""
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    return home_of_trials


@pytest.mark.usefixtures("home")
class TestCaffe2(BackendSuite):
    name = "caffe2"


@pytest.fixture(scope="module")
def trials(try_all, networks):
    return try_all("caffe2", networks.NETWORKS)


def test_network(trials, network_name):
    trial = trials[network_name]
    if network_name in REFUSED:
        assert trial.status == "refused", trial.words
        assert REFUSED[network_name] in trial.words
    else:
        assert trial.status == "right", trial.words
        assert trial.parity.sqnr_db > LEAST_DB
        assert set(trial.artifact.files) == {"init_net.pb", "predict_net.pb"}


def test_networks_in_int8(try_all, networks):
    for name, trial in try_all("caffe2", networks.NETWORKS, "int8").items():
        assert trial.status == ("refused" if name in REFUSED else "right"), trial.words


def test_classics(try_all, networks):
    """Whole networks, above 60 dB, and every node of theirs is in a layer."""
    classics = load(Path(__file__).with_name("classics.py")).CLASSICS
    builders = {name: lambda name=name: classics[name](networks.Net(name), 64) for name in classics}
    assert len(builders) == 7
    for name, trial in try_all("caffe2", builders).items():
        assert trial.status == "right", (name, trial.words)
        assert trial.parity.sqnr_db > 60
        nodes = {node for layer in trial.artifact.layers for node in layer.nodes}
        assert nodes == {node.name for node in trial.model.proto().graph.node}


# --- operators --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forms(try_all, networks, request):
    """Every form of every operator, tried in fp32: (operator, number) to its trial."""
    request.getfixturevalue("operators")
    table = load(Path(__file__).with_name("operators.py")).FORMS
    names = {f"{kind}-{i}": b for kind, bs in table.items() for i, b in enumerate(bs)}
    trials = try_all("caffe2", names)
    return {(name.partition("-")[0], name): trial for name, trial in trials.items()}


def test_no_form_is_converted_wrong(forms):
    failing = {
        name: f"{trial.status}: {trial.words}"
        for (_, name), trial in forms.items()
        if trial.status not in {"right", "refused"}
    }
    assert not failing


def test_the_known_operators_are_those_that_convert(forms):
    right = {kind for (kind, _), trial in forms.items() if trial.status == "right"}
    claimed = {name for name, told in operators.operators().items() if told.level != "no"}
    tried = {kind for kind, _ in forms}
    assert right == claimed & tried
    assert claimed - tried <= {"Constant", "CenterCropPad", "MeanVarianceNormalization"}


def test_every_refusal_names_the_operator_and_a_remedy(forms):
    for (kind, name), trial in forms.items():
        if trial.status == "refused":
            assert kind in trial.words, name
            assert trial.words.endswith("."), name


RIGHT = {  # of ONNX's own tests: by the normal form, in parts, or as constants
    *("argmax_default_axis_example", "averagepool_2d_ceil", "averagepool_2d_same_upper"),
    *("clip_example", "conv_with_autopad_same", "depthtospace_crd_mode_example"),
    *("gather_negative_indices", "mish", "max_example"),
    *("resize_upsample_scales_linear", "resize_downsample_scales_nearest", "slice_neg_steps"),
    *("softmax_axis_0", "spacetodepth_crd_mode_example", "split_1d_uneven_split_opset18"),
}
WITHOUT = {
    *("add_uint8", "cumsum_1d", "gru_defaults", "layer_normalization_2d_axis1"),
    *("maxpool_2d_dilations", "round"),
}


def test_onnx_suite(home_of_trials, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    bench = load(Path(__file__).parents[1] / "benchmarks" / "bench_conformance.py")
    asked = argparse.Namespace(results=tmp_path / "results", keep=None, deadline=float("inf"))
    names = "|".join(sorted(RIGHT | WITHOUT))
    cases = list(bench.suite.cases(bench.suite.load_tests(f"^test_({names})$", ["node"]), tmp_path))
    assert not [case for case in cases if isinstance(case, tuple)], "all of them can be judged"
    warm = bench.trials.Warm()
    found = bench.Bench("caffe2", asked, warm).run(cases)
    warm.close()
    words = {name: (result.status, result.words) for name, result in found.items()}
    right = {name.removeprefix("test_") for name, told in words.items() if told[0] == "right"}
    assert right == RIGHT, words
    refused = {name.removeprefix("test_") for name, told in words.items() if told[0] == "refused"}
    assert refused == WITHOUT, words
    assert not [result.missing for result in found.values() if result.missing]


# --- the runner -------------------------------------------------------------------------------


class Bench:
    """Converts models and runs them in the runner itself, in this process."""

    def __init__(self, folder: Path) -> None:
        self.host = Host.load()
        self.backend = self.host.backends["caffe2"]
        self.workshop = Workshop(self.host, folder)
        self.folder = folder
        self.native = folder / "native"
        self.native.mkdir()
        files = self.backend.native.files(Wanted(platform.machine()), self.workshop)
        for name, (_, path) in files.items():
            (self.native / name).symlink_to(path)

    def model(self, proto: onnx.ModelProto) -> Model:
        onnx.save(proto, self.folder / "given.onnx")
        (self.folder / "static").mkdir(exist_ok=True)
        return Model.load(self.folder / "given.onnx").with_static_shapes({}, self.folder / "static")

    def convert(self, model: Model, **options):
        target = Target("caffe2", "fp32", "local", self.backend.options(**options))
        return self.workshop.convert(model, target, []), target

    def board(self, **tools: str):
        cache = self.folder / "cache"
        cache.mkdir(exist_ok=True)
        machine = platform.machine()
        return {
            "tools": tools,
            "cache": str(cache),
            "native": str(self.native),
            "machine": machine,
        }

    def prepare(self, artifact, board=None, **options):
        chosen = self.backend.options(**options).model_dump(mode="json")
        where = str(artifact.directory)
        return runner.prepare(where, artifact.to_json(), chosen, board or self.board())

    def load(self, artifact, told, **options):
        chosen = self.backend.options(**options).model_dump(mode="json")
        return runner.load(told["directory"], artifact.to_json(), chosen)


@pytest.fixture
def bench(tmp_path, home):
    return Bench(tmp_path)


@pytest.fixture
def loaded(bench, networks):
    """A network, its artifact, and its runner."""
    model = bench.model(networks.NETWORKS["mobilenet"]())
    artifact, _ = bench.convert(model)
    made = bench.load(artifact, bench.prepare(artifact))
    yield model, artifact, made
    made.close()


def test_an_inference_is_timed_where_it_runs(loaded, networks):
    """Its layers add up to it, the memory is that of the other process, and versions are told."""
    model, artifact, made = loaded
    sample = networks.sample(model.proto())
    made.set_inputs(sample)
    took = [made.run() for _ in range(20)]
    wanted = Reference(model).run(sample)
    assert compare([made.get_outputs()], [wanted]).sqnr_db > LEAST_DB
    times = made.time_layers(sample, 10)
    assert list(times) == [layer.name for layer in artifact.layers]
    assert {len(values) for values in times.values()} == {10}
    total = sum(float(np.median(values)) for values in times.values())
    assert 0.3 * np.median(took) < total < 5 * np.median(took) + 1e6
    assert 100_000 < made.peak_memory_bytes() < 500e6
    assert runner.versions()["caffe2"] in {"libtorch==1.2.0.1", "torch==1.10.2"}


def test_layers_are_timed_by_other_inputs_and_the_outputs_are_theirs(loaded, networks):
    model, _, made = loaded
    first, second = (networks.sample(model.proto(), seed) for seed in range(2))
    made.set_inputs(first)
    made.run()
    made.time_layers(second, 2)
    assert compare([made.get_outputs()], [Reference(model).run(second)]).sqnr_db > LEAST_DB


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_result(bench, networks, threads):
    model = bench.model(networks.NETWORKS["inception"]())
    artifact, _ = bench.convert(model)
    made = bench.load(artifact, bench.prepare(artifact), threads=threads)
    sample = networks.sample(model.proto())
    made.set_inputs(sample)
    made.run()
    assert compare([made.get_outputs()], [Reference(model).run(sample)]).sqnr_db > LEAST_DB
    made.close()


def test_a_crash_is_told_with_what_was_said(loaded):
    _, _, made = loaded
    os.kill(made._engine._process.pid, signal.SIGSEGV)
    with pytest.raises(runner.EngineError, match="SIGSEGV"):
        made.run()


def test_a_hang_is_told(loaded, monkeypatch):
    _, _, made = loaded
    monkeypatch.setattr(runner, "_ANSWER_S", 0.2)
    pid = made._engine._process.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(runner.EngineError, match=r"did not answer the request R in 0.2 s"):
        made.run()
    monkeypatch.setattr(runner, "_END_S", 0.2)
    made.close()
    assert not Path(f"/proc/{pid}").exists()


def test_the_program_ends_with_who_asked_it(bench, networks):
    """Even where that one is killed, and nothing of it can close the runner."""
    artifact, _ = bench.convert(bench.model(networks.NETWORKS["vector"]()))
    told = bench.prepare(artifact)
    chosen = bench.backend.options().model_dump(mode="json")
    child = os.fork()
    if not child:
        made = runner.load(told["directory"], artifact.to_json(), chosen)
        (bench.folder / "pid").write_text(str(made._engine._process.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    pid = int((bench.folder / "pid").read_text())
    for _ in range(100):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("the program lives on")


def test_errors_of_caffe2_are_told(bench, networks, tmp_path):
    """An operator that the library lacks; a file that is no network; a request for no blob."""
    artifact, _ = bench.convert(bench.model(networks.NETWORKS["vector"]()))
    told = bench.prepare(artifact)
    names = json.loads(Path(told["directory"], runner.PREPARED).read_text())
    bad = tmp_path / "bad"
    shutil.copytree(artifact.directory, bad)
    wrong = nets.write_net("predict", [nets.Operator("NoSuch", ("signal",), ("y",), name="n")])
    (bad / nets.PREDICT_NET).write_bytes(wrong)
    with pytest.raises(runner.EngineError, match="Cannot create operator of type 'NoSuch'"):
        runner.Engine({**names, "networks": str(bad)}, 1)
    (bad / nets.PREDICT_NET).write_bytes(b"\x0b not one")
    with pytest.raises(runner.EngineError, match=r"predict_net.pb is not a NetDef"):
        runner.Engine({**names, "networks": str(bad)}, 1)
    engine = runner.Engine(names, 1)
    with pytest.raises(runner.EngineError, match="there is no blob nothing"):
        engine.ask("O", runner._text("nothing"))
    with pytest.raises(runner.EngineError, match="no such request"):
        engine.ask("?")
    engine.close()


# --- libraries and compilers ------------------------------------------------------------------


def test_a_library_that_is_none_is_refused_by_symbol_and_path(bench, networks):
    artifact, _ = bench.convert(bench.model(networks.NETWORKS["vector"]()))
    path = str(bench.native / "libc10.so")
    told = bench.prepare(artifact, bench.board(libtorch=path))
    with pytest.raises(runner.EngineError, match=rf"{re.escape(path)} lacks the symbol _ZN6caffe2"):
        bench.load(artifact, told)


def test_who_names_a_library_gets_it(bench, networks, tmp_path):
    """The option before the tool; a folder, or its lib; what is not there is said."""
    artifact, _ = bench.convert(bench.model(networks.NETWORKS["vector"]()))
    other = tmp_path / "torch"
    other.mkdir()
    (other / "lib").symlink_to(bench.native)
    record = bench.prepare(artifact, bench.board(libtorch=str(other)))["record"]
    assert record["library_from"] == "the tool libtorch"
    assert record["library"].startswith(str(other / "lib"))
    record = bench.prepare(artifact, bench.board(libtorch="/no"), library=str(other))["record"]
    assert record["library_from"] == "the option library"
    assert "bytes" in record["library_version"]
    told = bench.prepare(artifact, bench.board(libtorch="/no/such"))["unavailable"]
    assert "/no/such" in told["message"]
    assert "devices.yaml" in told["remedy"]


def test_the_board_compiles_what_the_host_cannot(bench, networks, monkeypatch):
    """Without the shipped program its own compiler makes one; without that, it is said."""
    artifact, _ = bench.convert(bench.model(networks.NETWORKS["vector"]()))
    (bench.native / "engine").unlink()
    told = bench.prepare(artifact)
    bench.load(artifact, told).close()
    assert bench.prepare(artifact) == told, "it is kept"
    shutil.rmtree(bench.folder / "cache")
    monkeypatch.setenv("PATH", "/nowhere")
    said = bench.prepare(artifact)["unavailable"]
    assert "apt install g++" in said["remedy"]


def test_a_machine_without_a_library_is_told_what_to_do(bench):
    files = library.NATIVE.files(Wanted("riscv64"), bench.workshop)
    assert "libtorch_cpu.so" not in files
    board = {"tools": {}, "cache": str(bench.folder), "native": None, "machine": "riscv64"}
    said = runner.prepare("", {}, {"library": ""}, board)["unavailable"]
    assert "riscv64" in said["message"]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_starts_on_old_systems(bench, machine):
    """It needs nothing that a C library of 2.17 lacks."""
    if compiler(machine) is None:
        pytest.skip(f"no compiler for {machine}: apt install g++-{machine.replace('_', '-')}")
    named = Wanted(machine, frozenset({"libtorch"}))
    files = library.NATIVE.files(named, bench.workshop)
    told = subprocess.run(
        ["readelf", "-V", files["engine"][1]], check=True, capture_output=True, text=True
    ).stdout
    needed = {tuple(map(int, v.split("."))) for v in re.findall(r"Name: GLIBC_([\d.]+)", told)}
    assert needed
    assert max(needed) <= OLDEST_GLIBC


def test_a_runner_that_fails_is_an_error_of_its_target(bench, networks):
    model = bench.model(networks.NETWORKS["vector"]())
    artifact, target = bench.convert(model, library=str(bench.native / "libc10.so"))
    with pytest.raises(ToolError, match="lacks the symbol"):
        bench.workshop.run(artifact, target, [networks.sample(model.proto())])
