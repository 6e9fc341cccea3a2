"""MACE as a backend: wherry writes its model files, the board's owner brings its ``mace_run``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wherry.hookspecs import hookimpl
from wherry.normalise import preview
from wherry.quantize import FILES as QUANTIZE
from wherry.quantize.given import is_quantised, preflight_float
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Unsupported, convert_option
from wherry_mace import operators, writing
from wherry_mace.translate import ALSO

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model
    from wherry.target import Target

HERE = Path(__file__).parent
REPORT = "Report this to wherry, with the model if you can."


class MaceOptions(RuntimeOptions):
    """MACE's options; ``runtime`` and those of the converter change the artifact."""

    runtime: Literal["cpu", "gpu"] = convert_option(
        "cpu", description="where MACE computes: on the CPU, or on the GPU by OpenCL"
    )
    converter: Literal["own", "checkout"] = convert_option(
        "own", description="who writes the model: wherry, or the converter of a MACE checkout"
    )
    checkout: str = convert_option(
        "", description="with converter checkout: the folder of MACE's sources on this machine"
    )
    checkout_python: str = convert_option(
        "python3",
        description="with converter checkout: the interpreter of the environment for MACE's tools",
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
        precisions=("fp32", "fp16", "int8"),
        options=MaceOptions,
        runner=HERE / "runner.py",
        runtime=RUNTIMES,
        converter=None,
        artifact_format="mace",
        convert_files=(*sorted(HERE.glob("*.py")), *QUANTIZE),
        calibrated=frozenset({"int8"}),
        mixed=frozenset({"int8"}),
        refusals={
            "bf16": "MACE's bf16 is no more exact than its fp16, and no smaller: ask for fp16."
        },
        preflight=preflight,
        expose=writing.expose,
        operators=operators.operators,
        tools={"mace_run": ()},
        prepare_s=60.0,
        examples=(HERE / "example.cpp",),
    )


def preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """What the converter would refuse; see `wherry_mace.translate`.

    What the converter of a checkout takes, it says itself.
    """
    options = target.options.model_dump()
    problem = writing.wrong_options(target)
    if problem is not None:
        return (Unsupported("what its options ask for", 1, "no node", problem.remedy or REPORT),)
    if options["converter"] == "checkout":
        return ()
    quantised = target.precision == "int8" and is_quantised(model)
    return _refusals(model, quantised=quantised, gpu=options["runtime"] == "gpu")


@lru_cache(maxsize=64)  # a manifest asks for every target of a model
def _refusals(model: Model, *, quantised: bool, gpu: bool) -> tuple[Unsupported, ...]:
    if not quantised:
        proto, sources = preview(model, ALSO)
        return operators.counted(
            operators.translated(proto, gpu=gpu).refused, sources, operators.kinds(model)
        )
    plain = partial(_refusals, quantised=False, gpu=gpu)
    return tuple(preflight_float(model, plain))


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """``model.pb`` and ``model.data``; raises `UnsupportedError` for what MACE cannot do."""
    return writing.convert(model, target, calibration, context)
