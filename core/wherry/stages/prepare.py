"""Before the stages: the model with static shapes, and the data that the manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.data.arrays import nearest
from wherry.data.views import Preprocessed, Sliced, check_dataset
from wherry.errors import DataError, ModelError
from wherry.keep import kept_nodes
from wherry.manifest.expand import option_place
from wherry.model import Model
from wherry.plan import EVALUATION
from wherry.stages.context import HostContext, StageResult, take_or_build
from wherry.stages.keys import own_code, own_lock, plugin_code
from wherry.stages.services import Services
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.manifest import Manifest
    from wherry.plan import Step
    from wherry.requirements import Requirements
    from wherry.store import Entry

ZOO_MODEL = "model.onnx"
MODEL_FILE = "wherry-model.txt"
"""In an entry: the name of the ONNX file below it."""


def run_model(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Read the model (or build it from the zoo) and fix its shapes; the value is a `Model`."""
    del inputs
    section = services.manifest.model
    source = Model.load(section.path) if section.path is not None else _from_zoo(step, services)
    shapes = {name: list(shape) for name, shape in section.shapes.items()}
    check_names(source, services.manifest)
    key = Key(
        "model",
        {
            "source": source.digest,
            "shapes": shapes,
            "code": own_code("model", "onnx_file", "reference"),
            "host": own_lock(),
        },
    )

    def build(context: HostContext) -> None:
        name_model(context, static_model(source, services.manifest, context.output))

    entry, cached, warnings = take_or_build(services, step.id, key, build)
    model = named_model(entry)
    check_kept(model, services.manifest)
    return StageResult(model, cached, warnings)


def check_names(model: Model, manifest: Manifest) -> None:
    """Raise `ModelError` for an input or output of the manifest that the model does not have."""
    section = manifest.model
    said: list[tuple[str, str, tuple[str | int, ...]]] = [
        ("input", name, ("model", "inputs", name))
        for name in (*section.shapes, *section.preprocess)
    ]
    for index, metric in enumerate(manifest.metrics):
        if metric.output is not None:
            said.append(("output", metric.output, ("metrics", index, metric.name, "output")))
    there = {
        "input": [spec.name for spec in model.inputs],
        "output": [spec.name for spec in model.outputs],
    }
    for word, name, place in said:
        names = there[word]
        if name not in names:
            raise ModelError(
                f"the model has no {word} {name!r}; it has {', '.join(map(repr, names))}",
                where=manifest.location(*place),
                remedy=nearest(name, names, "Correct the name."),
            )


def check_kept(model: Model, manifest: Manifest) -> None:
    """Raise `ModelError` for a ``keep_fp32:`` that means no node of the model (`static_model`).

    Only where the model is converted as it is: which nodes passes leave is known after them.
    """
    for variant, target in manifest.rows:
        if manifest.variants[variant] or not target.options.keep_fp32:
            continue
        try:
            kept_nodes(model, target.options.keep_fp32)
        except ModelError as error:
            entry = manifest.origins[variant, target.id]
            place = option_place(manifest.root, entry, target.backend, "keep_fp32")
            raise error.within(str(place)) from error


def static_model(model: Model, manifest: Manifest, directory: Path) -> Model:
    """A copy with the manifest's shapes, below ``directory``; raises `ModelError`."""
    try:
        return model.with_static_shapes(manifest.model.shapes, directory)
    except ModelError as error:
        raise error.within(manifest.location("model", "inputs")) from error


def name_model(context: HostContext, model: Model) -> None:
    """Note in an entry that is being built which of its files is the model."""
    name = model.path.relative_to(context.output).as_posix()
    (context.output / MODEL_FILE).write_text(name)


def named_model(entry: Entry) -> Model:
    """The model of an entry."""
    return Model.load(entry.directory / (entry.directory / MODEL_FILE).read_text())


def _from_zoo(step: Step, services: Services) -> Model:
    section = services.manifest.model
    assert section.zoo is not None and section.zoo_parameters is not None
    design, parameters = services.host.models[section.zoo], section.zoo_parameters
    key = Key(
        "zoo",
        {
            "name": design.name,
            "parameters": parameters.model_dump(mode="json"),
            "code": plugin_code(services, "models", design.name, design.files),
            "host": own_lock(),
        },
    )

    def build(context: HostContext) -> None:
        design.build(parameters, context.output / ZOO_MODEL)

    entry, _, _ = take_or_build(services, step.id, key, build)
    return Model.load(entry.directory / ZOO_MODEL)


@dataclass(frozen=True)
class _DataContext:
    """`wherry.dataset.DataContext` on the host."""

    base: Path
    services: Services

    def packages(self, requirements: Requirements) -> Path:
        return self.services.environments.site_packages(requirements)


def run_data(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Read one data section; the value is a `Dataset` that was once checked against the model."""
    (model,) = inputs.values()
    manifest = services.manifest
    section = manifest.data[step.data]
    source = services.host.datasets[section.source]
    context = _DataContext(manifest.base, services)

    def load() -> Dataset:
        loaded = source.load(section.parameters, context)
        len(loaded)  # for which some read all there is: not in two threads at once
        return loaded

    try:
        parameters = section.parameters.model_dump_json()
        dataset = services.dataset(section.source, parameters, load)
    except DataError as error:
        raise error.within(section.location) from error
    if section.slice != (None, None):
        dataset = Sliced(dataset, *section.slice, where=section.location)
    kinds = services.host.metrics
    needs_labels = step.data == EVALUATION and any(
        kinds[metric.name].needs_labels for metric in manifest.metrics
    )
    try:
        digest = dataset.digest
    except DataError as error:
        raise error.within(section.location) from error
    key = Key(
        "data",
        {
            "data": digest,
            "inputs": [asdict(spec) for spec in model.inputs],
            "outputs": [asdict(spec) for spec in model.outputs],
            "preprocess": dict(manifest.model.preprocess),
            "labels": needs_labels,
            "code": own_code("data/views", "preprocess", "scoring"),
        },
    )

    def build(context: HostContext) -> None:
        def progress(done: int, total: int) -> None:
            services.check()
            if done % 500 == 0:
                context.progress(f"{done}/{total} samples")

        check_dataset(
            dataset,
            model,
            manifest.model.preprocess,
            where=section.location,
            needs_labels=needs_labels,
            progress=progress,
        )

    _, cached, warnings = take_or_build(services, step.id, key, build)
    return StageResult(dataset, cached, warnings)


def model_ready(dataset: Dataset, model: Model, services: Services) -> Dataset:
    """The same samples, preprocessed as the manifest declares, in the model's shapes."""
    return Preprocessed(dataset, services.manifest.model.preprocess, model.inputs)
