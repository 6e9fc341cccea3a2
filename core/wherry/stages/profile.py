"""The profile stage: all targets of one board, in shuffled rounds, each in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from wherry.errors import Interrupted, WherryError
from wherry.measurement import Measurement, merge
from wherry.plan import EVALUATION
from wherry.stages.context import (
    HostContext,
    StageResult,
    failure,
    locked,
    notes,
    take_or_build_locked,
)
from wherry.stages.keys import agent_code, files_digest, own_code
from wherry.stages.layers import dissect_key
from wherry.stages.reference import ReferenceOutputs, metrics_in_keys
from wherry.stages.retry import Tries
from wherry.stages.rounds import Job, Rounds
from wherry.stages.services import Probed, Services
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.parity import Parity
    from wherry.plan import Row, Step
    from wherry.stages.convert import Converted


@dataclass(frozen=True)
class Profiled:
    """What came of one row.

    Attributes:
        measurement: None where it failed.
        cached: nothing of it was measured in this run.
        run: the id of the run that measured it, or the rest of it.
        parity: as compared on the board, where the host could not run the artifact.
    """

    measurement: Measurement | None
    error: WherryError | None = None
    cached: bool = False
    warnings: tuple[str, ...] = ()
    run: str = ""
    parity: Parity | None = None


def run(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Measure what the store does not have; the value is row index to `Profiled`.

    A board that was held for this run is given back at the end.

    Raises:
        DeviceError: the board could not be reached, or was lost for good before anything of it
            could be reported.
    """
    try:
        return _run(step, inputs, services)
    finally:
        services.release(step.device)


def _run(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    dataset: Dataset | None = inputs.get(f"data:{EVALUATION}")
    reference: ReferenceOutputs | None = inputs.get("reference")
    rows = [services.plan.rows[index] for index in step.rows]
    ready = [row for row in rows if row.convert in inputs]
    done: dict[int, Profiled] = {}
    tries = Tries(services, step.id, step.device)
    probed = tries.keep_on(lambda: services.probe(step.device))
    tries.success()

    jobs: list[Job] = []
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
        rounds = Rounds(step, jobs, probed.info, dataset, reference, services, tries)
        rounds.run()
        if services.upto is not None:
            return StageResult({})
        done |= {job.row.index: _profiled(step, job, rounds, services) for job in jobs}
        if rounds.given_up and all(p.error is rounds.given_up for p in done.values()):
            raise rounds.given_up
    return StageResult(done, cached=all(p.cached for p in done.values()))


def _job(
    row: Row,
    converted: Converted,
    probed: Probed,
    dataset: Dataset | None,
    reference: ReferenceOutputs | None,
    services: Services,
) -> Job:
    target, manifest = row.target, services.manifest
    backend = services.host.backends[target.backend]
    worker = services.host.worker("wherry_profile", target.backend)
    settings = asdict(manifest.measure)
    if settings["layers"]:
        settings["layers"] = dissect_key(converted.artifact, backend, services).digest
    else:  # who does not ask has a key without
        del settings["layers"]
    if services.turns is not None:
        settings["turns"] = services.turns
    key = Key(
        "measure",
        {
            "artifact": converted.artifact.digest,
            "options": target.options.model_dump(mode="json"),
            "runtime": probed.runtime(target.backend),
            "runner": files_digest(backend.board_code),
            "agent": agent_code(services, target.device),
            "profiler": services.host.code(worker),
            "board": probed.info.fingerprint,
            "identity": probed.info.identity,
            "device": target.device,
            "data": dataset.digest if dataset else None,
            "preprocess": dict(manifest.model.preprocess) if dataset else {},
            "reference": reference.digest if reference else None,
            "metrics": metrics_in_keys(services),
            "settings": settings,
            "code": own_code("measurement", "preprocess"),
        },
    )
    return Job(row, converted, backend, key)


def _known(step: Step, job: Job, services: Services) -> Profiled | None:
    """What the store has."""
    with locked(services, step.id, job.key):  # else another run may replace what we read
        entry = services.store.get(job.key)
        if entry is None:
            return None
        measurement, about = Measurement.load(entry.directory), notes(entry)
    parity, unchecked = None, job.converted.unchecked
    if unchecked is not None:
        parity, _, _ = unchecked.on(step.device, services, f"{step.id}:{job.row.id}:parity")
    return Profiled(measurement, None, True, about.warnings, about.run, parity)


def _profiled(step: Step, job: Job, rounds: Rounds, services: Services) -> Profiled:
    """A row's rounds as one measurement, which is kept in the store."""
    index = job.row.index
    told = tuple(dict.fromkeys(rounds.warnings[index]))
    if index in rounds.failed:
        return Profiled(None, rounds.failed[index], warnings=told)
    merged = replace(merge(rounds.measured[index]), sustained=rounds.sustained.get(index))
    if index in rounds.layers:
        layered = rounds.layers[index]
        merged = replace(merged, layers=layered.layers, layer_runs=layered.layer_runs)

    def keep(context: HostContext) -> None:
        merged.save(context.output)
        context.warnings.extend(told)

    with locked(services, step.id, job.key):
        if services.remeasure:  # what was there stays until now
            services.store.remove(job.key)
        entry, _, _ = take_or_build_locked(services, f"{step.id}:{job.row.id}", job.key, keep)
    cached = job.key.digest not in services.fresh
    return Profiled(merged, None, cached, told, notes(entry).run, rounds.parity.get(index))
