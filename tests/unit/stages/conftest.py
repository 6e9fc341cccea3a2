"""Whole runs of a made-up backend on a made-up board, for the tests of the stages."""

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
from fake_boards import TEXT, Boards, FakeBoard
from onnx import TensorProto, helper
from pydantic import BaseModel

from wherry import builtins
from wherry.artifact import Artifact, Binding
from wherry.calibration import Calibration, CalibrationSettings
from wherry.device import BoardInfo, Transport
from wherry.engine.environments import Environments, Lock
from wherry.errors import DeviceLostError, EnvironmentError_, ToolError
from wherry.execute import execute, prepare
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.measurement import Measurement, Sensors
from wherry.metrics import MetricKind
from wherry.model import Model
from wherry.passes import Pass
from wherry.reference import Reference
from wherry.requirements import Requirements
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
        self.sessions = self.open_sessions = 0
        self.beside_the_lease: list[int] = []  # sessions that were open when one with it began
        self.ended = False  # whether the agent of an idle session is gone
        self.runs_on_host = True
        self.broken_at = -1  # of the calls of the profile hook
        self.breaks: BaseException = ToolError("the runner crashed")
        self.profiled: list[tuple[str, int]] = []
        self.calibrated: list[CalibrationSettings] = []
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
            runs_on_host=self.runs_on_host,
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
        self.calibrated.append(context.settings)
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
    def session(self, *, lease: bool = True, wait: bool = True, report=None):
        self.sessions += 1
        if lease:
            self.beside_the_lease.append(self.open_sessions)
        self.open_sessions += 1
        try:
            yield self
        finally:
            self.open_sessions -= 1

    @property
    def info(self) -> BoardInfo:
        return BoardInfo(
            self.fingerprint, "here", "x86_64", "Linux", "6", "3.11", "python", "2.36", "CPU", 2, 1
        )

    def sensors(self) -> Sensors:
        if self.ended:
            self.ended = False
            raise DeviceLostError("its agent was ended")
        return Sensors(0.0, {})

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


class Lab:
    """A manifest, and runs of it; `made` counts the store's entries that the last one added."""

    MANIFEST = MANIFEST

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.bench = Bench(folder)
        self.plugins: list[object] = [builtins, self.bench]
        self.manifest = folder / "wherry.yaml"
        self.text = MANIFEST
        self.made: Counter[str] = Counter()
        self.write_model()
        self.write_data("evaluation", 1)
        self.write_data("calibration", 2)

    def prepare(self, *sets: str, **options):
        # by rename: another run of the same lab may be reading it
        temporary = self.manifest.with_name(f"wherry.{threading.get_ident()}")
        temporary.write_text(self.text)
        temporary.replace(self.manifest)
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

    def add_own(self) -> None:
        self.plugins.append(Own(self.bench))

    def write_model(self, factor: float = 2.0, width: int | str = 3) -> None:
        write_model(self.folder / "net.onnx", factor, width)

    def write_data(self, name: str, seed: int, width: int = 3, **more) -> None:
        samples = np.random.default_rng(seed).standard_normal((6, width), np.float32)
        np.savez(self.folder / f"{name}.npz", samples, **more)

    @staticmethod
    def statuses(values) -> list[str]:
        return [result["status"] for result in values["results"]]

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
    assert Lab.statuses(values) == ["ok"] * 4
    return folder / "home" / "store", values


@pytest.fixture
def used(lab: Lab, first: tuple[Path, dict]) -> Lab:
    """The manifest was run once."""
    shutil.copytree(first[0], lab.home / "store")
    return lab


@pytest.fixture
def boards(lab, monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeBoard]:
    """Three boards by name; the lab's manifest names two of them."""
    plugin = Boards(lab.bench, "abc")
    lab.plugins.append(plugin)
    lab.text = TEXT
    (lab.folder / "devices.yaml").write_text(
        "devices:\n"
        "  a: {wire: {}, tags: [arm, fast]}\n"
        "  b: {wire: {}, tags: [arm, fast]}\n"
        "  c: {wire: {}, tags: [arm, slow]}\n"
    )
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (0.0,) * 4)
    monkeypatch.setattr("wherry.choose._POLL_S", 0.0)
    return plugin.by_name
