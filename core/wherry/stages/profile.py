"""The profile stage: all targets of one board, in shuffled rounds, each in a process of its own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.errors import Interrupted, PluginError, WherryError
from wherry.measurement import Measurement, MeasureSettings, merge
from wherry.plan import EVALUATION
from wherry.stages.context import (
    HostContext,
    Probed,
    Services,
    StageResult,
    failure,
    locked,
    notes,
    take_or_build,
    take_or_build_locked,
)
from wherry.stages.keys import agent_code, files_digest, own_code
from wherry.stages.reference import ReferenceOutputs, make_metrics, metrics_in_keys
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
        run: the id of the run that measured it, or the rest of it.
    """

    measurement: Measurement | None
    error: WherryError | None = None
    cached: bool = False
    warnings: tuple[str, ...] = ()
    run: str = ""


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
    ready = [row for row in rows if row.convert in inputs]
    done: dict[int, Profiled] = {}
    probed = services.probe(step.device)

    jobs: list[_Job] = []
    for row in ready:
        try:
            job = _job(row, inputs[row.convert], probed, dataset, reference, services)
            known = None if services.remeasure else _known(step, job, services)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 -- one row's bug is not the others'
            done[row.index] = Profiled(None, failure(error, services, f"{step.id}:{row.id}"))
            continue
        if known is None:
            jobs.append(job)
        else:
            done[row.index] = known
    if jobs:
        with services.device(step.device).session() as session:
            done |= _measure(step, jobs, session, dataset, reference, services)
    return StageResult(done, cached=all(p.cached for p in done.values()))


def _job(
    row: Row,
    converted: Converted,
    probed: Probed,
    dataset: Dataset | None,
    reference: ReferenceOutputs | None,
    services: Services,
) -> _Job:
    target, manifest = row.target, services.manifest
    backend = services.host.backends[target.backend]
    worker = services.host.worker("wherry_profile", target.backend)
    key = Key(
        "measure",
        {
            "artifact": converted.artifact.digest,
            "options": target.options.model_dump(mode="json"),
            "runtime": probed.runtime(target.backend),
            "runner": files_digest((backend.runner,)),
            "agent": agent_code(services, target.device),
            "profiler": services.host.code(worker),
            "board": probed.info.fingerprint,
            "data": dataset.digest if dataset else None,
            "preprocess": dict(manifest.model.preprocess) if dataset else {},
            "reference": reference.digest if reference else None,
            "metrics": metrics_in_keys(services),
            "settings": asdict(manifest.measure),
            "code": own_code("measurement", "preprocess"),
        },
    )
    return _Job(row, converted, backend, key)


def _known(step: Step, job: _Job, services: Services) -> Profiled | None:
    """What the store has."""
    with locked(services, step.id, job.key):  # else another run may replace what we read
        entry = services.store.get(job.key)
        if entry is None:
            return None
        measurement, about = Measurement.load(entry.directory), notes(entry)
    return Profiled(measurement, cached=True, warnings=about.warnings, run=about.run)


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
    fresh: set[str] = set()  # keys: two rows with one artifact are measured once
    if services.remeasure:  # with the lease, so that no other run is in the middle of its rounds
        for job in jobs:
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
                _one_round(job, number, session, dataset, reference, context)

            try:
                entry, known, told = take_or_build(
                    services, f"{step.id}:{job.row.id}", _round_key(job, number), build
                )
                rounds[index].append(Measurement.load(entry.directory))
            except Interrupted:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001 -- one row's bug is not the others'
                failed[index] = failure(error, services, f"{step.id}:{job.row.id}")
                continue
            warnings[index].extend(told)
            if not known:
                fresh.add(job.key.digest)

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

        with locked(services, step.id, job.key):
            if services.remeasure:  # what was there stays until now
                services.store.remove(job.key)
            name = f"{step.id}:{job.row.id}"
            entry, _, _ = take_or_build_locked(services, name, job.key, keep)
        cached, run = job.key.digest not in fresh, notes(entry).run
        done[index] = Profiled(merged, cached=cached, warnings=told, run=run)
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
) -> None:
    """Measure, check and keep one round below ``context.output``."""
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
    problem = _problem(measured)
    if problem is None:
        try:
            metrics = {name: float(value) for name, value in measured.metrics.items()}
            replace(measured, metrics=metrics).save(context.output)
        except (TypeError, ValueError) as error:
            problem = f"what is no JSON: {error}"
    if problem is not None:
        raise PluginError(
            f"the profile hook for {target.describe()} returned {problem}",
            remedy="Report this to the author of the plugin.",
        )


def _problem(measured: Measurement) -> str | None:
    """What is wrong with a round as a hook returned it."""
    samples, total = len(measured.infer_ns), len(measured.total_ns)
    counted = len(measured.round_sizes)
    if not samples:
        return "no samples"
    if samples != total or samples != sum(measured.round_sizes):
        return f"{samples} and {total} samples in rounds of {list(measured.round_sizes)}"
    for name in ("load_ms", "first_ms", "warmup_runs", "steady"):
        if len(getattr(measured, name)) != counted:
            return f"{name} of another number of rounds than {counted}"
    return None
