"""Runs the program with numpy, or does something else (Python 3.8)."""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

LATE = 15
"""Runs of one process: more than parity has samples, fewer than are timed."""


def load(directory: str, artifact: dict[str, Any], options: dict[str, Any]) -> Runner:
    """Read the program."""
    mood = options.get("run", "well")
    if mood == "segfault at load":
        ctypes.string_at(0)
    program = json.loads((Path(directory) / "program.json").read_text())
    return Runner(program, mood)


class Runner:
    """``a = x @ w`` and ``b = relu(x + v)``, all of them 1x4x4."""

    def __init__(self, program: dict[str, Any], mood: str) -> None:
        weights = program["weights"]
        self._w, self._v = (np.array(weights[name], np.float32) for name in "wv")
        self._wrong = program["wrong"]
        self._mood = mood
        self._runs = 0
        self._outputs: dict[str, Any] = {}

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Keep the only one."""
        self._x = inputs["x"]

    def run(self) -> None:
        """One inference."""
        self._runs += 1
        a, b = self._x @ self._w, np.maximum(self._x + self._v, 0)
        if self._wrong == "swapped":
            a, b = b, a
        if self._wrong == "transposed":
            a = a.transpose(0, 2, 1)
        if self._wrong == "scaled":
            b = b * np.float32(1.01)
        self._outputs = {"a": a, "b": b}
        mood, late = self._mood, self._mood.startswith("late ")
        if late:
            mood = mood[len("late ") :] if self._runs > LATE else "well"
        MOODS[mood](self._outputs)

    def get_outputs(self) -> dict[str, np.ndarray]:
        """Of the last run."""
        return self._outputs

    def close(self) -> None:
        """Nothing to do."""


def segfault(_outputs: dict[str, Any]) -> None:
    ctypes.string_at(0)


def hang(_outputs: dict[str, Any]) -> None:
    if "MOODY_HANGS" in os.environ:
        Path(os.environ["MOODY_HANGS"]).touch()
    time.sleep(3600)


def held(_outputs: dict[str, Any]) -> None:
    """Wait for the end in one inference: the one that takes the file ``hold`` of the home."""
    try:
        (Path.home() / "hold").unlink()
    except FileNotFoundError:
        return
    time.sleep(3600)


def slow(_outputs: dict[str, Any]) -> None:
    time.sleep(0.001)


def raises(_outputs: dict[str, Any]) -> None:
    raise RuntimeError("kernel launch failed (error 719)")


def nan(outputs: dict[str, Any]) -> None:
    outputs["b"] = outputs["b"] * np.float32("nan")


def shape(outputs: dict[str, Any]) -> None:
    outputs["b"] = outputs["b"][:, :3]


def loses(outputs: dict[str, Any]) -> None:
    del outputs["b"]


MOODS = {
    "well": lambda outputs: None,
    "segfault at load": lambda outputs: None,
    "segfault": segfault,
    "hang": hang,
    "held": held,
    "slow": slow,
    "raises": raises,
    "nan": nan,
    "shape": shape,
    "loses": loses,
}
