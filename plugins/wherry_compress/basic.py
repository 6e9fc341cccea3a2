"""The passes without a family: ``simplify`` and ``equalize``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wherry.outlook import rescaled
from wherry.passes import Pass
from wherry_compress.member import Member

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


MEMBERS = (
    Member(
        Pass(
            name="simplify",
            description="constants folded, batch norms fused, dead and double nodes removed",
            parameters=Simplify,
            effects={
                "*": "more models convert: shapes that were computed become constants",
                "onnxruntime": "loads faster; ONNX Runtime does most of this itself, so that the "
                "latency hardly changes",
            },
            outlook=rescaled,  # by batch norms that are fused
        ),
        "wherry_compress.simplify:apply",
        normal=False,
    ),
    Member(
        Pass(
            name="equalize",
            description="channels of a tensor scaled to span alike: less is lost in int8",
            parameters=Equalize,
            needs=frozenset({"calibration"}),
            effects={"*": "in int8 more accurate; in other precisions nothing changes"},
            outlook=rescaled,
        ),
        "wherry_compress.equalize:apply",
    ),
)
