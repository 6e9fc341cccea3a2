"""A model in the form that all converters read alike: one shape for what ONNX says in many.

`normalise` folds constants and batch norms, takes out what does nothing, writes padding and axes
in numbers and recognises HardSwish. It keeps inputs, outputs, and the names of the tensors and
nodes that are left, and says of each node of the result which nodes of the given model it does.

What it does stands in `PASSES`, in that order, several times where one makes room for another. The
result is proved: both models run on the same random inputs in ONNX Runtime, without ONNX Runtime's
own rewrites. Where they differ, the passes are tried one by one, and those that change an output
are left out, and said.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import ModelError
from wherry.model import Model
from wherry.normalise import fold, forms, fuse, windows
from wherry.normalise.expand import expand, set_opset
from wherry.normalise.graph import STANDARD, Graph
from wherry.normalise.prove import Proof
from wherry.onnx_file import default_opset

if TYPE_CHECKING:
    import onnx

__all__ = [
    "EXPAND",
    "KEEP",
    "LEAST_OPSET",
    "OPSET",
    "OPTIONAL",
    "PASSES",
    "Normalised",
    "normalise",
    "preview",
]

Rewrite = Callable[[Graph, "onnx.NodeProto"], bool]

REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile")
ONE_OF_MANY = ("Concat", "Max", "Min", "Mean", "Sum")

PASSES: Mapping[str, Sequence[tuple[Rewrite, tuple[str, ...]]]] = {
    "nothing": [
        (
            forms.nothing,
            ("Identity", "Cast", "Dropout", "Transpose", "Pad", *SHAPES, *ONE_OF_MANY),
        )
    ],
    "types": [(forms.cast_like, ("CastLike",))],
    "padding": [
        (windows.padding, ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")),
        (forms.pad, ("Pad",)),
    ],
    "ceil_mode": [(windows.rounding, ("MaxPool", "AveragePool", "LpPool"))],
    "axes": [(forms.reduction, tuple(f"Reduce{kind}" for kind in REDUCTIONS))],
    "clip": [(forms.clip, ("Clip",)), (forms.relu, ("Max",))],
    "split": [(forms.split, ("Split",))],
    "resize": [(forms.resize, ("Resize",))],
    "softmax": [(forms.softmax, ("Softmax", "LogSoftmax", "Hardmax"))],
    "batch norm": [(fuse.batch_norm, ("BatchNormalization",))],
    "hard swish": [(fuse.hard_swish, ("Mul", "Div")), (fuse.hard_sigmoid, ("Mul", "Div"))],
}
"""Name to rewrites, each with the operators whose nodes it is shown. Constants come first."""

OPTIONAL: Mapping[str, Sequence[tuple[Rewrite, tuple[str, ...]]]] = {
    "log softmax": [(forms.log_softmax, ("LogSoftmax",))],
    "extremes": [(forms.extreme, ("ReduceMax", "ReduceMin"))],
    "powers": [(forms.power, ("Pow",))],
    "pairs": [(forms.pairs, ("Max", "Min", "Sum"))],
}
"""Passes that only some backends want, by the same names as in ``normalise(also=...)``."""

EXPAND = "expand "
"""Before an operator in ``normalise(also=...)``: it is written with others, as ONNX defines it."""

OPSET = "opset "
"""Before a number in ``normalise(also=...)``: of a newer model the opset becomes this one."""

LEAST_OPSET = "at least opset "
"""Before a number likewise: of an older model the opset becomes this one."""

KEEP = "keep "
"""Before a name of `PASSES` in ``normalise(also=...)``: this pass is left out."""

CONSTANTS = "constants"
MODEL_FILE, NODES_FILE = "model.onnx", "nodes.json"


@dataclass(frozen=True)
class Normalised:
    """A model, and the same in the normal form.

    Attributes:
        model: the normal form; inputs and outputs are those of the given one.
        nodes: name of each of its nodes to the nodes of the given model that it does, in their
            order. Nodes of the given model that stand nowhere are computed in advance, or did
            nothing.
        warnings: passes that were left out because they would have changed an output, sentences.
    """

    model: Model
    nodes: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, directory: Path) -> Normalised:
        """What `normalise` wrote there."""
        told = json.loads((directory / NODES_FILE).read_text())
        nodes = {name: tuple(names) for name, names in told["nodes"].items()}
        return cls(Model.load(directory / MODEL_FILE), nodes, tuple(told["warnings"]))

    def originals(self, names: Collection[str]) -> tuple[str, ...]:
        """The nodes of the given model that some of the normal form's do, in their order."""
        found = dict.fromkeys(each for name in names for each in self.nodes.get(name, ()))
        return tuple(found)


def normalise(model: Model, directory: Path, also: Collection[str] = ()) -> Normalised:
    """Write the normal form of a model into ``directory``; `Normalised.load` reads it again.

    Args:
        model: with static shapes and a name for every node (`Model.with_static_shapes`).
        directory: an existing folder.
        also: passes of `OPTIONAL`, operators after `EXPAND`, an opset after `OPSET` or
            `LEAST_OPSET`, passes of `PASSES` after `KEEP`.

    Returns:
        The same bytes and words whenever it is called.
    """
    passes = _passes(also)
    given, graph = model.proto(), _rewritten(model, passes)
    warnings: list[str] = []
    opsets = list(given.opset_import)
    if graph.proto.graph == given.graph and list(graph.proto.opset_import) == opsets:
        return _written(graph, directory, warnings)
    try:
        proof = Proof(given, model.inputs)
    except ModelError as error:
        # Nothing can be proved of what does not run: it stays as it is.
        warnings.append(f"the model was not normalised: {error.message}")
        graph = _rewritten(model, [])
    else:
        if _problem(proof, graph):
            kept: list[str] = []
            for name in passes:
                if problem := _problem(proof, _rewritten(model, [*kept, name])):
                    warnings.append(
                        f"the rewrite {name!r} was left out, because it would change the model: "
                        f"{problem}"
                    )
                else:
                    kept.append(name)
            graph = _rewritten(model, kept)
    return _written(graph, directory, warnings)


def preview(
    model: Model, also: Collection[str] = ()
) -> tuple[onnx.ModelProto, Mapping[str, tuple[str, ...]]]:
    """What `normalise` would make, not proved: for a pre-flight, which has to be quick."""
    graph = _rewritten(model, _passes(also))
    return graph.proto, dict(graph.sources)


def _passes(also: Collection[str]) -> list[str]:
    left_out = {word.removeprefix(KEEP) for word in also if word.startswith(KEEP)}
    optional = [
        word
        for word in sorted(also)
        if word in OPTIONAL or word.startswith((EXPAND, OPSET, LEAST_OPSET))
    ]
    known = len(optional) + len(left_out.intersection(PASSES)) == len(set(also))
    assert known, "a backend asks for a pass that there is not"
    return [CONSTANTS, *(name for name in PASSES if name not in left_out), *optional]


def _written(graph: Graph, directory: Path, warnings: Sequence[str]) -> Normalised:
    told = json.dumps({"nodes": graph.sources, "warnings": warnings})
    for name, data in (
        (NODES_FILE, told.encode()),
        (MODEL_FILE, graph.proto.SerializeToString(deterministic=True)),
    ):
        part = directory / f"{name}.part"
        part.write_bytes(data)
        os.replace(part, directory / name)  # noqa: PTH105 -- Path.replace returns what nobody needs
    return Normalised.load(directory)


def _problem(proof: Proof, graph: Graph) -> str:
    try:
        return proof.difference(graph.proto)
    except ModelError as error:
        return error.message


def _rewritten(model: Model, passes: Sequence[str]) -> Graph:
    """A fresh copy of the model after the passes."""
    proto = model.proto()
    for name in passes:
        if name.startswith((OPSET, LEAST_OPSET)):
            bound = int(name.rpartition(" ")[2])
            set_opset(proto, (min if name.startswith(OPSET) else max)(default_opset(proto), bound))
    words = {name.removeprefix(EXPAND) for name in passes if name.startswith(EXPAND)}
    graph = Graph(proto, expand(proto, words) if words else {})
    while _sweep(graph, passes):
        graph.drop_unused()
        graph.infer()
    return graph


def _sweep(graph: Graph, passes: Sequence[str]) -> bool:
    """Every pass once; whether one of them changed something."""
    changed = CONSTANTS in passes and fold.fold(graph)
    for name in passes:
        for rewrite, operators in {**PASSES, **OPTIONAL}.get(name, ()):
            for node_name in [node.name for node in graph.proto.graph.node]:
                node = graph.nodes.get(node_name)
                if node is None or node.op_type not in operators or node.domain not in STANDARD:
                    continue
                changed = rewrite(graph, node) or changed
    return changed
