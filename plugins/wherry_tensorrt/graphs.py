"""ONNX files as TensorRT wants them: plain names and types at the ports, axes left open."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # names that trtexec's arguments and files hold


@dataclass(frozen=True)
class Port:
    """An input or output of the file, and of the model.

    Attributes:
        onnx: its name in the model.
        runtime: its name in the file.
        dtype: numpy's name of its type in the file: ``float32`` or ``int32``, which every version
            of TensorRT takes.
    """

    onnx: str
    runtime: str
    dtype: str


def set_ports(proto: onnx.ModelProto) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Give inputs and outputs plain names, and float32 or int32 for their types; in place.

    Old TensorRTs have no int64 there, and trtexec takes names apart at colons and commas.
    """
    import onnx

    graph = proto.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {entry.name for part in (graph.input, graph.output) for entry in part}
    renamed: dict[str, str] = {}
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    sides: list[tuple[Port, ...]] = []
    for values, word in ((graph.input, "input"), (graph.output, "output")):
        ports = []
        for index, value in enumerate(values):
            name, kind = value.name, value.type.tensor_type.elem_type
            outer = _outer(kind)
            runtime = name if _PLAIN.fullmatch(name) else _fresh(f"{word}_{index}", taken)
            if outer == kind:
                if runtime != name:
                    renamed[name] = runtime
            else:
                inner = _fresh(f"{name}/inner", taken)
                renamed[name] = inner
                ends, to = (
                    ((runtime, inner), kind) if word == "input" else ((inner, runtime), outer)
                )
                cast = onnx.helper.make_node(
                    "Cast", [ends[0]], [ends[1]], name=_fresh(f"{name}/Cast", taken), to=to
                )
                (before if word == "input" else after).append(cast)
            value.name = runtime
            value.type.tensor_type.elem_type = outer
            dtype = "float32" if outer == onnx.TensorProto.FLOAT else "int32"
            ports.append(Port(name, runtime, dtype))
        sides.append(tuple(ports))
    _rename(graph, renamed)
    nodes = [*before, *graph.node, *after]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
    return sides[0], sides[1]


def _outer(kind: int) -> int:
    from onnx import TensorProto

    floats = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    return TensorProto.FLOAT if kind in floats else TensorProto.INT32


def _fresh(name: str, taken: set[str]) -> str:
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for part in (node.input, node.output):
            part[:] = [names.get(name, name) for name in part]
        for inner in _inside(node):
            _rename(inner, names)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)


def _inside(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def write_hard_swish(proto: onnx.ModelProto) -> dict[str, str]:
    """HardSwish as HardSigmoid and Mul, in place: TensorRT 8.5 has no other.

    Returns:
        Name of each new node to that of the HardSwish that it is a part of.
    """
    import onnx

    nodes: list[onnx.NodeProto] = []
    parts: dict[str, str] = {}
    taken = {name for node in proto.graph.node for name in (node.name, *node.output)}
    for node in proto.graph.node:
        if node.op_type != "HardSwish" or node.domain not in {"", "ai.onnx"}:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        gate = _fresh(f"{node.output[0]}/gate", taken)
        name = _fresh(f"{node.name}/HardSigmoid", taken)
        nodes += [
            onnx.helper.make_node(
                "HardSigmoid", [node.input[0]], [gate], name=name, alpha=1 / 6, beta=0.5
            ),
            onnx.helper.make_node("Mul", [node.input[0], gate], [node.output[0]], name=node.name),
        ]
        parts[name] = node.name
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return parts


def open_axes(proto: onnx.ModelProto, shapes: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Leave those axes of inputs open that an engine takes several sizes of; in place.

    Args:
        proto: with static shapes.
        shapes: name of an input, in the file, to its ``min`` and ``max``.
    """
    graph = proto.graph
    for value in graph.input:
        spec = shapes.get(value.name)
        axes = value.type.tensor_type.shape.dim
        for index, axis in enumerate(axes):
            if spec is not None and spec["min"][index] != spec["max"][index]:
                axis.Clear()
                axis.dim_param = f"{value.name}_{index}"
    del graph.value_info[:]
    for value in graph.output:
        for index, axis in enumerate(value.type.tensor_type.shape.dim):
            axis.Clear()
            axis.dim_param = f"{value.name}_{index}"
