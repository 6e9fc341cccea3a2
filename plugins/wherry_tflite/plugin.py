"""The backend ``tflite``: TensorFlow Lite files, converted by onnx2tf and run by LiteRT."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from wherry.artifact import Artifact, Binding
from wherry.calibration import Calibration
from wherry.context import StepContext
from wherry.errors import ModelError, UnsupportedError
from wherry.hookspecs import hookimpl
from wherry.model import Model
from wherry.quantize import FILES as QUANTIZE
from wherry.quantize.given import float_model, is_quantised, preflight_float
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Target, Unsupported, convert_option
from wherry_tflite import support
from wherry_tflite.int8 import Float, quantise
from wherry_tflite.layers import Matches, describe, done
from wherry_tflite.operators import ALSO, preflight, unsupported

if TYPE_CHECKING:
    from wherry.model import TensorSpec

HERE = Path(__file__).parent
FILE = "model.tflite"


class TfliteOptions(RuntimeOptions):
    """Options of the interpreter; ``quantize``, ``io`` and ``keep_fp32`` change the artifact."""

    xnnpack: bool = Field(
        default=True, description="run with XNNPACK's kernels, which are much faster"
    )
    quantize: Literal["static", "dynamic", "weights"] = convert_option(
        "static",
        description="static: weights and activations are int8, by the calibration; dynamic: "
        "weights are, and the runtime quantises what they meet in each inference; weights: "
        "weights alone, and all sums are in fp32",
        precisions=["int8"],
    )
    io: Literal["float", "integer"] = convert_option(
        "float",
        description="what the network takes and gives; integer: int8, worked out outside of what "
        "is timed, for quantize: static alone",
        precisions=["int8"],
    )

    @model_validator(mode="after")
    def _integers_want_ranges(self) -> Self:
        if self.io == "integer" and self.quantize != "static":
            raise ValueError(
                f"io: integer cannot be had with quantize: {self.quantize}, which leaves "
                "activations in fp32; ask for quantize: static, or leave io out"
            )
        return self

    @property
    def calibrated(self) -> bool:
        """Ranges are wanted where activations are quantised in advance."""
        return self.quantize == "static"


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
        precisions=("fp32", "fp16", "int8"),
        options=TfliteOptions,
        runner=HERE / "runner.py",
        examples=(HERE / "example.cpp",),
        runtime=RUNTIMES,
        converter=CONVERTER,
        artifact_format="tflite",
        convert_files=(*sorted(HERE.glob("*.py")), *QUANTIZE),
        calibrated=frozenset({"int8"}),
        mixed=frozenset({"int8"}),
        refusals={
            "bf16": "TensorFlow Lite has no bfloat16 kernels on a CPU; ask for fp16 or fp32",
        },
        preflight=_preflight,
        operators=lambda tools: support.operators(tools, CONVERTER),
        expose=expose,
        dissect=dissect,
    )


def _preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """A model that is quantised already is looked at without its Q/DQ, where int8 is asked for."""
    if target.precision != "int8" or not is_quantised(model):
        return preflight(model, target)
    return preflight_float(model, lambda plain: preflight(plain, target))


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """Normalise and repair the model, then write it as .tflite, in the converter's environment."""
    given = model
    if target.precision == "int8" and is_quantised(model):
        given, _ = float_model(model, context.scratch)  # its ranges are the calibration
    normal = context.normalised(given, ALSO)
    for found in unsupported(normal.model.proto(), normal.nodes, given):
        # Known before, unless a rewrite that the pre-flight counts on is not equal after all.
        raise UnsupportedError(
            f"TFLite conversion does not support {found.op_type} (node {found.node!r})",
            where=f"node {found.node}",
            remedy=found.remedy,
        )
    context.progress("converting")
    int8 = target.precision == "int8"
    reference, tensors = _reference(normal.model, context.scratch)
    request = {
        "model": str(normal.model.path),
        "output": str(context.scratch if int8 else context.output),
        "precision": "fp32" if int8 else target.precision,
        "inputs": {spec.name: spec.static_shape for spec in model.inputs},
        "outputs": {spec.name: spec.static_shape for spec in model.outputs},
        "reference": reference,
        "tensors": tensors,
    }
    try:
        response = context.run_tool(HERE / "convert.py", request, requirements=CONVERTER)
    except UnsupportedError as error:  # of nodes of the normal form, some of which are new
        raise UnsupportedError(
            f"{error.message} (the model has {given.listed()})",
            where=error.where,
            remedy=error.remedy,
        ) from error
    if kept := response["float32_constants"]:
        context.warn(
            f"{len(kept)} constants stay in float32, because float16 cannot hold them: {_few(kept)}"
        )
    matches = Matches.from_json(response.pop("matches"))
    operators = response.pop("operators")
    nodes = done([each for each in operators if each["source"] is not None], matches, normal)
    ports: Mapping[str, Any] = {}
    if int8:
        operators, ports = quantise(
            given, target, calibration, context, Float(operators, nodes, matches, CONVERTER)
        )
    layers, tensors_made = describe(operators, nodes, matches, given)
    inputs = _bindings(model.inputs, response.pop("inputs"), ports)
    outputs = _bindings(model.outputs, response.pop("outputs"), ports)
    return Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="tflite",
        inputs=inputs,
        outputs=outputs,
        provenance={"tool": "onnx2tf", **response, "tensors": tensors_made},
        layers=layers,
    )


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _reference(model: Model, folder: Path) -> tuple[str | None, list[str]]:
    """A file with random inputs and all that the model makes of them, and the tensors' names.

    No file where the model does not run on random inputs.
    """
    import numpy as np
    import onnx

    from wherry.reference import open_session, random_inputs, run_session

    where = str(model.path)
    inputs = next(iter(random_inputs(model.inputs, 1)))
    proto = model.proto()
    own = [spec.name for spec in model.outputs]
    inner = [name for node in proto.graph.node for name in node.output if name and name not in own]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    try:
        session = open_session(proto.SerializeToString(), threads=1, where=where)
        values = run_session(session, inputs, where=where)
    except ModelError:  # an input that is a shape or an index, say: no random value will do
        return None, []
    values = {**inputs, **values}
    names = [*inputs, *(name for node in proto.graph.node for name in node.output)]
    names = [name for name in names if isinstance(values.get(name), np.ndarray)]
    arrays = {f"in{index}": inputs[spec.name] for index, spec in enumerate(model.inputs)}
    arrays |= {f"out{index}": values[name] for index, name in enumerate(own)}
    arrays |= {f"tensor{index}": values[name] for index, name in enumerate(names)}
    path = folder / "reference.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return str(path), names


def _bindings(
    specs: Sequence[TensorSpec],
    found: Sequence[Mapping[str, Any]],
    ports: Mapping[str, Mapping[str, Any]],
) -> tuple[Binding, ...]:
    """Bindings; ``ports`` says of those that are whole numbers how."""
    return tuple(
        Binding(
            onnx=each["onnx"],
            runtime=each["runtime"],
            shape=spec.static_shape,
            permutation=None if each["permutation"] is None else tuple(each["permutation"]),
            **{"dtype": each["dtype"], **ports.get(each["runtime"], {})},
        )
        for spec, each in zip(specs, found, strict=True)
    )


# --- for ``debug layers`` ------------------------------------------------------------------------


def expose(artifact: Artifact, model: Model, context: StepContext) -> Artifact:
    """The same file with the layers' tensors as outputs: whole numbers where it has these."""
    del model
    own = {binding.onnx for binding in artifact.outputs}
    added = {
        name: runtime
        for layer in artifact.layers
        for name, runtime in layer.outputs.items()
        if name not in own
    }
    response = context.run_tool(
        HERE / "cut.py",
        {
            "model": str(artifact.directory / FILE),
            "output": str(context.output / FILE),
            "add": list(added.values()),
        },
        requirements=CONVERTER,
    )
    about = artifact.provenance["tensors"]
    bindings = tuple(
        Binding(
            onnx=name,
            runtime=runtime,
            shape=tuple(about[name]["shape"]),
            permutation=None
            if about[name]["permutation"] is None
            else tuple(about[name]["permutation"]),
            **response["outputs"][runtime],
        )
        for name, runtime in added.items()
    )
    return _again(artifact, context, bindings)


def dissect(artifact: Artifact, context: StepContext) -> Artifact:
    """The same file, and one for each of its operators, which the runner times one by one."""
    shutil.copyfile(artifact.directory / FILE, context.output / FILE)
    pieces = context.output / "layers"
    pieces.mkdir()
    response = context.run_tool(
        HERE / "cut.py",
        {"model": str(artifact.directory / FILE), "output": str(pieces), "pieces": True},
        requirements=CONVERTER,
    )
    if left := response["left"]:
        context.warn(
            f"{len(left)} operators cannot be timed alone, because they run graphs of their own or "
            f"keep a state: {_few(left)}"
        )
    return _again(artifact, context, ())


def _again(artifact: Artifact, context: StepContext, more: tuple[Binding, ...]) -> Artifact:
    return Artifact.from_directory(
        context.output,
        backend=artifact.backend,
        precision=artifact.precision,
        format=artifact.format,
        inputs=artifact.inputs,
        outputs=(*artifact.outputs, *more),
        provenance=artifact.provenance,
        layers=artifact.layers,
    )
