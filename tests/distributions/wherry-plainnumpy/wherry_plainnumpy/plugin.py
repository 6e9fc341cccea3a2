"""The backend plainnumpy: what it offers, what it refuses, and its conversion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field

from wherry.artifact import Artifact, Binding
from wherry.calibration import Calibration
from wherry.context import StepContext
from wherry.hookspecs import hookimpl
from wherry.model import Model, TensorSpec
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Target, Unsupported, convert_option

HERE = Path(__file__).parent
OPERATORS = {"Add", "Constant", "Flatten", "Gemm", "MatMul", "Relu", "Softmax"}


class PlainNumpyOptions(RuntimeOptions):
    """The options in manifests: ``fuse`` changes the artifact, the others only the run."""

    fuse: bool = convert_option(True, description="compute a Relu with the step before it")
    check_finite: bool = Field(
        default=False, description="stop at the first step that gives NaN or infinity"
    )


def preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """Name each operator that the converter does not know, with the first node."""
    found = []
    for operator, nodes in model.operators().items():
        if operator not in OPERATORS:
            known = ", ".join(sorted(OPERATORS))
            remedy = f"plainnumpy knows only {known}; choose another backend."
        elif operator == "Softmax" and model.opset < 13:
            remedy = "Convert the model to opset 13 or later."
        else:
            continue
        found.append(Unsupported(operator, len(nodes), nodes[0], remedy))
    return found


@hookimpl
def wherry_backends() -> Iterable[Backend]:
    """Yield the one backend."""
    yield Backend(
        name="plainnumpy",
        description="small networks in plain numpy",
        precisions=("fp32",),
        refusals={"int8": "numpy has no integer matrix product that is fast; choose fp32."},
        options=PlainNumpyOptions,
        runner=HERE / "runner.py",
        runtime=(Requirements(packages=("numpy>=1.20", "threadpoolctl==3.5.0")),),
        converter=None,  # convert.py needs onnx and numpy, which wherry itself has
        artifact_format="plainnumpy",
        convert_files=(HERE / "plugin.py", HERE / "convert.py"),
        preflight=preflight,
    )


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """Run ``convert.py`` in a process of its own and describe what it left."""
    response = context.run_tool(
        HERE / "convert.py",
        {
            "model": str(model.path),
            "output": str(context.output),
            "fuse": target.options.model_dump()["fuse"],
        },
        requirements=None,
    )
    return Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="plainnumpy",
        inputs=tuple(_bind(spec) for spec in model.inputs),
        outputs=tuple(_bind(spec) for spec in model.outputs),
        provenance={"tool": "plainnumpy", **response},
    )


def _bind(spec: TensorSpec) -> Binding:
    """numpy takes every tensor as ONNX has it."""
    return Binding(spec.name, spec.name, spec.dtype, spec.static_shape)
