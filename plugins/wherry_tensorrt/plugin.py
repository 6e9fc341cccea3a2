"""TensorRT as a backend: the board builds its engine itself, of ONNX files that are made here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.artifact import Artifact, Binding
from wherry.errors import UnsupportedError
from wherry.hookspecs import hookimpl
from wherry.quantize import FILES as QUANTIZE
from wherry.target import Backend, RuntimeOptions, Unsupported, convert_option
from wherry_tensorrt import operators
from wherry_tensorrt.make import MODEL, TYPED, make

if TYPE_CHECKING:
    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model, TensorSpec
    from wherry.target import Target
    from wherry_tensorrt.graphs import Port

HERE = Path(__file__).parent
_BUILD_S = 6 * 3600.0  # engines of large networks take hours on small boards

Axes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=8)]


class InputShapes(BaseModel):
    """The shapes of an input that one engine takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(min_length=1, description="the name of an input of the model")
    min: Axes = Field(description="the least size of each axis")
    max: Axes = Field(description="the greatest size of each axis")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if len(self.min) != len(self.max) or any(
            a > b for a, b in zip(self.min, self.max, strict=True)
        ):
            raise ValueError(f"min {list(self.min)} has to be no more than max {list(self.max)}")
        return self


class TensorrtOptions(RuntimeOptions):
    """TensorRT's options. All but the first few only change what the board builds."""

    int8: Literal["explicit", "implicit"] = convert_option(
        "explicit",
        description="explicit: Q/DQ in the model say what is in int8; implicit: TensorRT chooses, "
        "and takes the ranges from a calibration cache (up to TensorRT 10)",
        precisions=["int8"],
    )
    int8_rest: Literal["fp16", "fp32"] = convert_option(
        "fp16", description="what is not in int8 may be computed in", precisions=["int8"]
    )
    shapes: tuple[InputShapes, ...] = convert_option(
        (), description="inputs of which one engine takes several shapes; others are fixed"
    )
    check_parser: bool = convert_option(
        False,
        description="let NVIDIA's own ONNX parser read the files on this host (TensorRT-RTX, 370 "
        "MB, under NVIDIA's proprietary licence)",
    )
    run_with: Literal["auto", "trtexec", "python"] = Field(
        default="auto",
        description="python: TensorRT's Python module, timed by the agent as all other backends "
        "are; trtexec: NVIDIA's program, which times itself; auto: python where the board has it",
    )
    tf32: bool = Field(
        default=False, description="in fp32, let products be of TF32, which has 10 bits of fraction"
    )
    sparsity: bool = Field(
        default=False,
        description="use kernels for weights of which 2 of 4 are zero, where they are",
    )
    dla: int | None = Field(
        default=None, ge=0, le=7, description="the core of the Deep Learning Accelerator to use"
    )
    gpu_fallback: bool = Field(
        default=True, description="what the DLA cannot do, the GPU does; else it is an error"
    )
    workspace_mb: int | None = Field(
        default=None, ge=1, le=1 << 20, description="memory that single layers may use, MiB"
    )
    optimization_level: int | None = Field(
        default=None, ge=0, le=5, description="how hard the builder tries; TensorRT's own is 3"
    )


@hookimpl
def wherry_backends() -> Iterable[Backend]:
    """The backend ``tensorrt``."""
    board = ("command", "output", "engines", "inprocess", "cuda")
    yield Backend(
        name="tensorrt",
        description="TensorRT on NVIDIA's boards, which build their engines themselves",
        precisions=("fp32", "fp16", "bf16", "int8"),
        options=TensorrtOptions,
        runner=HERE / "runner.py",
        runner_files=tuple(HERE / f"{name}.py" for name in board),
        artifact_format="tensorrt-onnx",
        convert_files=(
            *(HERE / f"{name}.py" for name in ("plugin", "make", "graphs", "retype", "engines")),
            *QUANTIZE,
        ),
        calibrated=frozenset({"int8"}),
        mixed=frozenset({"fp16", "bf16", "int8"}),
        preflight=preflight,
        operators=operators.operators,
        stand_in=stand_in,
        tools={
            "trtexec": ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec"),
            "tensorrt": tuple(
                f"/usr/lib/python3{minor}/dist-packages/tensorrt"
                for minor in (".8", ".10", ".12", "")
            ),
        },
        prepare_s=_BUILD_S,
        examples=(HERE / "example.cpp",),
    )


def preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """Operators that NVIDIA's parser does not know; see `wherry_tensorrt.operators`."""
    del target  # the same in every precision
    return operators.preflight(model)


def stand_in(artifact: Artifact) -> Path | None:
    """The file whose arithmetic is nearest to what a board will do.

    In bfloat16 and with implicit int8 there is none: the first has no kernels on a host, and of the
    second the file is in float32.
    """
    if artifact.precision == "bf16" or artifact.provenance.get("quantised") == "implicit":
        return None
    name = TYPED if artifact.precision == "fp16" else MODEL
    return artifact.directory / name


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """ONNX files for all versions of TensorRT, and a recipe; see `wherry_tensorrt.make`."""
    for found in operators.preflight(model):
        raise UnsupportedError(
            f"TensorRT's parser does not know {found.op_type}",
            where=f"node {found.node}",
            remedy=found.remedy,
        )
    options = target.options.model_dump(mode="json")
    made = make(model, target.precision, options, target.options.keep_fp32, calibration, context)
    notes = made.notes
    if options["check_parser"]:
        notes["parsed_by"] = parsed(context)
    return Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="tensorrt-onnx",
        inputs=_bindings(made.inputs, model.inputs),
        outputs=_bindings(made.outputs, model.outputs),
        provenance={"tool": "wherry", **notes},
        layers=made.layers,
    )


def _bindings(ports: Iterable[Port], specs: Iterable[TensorSpec]) -> tuple[Binding, ...]:
    return tuple(
        Binding(port.onnx, port.runtime, port.dtype, spec.static_shape)
        for port, spec in zip(ports, specs, strict=True)
    )


def parsed(context: StepContext) -> str:
    """Let NVIDIA's parser read the files; which one did.

    Raises:
        UnsupportedError: it refuses one.
    """
    context.progress("NVIDIA's parser reads the files")
    files = [str(path) for path in sorted(context.output.glob("*.onnx"))]
    response = context.run_tool(
        HERE / "parse.py", {"what": "models", "files": files}, requirements=operators.PARSER
    )
    for path, told in response["models"].items():
        for problem in told["problems"][:1]:
            raise UnsupportedError(
                f"NVIDIA's parser refuses {Path(path).name}: {problem['operator']} "
                f"{problem['node']!r}: {problem['text']}",
                where=f"node {problem['node']}",
                remedy="Write it with other operators, or take another backend.",
            )
    return f"NVIDIA's parser (TensorRT-RTX {response['tensorrt_rtx']})"
