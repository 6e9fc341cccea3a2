"""ONNX Runtime as a backend, and the default calibration: the reference that all backends share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from wherry.artifact import Artifact, Binding
from wherry.calibration import Calibration
from wherry.data.inputs import write_inputs
from wherry.errors import UnsupportedError
from wherry.hookspecs import hookimpl
from wherry.keep import kept_nodes
from wherry.model import Model
from wherry.quantize import FILES as QUANTIZE
from wherry.quantize.given import float_model, is_quantised
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Target, Unsupported, convert_option
from wherry_onnxruntime.int8 import (
    GIVEN,
    LEAST,
    OLDEST,
    RENEWED,
    Source,
    describe,
    expose,
    quantise,
)
from wherry_onnxruntime.operators import operators

if TYPE_CHECKING:
    from wherry.context import CalibrateContext, StepContext
    from wherry.dataset import Dataset
    from wherry.model import TensorSpec

HERE = Path(__file__).parent


class OnnxruntimeOptions(RuntimeOptions):
    """Options of a session; ``quantize`` and ``keep_fp32`` alone change the artifact."""

    inter_threads: int = Field(
        default=1, ge=1, le=1024, description="nodes at a time, with execution: parallel"
    )
    graph_optimization: Literal["all", "extended", "basic", "none"] = Field(
        default="all", description="how far ONNX Runtime rewrites the graph when it loads it"
    )
    execution: Literal["sequential", "parallel"] = Field(
        default="sequential", description="whether independent nodes may run at once"
    )
    provider: str = Field(
        default="cpu",
        min_length=1,
        description="execution provider by name, e.g. cpu or cuda; nodes that it cannot run fall "
        "to the CPU; one that the board's runtime lacks is refused there",
    )
    spinning: bool = Field(
        default=True, description="threads wait by spinning: faster, and hot while idle"
    )
    exact_int8: bool = Field(
        default=True,
        description="on x86 processors without VNNI, take 8-bit kernels whose sums cannot "
        "overflow; false is faster there and loses accuracy",
    )
    quantize: Literal["static", "weights"] = convert_option(
        "static",
        description="static: weights and activations are int8, by the calibration; weights: "
        "weights alone, and all sums are in fp32",
        precisions=["int8"],
    )

    def of(self, precision: str) -> Self:
        """One after the other there are no nodes at a time."""
        options = super().of(precision)
        if options.execution == "parallel":
            return options
        return options.model_copy(update={"inter_threads": 1})

    @property
    def calibrated(self) -> bool:
        """Weights need no calibration."""
        return self.quantize == "static"


# onnxruntime imports nothing but numpy to run a model; its other dependencies (sympy, protobuf,
# flatbuffers, ...) serve its Python tools and would double the environment.
RUNTIMES = tuple(
    Requirements(packages=(numpy,), no_deps=(onnxruntime,), python=python)
    for numpy, onnxruntime, python in (
        ("numpy==2.4.6", "onnxruntime==1.32.0", ">=3.11"),
        ("numpy==2.2.6", "onnxruntime==1.23.2", ">=3.10,<3.14"),
        ("numpy==1.24.4", "onnxruntime==1.19.2", ">=3.8,<3.12"),
    )
)


@hookimpl
def wherry_backends() -> Iterable[Backend]:
    """The backend ``onnxruntime``."""
    yield Backend(
        name="onnxruntime",
        description="ONNX Runtime, on the CPU or another execution provider",
        precisions=("fp32", "fp16", "int8"),
        options=OnnxruntimeOptions,
        runner=HERE / "runner.py",
        examples=(HERE / "example.cpp",),
        runtime=RUNTIMES,
        converter=None,
        artifact_format="onnx",
        convert_files=(
            *(HERE / f"{name}.py" for name in ("plugin", "convert", "int8", "layers", "runner")),
            *QUANTIZE,
        ),
        calibrated=frozenset({"int8"}),
        mixed=frozenset({"fp16", "int8"}),
        refusals={"bf16": "ONNX Runtime has no bfloat16 kernels on a CPU; ask for fp16 or fp32"},
        preflight=preflight,
        operators=operators,
        expose=expose,
    )


# --- pre-flight ----------------------------------------------------------------------------------


def preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """Operators that the ONNX Runtime at hand does not define, by domain and opset."""
    newest = max(max(since) for name, since in _schemas().items() if "::" not in name)
    if model.opset > newest:
        return [_wrong_opset(model, f"{newest} or older")]
    if target.precision == "int8" and 0 < model.opset < OLDEST:
        return [_wrong_opset(model, f"{LEAST} or newer, which has 8-bit operators")]
    renewed = RENEWED if target.precision == "int8" and model.opset < LEAST else frozenset[str]()
    return [
        Unsupported(name, len(nodes), nodes[0], _remedy(name))
        for name, nodes in model.operators().items()
        if not _is_defined(name, model.opset)
    ] + [
        Unsupported(
            f"{name} of opset {model.opset} in int8",
            len(nodes),
            nodes[0],
            f"Export the model with opset {LEAST} or newer.",
        )
        for name, nodes in model.operators().items()
        if name in renewed
    ]


def _wrong_opset(model: Model, wanted: str) -> Unsupported:
    operators = model.operators()
    return Unsupported(
        f"every operator (opset {model.opset})",
        sum(map(len, operators.values())),
        next(iter(operators.values()))[0],
        f"Export the model with opset {wanted}.",
    )


def _is_defined(name: str, opset: int) -> bool:
    since = _schemas().get(name, set())
    return bool(since) and ("::" in name or min(since) <= opset)


def _remedy(name: str) -> str:
    if since := _schemas().get(name):
        return f"Export the model with opset {min(since)} or newer."
    domain, _, operator = name.rpartition("::")
    if domain and not any(known.startswith(f"{domain}::") for known in _schemas()):
        return (
            f"The domain {domain} is not one of ONNX Runtime's: write {operator} with ONNX's own "
            "operators."
        )
    return "Write it with ONNX's own operators, or export the model with another opset."


@cache
def _schemas() -> Mapping[str, set[int]]:
    """Operators, named as in `Model.operators`, to the opsets in which their definition changed."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, set[int]] = {}
    for schema in state.get_all_operator_schema():
        domain = "" if schema.domain in {"", "ai.onnx"} else f"{schema.domain}::"
        found.setdefault(domain + schema.name, set()).add(schema.since_version)
    return found


# --- conversion ----------------------------------------------------------------------------------


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """The model itself, a float16 one with float32 inputs and outputs, or one with Q/DQ."""
    keep: frozenset[str] = frozenset()
    if target.precision == "int8":
        source = quantise(model, target, calibration, context)
    else:
        source = Source(model.path)
        keep = kept_nodes(model, target.options.keep_fp32)
    response = context.run_tool(
        HERE / "convert.py",
        {
            "model": str(source.path),
            "output": str(context.output),
            "precision": target.precision,
            "keep": sorted(keep),
        },
        requirements=None,
    )
    if nodes := response.get("float32_nodes"):
        context.warn(
            f"{len(nodes)} nodes stay in float32, because a weight is beyond float16's range "
            f"(65504): {_few(nodes)}"
        )
    if weights := response.get("clamped"):
        context.warn(f"bounds beyond float16's range became 65504: {_few(weights)}")
    if source.quantized == GIVEN:
        context.progress("the model is quantised already: it is taken as it is")
    layers = describe(response.pop("layers"), model, source, target.precision)
    quantized = {"quantized": source.quantized} if source.quantized else {}
    return Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="onnx",
        inputs=_bindings(model.inputs),
        outputs=_bindings(model.outputs),
        provenance={"tool": "onnxruntime", **response, **quantized},
        layers=layers,
    )


def _bindings(specs: Iterable[TensorSpec]) -> tuple[Binding, ...]:
    return tuple(Binding(s.name, s.name, s.dtype, s.static_shape) for s in specs)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# --- calibration ---------------------------------------------------------------------------------


@hookimpl(trylast=True)
def wherry_calibrate(
    model: Model, dataset: Dataset, target: Target, context: CalibrateContext
) -> Calibration:
    """The range of every float32 activation over all samples, by the method that is asked for.

    The dataset's inputs are those of the model, preprocessed. This is the default of all backends.
    A model that comes with Q/DQ says its ranges itself.
    """
    del target
    if is_quantised(model):
        try:
            _, own = float_model(model, context.scratch)
        except UnsupportedError as error:
            # No backend can map it, and those that would need to say so; ONNX Runtime needs none.
            context.progress(f"no ranges of its own: {error}")
        else:
            if own.ranges:
                return own
    files = write_inputs(model, dataset, context.scratch)
    settings = context.settings
    response = context.run_tool(
        HERE / "calibrate.py",
        {
            "model": str(model.path),
            "inputs": files,
            "method": settings.method,
            "percentile": settings.percentile,
        },
        requirements=None,
    )
    ranges = {name: (low, high) for name, (low, high) in response["ranges"].items()}
    return Calibration(settings.method, len(dataset), ranges, response["thresholds"])
