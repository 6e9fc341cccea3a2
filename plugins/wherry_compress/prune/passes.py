"""The passes of pruning, and their parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.outlook import WHOLE, Outlook
from wherry.passes import MeasuredOn, Need, Pass, Span
from wherry_compress.idle import refuse_idle
from wherry_compress.member import Member
from wherry_compress.train.passes import Training

Share = Annotated[float, Field(gt=0, lt=1)]
Patterns = tuple[str, ...]


class Latency(BaseModel):
    """A latency as the target: candidates are measured on a target of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str = Field(description="of the target")
    device: str | None = Field(
        default=None, description="of the target; the only one of this backend if left out"
    )
    precision: str = Field(default="fp32", description="of the target; one without calibration")
    at_most: float | None = Field(default=None, gt=0, description="milliseconds")
    fraction: Share | None = Field(
        default=None, description="of what the model takes as this pass is given it"
    )
    tries: int = Field(default=6, ge=1, le=20, description="candidates that are measured")

    @model_validator(mode="after")
    def _one_bound(self) -> Latency:
        if (self.at_most is None) == (self.fraction is None):
            raise ValueError("give one of at_most and fraction")
        return self


class _Cut(BaseModel):
    """What all passes have that cut channels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    macs: Share | None = Field(
        default=None, description="share of the multiply-accumulates that is left"
    )
    params: Share | None = Field(default=None, description="share of the parameters that is left")
    latency: Latency | None = Field(
        default=None, description="a latency instead, measured: the MACs that it allows are found"
    )
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
        given = [self.macs, self.params, self.latency]
        if sum(each is not None for each in given) > 1:
            raise ValueError("give one of macs, params and latency")
        if given == [None, None, None] and not self.ratios:
            raise ValueError("give macs, params, latency or ratios")
        return self


class PruneFilters(_Cut):
    """Parameters of ``prune.filters``."""

    criterion: Literal["l1", "l2", "fpgm", "activation", "taylor", "random"] = Field(
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

    @model_validator(mode="after")
    def _idle(self) -> PruneFilters:
        norms = self.criterion in {"l1", "l2", "fpgm"}
        refuse_idle(self, "norm_of", norms, "criterion: l1, l2 or fpgm")
        refuse_idle(self, "samples", self.allocation == "sensitivity", "allocation: sensitivity")
        return self


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
            if self.ratios:
                raise ValueError("a pattern is the same in all nodes: leave ratios out")
        refuse_idle(self, "allocation", self.sparsity is not None, "sparsity")
        refuse_idle(self, "samples", self.allocation == "sensitivity", "allocation: sensitivity")
        return self


class PruneTrained(Training):
    """Parameters of ``prune.weights-trained``: those of all training, and these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sparsity: Share = Field(description="share of the weights that becomes zero")
    method: Literal["gradual", "surgery", "lottery"] = Field(
        default="gradual",
        description="more and more; the same, and what grows again comes back; or by rounds that "
        "begin anew with what is left",
    )
    allocation: Literal["uniform", "global"] = Field(
        default="global", description="the same share of each node, or the smallest of all"
    )
    rise: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.7, description="share of the steps in which zeros become more"
    )
    every: int = Field(default=10, ge=1, description="steps after which weights are chosen anew")
    rounds: int = Field(
        default=3, ge=1, le=20, description="of `lottery`, and one more to end with"
    )
    exclude: Patterns = Field(default=(), description="patterns of nodes that keep all weights")

    @model_validator(mode="after")
    def _one_process(self) -> PruneTrained:
        if self.processes > 1:
            raise ValueError("zeros are chosen in one process: leave `processes` out")
        if self.patience is not None:
            raise ValueError("the last state counts, which has all zeros: leave `patience` out")
        lottery = self.method == "lottery"
        refuse_idle(self, "rounds", lottery, "method: lottery")
        refuse_idle(self, "rise every", not lottery, "method: gradual or surgery")
        return self


def _filters_need(parameters: PruneFilters) -> frozenset[Need]:
    measured = (
        parameters.compensate
        or parameters.criterion in {"activation", "taylor"}
        or parameters.allocation == "sensitivity"
    )
    needs = set(_cut_needs(parameters))
    if measured:
        needs.add("calibration")
    if parameters.criterion == "taylor":
        needs.add("torch")
    return frozenset(needs)


def _cut_needs(parameters: _Cut) -> frozenset[Need]:
    needs: set[Need] = set()
    if parameters.relative_to == "original":
        needs.add("original")
    if parameters.latency is not None:
        needs.add("device")
    return frozenset(needs)


def _measured_on(parameters: _Cut) -> MeasuredOn | None:
    latency = parameters.latency
    if latency is None:
        return None
    return MeasuredOn(latency.backend, latency.device, latency.precision)


def _cut(parameters: _Cut, before: Outlook) -> Outlook:
    """One of the two is the target, and a run tells the other."""

    def left(share: float | None, had: float | None) -> float | None:
        if share is None:
            return None
        if parameters.relative_to == "original":
            return share
        return None if had is None else share * had

    return replace(
        before,
        vector_bits=WHOLE,  # what was cut is added to biases
        macs=left(parameters.macs, before.macs),
        weights=left(parameters.params, before.weights),
    )


def _fitted(parameters: _Cut, before: Outlook) -> Outlook:
    """Cut, and the weights behind computed anew."""
    return replace(_cut(parameters, before), zeros=0.0, bits=WHOLE)


def _zeros(parameters: PruneWeights | PruneTrained, before: Outlook) -> Outlook:
    """Those of a share of all; which layers a pattern or a name means is told by the run."""
    share, some = parameters.sparsity, bool(parameters.exclude)
    if isinstance(parameters, PruneWeights):
        some |= bool(parameters.only or parameters.ratios)
    if share is None or before.zeros is None or some:
        return replace(before, zeros=None)
    return replace(before, zeros=max(share, before.zeros))


def _zeros_trained(parameters: PruneTrained, before: Outlook) -> Outlook:
    """Zeros, and other weights than before."""
    return replace(_zeros(parameters, before), bits=WHOLE, vector_bits=WHOLE)


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
            measures=_measured_on,
            effects={"*": _FASTER + "; accuracy has to be brought back by training"},
            outlook=_cut,
            space={
                "macs": Span(0.3, 0.9),
                "criterion": ("l1", "l2", "fpgm", "activation", "taylor"),
                "allocation": ("uniform", "global", "sensitivity"),
            },
        ),
        "wherry_compress.prune.filters:apply",
        batch_norms=True,
        also=("wherry_compress.train",),  # its criterion taylor
    ),
    Member(
        Pass(
            name="prune.channels-lasso",
            description="channels chosen by LASSO and cut out, the weights behind them fitted anew",
            parameters=PruneLasso,
            needs=frozenset({"calibration", "seed"}),
            needs_with=_cut_needs,
            measures=_measured_on,
            effects={"*": _FASTER},
            outlook=_fitted,
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
            outlook=_zeros,
            space={
                "sparsity": Span(0.2, 0.8),
                "allocation": ("uniform", "global", "sensitivity"),
            },
        ),
        "wherry_compress.prune.weights:apply",
        batch_norms=True,
    ),
    Member(
        Pass(
            name="prune.weights-trained",
            description="weights become zero while the network learns to give what the original "
            "gives",
            parameters=PruneTrained,
            needs=frozenset({"training", "original", "seed", "torch"}),
            effects={
                "*": _ZEROS,
                "tflite": "XNNPACK may be faster with many zeros in convolutions of 1x1; otherwise "
                "no speed, and a smaller download where it is compressed",
            },
            outlook=_zeros_trained,
            space={
                "sparsity": Span(0.3, 0.95),
                "method": ("gradual", "surgery", "lottery"),
                "learning_rate": Span(1e-4, 1e-2, log=True),
            },
        ),
        "wherry_compress.prune.sparse:apply",
        batch_norms=True,
        also=("wherry_compress.train",),
    ),
)
