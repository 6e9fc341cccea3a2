"""The stages: how each kind of step is done, whatever engine runs it.

Every stage is a function ``run(step, inputs, services) -> StageResult``: ``inputs`` are the values
of the steps that it needs, by id. It calls its hook, checks what came back, and keeps the result
in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherry.plan import Kind, Step
    from wherry.stages.context import StageResult
    from wherry.stages.services import Services

Stage = Callable[["Step", Mapping[str, Any], "Services"], "StageResult"]


def stage(kind: Kind) -> Stage:
    """The function that does steps of this kind."""
    from wherry.stages import calibrate, convert, optimize, prepare, profile, reference

    table: dict[str, Stage] = {
        "model": prepare.run_model,
        "data": prepare.run_data,
        "reference": reference.run,
        "optimize": optimize.run,
        "calibrate": calibrate.run,
        "convert": convert.run,
        "profile": profile.run,
    }
    return table[kind]
