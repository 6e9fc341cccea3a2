"""Recognises channel shuffles, for which ONNX writes three operators and Caffe2 has one.

A group convolution's outputs are dealt out to the groups of the next (Zhang et al., "ShuffleNet",
CVPR 2018, section 3.1): [n, groups * m, h, w] as [n, groups, m, h, w], transposed to
[n, m, groups, h, w], and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wherry_caffe2.lowering import Lowering, Refusal, View, about, lowers

if TYPE_CHECKING:
    import onnx

KIND = "ChannelShuffle"


def fuse(
    proto: onnx.ModelProto, sources: Mapping[str, tuple[str, ...]]
) -> tuple[onnx.ModelProto, dict[str, tuple[str, ...]]]:
    """A copy of a graph with its channel shuffles as nodes of an operator of ours.

    Args:
        proto: in the normal form, with static shapes.
        sources: name of a node to the nodes of the given model that it does.

    Returns:
        The copy, and its nodes likewise.
    """
    import onnx

    view = View(proto)
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    found = dict(sources)
    gone: set[str] = set()
    for node in made.graph.node:
        chain = _chain(view, node)
        if chain is None:
            continue
        first, middle, groups = chain
        gone.update((first.name, middle.name))
        found[node.name] = tuple(
            dict.fromkeys(each for n in (first, middle, node) for each in sources.get(n.name, ()))
        )
        node.op_type = KIND
        del node.input[:]
        node.input.append(first.input[0])
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("group", groups))
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in made.graph.node
            if n.name not in gone]  # fmt: skip
    del made.graph.node[:]
    made.graph.node.extend(kept)
    return made, found


def _chain(view: View, last: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto, int] | None:
    """The first two nodes of a shuffle that ends in ``last``, and its groups."""
    middle = _before(view, last, "Reshape", "Transpose")
    first = None if middle is None else _before(view, middle, "Transpose", "Reshape")
    if middle is None or first is None:
        return None
    try:
        given, apart, made = (
            view.shape(name) for name in (first.input[0], first.output[0], last.output[0])
        )
    except Refusal:
        return None
    turned = list(about(middle).get("perm", ())) == [0, 2, 1, 3, 4]
    if len(given) != 4 or given != made or len(apart) != 5 or not turned:
        return None
    if (apart[0], *apart[3:]) != (given[0], *given[2:]) or view.kind(first.input[0]) != "float32":
        return None
    return first, middle, apart[1]


def _before(view: View, node: onnx.NodeProto, kind: str, wanted: str) -> onnx.NodeProto | None:
    """Who makes what a node of some kind takes, where it is of the kind that is wanted."""
    if node.op_type != kind or not node.input:
        return None
    name = node.input[0]
    maker = view.makers.get(name)
    outputs = {value.name for value in view.proto.graph.output}
    alone = len(view.readers.get(name, ())) == 1 and name not in outputs
    return maker if maker is not None and maker.op_type == wanted and alone else None


@lowers(KIND)
def channel_shuffle(low: Lowering, node: onnx.NodeProto) -> None:
    """One operator."""
    low.give(KIND, low.inputs(node), group=int(about(node)["group"]), order="NCHW")
