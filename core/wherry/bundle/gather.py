"""From a result of a run to what is bundled: its artifact and samples, out of the store.

The run's manifest is taken up again for the one row. What the store has lost is made again; that
the artifact is the one that was measured is known by its digest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.artifact import hash_file
from wherry.bundle.choose import Wish, choose
from wherry.choose import with_devices
from wherry.data.views import Sliced, named_inputs
from wherry.errors import (
    BundleError,
    EnvironmentError_,
    StoreError,
    UnsupportedError,
)
from wherry.execute import prepare
from wherry.plan import CALIBRATION, EVALUATION
from wherry.records.baselines import Baselines
from wherry.records.gates import broken_by
from wherry.reference import Reference, random_inputs
from wherry.stages.context import FILES, SCRATCH, HostContext, take_or_build
from wherry.stages.keys import own_code
from wherry.stages.parity import Comparison
from wherry.stages.prepare import model_ready
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.calibration import Calibration
    from wherry.host import Host
    from wherry.manifest import Manifest
    from wherry.model import Model
    from wherry.plan import Plan
    from wherry.reports import RunRecord
    from wherry.stages.services import Services
    from wherry.target import Backend, Target

SAMPLES_FILE = "samples.json"


@dataclass(frozen=True)
class Samples:
    """Sample inputs with their outputs, as files of an entry of the store.

    Attributes:
        directory: of the files.
        entries: per sample, JSON values: ``label``, and ONNX name to file for ``inputs``,
            ``reference`` (of the model in fp32) and ``outputs`` (of the artifact; empty where
            this host cannot run it).
        ready: they are as the model takes them, and no preprocessing is to be applied.
        without_outputs: why the artifact could not be run on this host; empty: it was.
        source: of the data, in words.
    """

    directory: Path
    entries: tuple[Mapping[str, Any], ...]
    ready: bool
    without_outputs: str
    source: str


@dataclass(frozen=True)
class Material:
    """All that a bundle is made of.

    Attributes:
        record: of the run.
        result: that was chosen, as the report has it.
        services: of the plan with this row alone.
        target: of the row.
        backend: its backend.
        original: the manifest's model.
        model: the variant, which was converted.
        calibration: that the artifact was made with; None: none.
        artifact: whose files were checked against their hashes.
        samples: see there.
        classes: names of the classes; empty where the data does not tell.
    """

    record: RunRecord
    result: Mapping[str, Any]
    services: Services
    target: Target
    backend: Backend
    original: Model
    model: Model
    calibration: Calibration | None
    artifact: Artifact
    samples: Samples
    classes: tuple[str, ...]

    @property
    def manifest(self) -> Manifest:
        """Of the run."""
        return self.services.manifest


@contextmanager
def gathered(
    record: RunRecord,
    wish: Wish,
    samples: int,
    *,
    host: Host | None,
    tell: Callable[[str], None],
    on_plan: Callable[[Plan], Any],
) -> Iterator[Material]:
    """Choose a result and gather what it was made of.

    Args:
        record: of the run.
        wish: which result.
        samples: how many sample inputs.
        host: the loaded plugins; None: load them.
        tell: told what is being done, and what could not be.
        on_plan: gives, for the plan, a context of a function that is told of the steps' progress.

    Raises:
        UsageError: see `wherry.bundle.choose.choose`.
        GateFailed: likewise.
        BundleError: the manifest does not lead to that artifact any more.
        StoreError: a file of the artifact is not what its hash says; it is named.
        WherryError: a step that had to be done again failed.
    """
    from wherry.engine.local import run_steps

    values, chosen, baselines = record.values, [], Baselines(record)

    def narrow(whole: Manifest) -> Manifest:
        concrete = with_devices(whole, values["tagged"])
        result = choose(
            values, wish, lambda each: broken_by(each, concrete.gates, values, baselines)
        )
        chosen.append(result)
        return _narrowed(concrete, result)

    prepared = prepare(
        Path(values["manifest"]), overrides=values["overrides"], host=host, narrow=narrow, tell=tell
    )
    (result,) = chosen
    services = prepared.services
    services.run_directory = services.home / "bundles" / prepared.run_id
    (row,) = services.plan.rows
    steps = {
        name: step
        for name, step in services.plan.steps.items()
        if step.kind not in {"profile", "reference"}
    }
    services.plan = replace(services.plan, steps=steps)
    try:
        with services.store.files():
            services.run_directory.mkdir(parents=True)
        with on_plan(services.plan) as on_event:
            outcomes = run_steps(services, on_event=on_event)
        for outcome in outcomes.values():
            if outcome.error is not None:
                raise outcome.error
        made = {name: outcome.result.value for name, outcome in outcomes.items() if outcome.result}
        artifact, step = made[row.convert].artifact, steps[row.convert]
        _check_artifact(artifact, result, values)
        model = made[step.needs[0]]
        roles = (f"data:{role}" for role in (EVALUATION, CALIBRATION))
        dataset = next((made[role] for role in roles if role in made), None)
        backend = services.host.backends[row.target.backend]
        comparison = Comparison(artifact, model, row.target, backend, dataset, samples)
        yield Material(
            record=record,
            result=result,
            services=services,
            target=row.target,
            backend=backend,
            original=made["model"],
            model=model,
            calibration=next((made[name] for name in step.needs if "calibrate:" in name), None),
            artifact=artifact,
            samples=_samples(comparison, services, tell),
            classes=tuple(dataset.classes) if dataset is not None else (),
        )
        shutil.rmtree(services.run_directory, ignore_errors=True)  # else errors name its logs
    finally:
        services.release()
        shutil.rmtree(services.run_directory / SCRATCH, ignore_errors=True)


def _narrowed(manifest: Manifest, result: Mapping[str, Any]) -> Manifest:
    """The manifest with the row of a result alone."""
    about = result["target"]
    wanted = (result["variant"], about["backend"], about["precision"], about["device"])
    rows = [
        (variant, target)
        for variant, target in manifest.rows
        if (variant, target.backend, target.precision, target.device) == wanted
        and target.options.model_dump(mode="json") == about["options"]
    ]
    if not rows:
        raise BundleError(
            f"the manifest has no row {result['name']!r} any more: it was changed since the run",
            where=str(manifest.path),
            remedy="Run it again, and bundle that run.",
        )
    return replace(manifest, rows=(rows[0],), targets=(rows[0][1],))


def _check_artifact(
    artifact: Artifact, result: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """It is the one that was measured, to the last byte of each file."""
    digest = f"sha256:{artifact.digest}"
    if digest != result["artifact"]:
        raise BundleError(
            f"the manifest makes another artifact now ({digest}) than the run "
            f"{values['run_id']} measured ({result['artifact']}): the model, the manifest or a "
            "tool was changed since",
            where=values["manifest"],
            remedy="Run it again, and bundle that run.",
        )
    for name, wanted in artifact.files.items():
        path = artifact.directory / name
        if hash_file(path) != wanted:
            raise StoreError(
                f"{name} in the store is not what was measured: it was changed",
                where=str(path),
                remedy="`wherry cache verify --remove` removes what was changed; it is made again "
                "when it is needed.",
            )


def _samples(comparison: Comparison, services: Services, tell: Callable[[str], None]) -> Samples:
    """Sample inputs with the model's outputs, and the artifact's where this host runs it."""
    device, reason = services.host_device, ""
    if not comparison.backend.runs_on_host:
        reason = f"no host runs {comparison.backend.artifact_format} artifacts"
    elif device is None:
        reason = "no plugin offers a device for this host"
    else:
        try:
            return _built(comparison, services, device)
        except (EnvironmentError_, UnsupportedError) as error:
            reason = f"this host cannot run it: {error.message}"
    tell(f"The samples have the model's outputs alone: {reason}.")
    return replace(_built(comparison, services, None), without_outputs=reason)


def _built(comparison: Comparison, services: Services, device: str | None) -> Samples:
    """From the store, or made there: the same bytes for the same bundle.

    Args:
        comparison: what is run, and on how many samples.
        services: of the plan.
        device: this host, where the artifact is run; None: it is not.
    """
    dataset, step = comparison.dataset, "bundle:samples"
    parts = (
        comparison.sample_parts(services)
        if device is None
        else comparison.run_parts(device, services)
    )
    parts = {**parts, "gather": own_code("bundle/gather"), "outputs": device is not None}

    def build(context: HostContext) -> None:
        (context.output / FILES).mkdir()
        raw, ready, labels = _inputs(comparison, services)
        reference = Reference(comparison.model)
        outputs: list[Mapping[str, np.ndarray]] = [{} for _ in raw]
        if device is not None:
            specs = services.manifest.model.preprocess if dataset is not None else {}
            with (
                services.session(device, lease=False) as session,
                session.host(
                    comparison.artifact, comparison.target, comparison.backend, specs
                ) as runner,
            ):
                outputs = list(runner.infer(raw))
        entries = []
        for index, label in enumerate(labels):
            arrays = {
                "inputs": raw[index],
                "reference": reference.run(ready[index]),
                "outputs": outputs[index],
            }
            files = {
                kind: _saved(context.output / FILES, f"{index}/{kind}", named)
                for kind, named in arrays.items()
            }
            entries.append({"label": label, **files})
        (context.output / SAMPLES_FILE).write_text(json.dumps(entries))

    entry, _, _ = take_or_build(services, step, Key("samples", parts), build)
    entries = json.loads((entry.directory / SAMPLES_FILE).read_text())
    source = dataset.name if dataset is not None else "made-up inputs"
    return Samples(entry.directory / FILES, tuple(entries), dataset is None, "", source)


def _inputs(
    comparison: Comparison, services: Services
) -> tuple[list[Mapping[str, np.ndarray]], list[Mapping[str, np.ndarray]], list[int | None]]:
    """Per sample its inputs as the data has them, as the model takes them, and its class."""
    model, dataset = comparison.model, comparison.dataset
    if dataset is None:
        made = [*random_inputs(model.inputs, comparison.samples, services.manifest.seed)]
        return [*made], [*made], [None for _ in made]
    few = Sliced(dataset, 0, min(comparison.samples, len(dataset)))
    ready = [sample.inputs for sample in model_ready(few, model, services)]
    samples = list(few)
    where = f"a sample of {dataset.name}"
    raw = [named_inputs(sample.inputs, model.inputs, where) for sample in samples]
    labels = [sample.label if isinstance(sample.label, int) else None for sample in samples]
    return raw, ready, labels


def _saved(folder: Path, prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """ONNX name to file; files are numbered, for a name may be anything."""
    names = {}
    for index, (name, array) in enumerate(arrays.items()):
        file = f"{prefix}-{index}.npy"
        (folder / file).parent.mkdir(exist_ok=True)
        np.save(folder / file, np.ascontiguousarray(array), allow_pickle=False)
        names[name] = file
    return names
