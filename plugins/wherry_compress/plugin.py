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
    from wherry.context import OptimizeContext

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


class Equalize(BaseModel):
    """``equalize`` has no parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    yield Pass(
        name="equalize",
        description="channels scaled so that those of a tensor span alike: less is lost in int8",
        parameters=Equalize,
        needs=frozenset({"calibration"}),
        files=(HERE / "plugin.py", HERE / "equalize.py"),
        effects={"*": "in int8 more accurate; in other precisions nothing changes"},
    )


@hookimpl
def wherry_optimize(model: Model, step: PassStep, context: OptimizeContext) -> Model:
    """Run the pass; its script is named like it."""
    output = context.output / "model.onnx"
    request: dict[str, object] = {
        "model": str(model.path),
        "output": str(output),
        "parameters": step.parameters.model_dump(mode="json"),
    }
    if step.name == "equalize":
        from wherry.data.inputs import write_inputs

        normal = context.normalised(model).model  # batch norms are in their convolutions
        request["model"] = str(normal.path)
        request["inputs"] = write_inputs(normal, context.data["calibration"], context.scratch)
    response = context.run_tool(HERE / f"{step.name}.py", request, requirements=None)
    if step.name == "equalize" and not response["tensors"]:
        context.warn(
            "equalize found nothing to scale: it needs convolutions with nothing between them but "
            "sums, pools and Relu"
        )
    return Model.load(output)
