"""Network designs that a manifest can name instead of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class ZooModel:
    """Descriptor of a network design, yielded by ``wherry_models``.

    Attributes:
        name: the word in ``model: {zoo: {name: ...}}``.
        description: one line with its source.
        parameters: what may stand beside the name.
        build: writes an ONNX file to the path.
        files: the plugin's files whose content decides what is built; their bytes are part of the
            store's keys; empty: all of the plugin's Python files.
    """

    name: str
    description: str
    parameters: type[BaseModel]
    build: Callable[[Any, Path], None]
    files: tuple[Path, ...] = ()
