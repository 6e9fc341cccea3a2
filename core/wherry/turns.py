"""Manifests measured in turns: what the machine does meanwhile hits all alike.

Two runs, one after the other, also differ by what the machine's clock, its neighbours and its
temperature did in between; no number of rounds shows that (`wherry.difference`). Here a round of
each is followed by the next round of each, in an order that is drawn every time.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.execute import Begun, Prepared, begun, prepare

if TYPE_CHECKING:
    from wherry.engine.local import Event, StepOutcome
    from wherry.host import Host
    from wherry.reports import RunRecord

ROUNDS = 30
"""Of each side. Two processes of one network that ran one after the other differ by some percent
(where their memory lies); so many find a change of 5 % where rounds differ by 6 %."""

Watch = Callable[[Prepared, int | None], AbstractContextManager[Callable[["Event"], None] | None]]


def unwatched(
    _prepared: Prepared, _upto: int | None
) -> AbstractContextManager[Callable[[Event], None] | None]:
    """Tells nobody."""
    return nullcontext()


@dataclass
class _Side:
    """One of them: its run, and how its steps have ended, but for the measuring."""

    run: Begun
    done: Mapping[str, StepOutcome] = field(default_factory=dict)

    def steps(self, upto: int | None, on_event: Callable[[Event], None] | None) -> None:
        """Measure so many rounds in all; None: what is left. What else there is comes first."""
        from wherry.engine.local import run_steps

        services = self.run.prepared.services
        services.upto = upto
        before = {name: o for name, o in self.done.items() if o.step.kind != "profile"}
        self.done = run_steps(services, done=before, on_event=self.run.telling(on_event))

    def take(self, upto: int | None, watch: Watch) -> None:
        """`steps`, watched."""
        with watch(self.run.prepared, upto) as on_event:
            self.steps(upto, on_event)


def prepare_all(
    manifests: Sequence[Path],
    *,
    overrides: Sequence[str] = (),
    rounds: int = ROUNDS,
    host: Host | None = None,
    cancelled: threading.Event | None = None,
    tell: Callable[[str], None],
) -> list[Prepared]:
    """Plan all; the devices that tags have chosen for one are those of the next, too.

    Args:
        manifests: the files.
        overrides: of all, as ``key.path=value``.
        rounds: of each.
        host: the loaded plugins; None: load them.
        cancelled: ends them.
        tell: see `wherry.execute.prepare`.
    """
    from wherry.host import Host as HostClass

    host, cancelled = host or HostClass.load(), cancelled or threading.Event()
    chosen: dict[str, str] = {}
    prepared = []
    for manifest in manifests:
        one = prepare(
            manifest,
            overrides=[*overrides, f"measure.rounds={rounds}"],
            host=host,
            cancelled=cancelled,
            earlier=chosen,
            tell=tell,
        )
        one.services.release()  # no lease is kept over the others' rounds: each takes its own
        chosen |= one.request.chosen
        prepared.append(one)
    for one in prepared:
        one.services.turns = prepared[0].run_id
    return prepared


def execute_in_turns(prepared: Sequence[Prepared], *, watch: Watch = unwatched) -> list[RunRecord]:
    """Run all, their rounds in turns, and keep a record of each.

    Args:
        prepared: by `prepare_all`.
        watch: makes what is told of the events of one's next part: (it, its rounds so far with
            this one; None: the end, where what is measured once follows).

    Raises:
        Interrupted: on Ctrl-C. What was converted is kept; what was measured begins anew.
        StoreError: the home or the database cannot be used.
        UnkeptError: all was run, and the database could not take a record.
    """
    with ExitStack() as stack:
        sides = [_Side(stack.enter_context(begun(one))) for one in prepared]
        settings = prepared[0].services.manifest.measure
        order = random.Random(settings.seed)  # noqa: S311 -- an order, no secret
        for number in range(settings.rounds):
            for side in order.sample(sides, len(sides)) if number else sides:
                side.take(number + 1, watch)
        records = []
        for side in sides:
            side.take(None, watch)
            records.append(side.run.end(side.done))
    return records
