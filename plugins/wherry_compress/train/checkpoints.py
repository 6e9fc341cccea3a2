"""Checkpoints of a training that may be interrupted: one file, written whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from wherry_compress.train.loop import State

_EVERY_S = 60.0
FILE = "checkpoint.pt"


class Checkpoints:
    """One training's place in a folder.

    Args:
        folder: made when it is needed; of this training alone (`wherry_compress.job.Job`).
        every_s: the least seconds between two of them within an epoch.
    """

    def __init__(self, folder: Path, every_s: float = _EVERY_S) -> None:
        self._folder = folder
        self._every_s = every_s
        self._last = time.monotonic()

    def restore(self, parts: Mapping[str, Any], state: State) -> bool:
        """Put everything back as the last checkpoint has it; False where there is none."""
        path = self._folder / FILE
        if not path.exists():
            return False
        found = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(found["parts"][name])
        state.step, state.epoch = found["step"], found["epoch"]
        state.history[:], state.losses[:] = found["history"], found["losses"]
        return True

    def offer(self, parts: Mapping[str, Any], state: State, *, now: bool, alone: bool) -> None:
        """Write a checkpoint if it is time.

        Args:
            parts: name to what has ``state_dict`` and ``load_state_dict``.
            state: of the training.
            now: an epoch has ended.
            alone: no other process trains along: then a checkpoint is sound within an epoch, too.
        """
        if not now and (not alone or time.monotonic() - self._last < self._every_s):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        values = {
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "step": state.step,
            "epoch": state.epoch,
            "history": state.history,
            "losses": state.losses,
        }
        part = self._folder / f"{FILE}.part"
        torch.save(values, part)
        os.replace(part, self._folder / FILE)  # noqa: PTH105 -- Path.replace returns what nobody needs
        self._last = time.monotonic()
