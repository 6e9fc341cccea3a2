"""Before the stages: the model with static shapes, and the data that the manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.data.views import Preprocessed, Sliced, check_dataset
from wherry.model import Model
from wherry.stages.context import HostContext, Services, StageResult, take_or_build
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.plan import Step
    from wherry.requirements import Requirements

STATIC_MODEL = "model.onnx"


def run_model(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Read the model (or build it from the zoo) and fix its shapes; the value is a `Model`."""
    del inputs
    section = services.manifest.model
    if section.path is not None:
        source = Model.load(section.path)
    else:
        source = _from_zoo(step, services)
    shapes = {name: list(shape) for name, shape in section.shapes.items()}
    key = Key("model", {"source": source.digest, "shapes": shapes})

    def build(context: HostContext) -> None:
        source.with_static_shapes(section.shapes, context.output)

    entry, cached, warnings = take_or_build(services, step.id, key, build)
    return StageResult(Model.load(entry.directory / STATIC_MODEL), cached, warnings)


def _from_zoo(step: Step, services: Services) -> Model:
    section = services.manifest.model
    assert section.zoo is not None, "the manifest names a path or a design"
    design, parameters = services.host.models[section.zoo], section.zoo_parameters
    key = Key("zoo", {"name": design.name, "parameters": parameters.model_dump(mode="json")})

    def build(context: HostContext) -> None:
        design.build(parameters, context.output / STATIC_MODEL)

    entry, _, _ = take_or_build(services, step.id, key, build)
    return Model.load(entry.directory / STATIC_MODEL)


@dataclass(frozen=True)
class _DataContext:
    """`wherry.dataset.DataContext` on the host."""

    base: Path
    services: Services

    def packages(self, requirements: Requirements) -> Path:
        return self.services.environments.site_packages(requirements)


def run_data(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Read one data section and check it against the model; the value is a `Dataset`."""
    (model,) = inputs.values()
    manifest = services.manifest
    section = manifest.data[step.data]
    source = services.host.datasets[section.source]
    context = _DataContext(manifest.base, services)
    dataset = source.load(section.parameters, context)
    if section.slice != (None, None):
        dataset = Sliced(dataset, *section.slice)
    check_dataset(dataset, model, manifest.model.preprocess, where=section.location)
    return StageResult(dataset)


def model_ready(dataset: Dataset, model: Model, services: Services) -> Dataset:
    """The same samples, preprocessed as the manifest declares, in the model's shapes."""
    return Preprocessed(dataset, services.manifest.model.preprocess, model.inputs)
