"""The convert stage: a variant becomes a backend's artifact, and proves that it is the same net."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.artifact import Artifact
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
from wherry.parity import OutputParity, Parity, check, compare
from wherry.plan import CALIBRATION, EVALUATION
from wherry.reference import Reference, open_session, random_inputs, run_session
from wherry.stages.context import (
    FILES,
    HostContext,
    Services,
    StageResult,
    locked,
    take_or_build,
    take_or_build_locked,
)
from wherry.stages.keys import (
    agent_code,
    files_digest,
    normalise_code,
    own_code,
    own_lock,
    plugin_code,
)
from wherry.stages.prepare import model_ready
from wherry.store import Key
from wherry.target import Backend, Target, Unsupported, split_options

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.model import Model
    from wherry.plan import Step
    from wherry.store import Entry

ARTIFACT_FILE = "wherry-artifact.json"
PARITY_FILE = "parity.json"


@dataclass(frozen=True)
class Converted:
    """What the convert stage gives: an artifact in the store, and how close it came.

    Attributes:
        parity: None where the host cannot run the artifact; the warnings say why.
    """

    artifact: Artifact
    parity: Parity | None


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
        (context.output / ARTIFACT_FILE).write_text(json.dumps(artifact.to_json(), indent=1))

    # The lock is held until parity is known, so that nobody takes an artifact that is then removed.
    with locked(services, step.id, key):
        entry, cached, warnings = take_or_build_locked(services, step.id, key, build)
        artifact = read_artifact(entry)
        accepted = Key("accepted", {"convert": key.digest})
        try:
            _check_files(artifact, entry)
            parity, known, more = _parity(step, artifact, model, target, inputs, services)
        except (ParityError, PluginError, ToolError):
            # No artifact is kept on failure, unless it has passed with other options, samples or
            # thresholds: then some run, this one or another, may be using it right now.
            if services.store.get(accepted) is None:
                services.store.remove(key)
            raise
        take_or_build(services, step.id, accepted, lambda _context: None)
    return StageResult(Converted(artifact, parity), cached and known, (*warnings, *more))


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
        },
    )


def refuse_unsupported(found: Iterable[Unsupported], target: Target) -> None:
    """Raise `UnsupportedError` for what a pre-flight found."""
    problems = list(found)
    if not problems:
        return
    listed = "; ".join(
        f"{item.op_type} ({item.count} node{'s' if item.count > 1 else ''}, first {item.node!r})"
        for item in problems
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
    step: Step,
    artifact: Artifact,
    model: Model,
    target: Target,
    inputs: Mapping[str, Any],
    services: Services,
) -> tuple[Parity | None, bool, tuple[str, ...]]:
    """Compare with ONNX Runtime in fp32 on the host: (figures, were in the store, warnings)."""
    backend, manifest = services.host.backends[target.backend], services.manifest
    device = services.host_device
    section = manifest.parity
    reason = None
    if not section.samples:
        reason = "the manifest says so (parity.samples: 0)"
    elif not backend.runs_on_host:
        reason = f"no host runs {backend.artifact_format} artifacts"
    elif device is None:
        reason = "no plugin offers a device for this host"
    if reason is not None:
        return None, True, (f"parity was not checked: {reason}",)
    assert device is not None
    dataset: Dataset | None = inputs.get(f"data:{EVALUATION}") or inputs.get(f"data:{CALIBRATION}")
    probed = services.probe(device)
    try:
        runtime = probed.runtime(backend.name)
    except EnvironmentError_ as error:
        reason = f"this host has no runtime for it: {error}"
        return None, True, (f"parity was not checked: {reason}",)
    _, options = split_options(target.options)
    options.pop("threads", None)
    key = Key(
        "parity",
        {
            "artifact": artifact.digest,
            "model": model.digest,
            "data": dataset.digest if dataset else {"random": manifest.seed},
            "preprocess": dict(manifest.model.preprocess) if dataset else {},
            "samples": section.samples,
            "options": options,
            "runtime": runtime,
            "runner": files_digest(backend.board_code),
            "agent": agent_code(services, device),
            "board": probed.info.fingerprint,
            "code": own_code("data/views", "parity", "preprocess", "reference"),
            "host": own_lock(),
        },
    )

    def samples() -> Iterator[Mapping[str, np.ndarray]]:
        if dataset is None:
            return iter(random_inputs(model.inputs, section.samples, manifest.seed))
        ready = model_ready(dataset, model, services)
        return (sample.inputs for sample in islice(ready, section.samples))

    def build(context: HostContext) -> None:
        context.progress("checking parity")
        reference = Reference(model)
        with (
            services.device(device).session(lease=False) as session,
            session.host(artifact, target, backend, {}) as runner,
        ):
            figures = compare(runner.infer(samples()), map(reference.run, samples()))
        _keep_parity(figures, context)

    def build_stand_in(context: HostContext) -> None:
        assert stand_in is not None
        context.progress("checking parity of what the board starts from")
        ours = _outputs_of(stand_in, artifact, samples())
        figures = compare(ours, map(Reference(model).run, samples()))
        _keep_parity(figures, context)

    try:
        entry, cached, warnings = take_or_build(services, f"{step.id}:parity", key, build)
    except UnsupportedError as error:  # the runtime is what the owner of a board installs
        stand_in = None if backend.stand_in is None else backend.stand_in(artifact)
        if stand_in is None:
            return None, True, (f"parity was not checked: this host cannot run it: {error}",)
        key = Key("parity", {**key.parts, "stand_in": True})
        entry, cached, warnings = take_or_build(services, f"{step.id}:parity", key, build_stand_in)
        told = (
            "parity is that of the file that the board starts from, on ONNX Runtime: this host "
            f"cannot run what the board makes of it: {error}"
        )
        warnings = (*warnings, told)
    figures = _read_parity(entry)
    threshold = section.thresholds.get(target.precision) or backend.threshold(target.precision)
    check(figures, threshold, where="parity", precision=target.precision)
    return figures, cached, warnings


def _keep_parity(figures: Parity, context: HostContext) -> None:
    for text in figures.warnings:
        context.warn(text)
    (context.output / PARITY_FILE).write_text(json.dumps(asdict(figures), indent=1))


def _outputs_of(
    path: Path, artifact: Artifact, samples: Iterable[Mapping[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """Outputs of an artifact's ONNX file, node by node: no kernel of 8 bits can overflow."""
    session = open_session(str(path), threads=1, where=str(path), as_written=True)
    for sample in samples:
        given = {b.runtime: sample[b.onnx].astype(b.dtype) for b in artifact.inputs}
        outputs = run_session(session, given, where=str(path))
        yield {binding.onnx: outputs[binding.runtime] for binding in artifact.outputs}


def _read_parity(entry: Entry) -> Parity:
    values = json.loads((entry.directory / PARITY_FILE).read_text())
    per_output = {name: OutputParity(**fields) for name, fields in values["per_output"].items()}
    return Parity(
        values["sqnr_db"],
        values["cosine"],
        per_output,
        values["samples"],
        tuple(values["warnings"]),
    )
