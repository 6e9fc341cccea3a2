"""Boards that are lost: how often another try is made, and how long is waited before it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from wherry.errors import DeviceLostError, Interrupted

if TYPE_CHECKING:
    from wherry.stages.services import Services

T = TypeVar("T")

PAUSES_S: tuple[float, ...] = (1.0, 5.0, 15.0, 30.0, 60.0)
"""Before each further try; together long enough for a small board to boot."""

_JITTER = 0.25
"""Share of a pause by which it varies, so that boards lost together do not come back together."""


class Tries:
    """The tries that one board has left; each success gives it all of them again.

    Args:
        services: of the run; told of each pause, and ended by its ``cancelled``.
        step: the id of the board's step.
        device: its name.
    """

    def __init__(self, services: Services, step: str, device: str) -> None:
        self._services = services
        self._step = step
        self._device = device
        self._losses = 0

    def keep_on(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns, in as many tries as the board has.

        Raises:
            DeviceLostError: the board is given up.
            Interrupted: the run was stopped, also in a pause.
        """
        while True:
            try:
                return attempt()
            except DeviceLostError as error:
                self.pause(error)

    def pause(self, error: DeviceLostError) -> None:
        """Count a loss and wait; raises as `keep_on` does."""
        if self._losses == len(PAUSES_S):
            raise DeviceLostError(
                f"{error.message.rstrip('.')}; given up after {self._losses + 1} tries in a row",
                where=error.where or self._device,
                remedy="Check that the board is up; `wherry run --continue` takes up the rest.",
            ) from error
        pause_s = PAUSES_S[self._losses] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 -- no secret
        self._losses += 1
        why = error.message.partition("\n")[0]
        text = f"{self._device} was lost ({why}); trying again in {pause_s:.0f} s"
        self._services.tell(self._step, text)
        if self._services.cancelled.wait(pause_s):
            raise Interrupted("the run was stopped") from error

    def success(self) -> None:
        """Something was done on the board."""
        self._losses = 0

    def forgive(self, losses: int) -> None:
        """Take back losses that were not the board's fault."""
        self._losses = max(0, self._losses - losses)
