"""Constant folding: what no input decides is computed once, by ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wherry.errors import ModelError
from wherry.normalise.graph import STANDARD, Graph, attributes

if TYPE_CHECKING:
    import onnx

MOST_BYTES = 64 << 20
"""A constant that is larger, and larger than what it is made of, stays a computation."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)
QUANTISED = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""Stay as they are: what they say of a weight is more than its values."""

SHAPES = frozenset({"Shape", "Size"})


def fold(graph: Graph) -> bool:
    """Make constants of what only depends on constants and static shapes."""
    known = set(graph.constants)
    found: list[onnx.NodeProto] = []
    for node in graph.proto.graph.node:
        if _is_known(graph, node, known):
            found.append(node)
            known.update(name for name in node.output if name)
    if not found:
        return False
    names = {node.name for node in found}
    wanted = [
        name
        for node in found
        for name in node.output
        if name and name not in graph.kept and _goes_on(graph, name, names)
    ]
    values = _computed(graph, found, wanted)
    made = [name for name, value in values.items() if _is_small(graph, name, value)]
    for name in made:
        node = graph.makers[name]
        node.output[list(node.output).index(name)] = graph.fresh(f"{name}/computed")
        graph.constant_named(name, values[name])
    graph.refresh()
    graph.drop_unused()
    return bool(made)


def _is_known(graph: Graph, node: onnx.NodeProto, known: set[str]) -> bool:
    if node.domain not in STANDARD or node.op_type in RANDOM | QUANTISED:
        return False
    if "Sequence" in node.op_type or "Optional" in node.op_type:  # no tensors
        return False
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return False
    if node.op_type in SHAPES:
        return graph.shape(node.input[0]) is not None
    return all(name in known for name in node.input if name)


def _goes_on(graph: Graph, name: str, names: set[str]) -> bool:
    """Somebody takes it who is not constant himself."""
    return any(taker.name not in names for taker in graph.takers.get(name, ()))


def _is_small(graph: Graph, name: str, value: np.ndarray) -> bool:
    if value.nbytes <= MOST_BYTES:
        return True
    given = [graph.constants.get(each) for each in graph.makers[name].input]
    return value.nbytes <= sum(int(t.ByteSize()) for t in given if t is not None)


def _computed(
    graph: Graph, nodes: list[onnx.NodeProto], wanted: list[str]
) -> dict[str, np.ndarray]:
    """The wanted tensors; none where ONNX Runtime cannot compute them."""
    import onnx

    from wherry.reference import open_session, run_session

    if not wanted:
        return {}
    made = onnx.ModelProto()
    made.ir_version = graph.proto.ir_version
    made.opset_import.extend(graph.proto.opset_import)
    made.graph.name = "constants"
    for node in nodes:
        if node.op_type in SHAPES:
            array = _shape(graph, node)
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
        else:
            made.graph.node.append(node)
    used = {name for node in made.graph.node for name in node.input} & set(graph.constants)
    made.graph.initializer.extend(graph.constants[name] for name in sorted(used))
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    try:
        session = open_session(made.SerializeToString(), threads=1, where="")
        outputs = run_session(session, {}, where="")
    except ModelError:  # one of them is not for this processor: all stay as they are
        return {}
    return {name: np.asarray(outputs[name]) for name in wanted}


def _shape(graph: Graph, node: onnx.NodeProto) -> np.ndarray:
    """What a Shape or Size gives."""
    shape = np.asarray(graph.shape(node.input[0]), np.int64)
    if node.op_type == "Size":
        return np.asarray(shape.prod(), np.int64)
    about = attributes(node)
    return shape[about.get("start", 0) : about.get("end", len(shape))]
