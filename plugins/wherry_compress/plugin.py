"""The hooks: the passes of all families; each runs in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

import wherry
from wherry.errors import EnvironmentError_
from wherry.hookspecs import hookimpl
from wherry.model import Model
from wherry.passes import Pass, PassStep
from wherry_compress import basic
from wherry_compress.int8 import passes as int8
from wherry_compress.lowrank import passes as lowrank
from wherry_compress.member import Member
from wherry_compress.prune import passes as prune
from wherry_compress.prune.passes import Latency
from wherry_compress.share import passes as share
from wherry_compress.train import passes as train

if TYPE_CHECKING:
    from wherry.context import OptimizeContext

HERE = Path(__file__).parent
FAMILIES = (
    basic.MEMBERS,
    int8.MEMBERS,
    lowrank.MEMBERS,
    prune.MEMBERS,
    share.MEMBERS,
    train.MEMBERS,
)
MEMBERS: Mapping[str, Member] = {
    member.descriptor.name: member for family in FAMILIES for member in family
}


@hookimpl
def wherry_passes() -> Iterable[Pass]:
    """What a variant may name."""
    for member in MEMBERS.values():
        yield replace(member.descriptor, files=_files(member))


def _files(member: Member) -> tuple[Path, ...]:
    """What decides a pass's result: the files of its family's folder, and those that all share."""
    module = member.function.partition(":")[0].split(".")[1:]
    if len(module) == 1:
        own = [HERE / f"{module[0]}.py"]
    else:
        own = sorted((HERE / module[0]).rglob("*.py"))
    shared = [HERE / "job.py", HERE / "work.py", *sorted((HERE / "graph").glob("*.py"))]
    shared.append(Path(wherry.__file__).with_name("costs.py"))
    for package in member.also:
        (folder,) = importlib.import_module(package).__path__
        shared += sorted(Path(folder).glob("*.py"))
    return tuple(dict.fromkeys([*own, *shared]))


@hookimpl
def wherry_optimize(model: Model, step: PassStep, context: OptimizeContext) -> Model:
    """Run a pass's function by ``work.py``."""
    member = MEMBERS[step.name]
    needs = member.descriptor.needed(step.parameters)
    if "torch" in needs and importlib.util.find_spec("torch") is None:
        raise EnvironmentError_(
            f"the pass {step.name} trains, and torch is not installed",
            where=f"pass {step.name}",
            remedy="Install it beside wherry: `pip install 'wherry[train]'`.",
        )
    also = {"keep batch norm"} if member.batch_norms else set()
    source = context.normalised(model, also).model if member.normal else model
    latency = getattr(step.parameters, "latency", None)
    if latency is None:
        made, figures = _made(member, source, step.parameters, context)
    else:
        made, figures = _fast(member, source, step.parameters, latency, context)
    context.record(figures)
    return made


def _made(
    member: Member, source: Model, parameters: BaseModel, context: OptimizeContext
) -> tuple[Model, Mapping[str, Any]]:
    """The model that a pass makes in its own process, and its figures."""
    needs = member.descriptor.needed(parameters)
    output = context.output / "model.onnx"
    request = {
        "pass": member.descriptor.name,
        "function": member.function,
        "model": str(source.path),
        "output": str(output),
        "parameters": parameters.model_dump(mode="json"),
        "data": _data(source, context),
        "original": str(context.original.path) if "original" in needs else None,
        "seed": context.seed if "seed" in needs else 0,
        "scratch": str(context.scratch),
        "unfinished": None if context.unfinished is None else str(context.unfinished),
    }
    response = context.run_tool(HERE / "work.py", request, requirements=None)
    for text in response["warnings"]:
        context.warn(text)
    return Model.load(output), response["figures"]


def _fast(
    member: Member,
    source: Model,
    parameters: BaseModel,
    latency: Latency,
    context: OptimizeContext,
) -> tuple[Model, Mapping[str, Any]]:
    """The model with the most MACs that is fast enough on a target."""
    from wherry_compress.prune.latency import search

    def make(macs: float) -> tuple[Model, Mapping[str, Any]]:
        candidate = parameters.model_copy(update={"latency": None, "macs": macs})
        made, figures = _made(member, source, candidate, context)
        kept = context.output / f"{made.digest[:16]}.onnx"
        made.path.replace(kept)
        return Model.load(kept), figures

    known: dict[str, float] = {}  # widths are rounded: candidates may come out alike

    def measure(model: Model) -> float:
        if model.digest not in known:
            context.progress("measuring a candidate")
            known[model.digest] = context.latency_ms(
                model, latency.backend, latency.device, latency.precision
            )
        return known[model.digest]

    made, figures = search(latency, measure(source), make, measure)
    output = context.output / "model.onnx"
    made.path.replace(output)
    for rest in context.output.glob("*.onnx"):
        if rest != output:
            rest.unlink()
    return Model.load(output), figures


def _data(model: Model, context: OptimizeContext) -> dict[str, Any]:
    """The samples as files, by role."""
    from wherry.data.inputs import write_inputs, write_labels

    files = {}
    for role, dataset in context.data.items():
        folder = context.scratch / role
        folder.mkdir(exist_ok=True)  # the same for each candidate
        inputs = write_inputs(model, dataset, folder, role)
        files[role] = {"inputs": inputs, "labels": write_labels(dataset, folder)}
    return files
