"""The passes before int8, and their parameters."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from wherry.outlook import WHOLE, Outlook
from wherry.passes import Pass
from wherry_compress.member import Member


class BiasCorrection(BaseModel):
    """Parameters of ``int8.bias-correction``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(default=128, ge=1, description="of the calibration data, at the most")


class AdaRound(BaseModel):
    """Parameters of ``int8.adaround``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(default=256, ge=1, description="of the calibration data, at the most")
    iterations: int = Field(default=500, ge=10, description="steps of gradient descent a layer")


def _corrected(_parameters: BiasCorrection, before: Outlook) -> Outlook:
    return replace(before, vector_bits=WHOLE)


def _rounded(_parameters: AdaRound, before: Outlook) -> Outlook:
    """Each channel has a grid of its own: how many values there are is told by the run."""
    return replace(before, bits=None)


MEMBERS: tuple[Member, ...] = (
    Member(
        Pass(
            name="int8.bias-correction",
            description="biases make up for what rounding the weights to int8 shifts on average",
            parameters=BiasCorrection,
            needs=frozenset({"calibration"}),
            effects={"*": "in int8 hardly anything: wherry's rounding leaves no shift to correct"},
            outlook=_corrected,
        ),
        "wherry_compress.int8.bias:apply",
        also=("wherry.quantize",),
    ),
    Member(
        Pass(
            name="int8.adaround",
            description="weights rounded to int8 so that each layer's results change least",
            parameters=AdaRound,
            needs=frozenset({"calibration", "seed"}),
            effects={
                "*": "in int8 more accurate, most where activations stay in float; other "
                "precisions get weights of 8 bits"
            },
            outlook=_rounded,
        ),
        "wherry_compress.int8.adaround:apply",
        also=("wherry.quantize",),
    ),
)
