"""The passes of low rank, and their parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.outlook import WHOLE, Outlook
from wherry.passes import Need, Pass, Span
from wherry_compress.member import Member

Text = Annotated[str, Field(min_length=1)]
Rank = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class LowRank(BaseModel):
    """Parameters of all passes of low rank; one of ``energy``, ``macs`` and ``ranks``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy: Fraction | None = Field(
        default=None,
        description="the share of energy that each layer keeps; 0.9 where nothing else is said",
    )
    macs: Fraction | None = Field(
        default=None,
        description="a budget: multiplications of the whole network, as a share of what it has",
    )
    ranks: dict[Text, Rank | tuple[Rank, Rank]] | None = Field(
        default=None,
        description="names of nodes, or patterns over them, to the rank; the first that fits holds",
    )
    nodes: tuple[Text, ...] = Field(
        default=("*",), description="names of nodes, or patterns over them, that may be replaced"
    )
    keep: tuple[Text, ...] = Field(default=(), description="likewise, that stay as they are")
    round_to: int = Field(
        default=8, ge=1, le=64, description="ranks are multiples of this, as vector units like"
    )
    reconstruction: Literal["filters", "data"] = Field(
        default="filters",
        description="near to the weights, or to the results on data.calibration",
    )
    only_where_faster: bool = Field(
        default=True,
        description="a layer stays where ONNX Runtime on this machine, with one thread, is not "
        "faster with the chain that replaces it",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        said = [word for word in ("energy", "macs", "ranks") if getattr(self, word) is not None]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} both say which ranks to take; give one")
        if self.ranks is not None and not self.ranks:
            raise ValueError("ranks names no node")
        return self


class Spatial(LowRank):
    """Parameters of ``lowrank.spatial-svd``."""

    scheme: Literal[1, 2] = Field(
        default=2,
        description="1: a basis of separable filters for each input channel, shared by all "
        "outputs, whose rank is the number of filters an input; 2: columns, then rows",
    )


SPEED = {
    "*": "fewer multiplications, a smaller file",
    "onnxruntime": "about as much faster as there are fewer multiplications, where a layer has "
    "many channels; a smaller file",
    "ncnn": "a smaller file; 3x3 convolutions, which ncnn does by Winograd's algorithm, are hardly "
    "faster or slower at a mild budget, and faster at half the multiplications",
}
SPACE: dict[str, Span | tuple[Any, ...]] = {
    "macs": Span(0.3, 0.9),
    "reconstruction": ("filters", "data"),
}


def _data(parameters: LowRank) -> frozenset[Need]:
    """What a reconstruction takes."""
    return frozenset({"calibration"} if parameters.reconstruction == "data" else ())


def _chains(parameters: LowRank, before: Outlook) -> Outlook:
    """A budget is asked for; what other rules do, and the weights, are told by the run."""
    macs = None
    if parameters.macs is not None and before.macs is not None:
        macs = parameters.macs * before.macs
    return replace(before, macs=macs, weights=None, zeros=0.0, bits=WHOLE, vector_bits=WHOLE)


def _member(name: str, description: str, parameters: type[LowRank] = LowRank) -> Member:
    return Member(
        Pass(
            name=f"lowrank.{name}",
            description=description,
            parameters=parameters,
            needs=frozenset({"seed"}),
            needs_with=_data,
            effects=SPEED,
            outlook=_chains,
            space=SPACE | ({"scheme": (1, 2)} if parameters is Spatial else {}),
        ),
        f"wherry_compress.lowrank.apply:{name.replace('-', '_')}",
    )


MEMBERS: tuple[Member, ...] = (
    _member("spatial-svd", "k x k convolutions as k x 1 and 1 x k ones", Spatial),
    _member("channel-svd", "convolutions with fewer outputs, and a 1x1 one behind each"),
    _member("tucker2", "convolutions between fewer channels, with 1x1 ones around each"),
    _member("cp", "convolutions as 1x1, depthwise columns, depthwise rows, 1x1"),
    _member("fc-svd", "Gemm and MatMul as two with fewer values between"),
)
