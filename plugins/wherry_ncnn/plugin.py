"""ncnn as a backend: pnnx converts, ncnn runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from wherry.artifact import Artifact, Binding
from wherry.errors import ToolError, UnsupportedError
from wherry.hookspecs import hookimpl
from wherry.normalise import preview
from wherry.normalise.refusals import of_the_model
from wherry.onnx_file import default_opset
from wherry.quantize import FILES as QUANTIZE
from wherry.quantize.given import float_model, is_quantised, preflight_float
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Unsupported, convert_option, run_option
from wherry_ncnn import operators, param, support
from wherry_ncnn.expose import WHOLE, expose
from wherry_ncnn.int8 import PARAM, rewrite
from wherry_ncnn.layers import describe, find
from wherry_ncnn.prepare import prepare
from wherry_ncnn.quantize import Quantised, Winograd, table_text

if TYPE_CHECKING:
    import onnx

    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model, TensorSpec
    from wherry.target import Target

HERE = Path(__file__).parent
REPORT = "Report this to wherry, with the model if you can."


class NcnnOptions(RuntimeOptions):
    """ncnn's options; ``winograd_int8`` and ``keep_fp32`` alone change the artifact."""

    fp16_arithmetic: bool = run_option(
        False,
        description="compute in fp16 too where the processor can (ARMv8.2): faster, less exact",
        precisions=["fp16"],
    )
    winograd: bool = Field(default=True, description="Winograd's algorithm for 3x3 convolutions")
    sgemm: bool = Field(default=True, description="convolutions as matrix products")
    packing: bool = Field(default=True, description="interleaved channels, for SIMD")
    powersave: Literal["all", "little", "big"] = Field(
        default="all", description="which cores of a big.LITTLE processor to use"
    )
    lightmode: bool = Field(default=True, description="free intermediate results while running")
    openmp_blocktime: int = Field(
        default=20,
        ge=0,
        le=400,
        description="milliseconds that idle threads spin before they sleep",
    )
    winograd_int8: Winograd = convert_option(
        "off",
        description="3x3 convolutions with a stride of 1: off: weights of 8 bits, without "
        "Winograd's algorithm; six_bits: with it, and with weights of 6 bits, as ncnn's own tools "
        "do, for its sums grow large; eight_bits: with it, where the sums are known to fit",
        precisions=["int8"],
    )


# pnnx declares torch, which its program does not use; ncnn declares what its model zoo downloads
# with. A board on armv7 brings its own numpy: the index has no wheel.
CONVERTER = Requirements(no_deps=("pnnx==20261020",), python=">=3.7")
_NOT_ARMV7 = "platform_machine != 'armv7l'"
RUNTIMES = tuple(
    Requirements(packages=(f"{numpy}; {_NOT_ARMV7}",), no_deps=(ncnn,), python=python)
    for numpy, ncnn, python in (
        ("numpy==2.4.6", "ncnn==1.0.20261020", ">=3.11"),
        ("numpy==2.2.6", "ncnn==1.0.20261020", ">=3.10,<3.14"),
        ("numpy==1.24.4", "ncnn==1.0.20261020", ">=3.9,<3.12"),
        ("numpy==1.24.4", "ncnn==1.0.20260526", ">=3.8,<3.12"),
    )
)


@hookimpl
def wherry_backends() -> Iterable[Backend]:
    """The backend ``ncnn``."""
    yield Backend(
        name="ncnn",
        description="ncnn, small and fast on ARM; converted by pnnx",
        precisions=("fp32", "fp16", "int8"),
        options=NcnnOptions,
        runner=HERE / "runner.py",
        examples=(HERE / "example.cpp",),
        runtime=RUNTIMES,
        converter=CONVERTER,
        artifact_format="ncnn",
        convert_files=(*sorted(HERE.glob("*.py")), *QUANTIZE),
        calibrated=frozenset({"int8"}),
        mixed=frozenset({"int8"}),
        refusals={
            "bf16": "ncnn's bf16 storage costs more accuracy than fp16 and no less memory; ask "
            "for fp16",
        },
        preflight=preflight,
        expose=expose,
        operators=lambda tools: support.operators(tools, RUNTIMES[0]),
    )


def preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """Operators and tensors that pnnx or ncnn cannot do; see `wherry_ncnn.operators`."""
    return _refusals(model, quantised=target.precision == "int8" and is_quantised(model))


@lru_cache(maxsize=64)  # a manifest asks for every target of a model
def _refusals(model: Model, *, quantised: bool) -> tuple[Unsupported, ...]:
    if not quantised:
        proto, sources = preview(model, operators.ALSO)
        return _refused(proto, sources, model)
    return tuple(preflight_float(model, lambda plain: _refusals(plain, quantised=False)))


def _refused(
    proto: onnx.ModelProto, sources: Mapping[str, Sequence[str]], model: Model
) -> tuple[Unsupported, ...]:
    """What of a normal form would not convert, by the names of the model's own nodes."""
    found = operators.preflight(proto.graph, default_opset(proto))
    return of_the_model(found, sources, model)


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """``model.param`` and ``model.bin``; raises `UnsupportedError` for what does not convert."""
    import onnx

    if target.precision == "int8" and is_quantised(model):
        model, calibration = float_model(model, context.scratch)
    normal = context.normalised(model, operators.ALSO)
    for found in _refused(normal.model.proto(), normal.nodes, model):
        raise UnsupportedError(
            f"ncnn cannot take {found.op_type}", where=f"node {found.node}", remedy=found.remedy
        )
    onnx.save(prepare(normal.model.proto()), context.scratch / "prepared.onnx")
    request = {
        "model": str(context.scratch / "prepared.onnx"),
        "inputs": ",".join(map(_shape, model.inputs)),
        "fp16": target.precision == "fp16",
        "output": str(context.output),
    }
    try:
        response = context.run_tool(HERE / "convert.py", request, requirements=CONVERTER)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{error.message} (it was given {model.listed()})",
            where=error.where,
            remedy=error.remedy,
        ) from error
    layers = _layers(context.output / PARAM)
    _check_layers(layers, response["left_out"], model)
    blobs = {blob for layer in layers for blob in layer.outputs}
    axes: Mapping[str, int | None] = response["batch_axes"]
    whose = operators.nodes_of(model.proto().graph)
    inputs = _bindings("in", model.inputs, axes, blobs, whose)
    outputs = _bindings("out", model.outputs, axes, blobs, whose)
    kind = "fp16" if target.precision == "fp16" else "fp32"
    tool = RUNTIMES[0], NcnnOptions().model_dump(mode="json")
    names = find(model, layers, (inputs, outputs), kind, context, tool)
    made = Quantised(layers, {})
    if target.precision == "int8":
        assert calibration is not None  # the backend asks for it
        made = rewrite(layers, names, model, target, calibration, context)
    artifact = Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="ncnn",
        inputs=inputs,
        outputs=outputs,
        provenance={
            "tool": "pnnx",
            "version": response["pnnx"],
            "layers": len(layers),
            **({WHOLE: dict(made.whole)} if made.whole else {}),
        },
        layers=describe(layers, names, kind, made.table),
    )
    if made.table:
        # Beside the artifact and not of it: ncnn's own tools read it, a board does not.
        (context.output / "model.table").write_text(table_text(made.table), encoding="utf-8")
    return artifact


def _shape(spec: TensorSpec) -> str:
    """In pnnx's words: ``[1,3,8,8]f32``."""
    return f"[{','.join(map(str, spec.static_shape))}]f32"


def _layers(path: Path) -> tuple[param.Layer, ...]:
    try:
        return param.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ToolError(
            f"pnnx wrote a file that is not ncnn's: {error}", where=path.name, remedy=REPORT
        ) from error


def _check_layers(layers: Sequence[param.Layer], left_out: Sequence[str], model: Model) -> None:
    """Raise `UnsupportedError` where a layer is not ncnn's, or pnnx left something of it out."""
    ignored = {line.split()[2] for line in left_out if line.startswith("ignore ")}
    for layer in layers:
        if layer.type in operators.LAYERS and layer.name not in ignored:
            continue
        kind = operators.TORCH_WORDS.get(layer.type, layer.type)
        nodes = model.operators().get(kind, ())
        whose = f"one of {', '.join(nodes[:5])}" if nodes else f"one of {model.listed()}"
        raise UnsupportedError(
            f"pnnx does not convert this form of {kind} ({whose})",
            where=f"node {nodes[0]}" if len(nodes) == 1 else None,
            remedy=operators.remedy(kind),
        )
    if left_out:
        raise UnsupportedError(
            f"pnnx says of {model.listed()}: {left_out[0]}", remedy="Use another backend for it."
        )


def _bindings(
    side: str,
    specs: Sequence[TensorSpec],
    axes: Mapping[str, int | None],
    blobs: set[str],
    whose: Mapping[str, tuple[str, str]],
) -> tuple[Binding, ...]:
    """Pnnx numbers inputs and outputs in the model's order, and names the axis of the batch."""
    return tuple(
        _binding(spec, f"{side}{index}", axes.get(f"{side}{index}"), blobs, whose)
        for index, spec in enumerate(specs)
    )


def _binding(
    spec: TensorSpec,
    blob: str,
    axis: int | None,
    blobs: set[str],
    whose: Mapping[str, tuple[str, str]],
) -> Binding:
    operator, node = whose.get(spec.name, ("no operator", spec.name))
    where, shape = f"node {node}", spec.static_shape
    if blob not in blobs:
        raise UnsupportedError(
            f"pnnx leaves {spec.name!r}, of {operator}, out of the network",
            where=where,
            remedy="Remove this input or output from the network: it may depend on nothing.",
        )
    if axis is not None and shape[axis] != 1:
        raise UnsupportedError(
            f"{spec.name!r}, of {operator}, is a batch of {shape[axis]}, and ncnn runs one sample "
            "at a time",
            where=where,
            remedy="Give the model a batch of 1.",
        )
    if len(shape) - (axis is not None) not in range(1, operators.MOST_AXES + 1):
        raise UnsupportedError(
            f"{spec.name!r}, of {operator}, has {len(shape)} axes, and ncnn's tensors have 1 to "
            f"{operators.MOST_AXES} besides the batch",
            where=where,
            remedy="Reshape it outside of the network.",
        )
    front: Any = None if not axis else (axis, *(a for a in range(len(shape)) if a != axis))
    return Binding(spec.name, blob, "float32", shape, front, drop_batch=axis is not None)
