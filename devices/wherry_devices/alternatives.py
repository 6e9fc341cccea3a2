"""Which of a runtime's alternatives a device gets: the first that fits, and the same ever after."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from wherry.errors import EnvironmentError_, UnfitError
from wherry.requirements import Requirements


class Alternatives:
    """What was chosen on one device.

    The store's keys name a runtime, and what is measured under them must run on that one: so a
    choice holds for all connections to the device. Only what does not fit leads to the next
    alternative; a network that fails makes no other choice.
    """

    def __init__(self) -> None:
        self._chosen: dict[Hashable, tuple[Requirements, str]] = {}

    def choose(
        self,
        asked: Hashable,
        candidates: Sequence[Requirements],
        lock: Callable[[Requirements], str],
    ) -> tuple[Requirements, str]:
        """The first candidate that can be locked, and the sha256 of its lock.

        Args:
            asked: what was chosen for it once is chosen again.
            candidates: best first.
            lock: raises `UnfitError` where a candidate does not fit.

        Raises:
            EnvironmentError_: none fits, or it cannot be found out.
        """
        if asked in self._chosen:
            return self._chosen[asked]
        refusals: list[UnfitError] = []
        for requirements in candidates:
            try:
                found = requirements, lock(requirements)
            except UnfitError as error:
                refusals.append(error)
            else:
                return self._chosen.setdefault(asked, found)  # another thread may have been faster
        raise _none_fits(refusals)


def _none_fits(refusals: Sequence[UnfitError]) -> EnvironmentError_:
    """All refusals as one; the remedy is of one that says more than which Python is needed."""
    told = list(dict.fromkeys(error.message for error in refusals))
    best = next((error for error in refusals if "needs Python" not in error.message), refusals[-1])
    if len(told) == 1:
        return best
    return UnfitError(
        f"no alternative of the runtime can be provided: {'; '.join(told)}", remedy=best.remedy
    )
