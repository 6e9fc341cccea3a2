"""From a manifest to a plan: which steps there are, what each needs, and what they share.

A plan is data: it touches neither the model nor the store. ``stages`` know how to do a step, and
``engine`` in what order. Steps that several targets need stand in the plan once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wherry.passes import PassStep
from wherry.tags import is_tagged, tagged
from wherry.target import Target, split_options
from wherry.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry.host import Host
    from wherry.inventory import Inventory
    from wherry.manifest import Manifest

Kind = Literal["model", "data", "reference", "optimize", "calibrate", "convert", "profile"]

ORIGINAL = "model"
"""The step that reads the manifest's model, and its id."""

EVALUATION = "evaluation"
CALIBRATION = "calibration"
TRAINING = "training"


@dataclass(frozen=True)
class Row:
    """One line of the report: a variant on a target.

    Attributes:
        steps: the ids of the steps that lead to its measurement, in order; the last but one
            converts it, the last profiles it.
    """

    index: int
    variant: str
    target: Target
    steps: tuple[str, ...]

    @property
    def id(self) -> str:
        """Unique in the plan, for people and file names."""
        return f"{self.variant}/{self.target.id}"

    @property
    def convert(self) -> str:
        """The id of the step that converts it."""
        return self.steps[-2]

    @property
    def profile(self) -> str:
        """The id of the step that profiles it."""
        return self.steps[-1]


@dataclass(frozen=True)
class Step:
    """A unit of work.

    Attributes:
        id: unique in the plan.
        title: for the progress display and logs.
        needs: ids of the steps whose results it takes.
        variant: of optimize, calibrate and convert.
        passes: of optimize: the chain so far; the last one is this step's own.
        target: of convert and calibrate: a target that stands for all that share the step.
        data: of data: the section's name in the manifest.
        device: of profile: the device; tags as `wherry.tags` has them where none is chosen yet.
        rows: of profile: the indices of the rows that are measured together.
        tolerates: those of ``needs`` that may fail, as long as one of them does not.
        exclusive: nothing else may run beside it: it times something on the host itself.
    """

    id: str
    kind: Kind
    title: str
    needs: tuple[str, ...] = ()
    variant: str = ""
    passes: tuple[PassStep, ...] = ()
    target: Target | None = None
    data: str = ""
    device: str = ""
    rows: tuple[int, ...] = ()
    tolerates: tuple[str, ...] = ()
    exclusive: bool = False

    @property
    def remote(self) -> bool:
        """Whether it waits for a board, and takes no core of the host."""
        return bool(self.device) and not self.exclusive


@dataclass(frozen=True)
class Plan:
    """All steps, in an order in which they could be done, and the rows that they lead to."""

    manifest: Manifest
    steps: Mapping[str, Step]
    rows: tuple[Row, ...]


def make_plan(manifest: Manifest, host: Host, inventory: Inventory) -> Plan:
    """Lay out the steps of a manifest whose names were all checked when it was loaded."""
    steps: dict[str, Step] = {}

    def add(step: Step) -> str:
        steps.setdefault(step.id, step)
        return step.id

    model = add(Step(ORIGINAL, "model", "read the model"))

    def data(*names: str) -> tuple[str, ...]:
        """Those of the sections that the manifest has; what no step needs is never read."""
        return tuple(
            add(Step(f"data:{name}", "data", f"read the {name} data", (model,), data=name))
            for name in names
            if name in manifest.data
        )

    evaluation = data(EVALUATION)
    reference = (
        (add(Step("reference", "reference", "run the original in fp32", (model, *evaluation))),)
        if evaluation
        else ()
    )
    checks = evaluation or data(CALIBRATION)

    rows: list[Row] = []
    by_device: dict[str, list[int]] = {}
    for index, (variant, target) in enumerate(manifest.rows):
        chain = _chain(variant, manifest.variants[variant], model, data, host, add)
        variant_model = chain[-1]
        calibration: tuple[str, ...] = ()
        if host.backends[target.backend].needs_calibration(target):
            needs = (variant_model, *data(CALIBRATION))
            calibrator = host.worker("wherry_calibrate", target.backend)
            calibration = (
                add(
                    Step(
                        f"calibrate:{variant_model}:{calibrator.name}@{calibrator.module}",
                        "calibrate",
                        f"calibrate {variant}",
                        needs,
                        variant=variant,
                        target=target,
                    )
                ),
            )
        convert = add(
            Step(
                f"convert:{variant_model}:{_conversion(target)}",
                "convert",
                f"convert {variant} for {_conversion_in_words(target)}",
                (variant_model, *calibration, *checks),
                variant=variant,
                target=target,
            )
        )
        by_device.setdefault(target.device, []).append(index)
        rows.append(
            Row(index, variant, target, (*chain, *calibration, convert, f"profile:{target.device}"))
        )

    for device, indices in by_device.items():
        names = tagged(device, inventory.devices) if is_tagged(device) else (device,)
        transports = {inventory.devices[name].transport for name in names}
        converts = tuple(dict.fromkeys(rows[index].convert for index in indices))
        add(
            Step(
                f"profile:{device}",
                "profile",
                f"measure {counted(len(indices), 'target')} on {device}",
                (*converts, *evaluation, *reference),
                device=device,
                rows=tuple(indices),
                tolerates=converts,
                exclusive=any(host.transports[name].host for name in transports),
            )
        )
    return Plan(manifest, steps, tuple(rows))


def _chain(
    variant: str,
    passes: tuple[PassStep, ...],
    model: str,
    data: Callable[..., tuple[str, ...]],
    host: Host,
    add: Callable[[Step], str],
) -> tuple[str, ...]:
    """The optimize steps of a variant; variants with a common beginning share it."""
    chain = [model]
    for count, step in enumerate(passes, start=1):
        needed = host.passes[step.name].needed(step.parameters)
        extra = data(*(name for name in (CALIBRATION, TRAINING) if name in needed))
        if "original" in needed and chain[-1] != model:
            extra = (model, *extra)
        name = f"{step.name}:{step.parameters.model_dump_json()}"
        chain.append(
            add(
                Step(
                    f"{chain[-1]}>{name}",
                    "optimize",
                    f"{step.name} for {variant}",
                    (chain[-1], *extra),
                    variant=variant,
                    passes=passes[:count],
                    exclusive="device" in needed,
                )
            )
        )
    return tuple(chain)


def _conversion_in_words(target: Target) -> str:
    """For people, what `_conversion` is as a key."""
    changed = target.options.model_dump(mode="json", exclude={"threads"}, exclude_defaults=True)
    options = ", ".join(f"{key}={value}" for key, value in changed.items())
    return f"{target.backend} {target.precision}" + (f" ({options})" if options else "")


def _conversion(target: Target) -> str:
    """What conversion and parity depend on: all of the target but device and threads."""
    convert, run = split_options(target.options)
    run.pop("threads", None)
    options = json.dumps({**convert, **run}, sort_keys=True)
    return f"{target.backend}:{target.precision}:{options}"
