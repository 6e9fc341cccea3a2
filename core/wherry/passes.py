"""Passes: optimisations, ONNX in, ONNX out; and their instances in a variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

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
        effects: backend (or ``*``) to what the pass brings there, for ``plan``.
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
    effects: Mapping[str, str] = field(default_factory=dict)
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
