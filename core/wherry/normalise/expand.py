"""Other words for operators: ONNX defines some by others; and most mean the same for long."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from wherry.normalise.graph import STANDARD
from wherry.onnx_file import default_opset

if TYPE_CHECKING:
    import onnx

DOMAIN = "wherry.expanded"

Kinds = Mapping[str, "onnx.TypeProto"]


def _has_more_outputs(node: onnx.NodeProto, kinds: Kinds) -> bool:
    del kinds
    return any(node.output[1:])


def _is_batch(node: onnx.NodeProto, kinds: Kinds) -> bool:
    kind = kinds.get(node.input[0])
    return kind is not None and [axis.dim_value for axis in kind.tensor_type.shape.dim][:1] != [1]


WHEN: Mapping[str, Callable[[onnx.NodeProto, Kinds], bool]] = {
    "": lambda _node, _kinds: True,
    "batch": _is_batch,
    "outputs": _has_more_outputs,
}
"""Which nodes of an operator: all, those of more than one sample, those with a second output."""


def expand(proto: onnx.ModelProto, words: Collection[str]) -> dict[str, str]:
    """Write nodes of the operators as ONNX defines them, in place.

    Args:
        proto: with a name for every node, and the types of all tensors.
        words: operators of ONNX's own domain, each alone or with a key of `WHEN`
            (``RMSNormalization if batch``); those without such a definition stay.

    Returns:
        Name of a new node to that of the node that it is a part of.
    """
    import onnx
    import onnx.inliner

    operators = {word.partition(" if ")[0]: word.partition(" if ")[2] for word in words}
    opset = default_opset(proto)
    values = [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]
    kinds = {value.name: value.type for value in values}
    for tensor in proto.graph.initializer:
        kinds[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    parts: dict[str, str] = {}
    for index, node in enumerate(proto.graph.node):
        if node.op_type not in operators or node.domain not in STANDARD:
            continue
        if not WHEN[operators[node.op_type]](node, kinds):
            continue
        body = _definition(node, opset, kinds)
        if body is None:
            continue
        body.domain, body.name = DOMAIN, f"{node.op_type}_{index}"
        for number, inner in enumerate(body.node):
            inner.name = f"{node.name}/{inner.op_type}_{number}"
        parts.update((inner.name, node.name) for inner in body.node)
        node.domain, node.op_type = body.domain, body.name
        proto.functions.append(body)
    if parts:
        given = {node.name for node in proto.graph.node}
        proto.opset_import.add(domain=DOMAIN, version=1)
        proto.CopyFrom(onnx.inliner.inline_local_functions(proto))
        for node in proto.graph.node:
            if node.name not in given:  # the inliner adds a number
                parts[node.name] = parts[node.name.rpartition("__")[0]]
        kept = [entry for entry in proto.opset_import if entry.domain != DOMAIN]
        del proto.opset_import[:]
        proto.opset_import.extend(kept)
    return parts


def _definition(node: onnx.NodeProto, opset: int, kinds: Kinds) -> onnx.FunctionProto | None:
    """The function that a node stands for; None: it stands for itself."""
    import onnx

    schema: Any = onnx.defs.get_schema(node.op_type, opset)  # its stub lacks what is asked below
    body = onnx.FunctionProto()
    plain = [version for version in schema.function_opset_versions if version <= opset]
    typed = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    if plain:
        body.ParseFromString(schema.get_function_with_opset_version(max(plain)))
    elif typed:
        types = [kinds.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        data = schema.get_context_dependent_function_with_opset_version(
            max(typed), node.SerializeToString(), types
        )
        if not data:
            return None
        body.ParseFromString(data)
    else:
        return None
    # Its words mean the same in later opsets, which the proof confirms.
    del body.opset_import[:]
    body.opset_import.add(domain="", version=opset)
    return body


def set_opset(proto: onnx.ModelProto, opset: int) -> None:
    """Give a model this opset; whether it still means the same, the proof has to say."""
    for entry in proto.opset_import:
        if entry.domain in STANDARD:
            entry.version = opset
