"""Passes: optimisations, ONNX in, ONNX out; and their instances in a variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

Need = Literal["calibration", "training", "labels", "torch"]


@dataclass(frozen=True)
class Pass:
    """Descriptor of an optimisation, yielded by ``wherry_passes``.

    Attributes:
        name: the word in a variant, dotted by family: ``prune.filters``.
        description: one line.
        parameters: what may stand under the name; the manifest's schema shows it.
        needs: what it needs besides the ONNX file.
        effects: backend (or ``*``) to what the pass brings there, for ``plan``.
        files: the plugin's files whose content decides what the pass makes; their bytes are part
            of the store's keys; empty: all of the plugin's Python files.
        version: raise it when the same input gives another output for any other reason.
    """

    name: str
    description: str
    parameters: type[BaseModel]
    needs: frozenset[Need] = frozenset()
    effects: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    version: int = 1


@dataclass(frozen=True)
class PassStep:
    """One pass with its parameters, as a variant names it."""

    name: str
    parameters: BaseModel
