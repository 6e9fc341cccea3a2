"""The passes before int8, and their parameters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

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


MEMBERS: tuple[Member, ...] = (
    Member(
        Pass(
            name="int8.bias-correction",
            description="biases make up for what rounding the weights to int8 shifts on average",
            parameters=BiasCorrection,
            needs=frozenset({"calibration"}),
            effects={"*": "in int8 hardly anything: wherry's rounding leaves no shift to correct"},
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
        ),
        "wherry_compress.int8.adaround:apply",
        also=("wherry.quantize",),
    ),
)
