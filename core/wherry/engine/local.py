"""The default engine: runs a plan's steps on this host, in parallel up to a bound.

Steps wait for tools in processes of their own, so that threads are enough. A step that waits for
a board (``remote``) does not count against the bound: all boards work at the same time, each with
its own targets, beside the host's conversions. A step that times something on the host itself
(``exclusive``) runs alone, after all others that could run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wherry.errors import Interrupted, UnsupportedError, WherryError
from wherry.stages import stage
from wherry.stages.context import StageResult, failure
from wherry.stages.services import Services

if TYPE_CHECKING:
    from wherry.plan import Step

State = Literal["started", "progress", "done", "cached", "failed", "skipped"]


@dataclass(frozen=True)
class Event:
    """Something happened to a step; for progress displays and logs."""

    step: Step
    state: State
    text: str = ""


@dataclass(frozen=True)
class StepOutcome:
    """How a step ended.

    Attributes:
        result: None where it failed or was not run.
        error: why; of a step that was not run, the error of the one that it needed.
        seconds: wall time.
    """

    step: Step
    result: StageResult | None
    error: WherryError | None = None
    seconds: float = 0.0


def run_steps(
    services: Services,
    *,
    jobs: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    done: Mapping[str, StepOutcome] | None = None,
) -> Mapping[str, StepOutcome]:
    """Run every step of the plan; returns how each ended, by id.

    Args:
        services: of this run; ``services.cancelled`` stops it.
        jobs: how many steps at once, those that wait for boards apart; None: the cores that this
            process may use.
        on_event: called from several threads.
        done: how steps have ended that are not run again.

    Raises:
        Interrupted: on Ctrl-C, or where the run was cancelled; what is done is in the store.
    """
    notify = on_event or (lambda _event: None)
    steps = services.plan.steps

    def progress(step: str, text: str) -> None:
        # parts of a step (its parity check, its rounds) have names that begin with the step's own
        owner = steps.get(step) or next(
            (s for name, s in steps.items() if step.startswith(f"{name}:")), None
        )
        if owner is not None:
            notify(Event(owner, "progress", text))

    services.notify = progress
    scheduler = _Scheduler(services, jobs or len(os.sched_getaffinity(0)), notify, done or {})
    outcomes: Mapping[str, StepOutcome] = {}
    try:
        outcomes = scheduler.run()
    except KeyboardInterrupt:
        services.cancelled.set()
    if services.cancelled.is_set():
        raise Interrupted(
            "the run was stopped; what is done is kept",
            remedy="The same command goes on where it was.",
        )
    return outcomes


class _Scheduler:
    def __init__(
        self,
        services: Services,
        jobs: int,
        notify: Callable[[Event], None],
        done: Mapping[str, StepOutcome],
    ) -> None:
        self._services = services
        self._jobs = jobs
        self._notify = notify
        self._outcomes = dict(done)
        self._waiting = {
            name: step for name, step in services.plan.steps.items() if name not in done
        }
        self._running: dict[Future[StepOutcome], Step] = {}

    def run(self) -> Mapping[str, StepOutcome]:
        boards = sum(step.remote for step in self._waiting.values())
        with ThreadPoolExecutor(self._jobs + boards, thread_name_prefix="wherry-step") as pool:
            try:
                while (self._waiting or self._running) and not self._services.cancelled.is_set():
                    for step in self._startable():
                        del self._waiting[step.id]
                        self._running[pool.submit(self._do, step)] = step
                    finished, _ = wait(self._running, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in finished:
                        step = self._running.pop(future)
                        self._outcomes[step.id] = future.result()
            except BaseException:
                # tools are killed by the event, so that the pool's threads end and can be joined
                self._services.cancelled.set()
                raise
        return self._outcomes

    def _startable(self) -> list[Step]:
        """The steps to start now; those that can never run are settled on the way."""
        free = self._jobs - sum(not step.remote for step in self._running.values())
        if any(step.exclusive for step in self._running.values()):
            return []
        ready: list[Step] = []
        for step in list(self._waiting.values()):
            if not all(need in self._outcomes for need in step.needs):
                continue
            blocker = self._blocker(step)
            if blocker is None:
                ready.append(step)
            else:
                del self._waiting[step.id]
                self._outcomes[step.id] = StepOutcome(step, None, blocker.error)
                if step.device:  # held for this step, which will not be
                    self._services.release(step.device)
                self._notify(Event(step, "skipped", f"it needs `{blocker.step.title}`"))
        boards = [step for step in ready if step.remote]
        shared = [step for step in ready if not (step.remote or step.exclusive)]
        if boards or shared:
            return boards + shared[:free]
        return [] if self._running else ready[:1]

    def _blocker(self, step: Step) -> StepOutcome | None:
        """The failure for which a step cannot run, if there is one."""
        failed = {need: self._outcomes[need] for need in step.needs if self._outcomes[need].error}
        spared = step.tolerates if set(step.tolerates) - failed.keys() else ()
        return next((outcome for need, outcome in failed.items() if need not in spared), None)

    def _do(self, step: Step) -> StepOutcome:
        start = time.monotonic()
        self._notify(Event(step, "started"))
        inputs = {
            need: outcome.result.value
            for need in step.needs
            if (outcome := self._outcomes[need]).result is not None
        }
        outcome = _attempt(step, inputs, self._services, start)
        if outcome.error is None:
            cached = outcome.result is not None and outcome.result.cached
            self._notify(Event(step, "cached" if cached else "done"))
        elif not isinstance(outcome.error, Interrupted):
            refused = isinstance(outcome.error, UnsupportedError)
            self._notify(Event(step, "skipped" if refused else "failed", _headline(outcome.error)))
        return outcome


def _headline(error: WherryError) -> str:
    """Where and what, in a line; the report has the rest."""
    line = error.message.partition("\n")[0].strip()
    return f"{error.where}: {line}" if error.where else line


def _attempt(
    step: Step, inputs: Mapping[str, Any], services: Services, start: float
) -> StepOutcome:
    try:
        result = stage(step.kind)(step, inputs, services)
        return StepOutcome(step, result, None, time.monotonic() - start)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- a plugin's bug fails its own step
        failed = failure(error, services, step.id)
        return StepOutcome(step, None, failed, time.monotonic() - start)
