"""What may stand in a manifest: the forms of its sections, as they are written.

What plugins own (options of a backend, parameters of passes, datasets and designs) is checked by
their own models; `wherry.manifest.json_schema` puts both together for editors.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, LiteralString, Self, TypeVar, Union, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from wherry.calibration import Method
from wherry.data.spec import PreprocessSpec
from wherry.keep import Keep
from wherry.tags import is_tagged, word_of

VERSION = 1
"""The version of the manifest's form that this wherry reads."""

Role = Literal["calibration", "evaluation", "training"]
"""What data is for."""

ROLES: tuple[str, ...] = get_args(Role)

Reason = Literal[
    "options", "board", "system", "clocks", "timer", "emulated", "not-clean", "convention", "data",
    "metric", "original", "energy",
]  # fmt: skip
"""Why measurements are unlike: the keys of `wherry.records.likeness.REASONS`."""

T = TypeVar("T")


class _Given:
    """Takes None out of a type: it is the default of a key that is not written."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        given = [part for part in get_args(source) if part is not type(None)]
        return handler.generate_schema(given[0] if len(given) == 1 else Union[tuple(given)])  # noqa: UP007 -- made of parts that are known at run time


Given = Annotated[T | None, _Given]
"""A key that may be left out, but not left empty."""


class _OneOrMany:
    """A single value stands for a list of one."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list | dict) else [value]


OneOrMany = Annotated[list[T], Field(min_length=1), BeforeValidator(_listed), _OneOrMany]
"""A value or a list of values."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
"""Names of variants and devices: they stand in file names."""

Name = Annotated[str, Field(pattern=NAME)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Axis = Annotated[int, Field(ge=1, lt=2**31)]
Threads = Annotated[int, Field(ge=1, le=1024)]


class Section(BaseModel):
    """A part of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(Section):
    """One input of the model."""

    shape: Given[Annotated[list[Axis], Field(max_length=16)]] = Field(
        default=None, description="its static shape, where the model leaves axes open"
    )
    preprocess: Given[PreprocessSpec] = Field(
        default=None, description="how raw samples become this input"
    )


class ZooForm(BaseModel):
    """A network design; its parameters stand beside its name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="the design")


class ModelForm(Section):
    """The model: an ONNX file or a network design."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["path"]}, {"required": ["zoo"]}]}
    )

    path: Given[Annotated[str, Field(min_length=1)]] = Field(
        default=None, description="the ONNX file; starts at the manifest's folder"
    )
    zoo: Given[ZooForm] = Field(default=None, description="a network design and its parameters")
    inputs: dict[str, Input] = Field(
        default_factory=dict, description="what has to be said of inputs, by name"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.zoo is None):
            raise ValueError("give either path or zoo")
        return self


class ByTags(Section):
    """A device that is asked for by what it is."""

    tags: OneOrMany[Name] = Field(description="the tags that it has to have, all of them")


class _NameOrTags:
    """A device's name, or tags, which become a word of `wherry.tags`."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), handler(ByTags.__pydantic_core_schema__)]}


_DEVICE: LiteralString = "must be a name, or tags as `{tags: [...]}`"


def _device(value: Any) -> Any:
    if isinstance(value, str) and is_tagged(value):
        raise PydanticCustomError("device", _DEVICE)
    if not isinstance(value, dict):
        return value
    try:
        return word_of(ByTags.model_validate(value, strict=True).tags)
    except ValidationError:
        raise PydanticCustomError("device", _DEVICE) from None


def _devices(value: Any) -> Any:
    return [value] if isinstance(value, dict) else _listed(value)


Devices = Annotated[
    list[Annotated[str, BeforeValidator(_device), _NameOrTags]],
    Field(min_length=1),
    BeforeValidator(_devices),
    _OneOrMany,
]
"""A device or a list of them, each by its name or by tags."""


def _ordered(text: str) -> str:
    first, _, last = text.partition(":")
    if first and last and int(first) >= int(last):
        raise ValueError(f'"{text}" is empty: the first sample comes after the last')
    return text


class DataForm(BaseModel):
    """A dataset; what its source takes stands beside these keys."""

    model_config = ConfigDict(extra="allow", frozen=True)

    source: str = Field(description="what reads the data")
    slice: Annotated[str, Field(pattern=r"^[0-9]{0,18}:[0-9]{0,18}$"), AfterValidator(_ordered)] = (
        Field(
            default=":", description='the samples to take, "first:beyond the last", with the quotes'
        )
    )


class MetricForm(Section):
    """What a metric looks at."""

    output: Given[str] = Field(default=None, description="the model's output to look at")


class Where(Section):
    """Rows of the report."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    variant: Given[OneOrMany[str]] = Field(default=None, description="names of variants")
    backend: Given[OneOrMany[str]] = Field(default=None, description="names of backends")
    precision: Given[OneOrMany[str]] = Field(default=None, description="precisions")
    device: Given[Devices] = Field(
        default=None, description="devices, by name or by tags, as in targets"
    )
    threads: Given[OneOrMany[Threads]] = Field(default=None, description="numbers of threads")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self


class TargetForm(BaseModel):
    """Targets: the product of all lists. Options of a backend stand under the backend's name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    backend: OneOrMany[str] = Field(description="the runtimes")
    precision: Given[OneOrMany[str]] = Field(
        default=None, description="fp32, fp16, ...; the backend's first if left out"
    )
    device: Devices = Field(
        default=["local"],
        description="names of devices, or `{tags: [...]}` for one that has all of the tags",
    )
    threads: Given[OneOrMany[Threads]] = Field(
        default=None, description="threads of the runtime, for all backends of the entry"
    )
    keep_fp32: Given[list[Keep]] = Field(
        default=None,
        description="nodes that stay in fp32, for all backends of the entry: names, patterns, "
        "or {op: OPERATOR}",
    )
    variants: Given[OneOrMany[str]] = Field(
        default=None, description="the variants to run here; all if left out"
    )


_PERCENT = re.compile(r"^[0-9]+(\.[0-9]+)?%$")


def _drop(value: Any) -> Any:
    """Percent as text is checked here; the number that it stands for is made by the loader."""
    if isinstance(value, str) and not _PERCENT.match(value):
        raise PydanticCustomError("drop", 'must be a number, or text such as "2%"')
    return value


_AMOUNT = re.compile(r"^[0-9]+(\.[0-9]+)?( ?(%|ms|B|kB|MB|mJ))?$")


def _increase(value: Any) -> Any:
    if isinstance(value, str) and not _AMOUNT.match(value):
        raise PydanticCustomError("increase", 'must be a number, or text such as "5%" or "0.2 ms"')
    return value


BOUNDS = ("max_drop", "max_increase", "min_speedup", "min", "max")
"""The bounds of a gate, in the order in which they are told."""

AGAINST = r"^(original|fp32|last|best|tag:.+|.+\.json)$"
"""What a gate can compare with."""


_AGAINST: LiteralString = (
    "must be original, fp32, last, best, tag:NAME, or a file that ends in .json"
)


def _against(value: Any) -> Any:
    if isinstance(value, str) and not re.match(AGAINST, value):
        raise PydanticCustomError("against", _AGAINST)
    return value


class GateForm(Section):
    """A threshold that fails the run."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [bound]} for bound in BOUNDS]}
    )

    metric: str = Field(description="a metric of this manifest, or one that is always measured")
    max_drop: Given[
        Annotated[
            Annotated[float, Field(ge=0, allow_inf_nan=False)]
            | Annotated[str, Field(pattern=_PERCENT.pattern)],
            BeforeValidator(_drop),
        ]
    ] = Field(
        default=None,
        description="how much worse than the original in fp32, or than what `against` names; "
        '"2%" is a share of its value',
    )
    max_increase: Given[
        Annotated[
            Annotated[float, Field(ge=0, allow_inf_nan=False)]
            | Annotated[str, Field(pattern=_AMOUNT.pattern)],
            BeforeValidator(_increase),
        ]
    ] = Field(
        default=None,
        description='how much more than what `against` names: in its unit, "0.2 ms", "5%"',
    )
    min_speedup: Given[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=None, description="how many times as fast as what `against` names; fp32 if left out"
    )
    against: Given[Annotated[str, Field(pattern=AGAINST), BeforeValidator(_against)]] = Field(
        default=None,
        description="original (of what is measured: that variant on the same target), fp32 (the "
        "same target in fp32), last, best, tag:NAME, or a baseline file; starts at the manifest's "
        "folder",
    )
    allow: Given[OneOrMany[Reason]] = Field(
        default=None, description="unlike measurements that are compared all the same"
    )
    min: Given[Finite] = Field(default=None, description="the least value")
    max: Given[Finite] = Field(default=None, description="the greatest value")
    where: Given[Where] = Field(default=None, description="the rows that it speaks of")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if all(getattr(self, bound) is None for bound in BOUNDS):
            raise ValueError("give max_drop, max_increase, min_speedup, min or max")
        return self


class Measure(Section):
    """How long is measured; each target in several rounds, each in a process of its own."""

    rounds: int = Field(default=5, ge=1, le=1000, description="rounds over all targets of a board")
    warmup_s: Seconds = Field(default=0.3, description="least seconds of warm-up in each round")
    warmup_runs: int = Field(
        default=5, ge=0, le=1_000_000, description="least runs of warm-up in each round"
    )
    duration_s: Seconds = Field(default=0.6, description="seconds of measuring in each round")
    min_runs: int = Field(
        default=10, ge=1, le=1_000_000, description="least measured runs in each round"
    )
    max_runs: int = Field(
        default=20_000, ge=1, le=1_000_000, description="most measured runs in each round"
    )
    stabilise: bool = Field(
        default=False, description="fix the board's clocks while it is measured, and give them back"
    )
    power_mode: int | None = Field(
        default=None, ge=0, le=999, description="of a Jetson, by nvpmodel's number; with stabilise"
    )
    sustained: float = Field(
        default=0.0, ge=0, le=86_400, description="seconds without pause after the rounds; 0: none"
    )
    layers: bool = Field(
        default=False, description="time the layers of each target too, after the rounds"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_runs > self.max_runs:
            raise ValueError(f"min_runs ({self.min_runs}) is more than max_runs ({self.max_runs})")
        if self.power_mode is not None and not self.stabilise:
            raise ValueError("power_mode needs stabilise: true, which gives the old one back")
        return self


class Calibrate(Section):
    """How the ranges of activations are chosen, for precisions that need them."""

    method: Method = Field(
        default="minmax", description="what a range is chosen by, from all values of a tensor"
    )
    percentile: float = Field(
        default=99.99,
        gt=50,
        le=100,
        allow_inf_nan=False,
        description="how many of the values it holds, percent; with method: percentile",
    )

    @model_validator(mode="after")
    def _asked_for(self) -> Self:
        if "percentile" in self.model_fields_set and self.method != "percentile":
            raise ValueError(f"percentile has no meaning for the method {self.method}")
        return self


class Threshold(Section):
    """The least agreement of an artifact with the model in fp32."""

    sqnr_db: Finite = Field(description="signal to quantisation noise, dB")
    cosine: float = Field(ge=-1, le=1, description="cosine of the angle between the outputs")


class Parity(Section):
    """The check of each artifact against the model."""

    samples: int = Field(
        default=8, ge=0, le=10_000, description="how many samples are compared; 0: no check"
    )
    thresholds: dict[Literal["fp32", "fp16", "bf16", "int8"], Threshold] = Field(
        default_factory=dict, description="per precision, instead of the backend's own"
    )


class Limits(Section):
    """Limits of each tool's process."""

    time_s: float = Field(
        default=1800, gt=0, le=604_800, allow_inf_nan=False, description="seconds a tool may run"
    )
    memory_mb: int = Field(
        default=8192, ge=64, le=1 << 30, description="memory that a tool may take, MiB"
    )


class Seed(Section):
    """The one key of the top that is a plain number."""

    seed: int = Field(
        default=0, ge=0, lt=2**32, description="of everything that is drawn by chance"
    )


class ManifestForm(Seed):
    """A manifest of wherry."""

    wherry: Literal[1] = Field(description="version of the manifest's form")
    include: OneOrMany[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="files whose keys are taken where this one does not give them"
    )
    model: ModelForm = Field(description="what is deployed")
    data: dict[Role, DataForm] = Field(
        default_factory=dict, description="the data, by what it is for"
    )
    metrics: list[Any] = Field(
        default_factory=list, description="what is computed over the evaluation data"
    )
    variants: dict[Name, list[Any]] = Field(
        default_factory=dict, min_length=1, description="named lists of passes"
    )
    targets: list[TargetForm] = Field(min_length=1, description="where the variants run")
    exclude: list[Where] = Field(default_factory=list, description="combinations to leave out")
    gates: list[GateForm] = Field(default_factory=list, description="thresholds that fail the run")
    calibrate: Calibrate = Field(
        default_factory=Calibrate, description="how the ranges of activations are chosen"
    )
    measure: Measure = Field(default_factory=Measure, description="how long is measured")
    parity: Parity = Field(
        default_factory=Parity, description="the check of each artifact against the model"
    )
    limits: Limits = Field(
        default_factory=Limits, description="time and memory that each tool may take"
    )
    track: dict[str, Any] = Field(
        default_factory=dict, description="trackers that are told of the run, with their parameters"
    )
