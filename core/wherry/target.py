"""Targets, the backends that they name, and the options of a runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from wherry.keep import Keep
from wherry.requirements import Requirements

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.context import StepContext
    from wherry.model import Model
    from wherry.native import Native
    from wherry.operators import Asking, Support

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""The words for a precision, wide to narrow. A backend lists those that it offers."""


def convert_option(
    default: Any, *, description: str, precisions: Iterable[str] | None = None, **constraints: Any
) -> Any:
    """A field of `RuntimeOptions` that the converter reads.

    Args:
        default: its value where the manifest gives none.
        description: for the manifest's schema.
        precisions: those that it means something for; targets of another have the default. None:
            it means something for all.
        constraints: as pydantic's ``Field`` takes them.
    """
    extra: dict[str, Any] = {"stage": "convert"}
    if precisions is not None:
        extra["precisions"] = sorted(precisions)
    return Field(default=default, description=description, json_schema_extra=extra, **constraints)


def run_option(
    default: Any, *, description: str, precisions: Iterable[str], **constraints: Any
) -> Any:
    """A field that changes only how an artifact is run, and that of some precisions alone.

    Args:
        default: see `convert_option`, as for the others.
        description: likewise.
        precisions: likewise; what means something for all is a plain ``Field``.
        constraints: likewise.
    """
    extra: dict[str, Any] = {"precisions": sorted(precisions)}
    return Field(default=default, description=description, json_schema_extra=extra, **constraints)


class RuntimeOptions(BaseModel):
    """Options of a backend; each backend derives its own from this.

    A field made with `convert_option` changes the artifact; every other field only changes how
    the artifact is run, so that changing it converts nothing again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: int = Field(default=1, ge=1, le=1024, description="threads of the runtime")
    keep_fp32: tuple[Keep, ...] = convert_option(
        (),
        description="nodes that stay in fp32: names of ONNX nodes, patterns, or {op: OPERATOR}",
        precisions=PRECISIONS[1:],
    )

    @property
    def calibrated(self) -> bool:
        """Whether a precision of ``Backend.calibrated`` wants its calibration with these options.

        A backend that also quantises without one says when.
        """
        return True

    def of(self, precision: str) -> Self:
        """These options with the defaults for those that mean nothing for ``precision``."""
        reset = {
            name: info.default
            for name, info in type(self).model_fields.items()
            if precision not in _extra(info).get("precisions", (precision,))
        }
        return self.model_copy(update=reset)


def of_some_precisions(options: type[RuntimeOptions]) -> dict[str, list[str]]:
    """The options that do not mean something for every precision, and for which they do."""
    return {
        name: _extra(info)["precisions"]
        for name, info in options.model_fields.items()
        if "precisions" in _extra(info)
    }


def _extra(info: FieldInfo) -> Mapping[str, Any]:
    """What `convert_option` and `run_option` noted of a field."""
    extra = info.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def split_options(options: RuntimeOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options as JSON values: (those that change the artifact, those of the run)."""
    convert: dict[str, Any] = {}
    run: dict[str, Any] = {}
    values = options.model_dump(mode="json")
    for name, info in type(options).model_fields.items():
        stage = _extra(info).get("stage")
        (convert if stage == "convert" else run)[name] = values[name]
    return convert, run


@dataclass(frozen=True)
class Target:
    """Backend x precision x device x options: one row of a report."""

    backend: str
    precision: str
    device: str
    options: RuntimeOptions = field(default_factory=RuntimeOptions)

    @property
    def id(self) -> str:
        """A name that is unique in a manifest, short, and safe in a file name."""
        changed = self.options.model_dump(mode="json", exclude_defaults=True)
        parts = [self.backend, self.precision, self.device]
        threads = changed.pop("threads", None)
        if threads is not None:
            parts.append(f"t{threads}")
        if changed:
            text = json.dumps(changed, sort_keys=True)
            parts.append(hashlib.sha256(text.encode()).hexdigest()[:12])
        return "-".join(parts)

    def describe(self) -> str:
        """For people: ``ncnn fp16 on pi4 (threads=4, winograd=False)``."""
        changed = self.options.model_dump(mode="json", exclude_defaults=True)
        options = ", ".join(
            f"{key}={listed(value) if isinstance(value, list) else value}"
            for key, value in changed.items()
        )
        return f"{self.backend} {self.precision} on {self.device}" + (
            f" ({options})" if options else ""
        )


def listed(values: Iterable[Any]) -> str:
    """A list that is an option's JSON value, for people: of a long one its first and its length."""
    words = [
        ", ".join(f"{k}: {v}" for k, v in each.items()) if isinstance(each, dict) else str(each)
        for each in values
    ]
    return (
        f"[{', '.join(words)}]" if len(words) <= 2 else f"[{words[0]}, and {len(words) - 1} more]"
    )


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What a backend's pre-flight found: it will not convert this.

    Attributes:
        op_type: the ONNX operator, with its domain unless that is ONNX's own.
        count: how many nodes of this kind stand in the model.
        node: the name of the first one.
        remedy: what the user can do, as a sentence.
    """

    op_type: str
    count: int
    node: str
    remedy: str


@dataclass(frozen=True, slots=True)
class ParityThreshold:
    """The least agreement of an artifact's outputs with the model's in fp32."""

    sqnr_db: float
    cosine: float


DEFAULT_PARITY: Mapping[str, ParityThreshold] = {
    "fp32": ParityThreshold(60.0, 0.9999),
    "fp16": ParityThreshold(30.0, 0.999),
    "bf16": ParityThreshold(20.0, 0.99),
    "int8": ParityThreshold(5.0, 0.9),
}
"""Per precision; a backend or a manifest may say otherwise."""


def no_preflight(model: Model, target: Target) -> Sequence[Unsupported]:  # noqa: ARG001
    """The pre-flight of a backend that knows no limits before it tries."""
    return ()


@dataclass(frozen=True)
class Backend:
    """Descriptor of a runtime and its converter, yielded by ``wherry_backends``.

    Attributes:
        name: the word in manifests.
        description: one line for ``wherry plugins list``.
        precisions: those offered, the default first.
        options: the runtime's options; they appear in the manifest's schema and its errors.
        runner: the file that is shipped to the board. It imports nothing of ours and defines
            ``load(directory, artifact, options) -> runner``; see ``docs/plugins.md``.
        runner_files: modules that are shipped beside it, which it imports as ``from .name import``.
        runtime: what ``runner`` needs on a board: alternatives, the best first.
        converter: what the converter needs on the host; None: the host's own interpreter will do.
        artifact_format: the name of the format, e.g. ``tflite``.
        format_version: raise it when the converter's output changes for the same input: it is
            part of the store's key.
        convert_files: the plugin's files whose content decides what the converter makes; their
            bytes are part of the store's key; empty: all of the plugin's Python files.
        calibrated: precisions for which ``wherry_convert`` wants a calibration, unless the options
            say otherwise (`RuntimeOptions.calibrated`).
        mixed: precisions in which single nodes can stay in fp32 (the option ``keep_fp32``).
        refusals: precision to the reason why this backend cannot offer it, with a remedy.
        preflight: the operators that it would refuse, found without converting.
        operators: what it supports of each operator of ONNX, by name (``Conv``, or
            ``com.microsoft::FusedConv``), asked of its tool and runtime; None: it cannot tell.
        runs_on_host: False where no host can run the artifact, so that parity is not checked there.
        stand_in: the ONNX file of an artifact from which a board makes what it runs. Where this
            host lacks what the runner needs, the parity of that file is checked on ONNX Runtime.
            It may give None: there is none for this artifact.
        parity: thresholds that replace ``DEFAULT_PARITY``.
        expose: makes of an artifact, for ``wherry debug layers``, one that computes the same and
            also gives every intermediate tensor of ``Artifact.layers``, as outputs behind the
            model's own. Files are written below ``context.output``. None: it cannot.
        dissect: makes of an artifact what the runner's ``time_layers`` wants; None: the artifact
            itself will do.
        tools: what the runner needs of what the board's owner has installed, by a name of ours:
            the places where it usually is. The inventory's ``tools:`` or an environment variable
            (the name in capitals) say otherwise. What is found there is part of the keys of
            measurements.
        prepare_s: how long the runner's ``prepare`` may take on a board, seconds.
        native: machine code that the runner wants beside its Python packages; None: nothing.
        examples: C or C++ sources for bundles that load the artifact by the runtime's own API. They
            include ``model.h``, which the core writes (`wherry.bundle.cpp`); their first comment
            says how to build them.
    """

    name: str
    description: str
    precisions: tuple[str, ...]
    runner: Path
    artifact_format: str
    options: type[RuntimeOptions] = RuntimeOptions
    runtime: tuple[Requirements, ...] = ()
    converter: Requirements | None = None
    format_version: int = 1
    convert_files: tuple[Path, ...] = ()
    calibrated: frozenset[str] = frozenset()
    refusals: Mapping[str, str] = field(default_factory=dict)
    preflight: Callable[[Model, Target], Sequence[Unsupported]] = no_preflight
    operators: Callable[[Asking], Mapping[str, Support]] | None = None
    runs_on_host: bool = True
    runner_files: tuple[Path, ...] = ()
    stand_in: Callable[[Artifact], Path | None] | None = None
    parity: Mapping[str, ParityThreshold] = field(default_factory=dict)
    mixed: frozenset[str] = frozenset()
    expose: Callable[[Artifact, Model, StepContext], Artifact] | None = None
    dissect: Callable[[Artifact, StepContext], Artifact] | None = None
    tools: Mapping[str, Sequence[str]] = field(default_factory=dict)
    prepare_s: float = 0.0
    native: Native | None = None
    examples: tuple[Path, ...] = ()

    @property
    def board_code(self) -> tuple[Path, ...]:
        """The plugin's files that run on a board."""
        return (self.runner, *self.runner_files)

    def needs_calibration(self, target: Target) -> bool:
        """Whether converting for ``target`` takes a calibration."""
        return target.precision in self.calibrated and target.options.calibrated

    def threshold(self, precision: str) -> ParityThreshold:
        """The parity that ``precision`` has to reach."""
        return self.parity.get(precision) or DEFAULT_PARITY[precision]
