"""The profile stage: all targets of one board, in shuffled rounds, each in a process of its own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.errors import Interrupted, PluginError, WherryError
from wherry.measurement import Measurement, MeasureSettings, merge
from wherry.plan import EVALUATION
from wherry.stages.context import (
    HostContext,
    Services,
    StageResult,
    failure,
    files_digest,
    notes,
    take_or_build,
)
from wherry.stages.reference import ReferenceOutputs, make_metrics, metric_versions
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.device import Session
    from wherry.metrics import Metric
    from wherry.plan import Row, Step
    from wherry.stages.convert import Converted
    from wherry.target import Backend


@dataclass(frozen=True)
class Profiled:
    """What came of one row.

    Attributes:
        measurement: None where it failed.
        cached: nothing of it was measured in this run.
    """

    measurement: Measurement | None
    error: WherryError | None = None
    cached: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    """One row that can be measured, with the key of its measurement."""

    row: Row
    converted: Converted
    backend: Backend
    key: Key


@dataclass(frozen=True, kw_only=True)
class RoundContext(HostContext):
    """`wherry.context.ProfileContext` on the host."""

    backend: Backend
    round: int
    settings: MeasureSettings
    metrics: Mapping[str, Metric]
    reference_outputs: ReferenceOutputs | None

    def reference(self, index: int) -> Mapping[str, np.ndarray]:
        """See `wherry.context.ProfileContext.reference`."""
        assert self.reference_outputs is not None, "asked only where there is an evaluation set"
        return self.reference_outputs.outputs(index)

    def preprocess(self) -> Mapping[str, Mapping[str, Any]]:
        """See `wherry.context.ProfileContext.preprocess`."""
        return self.services.manifest.model.preprocess


def run(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Measure what the store does not have; the value is row index to `Profiled`."""
    dataset: Dataset | None = inputs.get(f"data:{EVALUATION}")
    reference: ReferenceOutputs | None = inputs.get("reference")
    rows = [services.plan.rows[index] for index in step.rows]
    ready = [row for row in rows if row.steps[-2] in inputs]
    done: dict[int, Profiled] = {}
    services.board(step.device)  # probed once a run; the report shows it
    device = services.device(step.device)

    jobs: list[_Job] = []
    with device.session(lease=False) as session:
        for row in ready:
            try:
                job = _job(row, inputs[row.steps[-2]], session, dataset, reference, services)
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001 -- one row's bug is not the others'
                done[row.index] = Profiled(None, failure(error, services, f"{step.id}:{row.id}"))
                continue
            known = None if services.remeasure else _known(job, services)
            if known is None:
                jobs.append(job)
            else:
                done[row.index] = known
    if jobs:
        with device.session() as session:
            done |= _measure(step, jobs, session, dataset, reference, services)
    return StageResult(done, cached=all(p.cached for p in done.values()))


def _job(
    row: Row,
    converted: Converted,
    session: Session,
    dataset: Dataset | None,
    reference: ReferenceOutputs | None,
    services: Services,
) -> _Job:
    target, manifest = row.target, services.manifest
    backend = services.host.backends[target.backend]
    settings = asdict(manifest.measure)
    key = Key(
        "measure",
        {
            "artifact": converted.artifact.digest,
            "options": target.options.model_dump(mode="json"),
            "runtime": session.runtime_lock(backend),
            "runner": files_digest((backend.runner,)),
            "board": session.info.fingerprint,
            "data": dataset.digest if dataset else None,
            "preprocess": dict(manifest.model.preprocess) if dataset else {},
            "reference": reference.digest if reference else None,
            "metrics": metric_versions(services),
            "settings": settings,
        },
    )
    return _Job(row, converted, backend, key)


def _known(job: _Job, services: Services) -> Profiled | None:
    entry = services.store.get(job.key)
    if entry is None:
        return None
    return Profiled(Measurement.load(entry.directory), cached=True, warnings=notes(entry))


def _measure(
    step: Step,
    jobs: list[_Job],
    session: Session,
    dataset: Dataset | None,
    reference: ReferenceOutputs | None,
    services: Services,
) -> dict[int, Profiled]:
    """Rounds over all jobs, shuffled within each round, so that drift hits all alike.

    Each round is kept in the store as it ends: a run that was stopped goes on with the next.
    """
    settings = services.manifest.measure
    order = random.Random(settings.seed)  # noqa: S311 -- a reproducible order, no secret
    rounds: dict[int, list[Measurement]] = {job.row.index: [] for job in jobs}
    failed: dict[int, WherryError] = {}
    warnings: dict[int, list[str]] = {job.row.index: [] for job in jobs}
    if services.remeasure:
        for job in jobs:
            services.store.remove(job.key)
            for number in range(settings.rounds):
                services.store.remove(_round_key(job, number))
    total, count = settings.rounds * len(jobs), 0
    for number in range(settings.rounds):
        shuffled = list(jobs)
        order.shuffle(shuffled)
        for job in shuffled:
            count += 1
            index = job.row.index
            if index in failed:
                continue
            services.notify(step.id, f"{count}/{total}: {job.row.id}, round {number + 1}")

            def build(context: HostContext, job: _Job = job, number: int = number) -> None:
                _one_round(job, number, session, dataset, reference, context).save(context.output)

            try:
                entry, _, told = take_or_build(
                    services, f"{step.id}:{job.row.id}", _round_key(job, number), build
                )
            except Interrupted:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001 -- one row's bug is not the others'
                failed[index] = failure(error, services, f"{step.id}:{job.row.id}")
                continue
            rounds[index].append(Measurement.load(entry.directory))
            warnings[index].extend(told)

    done: dict[int, Profiled] = {}
    for job in jobs:
        index = job.row.index
        told = tuple(dict.fromkeys(warnings[index]))
        if index in failed:
            done[index] = Profiled(None, failed[index], warnings=told)
            continue
        merged = merge(rounds[index])

        def keep(
            context: HostContext, merged: Measurement = merged, told: tuple[str, ...] = told
        ) -> None:
            merged.save(context.output)
            context.warnings.extend(told)

        take_or_build(services, f"{step.id}:{job.row.id}", job.key, keep)
        done[index] = Profiled(merged, warnings=told)
    return done


def _round_key(job: _Job, number: int) -> Key:
    return Key("round", {"measure": job.key.digest, "round": number})


def _one_round(
    job: _Job,
    number: int,
    session: Session,
    dataset: Dataset | None,
    reference: ReferenceOutputs | None,
    context: HostContext,
) -> Measurement:
    services, target = context.services, job.row.target
    scored = dataset is not None and number == 0
    round_context = RoundContext(
        services,
        context.step,
        context.output,
        context.scratch,
        context.log,
        context.warnings,
        backend=job.backend,
        round=number,
        settings=services.manifest.measure,
        metrics=make_metrics(services) if scored else {},
        reference_outputs=reference,
    )
    measured = services.host.profile(
        job.converted.artifact, target, dataset, session, round_context
    )
    if not len(measured.infer_ns):
        raise PluginError(
            f"the profile hook for {target.describe()} returned no samples",
            remedy="Report this to the author of the plugin.",
        )
    return measured
