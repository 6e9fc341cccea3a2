"""What a manifest may say under ``preprocess:``; `wherry.preprocess` carries it out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PreprocessSpec(BaseModel):
    """How a raw sample becomes one input: ``(float32(x) * scale - mean) / std`` per channel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: FiniteFloat | None = Field(
        default=None, description="factor for every value, e.g. 0.00392156862745098 for 1/255"
    )
    mean: tuple[FiniteFloat, ...] | None = Field(
        default=None,
        min_length=1,
        description="subtracted after scaling: one value, or one per channel in the model's order",
    )
    std: tuple[Positive, ...] | None = Field(
        default=None,
        min_length=1,
        description="divided by, last: one value, or one per channel in the model's order",
    )
    layout: Literal["nchw", "nhwc"] | None = Field(
        default=None, description="the order of the model's axes; nchw unless said"
    )
    channels: Literal["rgb", "bgr"] | None = Field(
        default=None,
        description="the order of the model's colours; rgb, as pictures have, unless said",
    )

    @field_validator("scale")
    @classmethod
    def _not_zero(cls, value: float | None) -> float | None:
        if value == 0:
            raise ValueError("a scale of 0 would make every sample the same")
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    def values(self) -> dict[str, Any]:
        """What was said, as JSON values: the ``spec`` of `wherry.preprocess.apply`."""
        return self.model_dump(mode="json", exclude_none=True)
