"""Passes: optimisations, ONNX in, ONNX out; and their instances in a variant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from wherry.errors import UsageError
from wherry.outlook import Outlook

if TYPE_CHECKING:
    from wherry.target import Target

Need = Literal["calibration", "training", "labels", "original", "seed", "torch", "device"]


@dataclass(frozen=True, slots=True)
class Span:
    """Values of a parameter that a search may try: from ``low`` to ``high``, both included.

    Attributes:
        step: between two values; None: any.
        log: even steps are even ratios.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """Which target of the manifest a pass measures candidates on.

    Attributes:
        device: None: the only one that the manifest has for this backend and precision.
    """

    backend: str
    device: str | None = None
    precision: str = "fp32"

    def among(self, targets: Iterable[Target]) -> Target:
        """The one that is meant; with the fewest threads, if several are.

        Raises:
            UsageError: there is no such target, or there are several devices.
        """
        every = list(targets)
        fitting = [
            target
            for target in every
            if (target.backend, target.precision) == (self.backend, self.precision)
            and self.device in {None, target.device}
        ]
        devices = sorted({target.device for target in fitting})
        if len(devices) == 1:
            return min(fitting, key=lambda target: target.options.threads)
        known = ", ".join(sorted({f"{t.backend} {t.precision} on {t.device}" for t in every}))
        wanted = f"{self.backend} {self.precision}" + (f" on {self.device}" if self.device else "")
        raise UsageError(
            f"a latency on {wanted} is asked for, and the manifest has "
            + (f"it on {', '.join(devices)}" if devices else "no such target"),
            remedy=f"Name one of its targets: {known}.",
        )


@dataclass(frozen=True)
class Pass:
    """Descriptor of an optimisation, yielded by ``wherry_passes``.

    Attributes:
        name: the word in a variant, dotted by family: ``prune.filters``.
        description: one line.
        parameters: what may stand under the name; the manifest's schema shows it.
        needs: what it needs besides the ONNX file: samples by role, labels among them, the model
            of the manifest before any pass, chance, torch in the host's own environment, a device
            to measure candidates on (nothing else runs beside such a pass).
        needs_with: its parameters to what it needs besides ``needs``, where these decide it.
        measures: its parameters to where it measures candidates; None: nowhere, or it is seen when
            it runs. What the manifest does not have is then refused before anything runs.
        effects: backend (or ``*``) to what the pass brings there, for ``plan``.
        outlook: (its parameters, what there is before it) to what it leaves, as far as these tell,
            for ``plan``; None: only a run tells. `wherry.outlook.unchanged` is for passes that
            change neither multiplications nor weights.
        space: parameter to what a search may try: a `Span`, or the values themselves.
        files: the plugin's files whose content decides what the pass makes; their bytes are part
            of the store's keys; empty: all of the plugin's Python files.
        version: raise it when the same input gives another output for any other reason.
    """

    name: str
    description: str
    parameters: type[BaseModel]
    needs: frozenset[Need] = frozenset()
    needs_with: Callable[[Any], frozenset[Need]] | None = None
    measures: Callable[[Any], MeasuredOn | None] | None = None
    effects: Mapping[str, str] = field(default_factory=dict)
    outlook: Callable[[Any, Outlook], Outlook] | None = None
    space: Mapping[str, Span | tuple[Any, ...]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    version: int = 1

    def needed(self, parameters: BaseModel) -> frozenset[Need]:
        """All that it needs with these parameters."""
        return self.needs | (self.needs_with(parameters) if self.needs_with else frozenset())


@dataclass(frozen=True)
class PassStep:
    """One pass with its parameters, as a variant names it."""

    name: str
    parameters: BaseModel
