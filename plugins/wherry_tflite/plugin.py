"""The backend ``tflite``: TensorFlow Lite files, converted by onnx2tf and run by LiteRT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from wherry.artifact import Artifact, Binding
from wherry.calibration import Calibration
from wherry.context import StepContext
from wherry.errors import ModelError, UnsupportedError
from wherry.hookspecs import hookimpl
from wherry.model import Model
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Target
from wherry_tflite.operators import ALSO, preflight, unsupported

if TYPE_CHECKING:
    from wherry.model import TensorSpec

HERE = Path(__file__).parent


class TfliteOptions(RuntimeOptions):
    """Options of the interpreter; none of them changes the artifact."""

    xnnpack: bool = Field(
        default=True, description="run with XNNPACK's kernels, which are much faster"
    )


# onnx2tf says that it needs Python 3.12, a test runner and OpenCV, and LiteRT asks for what serves
# its tools: they come without their dependencies. The versions are those that wherry itself
# resolves to, where it has the package too, so that the files are shared.
CONVERTER = Requirements(
    packages=(
        "flatbuffers==25.12.19",
        "ml-dtypes==0.6.0",
        "numpy==2.4.6",
        "onnx==1.23.2",
        "packaging==26.3",
        "protobuf==7.36.2",
        "psutil==7.2.2",
        "typing-extensions==4.16.0",
    ),
    no_deps=("ai-edge-litert==2.3.0", "onnx2tf==2.6.9"),
    ignore_requires_python=True,
    python=">=3.11,<3.14",
)

# The interpreter imports nothing but numpy; the package's other dependencies serve its tools. It
# has no wheels for armv7l and for a glibc before 2.27: older boards run tflite-runtime, those with
# armv7l beside their own numpy, of which there are no wheels.
_NOT_ARMV7 = "platform_machine != 'armv7l'"
RUNTIMES = tuple(
    Requirements(packages=(numpy,), no_deps=(interpreter,), python=python)
    for numpy, interpreter, python in (
        ("numpy==2.4.6", "ai-edge-litert==2.3.0", ">=3.11,<3.14"),
        ("numpy==2.2.6", "ai-edge-litert==2.3.0", ">=3.10,<3.11"),
        ("numpy==2.0.2", "ai-edge-litert==2.1.0", ">=3.9,<3.10"),
        (f"numpy==1.24.4; {_NOT_ARMV7}", "tflite-runtime==2.14.0", ">=3.8,<3.12"),
        (f"numpy==1.24.4; {_NOT_ARMV7}", "tflite-runtime==2.13.0", ">=3.8,<3.11"),
    )
)


@hookimpl
def wherry_backends() -> Iterable[Backend]:
    """The backend ``tflite``."""
    yield Backend(
        name="tflite",
        description="TensorFlow Lite (LiteRT) on the CPU, with or without XNNPACK",
        precisions=("fp32", "fp16"),
        options=TfliteOptions,
        runner=HERE / "runner.py",
        runtime=RUNTIMES,
        converter=CONVERTER,
        artifact_format="tflite",
        convert_files=tuple(HERE / name for name in ("plugin.py", "prepare.py", "convert.py")),
        refusals={
            "bf16": "TensorFlow Lite has no bfloat16 kernels on a CPU; ask for fp16 or fp32",
            "int8": "this backend converts to fp32 and fp16 only",
        },
        preflight=preflight,
    )


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """Normalise and repair the model, then write it as .tflite, in environments of their own."""
    del calibration
    prepared = context.scratch / "prepared.onnx"
    normal = context.normalised(model, ALSO)
    for found in unsupported(normal.model.proto(), normal.nodes, model):
        # Known before, unless a rewrite that the pre-flight counts on is not equal after all.
        raise UnsupportedError(
            f"TFLite conversion does not support {found.op_type} (node {found.node!r})",
            where=f"node {found.node}",
            remedy=found.remedy,
        )
    before = context.run_tool(
        HERE / "prepare.py",
        {"model": str(normal.model.path), "output": str(prepared)},
        requirements=CONVERTER,
    )
    context.progress("converting")
    response = context.run_tool(
        HERE / "convert.py",
        {
            "model": str(prepared),
            "output": str(context.output),
            "precision": target.precision,
            "inputs": {spec.name: spec.static_shape for spec in model.inputs},
            "outputs": {spec.name: spec.static_shape for spec in model.outputs},
            "reference": _reference(model, context.scratch),
        },
        requirements=CONVERTER,
    )
    inputs = _bindings(model.inputs, response.pop("inputs"))
    outputs = _bindings(model.outputs, response.pop("outputs"))
    if kept := response["float32_constants"]:
        context.warn(
            f"{len(kept)} constants stay in float32, because float16 cannot hold them: "
            f"{', '.join(kept[:5])}{', ...' if len(kept) > 5 else ''}"
        )
    return Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="tflite",
        inputs=inputs,
        outputs=outputs,
        provenance={"tool": "onnx2tf", **before, **response},
    )


def _reference(model: Model, folder: Path) -> str | None:
    """A file with random inputs and the model's outputs; None where it does not run on them."""
    import numpy as np

    from wherry.reference import Reference, random_inputs

    inputs = next(iter(random_inputs(model.inputs, 1)))
    try:
        outputs = Reference(model).run(inputs)
    except ModelError:  # an input that is a shape or an index, say: no random value will do
        return None
    arrays = {f"in{index}": inputs[spec.name] for index, spec in enumerate(model.inputs)}
    arrays |= {f"out{index}": outputs[spec.name] for index, spec in enumerate(model.outputs)}
    path = folder / "reference.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def _bindings(
    specs: Sequence[TensorSpec], found: Sequence[Mapping[str, Any]]
) -> tuple[Binding, ...]:
    return tuple(
        Binding(
            onnx=each["onnx"],
            runtime=each["runtime"],
            dtype=each["dtype"],
            shape=spec.static_shape,
            permutation=None if each["permutation"] is None else tuple(each["permutation"]),
        )
        for spec, each in zip(specs, found, strict=True)
    )
