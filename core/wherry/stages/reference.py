"""The reference: the original model's outputs in fp32 over the evaluation set, on the host."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.errors import DataError, ModelError
from wherry.reference import Reference, load_reference, record_reference
from wherry.stages.context import HostContext, StageResult, take_or_build
from wherry.stages.keys import content_digest, own_code, own_lock, plugin_code
from wherry.stages.prepare import model_ready
from wherry.stages.services import Services
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.metrics import Metric
    from wherry.model import Model
    from wherry.plan import Step

SCORES = "scores.json"


@dataclass(frozen=True)
class ReferenceOutputs:
    """What accuracy is compared with.

    Attributes:
        outputs: of sample ``index``, ONNX name to array.
        digest: sha256 over the outputs.
        metrics: the reference's own metrics: the baseline of gates.
    """

    outputs: Callable[[int], Mapping[str, np.ndarray]]
    digest: str
    metrics: Mapping[str, float]


def run(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Run the original; the value is `ReferenceOutputs`."""
    model: Model = inputs[step.needs[0]]
    dataset: Dataset = inputs[step.needs[1]]
    key = Key(
        "reference",
        {
            "model": model.digest,
            "data": dataset.digest,
            "preprocess": dict(services.manifest.model.preprocess),
            "code": own_code("data/views", "preprocess", "reference"),
            "host": own_lock(),
        },
    )

    def build(context: HostContext) -> None:
        def progress(done: int, total: int) -> None:
            services.check()
            if done % 500 == 0:
                context.progress(f"{done}/{total} samples")

        ready = model_ready(dataset, model, services)
        try:
            record_reference(Reference(model), ready, context.output, progress=progress)
        except ModelError as error:  # which names the model's copy in the store
            where = services.manifest.location("model")
            raise ModelError(error.message, where=where, remedy=error.remedy) from error

    entry, cached, warnings = take_or_build(services, step.id, key, build)
    outputs, digest = load_reference(entry.directory), content_digest(entry)
    scores = _scores(step, digest, dataset, outputs, services)
    return StageResult(ReferenceOutputs(outputs, digest, scores), cached, warnings)


def _scores(
    step: Step,
    digest: str,
    dataset: Dataset,
    outputs: Callable[[int], Mapping[str, np.ndarray]],
    services: Services,
) -> Mapping[str, float]:
    """The manifest's metrics of the reference itself, kept apart: metrics come and go."""
    key = Key(
        "scores",
        {"reference": digest, "data": dataset.digest, "metrics": metrics_in_keys(services)},
    )

    def build(context: HostContext) -> None:
        metrics = make_metrics(services)
        try:
            for index, sample in enumerate(dataset):
                services.check()
                own = outputs(index)
                for metric in metrics.values():
                    metric.update(own, own, sample.label)
            values = {name: float(metric.result()) for name, metric in metrics.items()}
        except DataError as error:
            raise error.within(services.manifest.location("metrics")) from error
        (context.output / SCORES).write_text(json.dumps(values))

    entry, _, _ = take_or_build(services, f"{step.id}:scores", key, build)
    scores: dict[str, float] = json.loads((entry.directory / SCORES).read_text())
    return scores


def metrics_in_keys(services: Services) -> dict[str, Any]:
    """What stands for the manifest's metrics in keys."""
    return {
        section.key: {
            "code": plugin_code(services, "metrics", section.name, kind.files),
            "version": kind.version,
        }
        for section in services.manifest.metrics
        for kind in [services.host.metrics[section.name]]
    }


def make_metrics(services: Services) -> dict[str, Metric]:
    """Fresh accumulators of the manifest's metrics, by name."""
    return {
        section.key: services.host.metrics[section.name].create(section.output)
        for section in services.manifest.metrics
    }
