"""The convert stage: a variant becomes a backend's artifact, and proves that it is the same net."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wherry.artifact import CONTAINERS, Artifact
from wherry.calibration import Calibration
from wherry.errors import (
    EnvironmentError_,
    ParityError,
    PluginError,
    StoreError,
    ToolError,
    UnsupportedError,
)
from wherry.keep import kept_nodes
from wherry.packing.artifacts import pack_artifact, travels_packed
from wherry.parity import Parity
from wherry.stages.context import (
    FILES,
    HostContext,
    StageResult,
    locked,
    take_or_build,
    take_or_build_locked,
)
from wherry.stages.keys import normalise_code, own_lock, packing_code, plugin_code
from wherry.stages.parity import Comparison
from wherry.stages.services import Services
from wherry.store import Key
from wherry.target import Backend, Target, Unsupported, split_options
from wherry.wording import counted

if TYPE_CHECKING:
    from wherry.model import Model
    from wherry.plan import Step
    from wherry.store import Entry

ARTIFACT_FILE = "wherry-artifact.json"


@dataclass(frozen=True)
class Converted:
    """What the convert stage gives: an artifact in the store, and how close it came.

    Attributes:
        parity: None where it was not checked on the host; the warnings say why.
        unchecked: what a board has to check then, before it measures; None: nothing.
    """

    artifact: Artifact
    parity: Parity | None
    unchecked: Comparison | None = None


def run(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Convert and check; the value is `Converted`."""
    assert step.target is not None
    target, model = step.target, inputs[step.needs[0]]
    backend = services.host.backends[target.backend]
    refuse_unsupported(backend.preflight(model, target), target)
    kept_nodes(model, target.options.keep_fp32)  # raises for a name that is wrong, in any variant
    calibration = next((v for v in inputs.values() if isinstance(v, Calibration)), None)
    key = _convert_key(model, target, backend, calibration, services)

    def build(context: HostContext) -> None:
        (context.output / FILES).mkdir()
        inner = HostContext(
            services,
            step.id,
            context.output / FILES,
            context.scratch,
            context.log,
            context.warnings,
        )
        artifact = services.host.convert(model, target, calibration, inner)
        _check_artifact(artifact, model, target, inner)
        if travels_packed(model):
            context.progress("packing")
            artifact = pack_artifact(artifact, context.output / CONTAINERS)
        (context.output / ARTIFACT_FILE).write_text(json.dumps(artifact.to_json(), indent=1))

    # The lock is held until parity is known, so that nobody takes an artifact that is then removed.
    with locked(services, step.id, key):
        entry, cached, warnings = take_or_build_locked(services, step.id, key, build)
        artifact = read_artifact(entry)
        accepted = Key("accepted", {"convert": key.digest})
        try:
            _check_files(artifact, entry)
            comparison = Comparison.of(artifact, model, target, inputs, services)
            parity, known, more = _parity(step, comparison, services)
        except (ParityError, PluginError, ToolError):
            # No artifact is kept on failure, unless it has passed with other options, samples or
            # thresholds: then some run, this one or another, may be using it right now.
            if services.store.get(accepted) is None:
                services.store.remove(key)
            raise
        take_or_build(services, step.id, accepted, lambda _context: None)
    unchecked = comparison if parity is None and comparison.samples else None
    return StageResult(Converted(artifact, parity, unchecked), cached and known, (*warnings, *more))


def _convert_key(
    model: Model,
    target: Target,
    backend: Backend,
    calibration: Calibration | None,
    services: Services,
) -> Key:
    """All that decides an artifact's bytes."""
    options, _ = split_options(target.options)
    converter = backend.converter
    return Key(
        "convert",
        {
            "model": model.digest,
            "backend": backend.name,
            "precision": target.precision,
            "options": options,
            "format_version": backend.format_version,
            "code": plugin_code(services, "backends", backend.name, backend.convert_files),
            "normalise": normalise_code(),
            "tool": None if converter is None else services.environment_lock(converter),
            "host": own_lock(),
            "calibration": None if calibration is None else calibration.digest,
            **({"packing": packing_code()} if travels_packed(model) else {}),
        },
    )


def refuse_unsupported(found: Iterable[Unsupported], target: Target) -> None:
    """Raise `UnsupportedError` for what a pre-flight found."""
    problems = list(found)
    if not problems:
        return
    listed = "; ".join(
        f"{item.op_type} ({counted(item.count, 'node')}, first {item.node!r})" for item in problems
    )
    remedies = " ".join(dict.fromkeys(item.remedy for item in problems if item.remedy))
    raise UnsupportedError(
        f"{target.backend} {target.precision} does not support {listed}",
        where=f"node {problems[0].node}",
        remedy=remedies or "Take another backend for this model.",
    )


def _check_artifact(artifact: Artifact, model: Model, target: Target, context: HostContext) -> None:
    """A converter maps each of the model's inputs and outputs, in order, and leaves files."""
    culprit = f"the backend {target.backend}"
    if artifact.directory.resolve() != context.output.resolve():
        raise PluginError(
            f"{culprit} made its artifact outside of context.output ({artifact.directory})",
            remedy="Report this to the author of the plugin.",
        )
    for side in ("inputs", "outputs"):
        wanted = [spec.name for spec in getattr(model, side)]
        found = [binding.onnx for binding in getattr(artifact, side)]
        if wanted != found:
            raise PluginError(
                f"{culprit} mapped the {side} {found}, the model has {wanted}",
                remedy="Report this to the author of the plugin.",
            )
    if not artifact.files:
        raise PluginError(
            f"{culprit} made an artifact without files",
            remedy="Report this to the author of the plugin.",
        )


def read_artifact(entry: Entry) -> Artifact:
    """The artifact of an entry, as its ``ARTIFACT_FILE`` describes it; raises `StoreError`."""
    path = entry.directory / ARTIFACT_FILE
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the description of an artifact cannot be read: {error}",
            where=str(path),
            remedy="Run `wherry cache verify`.",
        ) from error
    return Artifact.from_json(values, entry.directory / FILES)


def _check_files(artifact: Artifact, entry: Entry) -> None:
    """The files are still those that the artifact was described with."""
    for name, digest in artifact.files.items():
        if entry.files.get(f"{FILES}/{name}") != digest:
            raise PluginError(
                f"the backend {artifact.backend} changed or removed the artifact's {name!r} after "
                "it had described it",
                remedy="Report this to the author of the plugin.",
            )


def _parity(
    step: Step, comparison: Comparison, services: Services
) -> tuple[Parity | None, bool, tuple[str, ...]]:
    """Compare with ONNX Runtime in fp32 on the host: (figures, were in the store, warnings)."""
    backend, device = comparison.backend, services.host_device
    if not comparison.samples:
        return None, True, ("parity was not checked: the manifest says so (parity.samples: 0)",)
    reason = None
    if not backend.runs_on_host:
        reason = f"no host runs {backend.artifact_format} artifacts"
    elif device is None:
        reason = "no plugin offers a device for this host"
    else:
        try:
            return comparison.on(device, services, f"{step.id}:parity")
        except EnvironmentError_ as error:
            reason = f"this host has no runtime for it: {error}"
        except UnsupportedError as error:  # the runtime is what the owner of a board installs
            reason = f"this host cannot run it: {error.message}"  # what to do is said where it runs
            figures = comparison.of_stand_in(services, f"{step.id}:parity")
            if figures is not None:
                reason += (
                    "; the file that the board starts from has "
                    f"{figures.sqnr_db:.1f} dB on ONNX Runtime"
                )
    return None, True, (f"parity was not checked on this host: {reason}",)
