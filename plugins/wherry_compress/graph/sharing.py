"""Constants that several nodes read: a copy for each, and back again.

Exporters store equal weights once. Before one reader's weights are changed, each reader gets a copy
of its own (`unshare`); afterwards copies that are still equal become one again (`reshare`), so that
the file does not grow by what was not changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx

from wherry.normalise.graph import Graph


def unshare(proto: onnx.ModelProto) -> dict[str, str]:
    """Give every reader its own copy of a constant; the model is changed in place.

    The first reader keeps the name. Constants that nested graphs read or that are outputs of the
    model keep theirs for these, and every node of the main graph gets a copy.

    Returns:
        The name of each copy to that of the constant it was made of.
    """
    graph = Graph(proto, {})
    tensors = graph.constants
    taken = Counter(name for name in tensors if name in graph.kept)
    copies: dict[str, str] = {}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name not in tensors:
                continue
            taken[name] += 1
            if taken[name] == 1:
                continue
            own = graph.fresh(f"{name}/of/{node.name}")
            copy = proto.graph.initializer.add()
            copy.CopyFrom(tensors[name])
            copy.name = own
            node.input[index] = own
            copies[own] = name
    return copies


def reshare(proto: onnx.ModelProto, copies: Mapping[str, str]) -> None:
    """Undo `unshare` where a copy still equals its constant; the model is changed in place.

    Copies of one constant that were changed alike become one as well.

    Args:
        proto: what `unshare` was given, changed since.
        copies: what it returned.
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    first: dict[tuple[str, bytes], str] = {}
    for name in dict.fromkeys(copies.values()):
        if name in tensors:
            first[name, _content(tensors[name])] = name
    instead: dict[str, str] = {}
    for own, name in copies.items():
        if own in tensors:
            kept = first.setdefault((name, _content(tensors[own])), own)
            if kept != own:
                instead[own] = kept
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in instead:
                node.input[index] = instead[name]
    left = [tensor for tensor in proto.graph.initializer if tensor.name not in instead]
    kept_tensors = [onnx.TensorProto() for _ in left]
    for new, old in zip(kept_tensors, left, strict=True):
        new.CopyFrom(old)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept_tensors)


def _content(tensor: onnx.TensorProto) -> bytes:
    """Type, shape and values."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.ClearField("name")
    found: bytes = copy.SerializeToString(deterministic=True)
    return found
