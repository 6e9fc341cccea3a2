"""The hooks: the passes of all families; each runs in a process of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.errors import EnvironmentError_
from wherry.hookspecs import hookimpl
from wherry.model import Model
from wherry.passes import Pass, PassStep
from wherry_compress import basic
from wherry_compress.int8 import passes as int8
from wherry_compress.lowrank import passes as lowrank
from wherry_compress.member import Member
from wherry_compress.prune import passes as prune

if TYPE_CHECKING:
    from wherry.context import OptimizeContext

HERE = Path(__file__).parent
FAMILIES = (basic.MEMBERS, int8.MEMBERS, lowrank.MEMBERS, prune.MEMBERS)
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
    output = context.output / "model.onnx"
    request = {
        "function": member.function,
        "model": str(source.path),
        "output": str(output),
        "parameters": step.parameters.model_dump(mode="json"),
        "data": _data(source, context),
        "original": str(context.original.path) if "original" in needs else None,
        "seed": context.seed if "seed" in needs else 0,
        "scratch": str(context.scratch),
        "unfinished": None if context.unfinished is None else str(context.unfinished),
    }
    response = context.run_tool(HERE / "work.py", request, requirements=None)
    for text in response["warnings"]:
        context.warn(text)
    context.record(response["figures"])
    return Model.load(output)


def _data(model: Model, context: OptimizeContext) -> dict[str, Any]:
    """The samples as files, by role."""
    from wherry.data.inputs import write_inputs, write_labels

    files = {}
    for role, dataset in context.data.items():
        folder = context.scratch / role
        folder.mkdir()
        inputs = write_inputs(model, dataset, folder, role)
        files[role] = {"inputs": inputs, "labels": write_labels(dataset, folder)}
    return files
