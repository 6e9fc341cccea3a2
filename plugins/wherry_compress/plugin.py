"""The passes of this plugin; each runs in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from wherry.hookspecs import hookimpl
from wherry.model import Model
from wherry.passes import Pass, PassStep

if TYPE_CHECKING:
    from wherry.context import StepContext

HERE = Path(__file__).parent

Rewrite = Literal[
    "constant_folding",
    "graph_fusion",
    "dead_node_elimination",
    "subexpression_elimination",
    "weight_tying",
]


class Simplify(BaseModel):
    """Parameters of ``simplify``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    skip: tuple[Rewrite, ...] = Field(default=(), description="rewrites to leave out")
    fold_limit_kb: int | None = Field(
        default=None,
        ge=1,
        description="constants larger than this are not folded; all are if left out",
    )


@hookimpl
def wherry_passes() -> Iterable[Pass]:
    """What a variant may name."""
    yield Pass(
        name="simplify",
        description="constants folded, batch normalisation fused, dead and double nodes removed",
        parameters=Simplify,
        files=(HERE / "plugin.py", HERE / "simplify.py"),
        effects={
            "onnxruntime": "loads faster; ONNX Runtime does most of this itself, so that the "
            "latency hardly changes",
            "tflite": "more models convert: shapes that were computed become constants",
            "ncnn": "more models convert: shapes that were computed become constants",
        },
    )


@hookimpl
def wherry_optimize(model: Model, step: PassStep, context: StepContext) -> Model:
    """Run the pass; its script is named like it."""
    output = context.output / "model.onnx"
    context.run_tool(
        HERE / f"{step.name}.py",
        {
            "model": str(model.path),
            "output": str(output),
            "parameters": step.parameters.model_dump(mode="json"),
        },
        requirements=None,
    )
    return Model.load(output)
