"""The calibrate stage: the ranges of a model's activations, found once for all backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wherry.calibration import Calibration, CalibrationSettings
from wherry.errors import DataError
from wherry.plan import CALIBRATION
from wherry.stages.context import HostContext, StageResult, take_or_build
from wherry.stages.keys import own_code, own_lock
from wherry.stages.prepare import model_ready
from wherry.stages.services import Services
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.plan import Step


@dataclass(frozen=True, kw_only=True)
class _Context(HostContext):
    """`wherry.context.CalibrateContext` on the host."""

    settings: CalibrationSettings


def run(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Calibrate one variant; the value is a `Calibration`."""
    assert step.target is not None
    target, model = step.target, inputs[step.needs[0]]
    dataset = inputs.get(f"data:{CALIBRATION}")
    if dataset is None:
        raise DataError(
            f"{target.describe()} needs calibration data, and the manifest names none",
            where=services.manifest.location("data"),
            remedy="Add a section `calibration:` below `data:`.",
        )
    settings = services.manifest.calibrate
    worker = services.host.worker("wherry_calibrate", target.backend)
    key = Key(
        "calibrate",
        {
            "model": model.digest,
            "data": dataset.digest,
            "preprocess": dict(services.manifest.model.preprocess),
            "settings": settings.parts(),
            "calibrator": services.host.code(worker),
            "code": own_code("data/inputs", "data/views", "preprocess", "quantize/given"),
            "host": own_lock(),
        },
    )

    def build(context: HostContext) -> None:
        ready = model_ready(dataset, model, services)
        inner = _Context(
            services,
            step.id,
            context.output,
            context.scratch,
            context.log,
            context.warnings,
            settings=settings,
        )
        services.host.calibrate(model, ready, target, inner).save(context.output)

    entry, cached, warnings = take_or_build(services, step.id, key, build)
    return StageResult(Calibration.load(entry.directory), cached, warnings)
