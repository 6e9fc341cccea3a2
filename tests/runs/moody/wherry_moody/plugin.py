"""The backends ``moody`` and ``homeless``, the moods of the plugin itself, and a metric."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from onnx import numpy_helper

from wherry.artifact import Artifact, Binding
from wherry.calibration import Calibration
from wherry.context import StepContext
from wherry.hookspecs import hookimpl
from wherry.metrics import MetricKind
from wherry.model import Model, TensorSpec
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Target, Unsupported, convert_option

HERE = Path(__file__).parent
HEAVY_BYTES = 2 << 20


class MoodyOptions(RuntimeOptions):
    """In manifests: how the plugin's hook, the converter and the runner misbehave."""

    hook: str = convert_option("well", description="the mood of wherry_convert")
    convert: str = convert_option("well", description="the mood of convert.py")
    wrong: str = convert_option("nothing", description="what the artifact computes wrongly")
    run: str = "well"
    """The mood of runner.py."""


@hookimpl
def wherry_backends() -> Iterable[Backend]:
    """``moody`` runs on the host's own interpreter; no environment of ``homeless`` can be made."""
    yield Backend(
        name="moody",
        description="misbehaves as it is told",
        precisions=("fp32",),
        options=MoodyOptions,
        runner=HERE / "runner.py",
        artifact_format="moody",
        convert_files=(HERE / "plugin.py", HERE / "convert.py"),
        preflight=preflight,
    )
    yield Backend(
        name="homeless",
        description="needs a package that does not exist",
        precisions=("fp32",),
        runner=HERE / "runner.py",
        artifact_format="moody",
        converter=Requirements(packages=("wherry-no-such-package==1.0",)),
        convert_files=(HERE / "plugin.py", HERE / "convert.py"),
    )


class Checksum:
    """Over all outputs and their order: one that is lost, changed or moved changes it."""

    def __init__(self, _output: str | None) -> None:
        self.count, self.sum = 0, 0.0

    def update(
        self,
        outputs: Mapping[str, np.ndarray],
        reference: Mapping[str, np.ndarray],
        label: int | np.ndarray | None,
    ) -> None:
        for array in (outputs["a"], outputs["b"]):
            self.count += 1
            self.sum += self.count * float(array.sum(dtype=np.float64))

    def result(self) -> float:
        return self.sum


@hookimpl
def wherry_metrics() -> Iterable[MetricKind]:
    """`Checksum`."""
    yield MetricKind("checksum", "of all outputs in their order", "higher", Checksum)


def preflight(model: Model, target: Target) -> list[Unsupported]:
    """In one mood it refuses an operator."""
    if target.options.model_dump()["hook"] != "preflight":
        return []
    names = model.operators()["MatMul"]
    return [Unsupported("MatMul", len(names), names[0], "Take another backend.")]


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact | None:
    """Hand the weights to convert.py, so that it needs no onnx and starts at once."""
    moods = {"hook": "well", "convert": "well", "wrong": "nothing", **target.options.model_dump()}
    hook = moods["hook"]
    if hook == "raises":
        raise KeyError("weights of the second layer")
    if hook == "exits":
        sys.exit(0)
    if hook == "nothing":
        return None
    weights = {
        tensor.name: numpy_helper.to_array(tensor).tolist()
        for tensor in model.proto().graph.initializer
    }
    response = context.run_tool(
        HERE / "convert.py",
        {
            "output": str(context.output),
            "mood": moods["convert"],
            "program": {"weights": weights, "wrong": moods["wrong"]},
        },
        requirements=Requirements(packages=("wherry-no-such-package==1.0",))
        if target.backend == "homeless"
        else None,
    )
    outputs = tuple(map(_bind, model.outputs))
    if hook == "links":
        (context.output / "passwd").symlink_to("/etc/passwd")
    if hook == "heavy":  # it takes a while to send, and cannot be compressed
        (context.output / "ballast").write_bytes(random.Random(0).randbytes(HEAVY_BYTES))
    artifact = Artifact.from_directory(
        context.output if hook != "elsewhere" else context.scratch,
        backend=target.backend,
        precision=target.precision,
        format="moody",
        inputs=tuple(map(_bind, model.inputs)),
        outputs=outputs[:1] if hook == "loses" else outputs,
        provenance=response,
    )
    if hook == "changes":
        (context.output / "program.json").write_text("{}")
    return artifact


def _bind(spec: TensorSpec) -> Binding:
    return Binding(spec.name, spec.name, spec.dtype, spec.static_shape)
