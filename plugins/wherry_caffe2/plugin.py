"""Caffe2 as a backend: a converter of ours, and the library that PyTorch held until 1.10."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from wherry.artifact import Artifact, Binding
from wherry.errors import UnsupportedError
from wherry.hookspecs import hookimpl
from wherry.keep import kept_nodes
from wherry.normalise import preview
from wherry.normalise.refusals import of_the_model
from wherry.quantize import FILES as QUANTIZE
from wherry.quantize.given import float_model, is_quantised, preflight_float
from wherry.target import Backend, RuntimeOptions, Unsupported
from wherry_caffe2 import operators
from wherry_caffe2.build import build
from wherry_caffe2.expose import expose
from wherry_caffe2.int8 import plan
from wherry_caffe2.library import NATIVE
from wherry_caffe2.lowering import View
from wherry_caffe2.nets import INIT_NET, PREDICT_NET
from wherry_caffe2.shuffle import fuse

if TYPE_CHECKING:
    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model, TensorSpec
    from wherry.target import Target

HERE = Path(__file__).parent


class Caffe2Options(RuntimeOptions):
    """Caffe2's options; ``keep_fp32`` alone changes the artifact."""

    library: str = Field(
        default="",
        description="path on the board of another libtorch_cpu.so of PyTorch 1.7 to 1.10, or of "
        "its folder; unless said, the tool libtorch of the device, or the one that wherry brings",
    )


@hookimpl
def wherry_backends() -> Iterable[Backend]:
    """The backend ``caffe2``."""
    yield Backend(
        name="caffe2",
        description="Caffe2, as PyTorch held it until 1.10; int8 by QNNPACK",
        precisions=("fp32", "int8"),
        options=Caffe2Options,
        runner=HERE / "runner.py",
        artifact_format="caffe2",
        convert_files=(*sorted(HERE.glob("*.py")), *QUANTIZE),
        calibrated=frozenset({"int8"}),
        mixed=frozenset({"int8"}),
        refusals={
            "fp16": "Caffe2's operators on a processor compute in float32; ask for fp32 or int8",
            "bf16": "Caffe2 does not know bfloat16; ask for fp32 or int8",
        },
        preflight=preflight,
        expose=expose,
        operators=lambda _tools: operators.operators(),
        native=NATIVE,
        tools={"libtorch": ()},
        prepare_s=300.0,
        examples=(HERE / "example.cpp",),
    )


# --- pre-flight -------------------------------------------------------------------------------


def preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """Operators and tensors that the converter cannot lower, by the model's own nodes."""
    return _refusals(model, quantised=target.precision == "int8" and is_quantised(model))


@lru_cache(maxsize=64)  # a manifest asks for every target of a model
def _refusals(model: Model, *, quantised: bool) -> tuple[Unsupported, ...]:
    if not quantised:
        proto, sources = preview(model, operators.ALSO)
        return of_the_model(operators.preflight(proto), sources, model)
    return tuple(preflight_float(model, lambda plain: _refusals(plain, quantised=False)))


# --- conversion -------------------------------------------------------------------------------


@hookimpl
def wherry_convert(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Artifact:
    """``init_net.pb`` and ``predict_net.pb``; raises `UnsupportedError`."""
    if target.precision == "int8" and is_quantised(model):
        model, calibration = float_model(model, context.scratch)
    normal = context.normalised(model, operators.ALSO)
    for found in of_the_model(operators.preflight(normal.model.proto()), normal.nodes, model):
        raise UnsupportedError(
            f"Caffe2 cannot take {found.op_type}", where=f"node {found.node}", remedy=found.remedy
        )
    proto, sources = fuse(normal.model.proto(), normal.nodes)
    view = View(proto)
    planned = None
    if target.precision == "int8":
        assert calibration is not None  # the backend asks for it
        kept = kept_nodes(model, target.options.keep_fp32)
        keep = frozenset(name for name, nodes in sources.items() if kept.intersection(nodes))
        planned = plan(view, calibration, keep)
        if planned.beyond:
            few = ", ".join(planned.beyond[:5]) + (", ..." if len(planned.beyond) > 5 else "")
            context.warn(
                f"{len(planned.beyond)} nodes stay in fp32, because the scales of what they take "
                f"and give are too far apart for QNNPACK: {few}"
            )
        if not planned.nodes:
            context.warn("nothing of this model is quantised: see the operators in the docs")
    graph = model.proto().graph
    tensors = frozenset(name for node in graph.node for name in node.output if name)
    made = build(view, sources, tensors, planned)
    (context.output / INIT_NET).write_bytes(made.init)
    (context.output / PREDICT_NET).write_bytes(made.predict)
    return Artifact.from_directory(
        context.output,
        backend=target.backend,
        precision=target.precision,
        format="caffe2",
        inputs=_bindings(model.inputs),
        outputs=_bindings(model.outputs),
        provenance={"tool": "wherry", "operators": len(made.layers)},
        layers=made.layers,
    )


def _bindings(specs: Iterable[TensorSpec]) -> tuple[Binding, ...]:
    return tuple(Binding(s.name, s.name, s.dtype, s.static_shape) for s in specs)
