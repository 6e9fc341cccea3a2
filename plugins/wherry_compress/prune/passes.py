"""The passes of pruning, and their parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.passes import Need, Pass, Span
from wherry_compress.member import Member

Share = Annotated[float, Field(gt=0, lt=1)]
Patterns = tuple[str, ...]


class _Cut(BaseModel):
    """What all passes have that cut channels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    macs: Share | None = Field(
        default=None, description="share of the multiply-accumulates that is left"
    )
    params: Share | None = Field(default=None, description="share of the parameters that is left")
    relative_to: Literal["given", "original"] = Field(
        default="given",
        description="what the share is of: the model as this pass is given it, or the manifest's",
    )
    ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default={},
        description="pattern of nodes to the share of their filters that is cut, whatever the "
        "target; the first that matches counts",
    )
    round_to: int = Field(
        default=8, ge=1, description="what the width of a node is to be a multiple of"
    )
    least: Share = Field(
        default=0.1, description="share of a node's filters that stays in any case"
    )
    exclude: Patterns = Field(default=(), description="patterns of nodes that keep all filters")

    @model_validator(mode="after")
    def _one_target(self) -> _Cut:
        if self.macs is not None and self.params is not None:
            raise ValueError("give one of macs and params")
        if self.macs is None and self.params is None and not self.ratios:
            raise ValueError("give macs, params or ratios")
        return self


class PruneFilters(_Cut):
    """Parameters of ``prune.filters``."""

    criterion: Literal["l1", "l2", "fpgm", "activation", "random"] = Field(
        default="activation", description="what a filter is worth"
    )
    norm_of: Literal["readers", "makers"] = Field(
        default="readers",
        description="whose weights l1, l2 and fpgm look at: those that read a channel, or, as in "
        "the papers, those that make it",
    )
    compensate: bool = Field(
        default=True,
        description="what a cut channel gave on average is added to the bias of its readers; needs "
        "calibration data",
    )
    allocation: Literal["uniform", "global", "sensitivity"] = Field(
        default="global",
        description="how much each node loses: the same share, what is worth least in the whole "
        "network, or what harms the outputs least for what it saves",
    )
    samples: int = Field(
        default=64, ge=1, description="of the calibration data, for `allocation: sensitivity`"
    )


class PruneLasso(_Cut):
    """Parameters of ``prune.channels-lasso``."""

    samples: int = Field(default=128, ge=1, description="of the calibration data")
    places: int = Field(
        default=10, ge=1, description="of each map and sample that are looked at, drawn by chance"
    )


class PruneWeights(BaseModel):
    """Parameters of ``prune.weights``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sparsity: Share | None = Field(default=None, description="share of the weights that becomes 0")
    pattern: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]?:[1-9][0-9]?$",
        description="`2:4`: of any 4 neighbours along the inputs at the most 2 stay",
    )
    allocation: Literal["uniform", "global", "sensitivity"] = Field(
        default="global",
        description="the same share of each node, the smallest of all, or what harms the outputs "
        "least",
    )
    ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default={}, description="pattern of nodes to the share of their weights that becomes 0"
    )
    only: Literal["1x1"] | None = Field(
        default=None, description="`1x1`: of convolutions of 1x1 alone, which XNNPACK can skip"
    )
    exclude: Patterns = Field(default=(), description="patterns of nodes that keep all weights")
    samples: int = Field(
        default=64, ge=1, description="of the calibration data, for `allocation: sensitivity`"
    )

    @model_validator(mode="after")
    def _one_target(self) -> PruneWeights:
        if self.sparsity is not None and self.pattern is not None:
            raise ValueError("give one of sparsity and pattern")
        if self.sparsity is None and self.pattern is None and not self.ratios:
            raise ValueError("give sparsity, pattern or ratios")
        if self.pattern is not None:
            kept, of = map(int, self.pattern.split(":"))
            if kept >= of:
                raise ValueError(f"{self.pattern} keeps every weight")
            if self.ratios or self.allocation == "sensitivity":
                raise ValueError("a pattern is the same in all nodes: leave out ratios, allocation")
        return self


def _filters_need(parameters: PruneFilters) -> frozenset[Need]:
    measured = (
        parameters.compensate
        or parameters.criterion == "activation"
        or parameters.allocation == "sensitivity"
    )
    return _original(parameters) | (frozenset({"calibration"}) if measured else frozenset())


def _original(parameters: _Cut) -> frozenset[Need]:
    return frozenset({"original"}) if parameters.relative_to == "original" else frozenset()


def _weights_need(parameters: PruneWeights) -> frozenset[Need]:
    measured = parameters.allocation == "sensitivity"
    return frozenset({"calibration"}) if measured else frozenset()


_FASTER = "smaller and faster, about as the MACs say for wide networks and less for narrow ones"
_ZEROS = (
    "a smaller download where it is compressed; zeros are computed like other weights, no speed"
)

MEMBERS = (
    Member(
        Pass(
            name="prune.filters",
            description="whole filters cut out, those worth least; the network gets narrower",
            parameters=PruneFilters,
            needs=frozenset({"seed"}),
            needs_with=_filters_need,
            effects={"*": _FASTER + "; accuracy has to be brought back by training"},
            space={
                "macs": Span(0.3, 0.9),
                "criterion": ("l1", "l2", "fpgm", "activation"),
                "allocation": ("uniform", "global", "sensitivity"),
            },
        ),
        "wherry_compress.prune.filters:apply",
        batch_norms=True,
    ),
    Member(
        Pass(
            name="prune.channels-lasso",
            description="channels chosen by LASSO and cut out, the weights behind them fitted anew",
            parameters=PruneLasso,
            needs=frozenset({"calibration", "seed"}),
            needs_with=_original,
            effects={"*": _FASTER},
            space={"macs": Span(0.3, 0.9)},
        ),
        "wherry_compress.prune.lasso:apply",
        batch_norms=True,
    ),
    Member(
        Pass(
            name="prune.weights",
            description="the smallest weights become zero, anywhere or in a pattern such as 2:4",
            parameters=PruneWeights,
            needs_with=_weights_need,
            effects={
                "*": _ZEROS,
                "tensorrt": "2:4 is faster on Ampere and later; other zeros bring no speed",
                "tflite": "XNNPACK may be faster with many zeros in convolutions of 1x1; otherwise "
                "no speed, and a smaller download where it is compressed",
            },
            space={
                "sparsity": Span(0.2, 0.8),
                "allocation": ("uniform", "global", "sensitivity"),
            },
        ),
        "wherry_compress.prune.weights:apply",
        batch_norms=True,
    ),
)
