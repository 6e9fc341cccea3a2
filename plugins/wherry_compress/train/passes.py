"""The passes that train, and those that get a network ready for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.outlook import WHOLE, Outlook, rescaled
from wherry.passes import Pass, Span
from wherry_compress.idle import refuse_idle
from wherry_compress.member import Member

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Restore(BaseModel):
    """Parameters of ``bn.restore``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exclude: tuple[str, ...] = Field(
        default=(),
        description="nodes, or patterns over them, that stay without one",
    )
    samples: int | None = Field(
        default=None, ge=1, description="of the calibration data; all of them if left out"
    )


class Reestimate(BaseModel):
    """Parameters of ``bn.reestimate``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int | None = Field(
        default=None, ge=1, description="of the calibration data; all of them if left out"
    )


class Training(BaseModel):
    """What all passes that train by the original's outputs may be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=3, ge=1, le=10_000, description="times through the training data")
    steps: int | None = Field(default=None, ge=1, description="batches, instead of epochs")
    batch: int = Field(default=64, ge=1, le=65_536, description="samples of a step")
    learning_rate: Positive = Field(default=1e-3, description="the greatest of the schedule")
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="sgd has Nesterov's momentum"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="of sgd")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="of kernels and matrices; biases and scales have none"
    )
    schedule: Literal["cosine", "step", "constant"] = Field(
        default="cosine",
        description="of the learning rate; step: a tenth after half of the steps, a hundredth "
        "after three quarters",
    )
    warm_up: Share = Field(
        default=0.05, description="share of the steps in which the learning rate rises from zero"
    )
    clip: Positive | None = Field(
        default=None, description="the greatest norm of the gradient; any if left out"
    )
    temperature: Positive = Field(
        default=2.0, description="by which the original's logits are divided"
    )
    labels: Share = Field(
        default=0.0, description="share of the labels' cross-entropy in the loss, 0 to 1"
    )
    features: dict[str, Positive] = Field(
        default_factory=dict,
        description="inner tensors that are to be the original's, too: name to weight in the loss",
    )
    outputs: Literal["auto", "classes", "values"] = Field(
        default="auto",
        description="what the outputs are: classes are compared as distributions, values by their "
        "squared error; auto: an output with one axis besides the batch holds classes",
    )
    shift: int = Field(
        default=0,
        ge=0,
        le=64,
        description="pictures, [batch, channels, height, width], are moved by up to so many pixels "
        "at random",
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1,
        description="share of the training data by which the best state is chosen; 0: the last is",
    )
    patience: int | None = Field(
        default=None, ge=1, description="epochs without a better state after which it ends"
    )
    batch_norm: Literal["batch", "fixed"] = Field(
        default="batch", description="whether batch norms use the batch's statistics, or their own"
    )
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="share of a batch in the statistics of batch norms"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of the computation (autocast); weights are fp32; fp16: on GPUs"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: GPUs, if torch finds one for each process"
    )
    processes: int = Field(
        default=1, ge=1, le=64, description="that train together, each with its share of a batch"
    )

    @model_validator(mode="after")
    def _fits(self) -> Training:
        if self.batch % self.processes:
            raise ValueError(
                f"a batch of {self.batch} cannot be shared by {self.processes} processes"
            )
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("fp16 is trained on GPUs; on a processor take bf16")
        if self.patience is not None and not self.held_out:
            raise ValueError("patience waits for a better state, which held_out: 0 does not tell")
        if self.steps is not None and "epochs" in self.model_fields_set:
            raise ValueError("steps and epochs both say how long: give one")
        refuse_idle(self, "momentum", self.optimizer == "sgd", "optimizer: sgd")
        refuse_idle(self, "bn_momentum", self.batch_norm == "batch", "batch_norm: batch")
        refuse_idle(self, "temperature", self.outputs != "values", "outputs: classes")
        return self


class Fit(Training):
    """Parameters of ``fit``."""

    keep_zeros: bool = Field(
        default=True, description="weights that are exactly zero (pruned ones) stay so"
    )
    fold: bool = Field(
        default=True,
        description="batch norms are folded into the layers before them at the end; false: they "
        "stay, for passes that come after",
    )


def _trained(parameters: Fit, before: Outlook) -> Outlook:
    """Zeros stay where they are told to; weights that shared values part."""
    zeros = before.zeros if parameters.keep_zeros else 0.0
    return replace(before, zeros=zeros, bits=WHOLE, vector_bits=WHOLE)


MEMBERS = (
    Member(
        Pass(
            name="bn.restore",
            description="batch norms put back behind convolutions, for pruning and fit; the "
            "network computes the same",
            parameters=Restore,
            needs=frozenset({"calibration"}),
            effects={"*": "nothing by itself: converters fold them again; fit gets further"},
            outlook=rescaled,
        ),
        "wherry_compress.train.batch_norms:restore",
        batch_norms=True,
    ),
    Member(
        Pass(
            name="bn.reestimate",
            description="statistics of batch norms measured anew, after pruning; no training",
            parameters=Reestimate,
            needs=frozenset({"calibration"}),
            effects={"*": "accuracy after pruning; no change in speed or size"},
            outlook=rescaled,
        ),
        "wherry_compress.train.batch_norms:reestimate",
        batch_norms=True,
    ),
    Member(
        Pass(
            name="fit",
            description="trained to give what the original gives, with labels or without",
            parameters=Fit,
            needs=frozenset({"training", "original", "seed", "torch"}),
            effects={"*": "accuracy that other passes have cost; no change in speed or size"},
            outlook=_trained,
            space={
                "learning_rate": Span(1e-4, 1e-2, log=True),
                "temperature": Span(1.0, 8.0, log=True),
                "labels": Span(0.0, 1.0),
            },
        ),
        "wherry_compress.train.fit:apply",
        batch_norms=True,
    ),
)
