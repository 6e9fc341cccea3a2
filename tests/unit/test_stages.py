"""Whole runs of a made-up backend on a made-up board: what is done again, and what is not."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import BaseModel

from wherry import builtins
from wherry.artifact import Artifact, Binding
from wherry.calibration import Calibration
from wherry.device import BoardInfo, Transport
from wherry.engine.environments import Environments, Lock
from wherry.errors import EnvironmentError_, Interrupted, StoreError, ToolError
from wherry.execute import execute, prepare
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.measurement import Measurement
from wherry.metrics import MetricKind
from wherry.model import Model
from wherry.passes import Pass
from wherry.reference import Reference
from wherry.requirements import Requirements
from wherry.stages import keys
from wherry.store import Store
from wherry.target import Backend, RuntimeOptions, convert_option
from wherry.zoo import ZooModel

MANIFEST = """
wherry: 1
model: {path: net.onnx, inputs: {x: {preprocess: {scale: 0.5}}}}
data:
  evaluation: {source: npz, path: evaluation.npz}
  calibration: {source: npz, path: calibration.npz}
metrics: [first]
variants: {original: [], rewritten: [rewrite]}
targets: [{backend: copy, precision: [fp32, int8]}]
measure: {rounds: 2}
"""
MEASURED = {"round": 8, "measure": 4}
"""Entries that measuring every row of the manifest makes."""


class Nothing(BaseModel):
    level: int = 1


class Options(RuntimeOptions):
    fuse: bool = convert_option(default=True, description="changes the artifact")
    pin: bool = False


class First:
    """The mean of the first output, as a number of numpy's."""

    def __init__(self, _output: str | None) -> None:
        self.sum, self.count = np.float32(0), 0

    def update(self, outputs, reference, label) -> None:
        self.sum += next(iter(outputs.values())).mean()
        self.count += 1

    def result(self):
        return self.sum / np.float32(self.count)


class Runner:
    """An artifact on the made-up board: the model that was copied, off by the bench's error."""

    def __init__(self, bench: Bench, artifact: Artifact, options: Options) -> None:
        self.reference = Reference(Model.load(artifact.directory / "net.onnx"))
        self.error = bench.error if options.pin == bench.broken_pin else 0.0

    def infer(self, samples) -> Iterator[dict[str, np.ndarray]]:
        for sample in samples:
            outputs = self.reference.run({"x": sample["x"].reshape(1, -1)})
            yield {name: array + np.float32(self.error) for name, array in outputs.items()}


class Bench:
    """Backend, passes, metric, board and the default calibration and profile in one plugin.

    Its attributes are what tests change between two runs.
    """

    def __init__(self, folder: Path) -> None:
        self.code = {name: folder / f"{name}.py" for name in ("runner", "convert", "rewrite")}
        for path in self.code.values():
            path.write_text("# the first version")
        self.fingerprint = "a board"
        self.runtime: str | EnvironmentError_ = "a runtime"
        self.metric_version = self.format_version = self.pass_version = 1
        self.pass_names: tuple[str, ...] = ("rewrite",)
        self.error, self.broken_pin = 0.0, False
        self.sessions = 0
        self.broken_at = -1  # of the calls of the profile hook
        self.breaks: BaseException = ToolError("the runner crashed")
        self.profiled: list[tuple[str, int]] = []
        self.spoil = lambda measurement: measurement
        self.reached = EnvironmentError_("")  # raised by the board where it is no such error

    @hookimpl
    def wherry_backends(self):
        yield Backend(
            name="copy",
            description="the model as it is",
            precisions=("fp32", "fp16", "int8"),
            format_version=self.format_version,
            options=Options,
            runner=self.code["runner"],
            converter=Requirements(("converter==1",)),
            artifact_format="onnx",
            convert_files=(self.code["convert"],),
            calibrated=frozenset({"int8"}),
        )

    @hookimpl
    def wherry_passes(self):
        for name in self.pass_names:
            yield Pass(name, "the graph gets its name", Nothing,
                       files=(self.code["rewrite"],), version=self.pass_version)  # fmt: skip
        yield Pass("learn", "", Nothing, needs=frozenset({"calibration"}))

    @hookimpl
    def wherry_metrics(self):
        yield MetricKind(
            "first", "", "higher", First, files=(Path(__file__),), version=self.metric_version
        )

    @hookimpl
    def wherry_models(self):
        yield ZooModel("tiny", "", Nothing, build=lambda _parameters, path: write_model(path))

    @hookimpl
    def wherry_transports(self):
        yield Transport("here", "", Nothing, connect=lambda spec, services: self, host=True)

    @hookimpl
    def wherry_optimize(self, model, step, context):
        path = context.output / "net.onnx"
        proto = model.proto()
        proto.graph.name = step.name
        path.write_bytes(proto.SerializeToString())
        return Model.load(path)

    @hookimpl(trylast=True)
    def wherry_calibrate(self, model, dataset, target, context):
        low, high = (f([s.inputs["x"] for s in dataset]) for f in (np.min, np.max))
        return Calibration("minmax", len(dataset), {"x": (float(low), float(high))})

    @hookimpl
    def wherry_convert(self, model, target, calibration, context):
        shutil.copyfile(model.path, context.output / "net.onnx")
        if calibration is not None:
            (context.output / "ranges.txt").write_text(str(calibration.ranges))
        context.warn(f"converted to {target.precision}")
        return artifact_of(model, target, context)

    @hookimpl(trylast=True)
    def wherry_profile(self, artifact, target, dataset, session, context):
        self.profiled.append((target.id, context.round))
        if len(self.profiled) == self.broken_at:
            raise self.breaks
        with session.host(artifact, target, context.backend, context.preprocess()) as runner:
            samples = ({"x": sample.inputs[""] * np.float32(0.5)} for sample in dataset or ())
            for index, outputs in enumerate(runner.infer(samples) if context.metrics else ()):
                for metric in context.metrics.values():
                    metric.update(outputs, context.reference(index), None)
        context.warn("the board is warm")
        times = np.random.default_rng().integers(900, 1100, 20).astype(np.uint64)
        return self.spoil(
            Measurement(
                infer_ns=times,
                total_ns=times + np.uint64(10),
                round_sizes=(20,),
                load_ms=(1.0,),
                first_ms=(1.0,),
                warmup_runs=(3,),
                steady=(True,),
                metrics={name: metric.result() for name, metric in context.metrics.items()},
            )
        )

    # The board

    @contextmanager
    def session(self, *, lease: bool = True):
        self.sessions += 1
        yield self

    @property
    def info(self) -> BoardInfo:
        return BoardInfo(
            self.fingerprint, "here", "x86_64", "Linux", "6", "3.11", "python", "2.36", "CPU", 2, 1
        )

    def runtime_lock(self, backend: Backend) -> str:
        if isinstance(self.runtime, EnvironmentError_):
            raise self.runtime
        return self.runtime

    @contextmanager
    def host(self, artifact, target, backend, preprocess):
        if not isinstance(self.reached, EnvironmentError_):
            raise self.reached
        yield Runner(self, artifact, target.options)


class Own:
    """Another plugin, whose backend knows its ranges without any data, and profiles by itself."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @hookimpl
    def wherry_profile(self, artifact, target, dataset, session, context):
        return self.bench.wherry_profile(artifact, target, dataset, session, context)

    @hookimpl
    def wherry_backends(self):
        yield Backend(
            name="own",
            description="",
            precisions=("int8",),
            options=Options,
            runner=Path(__file__),
            artifact_format="own",
            calibrated=frozenset({"int8"}),
        )

    @hookimpl
    def wherry_calibrate(self, model, dataset, target, context):
        return Calibration("known", 0, {"x": (-100.0, 100.0)})

    @hookimpl
    def wherry_convert(self, model, target, calibration, context):
        shutil.copyfile(model.path, context.output / "net.onnx")
        (context.output / "ranges.txt").write_text(str(calibration.ranges))
        return artifact_of(model, target, context)


def artifact_of(model: Model, target, context) -> Artifact:
    def bind(specs):
        return tuple(Binding(s.name, s.name, s.dtype, s.static_shape) for s in specs)

    return Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="onnx",
        inputs=bind(model.inputs),
        outputs=bind(model.outputs),
    )


def write_model(path: Path, factor: float = 2.0, width: int | str = 3) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in "xy"]
    constant = helper.make_tensor("c", TensorProto.FLOAT, [1], [factor])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "c"], ["y"])], "net", *zip(ends), [constant]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


def write_data(path: Path, seed: int, width: int = 3, **more) -> None:
    np.savez(path, np.random.default_rng(seed).standard_normal((6, width), np.float32), **more)


class Lab:
    """A manifest, and runs of it; `made` counts the store's entries that the last one added."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.bench = Bench(folder)
        self.plugins: list[object] = [builtins, self.bench]
        self.manifest = folder / "wherry.yaml"
        self.text = MANIFEST
        self.made: Counter[str] = Counter()
        write_model(folder / "net.onnx")
        write_data(folder / "evaluation.npz", 1)
        write_data(folder / "calibration.npz", 2)

    def prepare(self, *sets: str, **options):
        self.manifest.write_text(self.text)
        host = Host.load(plugins=(), builtins=False, extra=self.plugins)
        assert not host.skipped, host.skipped
        return prepare(self.manifest, overrides=sets, host=host, **options)

    def run(self, *sets: str, jobs: int = 2, **options):
        before = self.entries()
        try:
            record = execute(self.prepare(*sets, **options), jobs=jobs)
        finally:
            self.made = Counter(
                kind for digest, kind in self.entries().items() if digest not in before
            )
        return record.values

    def entries(self) -> dict[str, str]:
        found = Store(self.home / "store").entries()
        return {entry.key.digest: entry.key.kind for entry in found}

    def kept(self, kind: str) -> int:
        return list(self.entries().values()).count(kind)


def lab_in(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("WHERRY_HOME", str(home))
    monkeypatch.setenv("WHERRY_CONFIG", str(folder / "none"))
    monkeypatch.setattr(Environments, "lock", lambda self, requirements: Lock("", "a tool"))
    monkeypatch.setattr("wherry.store._sync", lambda path: None)  # no power cut is tested here
    return Lab(folder, home)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Nothing was run yet."""
    return lab_in(tmp_path, tmp_path / "home", monkeypatch)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The store and the record of one run of the manifest."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as monkeypatch:
        values = lab_in(folder, folder / "home", monkeypatch).run()
    assert statuses(values) == ["ok"] * 4
    return folder / "home" / "store", values


@pytest.fixture
def used(lab: Lab, first: tuple[Path, dict]) -> Lab:
    """The manifest was run once."""
    shutil.copytree(first[0], lab.home / "store")
    return lab


def statuses(values) -> list[str]:
    return [result["status"] for result in values["results"]]


# What is done again, and what is not


def test_a_second_run_takes_everything_from_the_store(used: Lab, first) -> None:
    again = used.run()
    assert used.made == {}
    assert {step["state"] for step in again["steps"]} == {"cached"}
    assert all(result["cached"] for result in again["results"])
    for one, other in zip(first[1]["results"], again["results"], strict=True):
        assert {**one, "cached": True} == other, "the same figures, warnings and all"
    assert "the board is warm" in again["results"][0]["warnings"]


def test_a_board_is_asked_once_a_run(used: Lab) -> None:
    used.run()
    assert used.bench.sessions == 1


def edit(name: str):
    return lambda lab, _: lab.bench.code[name].write_text("# the second version")


def own(name: str):
    """Another version of a file of wherry's own."""

    def change(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(keys.OWN, lab.folder / "wherry-two", ignore=shutil.ignore_patterns("__*"))
        with (lab.folder / "wherry-two" / name).open("a") as stream:
            stream.write("# another line\n")
        monkeypatch.setattr(keys, "OWN", lab.folder / "wherry-two")

    return change


def attribute(name: str, value):
    return lambda lab, _: setattr(lab.bench, name, value)


def replaced(old: str, new: str):
    def change(lab: Lab, _) -> None:
        assert old in lab.text
        lab.text = lab.text.replace(old, new)

    return change


def tool(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Environments, "lock", lambda self, requirements: Lock("", "another tool"))


def packages(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("calibrate", "convert", "optimize", "prepare", "reference"):
        monkeypatch.setattr(f"wherry.stages.{module}.own_lock", lambda: "other packages")


def plugin(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "code", lambda self, info: f"another {info.module}")


PARITY = {"parity": 4}
ANEW = PARITY | MEASURED
CONVERTED = {"convert": 4, "accepted": 4}
QUANTISED = {"convert": 2, "accepted": 2}
CHANGES = {
    "nothing": (lambda lab, _: None, {}),
    "gates, limits": (lambda lab, _: setattr(lab, "text", lab.text + "limits: {time_s: 9}\n"
                                             "gates: [{metric: first, min: -99}]\n"), {}),
    "converter": (edit("convert"), CONVERTED),
    "converter's environment": (tool, CONVERTED),
    "converter's version": (attribute("format_version", 2), CONVERTED),
    "convert option": (replaced("backend: copy,", "backend: copy, copy: {fuse: false},"),
                       CONVERTED | MEASURED),
    "runner": (edit("runner"), ANEW),
    "runtime": (attribute("runtime", "another runtime"), ANEW),
    "board": (attribute("fingerprint", "another board"), ANEW),
    "run option": (replaced("backend: copy,", "backend: copy, copy: {pin: true},"), ANEW),
    "threads": (replaced("backend: copy,", "backend: copy, threads: 2,"), MEASURED),
    "measuring": (replaced("rounds: 2", "rounds: 2, duration_s: 0.7"), MEASURED),
    "seed": (lambda lab, _: setattr(lab, "text", lab.text + "seed: 3\n"), MEASURED),
    "pass": (edit("rewrite"), {"optimize": 1}),
    "pass's version": (attribute("pass_version", 2), {"optimize": 1}),
    "metric": (attribute("metric_version", 2), {"scores": 1} | MEASURED),
    "metrics": (replaced("[first]", "[first, mae]"), {"scores": 1} | MEASURED),
    "preprocessing": (
        replaced("scale: 0.5", "scale: 0.25"),
        {"data": 2, "reference": 1, "scores": 1, "calibrate": 2} | QUANTISED | ANEW,
    ),
    "evaluation": (lambda lab, _: write_data(lab.folder / "evaluation.npz", 3),
                   {"data": 1, "reference": 1, "scores": 1} | ANEW),
    "labels": (lambda lab, _: write_data(lab.folder / "evaluation.npz", 1, labels=np.zeros(6, int)),
               {"data": 1, "reference": 1, "scores": 1} | ANEW),
    "calibration": (
        lambda lab, _: write_data(lab.folder / "calibration.npz", 3),
        {"data": 1, "calibrate": 2, "parity": 2, "round": 4, "measure": 2} | QUANTISED,
    ),
    "samples of parity": (lambda lab, _: setattr(lab, "text", lab.text + "parity: {samples: 3}\n"),
                          PARITY),
    "thresholds": (lambda lab, _: setattr(
        lab, "text", lab.text + "parity: {thresholds: {fp32: {sqnr_db: 50, cosine: 0.9}}}\n"), {}),
    "model": (
        lambda lab, _: write_model(lab.folder / "net.onnx", 3.0),
        {"model": 1, "optimize": 1, "reference": 1, "scores": 1, "calibrate": 2} | CONVERTED | ANEW,
    ),
    "wherry's preprocessing": (
        own("preprocess.py"), {"data": 2, "reference": 1, "calibrate": 2} | ANEW
    ),
    "wherry's reading of models": (own("model.py"), {"model": 1}),
    "wherry's parity": (own("parity.py"), PARITY),
    "wherry's other files": (own("reports/words.py"), {}),
    "the host's packages": (
        packages,
        {"model": 1, "optimize": 1, "calibrate": 2, "reference": 1} | CONVERTED | PARITY,
    ),
    "the plugin of the board and of the hooks": (plugin, {"calibrate": 2} | ANEW),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_change_does_again(used: Lab, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, expected = CHANGES[what]
    change(used, monkeypatch)
    assert statuses(used.run()) == ["ok"] * 4
    assert used.made == expected


@pytest.mark.parametrize("what", ["code", "host", "parameters"])
def test_a_design_is_built_again_when_its_code_changes(lab: Lab, what, monkeypatch) -> None:
    lab.text = MANIFEST.replace("path: net.onnx", "zoo: {name: tiny}")
    lab.run()
    assert lab.made["zoo"] == 1
    if what == "parameters":
        lab.text = lab.text.replace("name: tiny", "name: tiny, level: 2")
    else:
        (plugin if what == "code" else packages)(lab, monkeypatch)
    lab.run()
    assert lab.made["zoo"] == 1
    assert lab.made["reference"] == (what == "host"), "the same bytes are the same model"


def test_made_up_parity_samples_follow_the_seed(lab: Lab) -> None:
    lab.text = (
        "wherry: 1\nmodel: {path: net.onnx}\ntargets: [{backend: copy}]\nmeasure: {rounds: 1}\n"
    )
    lab.run()
    assert lab.made["parity"] == 1
    lab.run("seed=7")
    assert lab.made["parity"] == 1
    lab.run("seed=7")
    assert lab.made == {}


def test_a_pass_that_sees_data_sees_its_preprocessing(lab: Lab) -> None:
    lab.text = MANIFEST.replace("rewritten: [rewrite]", "rewritten: [learn]")
    lab.run()
    assert lab.made["optimize"] == 1
    lab.text = lab.text.replace("scale: 0.5", "scale: 0.25")
    lab.run()
    assert lab.made["optimize"] == 1
    write_data(lab.folder / "calibration.npz", 5)
    lab.run()
    assert lab.made["optimize"] == 1


def test_passes_of_one_code_are_told_apart(lab: Lab) -> None:
    lab.text = MANIFEST.replace(
        "[rewrite]", "[rewrite], again: [{rewrite: {level: 2}}], same: [as]"
    )
    lab.bench.pass_names = ("rewrite", "as")
    lab.run()
    assert lab.made["optimize"] == 3


def test_a_model_of_other_shapes_is_another(lab: Lab) -> None:
    write_model(lab.folder / "net.onnx", width="n")
    lab.text = MANIFEST.replace("preprocess:", "shape: [1, 3], preprocess:")
    assert statuses(lab.run()) == ["ok"] * 4
    lab.text = lab.text.replace("shape: [1, 3]", "shape: [1, 4]")
    for name in ("evaluation", "calibration"):
        write_data(lab.folder / f"{name}.npz", 1, width=4)
    assert statuses(lab.run()) == ["ok"] * 4
    assert lab.made["model"] == 1


def test_data_is_checked_against_another_model_anew(used: Lab) -> None:
    write_model(used.folder / "net.onnx", width=4)
    values = used.run()
    assert statuses(values) == ["failed"] * 4
    assert "does not fit an input of shape 1x4" in values["results"][0]["error"]


def test_data_is_checked_for_labels_when_a_metric_wants_them(used: Lab) -> None:
    used.text = MANIFEST.replace("[first]", "[first, top1]")
    values = used.run()
    assert statuses(values) == ["failed"] * 4
    assert "it has no label" in values["results"][0]["error"]


def test_who_profiles_by_himself_is_in_his_own_keys(lab: Lab, monkeypatch) -> None:
    codes = {"Own": "one"}
    monkeypatch.setattr(Host, "code", lambda self, info: codes.get(info.name, ""))
    lab.plugins.append(Own(lab.bench))
    lab.text = MANIFEST.replace("copy, precision: [fp32, int8]", "[copy, own], precision: int8")
    assert statuses(lab.run()) == ["ok"] * 4
    lab.bench.profiled.clear()
    codes["Own"] = "two"
    lab.run()
    assert lab.made["round"] == 4
    assert {target.partition("-")[0] for target, _ in lab.bench.profiled} == {"own"}


def test_a_precision_is_converted_for_itself(lab: Lab) -> None:
    lab.text = MANIFEST.replace("int8]", "fp16]")
    assert statuses(lab.run()) == ["ok"] * 4
    assert lab.made["convert"] == 4


def test_each_backend_is_given_the_ranges_of_its_own_calibration(lab: Lab) -> None:
    lab.plugins.append(Own(lab.bench))
    lab.text = MANIFEST.replace(
        "backend: copy, precision: [fp32, int8]", "backend: [copy, own], precision: int8"
    )
    values = lab.run()
    assert statuses(values) == ["ok"] * 4
    assert lab.made["calibrate"] == 4
    ranges = {
        entry.key.parts["backend"]: (entry.directory / "files" / "ranges.txt").read_text()
        for entry in Store(lab.home / "store").entries("convert")
    }
    assert ranges["own"] == "{'x': (-100.0, 100.0)}"
    assert ranges["copy"] != ranges["own"]


# Parity


def test_an_artifact_that_fails_parity_is_not_kept(lab: Lab) -> None:
    lab.bench.error = 1.0
    values = lab.run()
    assert statuses(values) == ["failed"] * 4
    assert "dB" in values["results"][0]["error"]
    assert lab.kept("convert") == lab.kept("accepted") == 0
    assert lab.bench.profiled == []
    lab.run()
    assert lab.made == {}, "it is converted anew, and known to fail"


@pytest.mark.parametrize("pins", ["[false, true]", "[true, false]"])
def test_an_artifact_that_passed_with_other_options_stays(lab: Lab, pins: str) -> None:
    lab.bench.error, lab.bench.broken_pin = 1.0, True
    lab.text = MANIFEST.replace("precision: [fp32, int8]", f"copy: {{pin: {pins}}}")
    values = lab.run(jobs=1)
    by_pin = {r["target"]["options"]["pin"]: r["status"] for r in values["results"]}
    assert by_pin == {False: "ok", True: "failed"}
    assert lab.kept("convert") == 2
    lab.text = MANIFEST.replace("precision: [fp32, int8]", "copy: {pin: true}")
    assert statuses(lab.run()) == ["failed"] * 2
    assert lab.kept("convert") == 2, "another run may use it"


def test_an_artifact_stays_while_it_cannot_be_checked(lab: Lab) -> None:
    lab.bench.reached = StoreError("the disk is full")
    assert statuses(lab.run()) == ["failed"] * 4
    assert (lab.kept("convert"), lab.kept("accepted")) == (4, 0)
    lab.bench.reached = EnvironmentError_("")
    assert statuses(lab.run()) == ["ok"] * 4
    assert lab.made["convert"] == 0


def test_without_a_runtime_here_the_report_says_that_parity_was_not_checked(lab: Lab) -> None:
    lab.bench.runtime = EnvironmentError_("no wheel fits")
    values = lab.run()
    assert statuses(values) == ["failed"] * 4, "here it cannot be measured either"
    assert "no wheel fits" in values["results"][0]["error"]
    assert any("parity was not checked" in text for text in values["results"][0]["warnings"])


# Rounds


@pytest.mark.parametrize("error", [Interrupted("stopped"), ToolError("crashed")], ids=str)
def test_a_broken_measurement_goes_on_with_the_missing_rounds(lab: Lab, error) -> None:
    lab.bench.broken_at, lab.bench.breaks = 6, error
    values = lab.run(jobs=1)
    assert statuses(values).count("failed") == (4 if isinstance(error, Interrupted) else 1)
    done = lab.made["round"]
    assert done == (5 if isinstance(error, Interrupted) else 7)
    lab.bench.profiled.clear()
    values = lab.run()
    assert statuses(values) == ["ok"] * 4
    assert len(lab.bench.profiled) == 8 - done
    assert not all(result["cached"] for result in values["results"])


def test_a_measurement_of_kept_rounds_alone_counts_as_kept(used: Lab) -> None:
    store = Store(used.home / "store")
    for entry in store.entries("measure"):
        store.remove(entry.key)
    values = used.run()
    assert all(result["cached"] for result in values["results"])
    assert used.made == {"measure": 4}


@pytest.mark.parametrize("remeasure", [False, True])
def test_rows_with_one_artifact_are_measured_once(lab: Lab, remeasure: bool) -> None:
    lab.text = MANIFEST.replace("rewritten: [rewrite]", "same: []")
    results = lab.run(remeasure=remeasure)["results"]
    assert len(lab.bench.profiled) == 4
    assert not any(result["cached"] for result in results)
    assert [r["latency"] for r in results[:2]] == [r["latency"] for r in results[2:]]
    assert all(result["cached"] for result in lab.run()["results"])


def test_the_order_is_another_in_each_round_and_the_same_in_each_run(lab: Lab) -> None:
    lab.text = MANIFEST.replace("int8]", "int8], threads: [1, 2, 3]").replace(
        "rounds: 2", "rounds: 3"
    )
    lab.run()
    order = lab.bench.profiled.copy()
    rounds = [[target for target, number in order if number == n] for n in range(3)]
    assert [number for _, number in order] == sorted(number for _, number in order)
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(rounds[2])
    assert rounds[0] != rounds[1] != rounds[2]
    lab.bench.profiled.clear()
    lab.run(remeasure=True)
    assert lab.bench.profiled == order


def test_to_remeasure_takes_all_but_the_measurements(used: Lab, first) -> None:
    anew = used.run(remeasure=True)
    assert used.made == {}, "the same keys"
    assert len(used.bench.profiled) == 8
    assert {step["kind"] for step in anew["steps"] if step["state"] == "done"} == {"profile"}
    latencies = [[r["latency"]["mean_ms"] for r in run["results"]] for run in (first[1], anew)]
    assert latencies[0] != latencies[1]
    kept = used.run()
    assert [r["latency"]["mean_ms"] for r in kept["results"]] == latencies[1]


def test_a_measurement_stays_until_another_is_whole(used: Lab, first) -> None:
    used.bench.broken_at, used.bench.breaks = 5, Interrupted("stopped")
    used.run(remeasure=True, jobs=1)
    kept = used.run()
    assert [r["latency"] for r in kept["results"]] == [r["latency"] for r in first[1]["results"]]


def test_a_speed_up_over_two_runs_says_so(lab: Lab) -> None:
    word = "`--remeasure`"
    lab.text = MANIFEST.replace("[fp32, int8]", "fp32")
    lab.run()
    lab.text = MANIFEST
    for _ in range(2):
        results = lab.run()["results"]
        told = {r["target"]["precision"]: word in " ".join(r["warnings"]) for r in results}
        assert told == {"fp32": False, "int8": True}
    results = lab.run(remeasure=True)["results"]
    assert not any(word in " ".join(r["warnings"]) for r in results)


def spoilt(**changes):
    def spoil(measured: Measurement) -> Measurement:
        return Measurement(**{**vars(measured), **changes})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (spoilt(infer_ns=np.zeros(0, np.uint64)), "no samples"),
        (spoilt(total_ns=np.zeros(3, np.uint64)), "20 and 3 samples in rounds of [20]"),
        (spoilt(round_sizes=(10,)), "20 and 20 samples in rounds of [10]"),
        (spoilt(load_ms=()), "load_ms"),
        (spoilt(extra={"what": object()}), "JSON"),
        (spoilt(metrics={"first": "good"}), "good"),
    ],
    ids=["none", "copies", "sizes", "load", "extra", "metric"],
)
def test_what_a_hook_returns_is_checked_before_it_is_kept(lab: Lab, spoil, word: str) -> None:
    def once(measured: Measurement) -> Measurement:
        return spoil(measured) if len(lab.bench.profiled) == 2 else measured

    lab.bench.spoil = once
    values = lab.run()
    assert sorted(statuses(values)) == ["failed", "ok", "ok", "ok"]
    (error,) = (r["error"] for r in values["results"] if r["error"])
    assert "the profile hook for copy" in error
    assert word in error


# Two runs


def test_two_runs_at_once_do_each_step_once(lab: Lab) -> None:
    records: list[dict] = []
    prepared = [lab.prepare() for _ in range(2)]
    threads = [
        threading.Thread(target=lambda p=p: records.append(execute(p, jobs=2).values))
        for p in prepared
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [statuses(values) for values in records] == [["ok"] * 4] * 2
    assert len(lab.bench.profiled) == 8
    assert (lab.kept("convert"), lab.kept("round"), lab.kept("measure")) == (4, 8, 4)
    one, other = ([r["latency"] for r in values["results"]] for values in records)
    assert one == other
