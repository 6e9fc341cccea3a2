"""The passes of this family: weights that share few values, and the container they travel in."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.outlook import Outlook
from wherry.passes import Need, Pass, Span
from wherry_compress.member import Member
from wherry_compress.train.passes import Positive, Training

_BITS = Annotated[int, Field(ge=0, le=8)]
_NOTHING_FASTER = (
    "a smaller download, as pack.huffman sends it; no speed and no memory: the runtime has its "
    "weights as before"
)
_EFFECTS = {"*": f"{_NOTHING_FASTER}. In int8 the weights are rounded again, and less is saved"}


class _Shared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    biases: int = Field(
        default=8,
        ge=0,
        le=16,
        description="bits of biases, which become multiples of one step; 0: they stay as they are",
    )
    least: int = Field(
        default=64, ge=1, description="layers with fewer weights than this stay as they are"
    )


class _Scalar(_Shared):
    fisher: bool = Field(
        default=False,
        description="weighted by what each weight does to the outputs, on calibration data",
    )


class Codebook(Training):
    """How the values of ``share.kmeans`` are trained: as the passes that train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: Positive = Field(default=3e-4, description="the greatest of the schedule")

    @model_validator(mode="after")
    def _one_process(self) -> Codebook:
        if self.processes > 1:
            raise ValueError("codebooks are trained in one process: leave `processes` out")
        return self


class Kmeans(_Scalar):
    """Parameters of ``share.kmeans``."""

    bits: int = Field(default=4, ge=1, le=8, description="a layer has at most 2**bits values")
    layers: dict[str, _BITS] = Field(
        default_factory=dict,
        description="other bits for some layers: names of ONNX nodes, or patterns; 0: as they are",
    )
    start: Literal["linear", "density", "random"] = Field(
        default="linear",
        description="first values: evenly from the least weight to the greatest, evenly over the "
        "weights, or weights drawn by chance",
    )
    train: Codebook | None = Field(
        default=None,
        description="the values are trained, the weights that share one moving together; `{}`, or "
        "what fit may be told; needs training data and torch",
    )


class Ecsq(_Scalar):
    """Parameters of ``share.ecsq``."""

    method: Literal["uniform", "iterative"] = Field(
        default="uniform",
        description="multiples of a step, or values that are moved until error and bits are least",
    )
    scope: Literal["network", "layer"] = Field(
        default="network",
        description="a step is in root mean squares of all weights, or of its layer's",
    )
    step: float | None = Field(
        default=None, gt=0, le=16, description="between values, in root mean squares"
    )
    bits: float | None = Field(
        default=None, gt=0, le=12, description="for each weight, by the entropy of their values"
    )
    bytes: int | None = Field(default=None, ge=1, description="of the packed ONNX file, at most")
    layers: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        default_factory=dict,
        description="a factor for the step of some layers: names of ONNX nodes, or patterns; "
        "0: as they are",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in ("step", "bits", "bytes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of step, bits and bytes")
        if self.fisher and self.scope == "layer" and self.method == "uniform":
            raise ValueError("fisher: true chooses each layer's step: leave `scope` out")
        return self


class Vectors(_Shared):
    """Parameters of ``share.vq`` and ``share.pq``."""

    length: int = Field(default=4, ge=2, le=16, description="weights that are one vector")
    bits: int = Field(default=8, ge=1, le=12, description="a codebook has 2**bits vectors")
    most_error: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="a layer stays as it is where the squared error would be more than this share "
        "of its weights' squares; with `correct` of the squares of what it gives",
    )
    correct: bool = Field(
        default=False,
        description="codewords are fitted to what each layer gives, after the layers before it "
        "were shared; on calibration data",
    )
    layers: dict[str, Annotated[int, Field(ge=0, le=12)]] = Field(
        default_factory=dict,
        description="other bits for some layers: names of ONNX nodes, or patterns; 0: as they are",
    )


class Residuals(Vectors):
    """Parameters of ``share.rq``."""

    stages: int = Field(default=2, ge=1, le=8, description="codebooks that add up")


class Huffman(BaseModel):
    """``pack.huffman`` has no parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_DRAWN: frozenset[Need] = frozenset({"seed"})


def _scalar_needs(parameters: _Scalar) -> frozenset[Need]:
    return frozenset({"calibration"}) if parameters.fisher else frozenset()


def _vectors_need(parameters: Vectors) -> frozenset[Need]:
    return frozenset({"calibration"}) if parameters.correct else frozenset()


def _kmeans_needs(parameters: Kmeans) -> frozenset[Need]:
    trained: frozenset[Need] = frozenset({"training", "original", "torch"})
    return _scalar_needs(parameters) | (trained if parameters.train is not None else frozenset())


def _values(parameters: Kmeans, before: Outlook) -> Outlook:
    """Codes of equal length: Huffman's are somewhat shorter. A zero is a value like others."""
    bits = None
    if not parameters.layers and before.bits is not None:
        bits = min(float(parameters.bits), before.bits)
    return replace(before, bits=bits, vector_bits=_vector_bits(parameters, before))


def _entropy_bits(parameters: Ecsq, before: Outlook) -> Outlook:
    """As asked for, zeros among the values; what a step or a size makes is told by the run."""
    known = parameters.bits is not None and not parameters.layers
    bits = parameters.bits if known else None
    return replace(before, zeros=0.0, bits=bits, vector_bits=_vector_bits(parameters, before))


def _codewords(parameters: Vectors, before: Outlook) -> Outlook:
    """How many layers stay as they are is told by the run."""
    return replace(before, bits=None, vector_bits=_vector_bits(parameters, before))


def _vector_bits(parameters: _Shared, before: Outlook) -> float | None:
    return float(parameters.biases) if parameters.biases else before.vector_bits


def _packed(_parameters: Huffman, before: Outlook) -> Outlook:
    return replace(before, packed=True)


MEMBERS: tuple[Member, ...] = (
    Member(
        Pass(
            name="share.kmeans",
            description="the weights of a layer share 2**bits values",
            parameters=Kmeans,
            needs=_DRAWN,
            needs_with=_kmeans_needs,
            effects=_EFFECTS,
            outlook=_values,
            space={"bits": (3, 4, 5, 6), "start": ("linear", "density")},
        ),
        "wherry_compress.share.kmeans:apply",
        also=("wherry_compress.train",),
    ),
    Member(
        Pass(
            name="share.ecsq",
            description="weights as few bits as a Huffman code can make of them",
            parameters=Ecsq,
            needs_with=_scalar_needs,
            effects=_EFFECTS,
            outlook=_entropy_bits,
            space={"step": Span(0.1, 1.5, log=True), "method": ("uniform", "iterative")},
        ),
        "wherry_compress.share.ecsq:apply",
        also=("wherry.packing",),
    ),
    *(
        Member(
            Pass(
                name=f"share.{kind}",
                description=f"short vectors of weights share codewords: {words}",
                parameters=parameters,
                needs=_DRAWN,
                needs_with=_vectors_need,
                effects=_EFFECTS,
                outlook=_codewords,
                space={"bits": (4, 6, 8), "length": (2, 4, 8)},
            ),
            f"wherry_compress.share.vectors:apply_{kind}",
        )
        for kind, words, parameters in (
            ("vq", "one codebook for a layer", Vectors),
            ("pq", "a codebook for each group of input channels", Vectors),
            ("rq", "the sum of several codebooks", Residuals),
        )
    ),
    Member(
        Pass(
            name="pack.huffman",
            description="what is sent to boards is packed: codebooks and Huffman codes",
            parameters=Huffman,
            effects={
                "*": "a smaller download where weights are shared or pruned; no speed and no "
                "memory: the board has the same files"
            },
            outlook=_packed,
        ),
        "wherry_compress.share.pack:apply",
        normal=False,
        also=("wherry.packing",),
    ),
)
