"""Every hook of wherry, and nothing else.

A plugin is a module (or an object) named by an entry point of the group ``wherry``::

    [project.entry-points.wherry]
    mine = "my_package.plugin"

It marks its functions with `hookimpl`. Registration hooks yield frozen descriptors. Stage hooks do
the work: the host calls one on the plugin that owns the pass or the target's backend, else on the
default (an implementation marked ``trylast=True``), and around it every wrapper
(``@hookimpl(wrapper=True)``) of any plugin. A plugin implements a stage hook or wraps it, not both;
registration hooks cannot be wrapped.

Each example below is a whole plugin; the tests load it and call its hook.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from wherry.artifact import Artifact
    from wherry.calibration import Calibration
    from wherry.context import CalibrateContext, OptimizeContext, ProfileContext, StepContext
    from wherry.dataset import Dataset, DatasetSource
    from wherry.device import Session, Transport
    from wherry.measurement import Measurement
    from wherry.metrics import MetricKind
    from wherry.model import Model
    from wherry.passes import Pass, PassStep
    from wherry.reports import Report
    from wherry.target import Backend, Target
    from wherry.trackers import Tracker
    from wherry.zoo import ZooModel

hookspec = pluggy.HookspecMarker("wherry")
hookimpl = pluggy.HookimplMarker("wherry")


@hookspec
def wherry_backends() -> Iterable[Backend]:
    """Yield the backends of this plugin. Called once, when the host starts.

    Example::

        from pathlib import Path

        from wherry.hookspecs import hookimpl
        from wherry.requirements import Requirements
        from wherry.target import Backend, RuntimeOptions, convert_option

        class Options(RuntimeOptions):
            fuse: bool = convert_option(True, description="fuse activations")

        @hookimpl
        def wherry_backends():
            yield Backend(
                name="mine",
                description="my runtime",
                precisions=("fp32",),
                options=Options,
                runner=Path(__file__).with_name("runner.py"),
                runtime=(Requirements(packages=("numpy>=1.20", "my-runtime==1.2.3")),),
                converter=Requirements(packages=("my-converter==1.2.3",)),
                artifact_format="mine",
            )
    """
    raise NotImplementedError


@hookspec
def wherry_passes() -> Iterable[Pass]:
    """Yield the optimisation passes of this plugin. Called once, when the host starts.

    Example::

        from pydantic import BaseModel, ConfigDict, Field

        from wherry.hookspecs import hookimpl
        from wherry.passes import Pass

        class Parameters(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)
            digits: int = Field(default=3, ge=1, description="decimal digits that are kept")

        @hookimpl
        def wherry_passes():
            yield Pass(
                name="round.weights",
                description="round every weight",
                parameters=Parameters,
                effects={"*": "a smaller download where it is compressed, no speed"},
            )
    """
    raise NotImplementedError


@hookspec
def wherry_transports() -> Iterable[Transport]:
    """Yield the ways to reach boards. Called once, when the host starts.

    Example::

        from pydantic import BaseModel, ConfigDict

        from wherry.device import Transport
        from wherry.errors import DeviceError
        from wherry.hookspecs import hookimpl

        class Serial(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)
            port: str

        def connect(spec, services):
            raise DeviceError(f"nothing answers on {spec.parameters.port}", where=spec.name)

        @hookimpl
        def wherry_transports():
            yield Transport(
                name="serial",
                description="a board on a serial port",
                parameters=Serial,
                connect=connect,
            )
    """
    raise NotImplementedError


@hookspec
def wherry_datasets() -> Iterable[DatasetSource]:
    """Yield the sources of data. Called once, when the host starts.

    Example::

        import numpy as np
        from pydantic import BaseModel, ConfigDict, Field

        from wherry.dataset import Dataset, DatasetSource, Sample
        from wherry.hookspecs import hookimpl

        class Parameters(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)
            count: int = Field(default=8, ge=1)

        class Ramps(Dataset):
            def __init__(self, count):
                self.name, self.count = "ramps", count

            @property
            def digest(self):
                return f"ramps of 4, {self.count}"

            def __len__(self):
                return self.count

            def __getitem__(self, index):
                if index >= self.count:
                    raise IndexError(index)
                return Sample({"": np.linspace(0, index, 4, dtype=np.float32)}, label=index)

        @hookimpl
        def wherry_datasets():
            yield DatasetSource(
                name="ramps",
                description="straight lines, for tests",
                parameters=Parameters,
                load=lambda parameters, context: Ramps(parameters.count),
            )
    """
    raise NotImplementedError


@hookspec
def wherry_metrics() -> Iterable[MetricKind]:
    """Yield the metrics. Called once, when the host starts.

    Example::

        import numpy as np

        from wherry.hookspecs import hookimpl
        from wherry.metrics import MetricKind

        class WorstError:
            def __init__(self, output):
                self.output, self.worst = output, 0.0

            def update(self, outputs, reference, label):
                for name in [self.output] if self.output else outputs:
                    difference = np.abs(outputs[name] - reference[name])
                    self.worst = max(self.worst, float(difference.max()))

            def result(self):
                return self.worst

        @hookimpl
        def wherry_metrics():
            yield MetricKind(
                name="worst_error",
                description="the greatest absolute difference to the original",
                better="lower",
                create=WorstError,
            )
    """
    raise NotImplementedError


@hookspec
def wherry_reports() -> Iterable[Report]:
    r"""Yield the forms of a report. Called once, when the host starts.

    Example::

        from wherry.hookspecs import hookimpl
        from wherry.reports import Report

        def render(record):
            rows = record.values["results"]
            return "".join(f"{row['variant']}: {row['status']}\n" for row in rows)

        @hookimpl
        def wherry_reports():
            yield Report(name="plain", description="a line a target", render=render, suffix=".txt")
    """
    raise NotImplementedError


@hookspec
def wherry_trackers() -> Iterable[Tracker]:
    """Yield the trackers that can be told of a finished run. Called once, when the host starts.

    Example::

        from pathlib import Path

        from pydantic import BaseModel, ConfigDict, Field

        from wherry.hookspecs import hookimpl
        from wherry.trackers import Tracker

        class Parameters(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)
            file: str = Field(default="runs.txt", description="takes a line a run")

        def log(parameters, tracked):
            with Path(parameters.file).open("a", encoding="utf-8") as stream:
                stream.write(tracked.record.values["run_id"] + chr(10))
            return parameters.file

        @hookimpl
        def wherry_trackers():
            yield Tracker(name="lines", description="a text", parameters=Parameters, log=log)
    """
    raise NotImplementedError


@hookspec
def wherry_models() -> Iterable[ZooModel]:
    """Yield network designs for ``zoo:`` in manifests. Called once, when the host starts.

    Example::

        import onnx
        from onnx import TensorProto, helper
        from pydantic import BaseModel, ConfigDict, Field

        from wherry.hookspecs import hookimpl
        from wherry.zoo import ZooModel

        class Parameters(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)
            width: int = Field(default=4, ge=1)

        def build(parameters, path):
            spec = (TensorProto.FLOAT, [1, parameters.width])
            graph = helper.make_graph(
                [helper.make_node("Relu", ["x"], ["y"], name="relu")],
                "only_relu",
                [helper.make_tensor_value_info("x", *spec)],
                [helper.make_tensor_value_info("y", *spec)],
            )
            opset = helper.make_opsetid("", 17)
            onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)

        @hookimpl
        def wherry_models():
            yield ZooModel(
                name="only_relu",
                description="one Relu",
                parameters=Parameters,
                build=build,
            )
    """
    raise NotImplementedError


@hookspec
def wherry_commands() -> Iterable[click.Command]:
    """Yield verbs for the command line. Called when a verb is not one of wherry's own.

    Example::

        import click

        from wherry.hookspecs import hookimpl

        @click.command(help="Put a run on the team's page.")
        @click.argument("run_id")
        def publish(run_id):
            click.echo(f"published {run_id}")

        @hookimpl
        def wherry_commands():
            yield publish
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def wherry_optimize(model: Model, step: PassStep, context: OptimizeContext) -> Model | None:
    """Apply one pass. Called once for each pass of a variant, in order.

    Write the new model below ``context.output`` and return it. ``context.data`` has the samples
    that ``Pass.needs`` asks for.

    Example::

        import numpy as np
        import onnx
        from onnx import numpy_helper
        from pydantic import BaseModel

        from wherry.hookspecs import hookimpl
        from wherry.model import Model
        from wherry.passes import Pass

        class Parameters(BaseModel):
            digits: int = 3

        @hookimpl
        def wherry_passes():
            yield Pass(name="round.weights", description="round weights", parameters=Parameters)

        @hookimpl
        def wherry_optimize(model, step, context):
            proto = model.proto()
            for weight in proto.graph.initializer:
                rounded = np.round(numpy_helper.to_array(weight), step.parameters.digits)
                weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
            path = context.output / "model.onnx"
            onnx.save(proto, path)
            return Model.load(path)
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def wherry_calibrate(
    model: Model, dataset: Dataset, target: Target, context: CalibrateContext
) -> Calibration | None:
    """Find the ranges of the activations. Called once per model, data and plugin that finds them.

    Only for targets whose backend lists the precision in ``Backend.calibrated``. ``target`` is the
    first of all that share the ranges; nothing of it may decide them. ``context.settings`` is the
    manifest's ``calibrate:``; who has a method of his own names it in the result.

    Example::

        from pathlib import Path

        from wherry.calibration import Calibration
        from wherry.hookspecs import hookimpl
        from wherry.target import Backend

        @hookimpl
        def wherry_backends():
            yield Backend(
                name="mine",
                description="a runtime for sensors whose range is known",
                precisions=("int8",),
                calibrated=frozenset({"int8"}),
                runner=Path(__file__).with_name("runner.py"),
                artifact_format="mine",
            )

        @hookimpl
        def wherry_calibrate(model, dataset, target, context):
            context.progress("no sample needs to be run")
            names = [spec.name for spec in model.inputs]
            return Calibration("known range", 0, {name: (0.0, 1.0) for name in names})
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact | None:
    """Convert a model with static shapes. Called once per model, precision and convert options.

    Write the files below ``context.output`` and return their description.

    Example::

        import shutil
        from pathlib import Path

        from wherry.artifact import Artifact, Binding
        from wherry.hookspecs import hookimpl
        from wherry.target import Backend

        def bind(spec):
            return Binding(spec.name, spec.name, spec.dtype, spec.static_shape)

        @hookimpl
        def wherry_backends():
            yield Backend(
                name="mine",
                description="a runtime that reads ONNX",
                precisions=("fp32",),
                runner=Path(__file__).with_name("runner.py"),
                artifact_format="onnx",
            )

        @hookimpl
        def wherry_convert(model, target, calibration, context):
            shutil.copyfile(model.path, context.output / "model.onnx")
            return Artifact.from_directory(
                context.output,
                backend=target.backend,
                precision=target.precision,
                format="onnx",
                inputs=tuple(map(bind, model.inputs)),
                outputs=tuple(map(bind, model.outputs)),
                provenance={"tool": "a copy"},
            )
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def wherry_profile(
    artifact: Artifact,
    target: Target,
    dataset: Dataset | None,
    session: Session,
    context: ProfileContext,
) -> Measurement | None:
    """Measure one target in one round. Called in shuffled order over the targets of a board.

    ``dataset`` is the evaluation set: its first sample is timed; in round 0 all of it is scored
    into ``context.metrics``. None: zeros are timed and nothing is scored. Where
    ``context.sustained_s`` is above 0, the target is run so long without pause instead; where
    ``context.layers`` is true, its layers are timed instead.

    Example of a wrapper; the default is what measures::

        import time

        from wherry.hookspecs import hookimpl

        @hookimpl(wrapper=True)
        def wherry_profile(target, context):
            started = time.perf_counter()
            measurement = yield
            took_s = time.perf_counter() - started
            context.progress(f"round {context.round} of {target.id} took {took_s:.1f} s")
            return measurement
    """
    raise NotImplementedError
