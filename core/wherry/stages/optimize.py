"""The optimize stage: one pass of a variant, ONNX in, ONNX out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wherry.errors import ModelError, PluginError
from wherry.plan import ORIGINAL
from wherry.stages.context import HostContext, StageResult, notes, take_or_build
from wherry.stages.keys import normalise_code, own_code, own_lock, plugin_code
from wherry.stages.prepare import model_ready, name_model, named_model
from wherry.stages.services import Services
from wherry.store import Key

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.model import Model
    from wherry.plan import Step


@dataclass(frozen=True, kw_only=True)
class _Context(HostContext):
    """`wherry.context.OptimizeContext` on the host."""

    data: Mapping[str, Dataset]
    original: Model
    seed: int

    def latency_ms(
        self, model: Model, backend: str, device: str | None = None, precision: str = "fp32"
    ) -> float:
        """See `wherry.context.OptimizeContext.latency_ms`."""
        from wherry.stages.candidate import latency_ms

        return latency_ms(model, backend, device, precision, self.step, self.services)


def run(step: Step, inputs: Mapping[str, Any], services: Services) -> StageResult:
    """Apply the last pass of the step's chain; the value is a `Model` in the store."""
    model: Model = inputs[step.needs[0]]
    pass_step = step.passes[-1]
    descriptor = services.host.passes[pass_step.name]
    needed = descriptor.needed(pass_step.parameters)
    datasets = {
        need.removeprefix("data:"): inputs[need] for need in step.needs if need.startswith("data:")
    }
    original: Model = inputs.get(ORIGINAL, model)
    key = Key(
        "optimize",
        {
            "model": model.digest,
            "pass": pass_step.name,
            "version": descriptor.version,
            "code": plugin_code(services, "passes", pass_step.name, descriptor.files),
            "normalise": normalise_code(),
            "samples": own_code("data/inputs", "data/views", "preprocess") if datasets else "",
            "parameters": pass_step.parameters.model_dump(mode="json"),
            "data": [dataset.digest for dataset in datasets.values()],
            "preprocess": dict(services.manifest.model.preprocess) if datasets else {},
            "original": original.digest if "original" in needed else "",
            "seed": services.manifest.seed if "seed" in needed else None,
            "boards": _boards(services) if "device" in needed else {},
            "host": own_lock(),
        },
    )

    def build(context: HostContext) -> None:
        ready = {role: model_ready(each, model, services) for role, each in datasets.items()}
        inner = _Context(
            services,
            step.id,
            context.output,
            context.scratch,
            context.log,
            context.warnings,
            context.figures,
            context.unfinished,
            data=ready,
            original=original,
            seed=services.manifest.seed,
        )
        made = services.host.optimize(model, pass_step, inner)
        _check(made, model, pass_step.name, context)
        name_model(context, made)

    entry, cached, warnings = take_or_build(services, step.id, key, build)
    figures = {"pass": pass_step.name, **notes(entry).record}
    return StageResult(named_model(entry), cached, warnings, figures)


def _boards(services: Services) -> dict[str, list[str]]:
    """The boards that a pass may measure on."""
    found = {}
    for name in sorted({row.target.device for row in services.plan.rows}):
        info = services.probe(name).info
        found[name] = [info.fingerprint, info.identity]
    return found


def _check(made: Model, model: Model, name: str, context: HostContext) -> None:
    """A pass keeps a model's inputs and outputs and writes where it was told to."""
    if not made.path.is_relative_to(context.output):
        raise PluginError(
            f"the pass {name} wrote its model outside of context.output ({made.path})",
            remedy="Report this to the author of the plugin.",
        )
    for side in ("inputs", "outputs"):
        before, after = getattr(model, side), getattr(made, side)
        if before != after:
            raise ModelError(
                f"the pass {name} changed the {side} from {_show(before)} to {_show(after)}",
                where=f"pass {name}",
                remedy="Leave this pass out of the variant, or report it to the plugin's author.",
            )


def _show(specs: tuple[Any, ...]) -> str:
    return ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in specs)
