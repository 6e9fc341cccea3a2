"""The rounds of one board: shuffled, kept as they end, and gone on with when the board was lost."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.device import Stabilised
from wherry.errors import DeviceError, DeviceLostError, Interrupted, PluginError, WherryError
from wherry.measurement import Measurement, MeasureSettings
from wherry.stages.context import HostContext, failure, take_or_build
from wherry.stages.layers import dissected
from wherry.stages.reference import ReferenceOutputs, make_metrics
from wherry.stages.retry import Tries
from wherry.stages.services import Services
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.device import BoardInfo, Session
    from wherry.metrics import Metric
    from wherry.parity import Parity
    from wherry.plan import Row, Step
    from wherry.stages.convert import Converted
    from wherry.target import Backend

LOST_BY_ONE = 2
"""A row that loses the board so often in one of its rounds is not run again."""


@dataclass(frozen=True)
class Job:
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
    sustained_s: float = 0.0
    layers: bool = False

    def reference(self, index: int) -> Mapping[str, np.ndarray]:
        """See `wherry.context.ProfileContext.reference`."""
        assert self.reference_outputs is not None, "asked only where there is an evaluation set"
        return self.reference_outputs.outputs(index)

    def preprocess(self) -> Mapping[str, Mapping[str, Any]]:
        """See `wherry.context.ProfileContext.preprocess`."""
        return self.services.manifest.model.preprocess


class Rounds:
    """Rounds over all jobs, shuffled within each round, so that drift hits all alike.

    Each round is kept in the store as it ends: a run that was stopped, or that lost the board,
    goes on with the next. A row that was running when the board was lost waits for the end of its
    round, so that one that brings the board down does not keep the others from it.

    Args:
        step: of the board.
        jobs: what is measured.
        board: what answered when the keys were made.
        dataset: for the evaluation, if there is one.
        reference: the original's outputs on it.
        services: of the run.
        tries: of the board.

    Attributes:
        measured: per row, its rounds.
        failed: row to the reason.
        sustained: per row, the run without pause, where one was asked for.
        layers: per row, the round that timed its layers, where that was asked for and went well.
        parity: per row whose artifact the host could not run, as compared on the board.
        warnings: per row.
        given_up: why the board was left before the end, if it was.
    """

    def __init__(
        self,
        step: Step,
        jobs: Sequence[Job],
        board: BoardInfo,
        dataset: Dataset | None,
        reference: ReferenceOutputs | None,
        services: Services,
        tries: Tries,
    ) -> None:
        settings = services.manifest.measure
        self.measured: dict[int, list[Measurement]] = {job.row.index: [] for job in jobs}
        self.sustained: dict[int, Mapping[str, Any]] = {}
        self.layers: dict[int, Measurement] = {}
        self.parity: dict[int, Parity] = {}
        self.failed: dict[int, WherryError] = {}
        self.warnings: dict[int, list[str]] = {job.row.index: [] for job in jobs}
        self.given_up: WherryError | None = None
        self._step = step
        self._board = board
        self._dataset = dataset
        self._reference = reference
        self._services = services
        self._tries = tries
        self._lost: dict[tuple[int, int], int] = {}
        # layers and the run without pause are a round more each: they are kept and taken like the
        # others; the board is hot only after the last
        numbers = [*range(settings.rounds)]
        if settings.layers:
            numbers.append(_layers_round(settings))
        if settings.sustained > 0:
            numbers.append(_sustained_round(settings))
        self._stabilised = Stabilised((), [])
        if services.upto is not None:
            numbers = [*range(min(services.upto, settings.rounds))]
        self._to_clear = [(job, number) for job in jobs for number in numbers]
        self._total = len(self._to_clear)
        order = random.Random(settings.seed)  # noqa: S311 -- a reproducible order, no secret
        self._queue: list[tuple[Job, int]] = []
        for number in numbers:
            shuffled = list(jobs)
            order.shuffle(shuffled)
            self._queue += [(job, number) for job in shuffled]

    def run(self) -> None:
        """Measure until nothing is left, or the board is given up.

        Raises:
            Interrupted: the run was stopped.
        """
        try:
            self._tries.keep_on(self._in_a_session)
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- what is measured is reported all the same
            self.given_up = failure(error, self._services, self._step.id)
            for job, _ in self._queue:
                self.failed.setdefault(job.row.index, self.given_up)

    def _in_a_session(self) -> None:
        report = partial(self._services.tell, self._step.id)
        with self._services.session(self._step.device, report=report) as session:
            self._check_board(session.info)
            if self._services.remeasure:
                while self._to_clear:  # with the lease: no other run is in the middle of its rounds
                    self._services.store.remove(round_key(*self._to_clear.pop()))
            with self._fixed_clocks(session):
                self._work_off(session)

    @contextmanager
    def _fixed_clocks(self, session: Session) -> Iterator[None]:
        settings = self._services.manifest.measure
        if not settings.stabilise:
            yield
            return
        with session.stabilise(settings.power_mode) as self._stabilised:
            known = len(self._stabilised.problems)
            yield
        for told in self.warnings.values():
            told.extend(self._stabilised.problems[known:])

    def _work_off(self, session: Session) -> None:
        while self._queue:
            job, number = self._queue[0]
            try:
                self._one(job, number, session)
            except DeviceLostError as error:
                self._blame(job, number, error)
                if self._queue:
                    raise

    def _check_board(self, found: BoardInfo) -> None:
        """What is measured under a key must come from the board that the key names."""
        expected = self._board
        if (found.fingerprint, found.identity) != (expected.fingerprint, expected.identity):
            raise DeviceError(
                f"another board answers than at the start of the run, or its system has changed: "
                f"it was {expected.hostname} ({expected.kernel}), it is {found.hostname} "
                f"({found.kernel})",
                where=self._step.device,
                remedy="Run again: the rest is measured as of this board.",
            )

    def _one(self, job: Job, number: int, session: Session) -> None:
        """One round of one row; only the loss of the board is raised, and that of the run."""
        services, index = self._services, job.row.index
        name = f"{self._step.id}:{job.row.id}"
        count = self._total - len(self._queue) + 1
        settings = services.manifest.measure
        what = f"round {number + 1}"
        if number >= settings.rounds:
            what = "layers" if number == _layers_round(settings) else "without pause"
        services.notify(self._step.id, f"{count}/{self._total}: {job.row.id}, {what}")

        def build(context: HostContext) -> None:
            context.warnings.extend(self._stabilised.problems)
            done = self._stabilised.done
            _measure(job, number, session, done, self._dataset, self._reference, context)

        try:
            self._check_parity(job, session, name)
            entry, known, told = take_or_build(services, name, round_key(job, number), build)
            measurement = Measurement.load(entry.directory)
        except (Interrupted, DeviceLostError):
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- one row's bug is not the others'
            self._fail(job, number, failure(error, services, name))
        else:
            del self._queue[0]
            if number < settings.rounds:
                self.measured[index].append(measurement)
            elif number == _layers_round(settings):
                self.layers[index] = measurement
                if not measurement.layers:
                    self.warnings[index].append("What runs it does not time layers.")
            elif measurement.sustained is not None:
                self.sustained[index] = measurement.sustained
            else:
                self.warnings[index].append("What timed it cannot run without pause.")
            self.warnings[index].extend(told)
            if not known:
                services.fresh.add(job.key.digest)
        self._tries.success()

    def _check_parity(self, job: Job, session: Session, name: str) -> None:
        """What the host could not run proves here, once, that it is the same network."""
        index, unchecked = job.row.index, job.converted.unchecked
        if unchecked is None or index in self.parity:
            return
        figures, _, told = unchecked.on(
            self._step.device, self._services, f"{name}:parity", session
        )
        self.parity[index] = figures
        self.warnings[index] += [f"parity was checked on {self._step.device} instead", *told]

    def _fail(self, job: Job, number: int, error: WherryError) -> None:
        """End a row; one whose layers cannot be timed is measured all the same."""
        index = job.row.index
        if number == _layers_round(self._services.manifest.measure):
            self._queue.remove((job, number))
            told = f"Its layers could not be timed (`--remeasure` tries again): {error.message}"
            self.warnings[index].append(told)
            return
        self.failed[index] = error
        self._queue = [entry for entry in self._queue if entry[0].row.index != index]

    def _blame(self, job: Job, number: int, error: DeviceLostError) -> None:
        """Put a row that was running when the board was lost behind the others, or end it."""
        place = (job.row.index, number)
        self._lost[place] = self._lost.get(place, 0) + 1
        if self._lost[place] < LOST_BY_ONE:
            del self._queue[0]
            beyond = sum(1 for _, other in self._queue if other == number)
            self._queue.insert(beyond, (job, number))
            return
        self._tries.forgive(LOST_BY_ONE)
        self._fail(
            job,
            number,
            DeviceError(
                f"the board was lost {LOST_BY_ONE} times while this target ran, the last time: "
                f"{error.message}",
                where=error.where or self._step.device,
                remedy="It may bring the board down: look at the board's power and memory.",
            ),
        )


def _sustained_round(settings: MeasureSettings) -> int:
    """The number of the run without pause."""
    return settings.rounds


def _layers_round(settings: MeasureSettings) -> int:
    """The number of the round that times layers."""
    return settings.rounds + 1


def round_key(job: Job, number: int) -> Key:
    """Of one round of a row."""
    return Key("round", {"measure": job.key.digest, "round": number})


def _measure(
    job: Job,
    number: int,
    session: Session,
    stabilised: tuple[str, ...],
    dataset: Dataset | None,
    reference: ReferenceOutputs | None,
    context: HostContext,
) -> None:
    """Measure, check and keep one round below ``context.output``."""
    services, target = context.services, job.row.target
    settings = services.manifest.measure
    scored = dataset is not None and number == 0
    layers = number == _layers_round(settings)
    artifact = job.converted.artifact
    if layers:
        artifact = dissected(artifact, job.backend, context)
    round_context = RoundContext(
        services,
        context.step,
        context.output,
        context.scratch,
        context.log,
        context.warnings,
        backend=job.backend,
        round=number,
        settings=settings,
        sustained_s=settings.sustained if number == _sustained_round(settings) else 0.0,
        layers=layers,
        metrics=make_metrics(services) if scored else {},
        reference_outputs=reference,
    )
    measured = services.host.profile(artifact, target, dataset, session, round_context)
    problem = _problem(measured)
    if problem is None:
        try:
            metrics = {name: float(value) for name, value in measured.metrics.items()}
            extra = {**measured.extra, **({"stabilised": stabilised} if stabilised else {})}
            replace(measured, metrics=metrics, extra=extra).save(context.output)
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
