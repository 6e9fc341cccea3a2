"""MACE as a backend: wherry writes its model files, the board's owner brings its ``mace_run``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wherry.artifact import Artifact, Binding, Layer
from wherry.errors import UnsupportedError
from wherry.hookspecs import hookimpl
from wherry.normalise import preview
from wherry.quantize import FILES as QUANTIZE
from wherry.quantize.given import float_model, is_quantised
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Unsupported, convert_option
from wherry_mace import deployment, operators
from wherry_mace.format import Net, write
from wherry_mace.translate import ALSO, rename

if TYPE_CHECKING:
    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model, TensorSpec
    from wherry.normalise import Normalised
    from wherry.target import Target

HERE = Path(__file__).parent
MODEL = "model"
REPORT = "Report this to wherry, with the model if you can."


class MaceOptions(RuntimeOptions):
    """MACE's options; ``runtime`` alone changes the artifact."""

    runtime: Literal["cpu", "gpu"] = convert_option(
        "cpu", description="where MACE computes: on the CPU, or on the GPU by OpenCL"
    )
    affinity: Literal["none", "big", "little"] = Field(
        default="none", description="which cores of a big.LITTLE processor to use"
    )
    gpu_perf: Literal["default", "low", "normal", "high"] = Field(
        default="high", description="with the GPU: the performance that its driver is asked for"
    )
    gpu_priority: Literal["default", "low", "normal", "high"] = Field(
        default="high", description="with the GPU: the priority that its driver is asked for"
    )
    opencl_cache: bool = Field(
        default=True,
        description="with the GPU: keep compiled OpenCL programs on the board between runs",
    )
    opencl_binary: str = Field(
        default="", description="with the GPU: a file on the board with compiled OpenCL programs"
    )
    opencl_parameters: str = Field(
        default="", description="with the GPU: a file on the board with tuned OpenCL parameters"
    )
    rounds: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="inferences of which a measured sample is the average: mace_run tells averages "
        "alone",
    )


RUNTIMES = tuple(
    Requirements(packages=(f"numpy=={numpy}; platform_machine != 'armv7l'",), python=python)
    for numpy, python in (
        ("2.4.6", ">=3.11"),
        ("2.2.6", ">=3.10,<3.14"),
        ("1.24.4", ">=3.8,<3.12"),
    )
)


@hookimpl
def wherry_backends() -> Iterable[Backend]:
    """The backend ``mace``."""
    yield Backend(
        name="mace",
        description="MACE, for phones and ARM boards; runs in the mace_run of the board's owner",
        precisions=("fp32", "fp16"),
        options=MaceOptions,
        runner=HERE / "runner.py",
        runtime=RUNTIMES,
        converter=None,
        artifact_format="mace",
        convert_files=(*sorted(HERE.glob("*.py")), *QUANTIZE),
        refusals={
            "bf16": "MACE's bf16 is no more exact than its fp16, and no smaller: ask for fp16."
        },
        preflight=preflight,
        operators=operators.operators,
        tools={"mace_run": ()},
        prepare_s=60.0,
    )


def preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """What the converter would refuse; see `wherry_mace.translate`."""
    return _refusals(model, quantised=target.precision == "int8" and is_quantised(model))


@lru_cache(maxsize=64)  # a manifest asks for every target of a model
def _refusals(model: Model, *, quantised: bool) -> tuple[Unsupported, ...]:
    if not quantised:
        proto, sources = preview(model, ALSO)
        return operators.counted(operators.translated(proto).refused, sources, _kinds(model))
    with tempfile.TemporaryDirectory() as folder:
        try:
            made, _ = float_model(model, Path(folder))
        except UnsupportedError as error:
            where = (error.where or "").removeprefix("node ")
            return (Unsupported("what is quantised already", 1, where, error.remedy or REPORT),)
        return _refusals(made, quantised=False)


def _kinds(model: Model) -> dict[str, str]:
    """Nodes to their operators."""
    return {name: kind for kind, names in model.operators().items() for name in names}


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """``model.pb`` and ``model.data``; raises `UnsupportedError` for what MACE cannot do."""
    normal = context.normalised(model, ALSO)
    walk = operators.translated(normal.model.proto())
    for found in operators.counted(walk.refused, normal.nodes, _kinds(model)):
        raise UnsupportedError(
            f"MACE cannot take {found.op_type}", where=f"node {found.node}", remedy=found.remedy
        )
    net, names = rename(walk.net())
    half, options = target.precision == "fp16", target.options.model_dump()
    definition, data = write(net, MODEL, half=half, runtime=options["runtime"])
    (context.output / f"{MODEL}.pb").write_bytes(definition)
    (context.output / f"{MODEL}.data").write_bytes(data)
    artifact = Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="mace",
        inputs=tuple(_binding(spec, names) for spec in model.inputs),
        outputs=tuple(_binding(spec, names) for spec in model.outputs),
        provenance={"tool": "wherry's own writer of MACE's format", "ops": len(net.ops)},
        layers=_layers(net, normal, target.precision, {new: old for old, new in names.items()}),
    )
    # Beside the artifact and not of it: MACE's own tools read them, a board does not.
    deployment.write(context.output, model, target, calibration)
    return artifact


def _binding(spec: TensorSpec, names: dict[str, str]) -> Binding:
    return Binding(spec.name, names[spec.name], "float32", spec.static_shape)


def _layers(
    net: Net, normal: Normalised, precision: str, onnx_names: dict[str, str]
) -> tuple[Layer, ...]:
    """The operations, by the model's own nodes and tensors."""
    graph = normal.model.proto().graph
    made = {name for node in graph.node for name in node.output if name}
    layers = []
    for op in net.ops:
        outputs = {onnx_names.get(name, name): name for name in op.outputs}
        outputs = {name: mine for name, mine in outputs.items() if name in made}
        layers.append(Layer(op.name, op.type, normal.originals(op.nodes), outputs, precision))
    return tuple(layers)
