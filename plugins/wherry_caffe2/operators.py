"""What of ONNX converts to Caffe2: the pre-flight, and the answer for operators in general."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from wherry.operators import Support
from wherry.target import Unsupported
from wherry_caffe2 import (  # noqa: F401 -- they enter their lowerings in the table
    elementwise,
    products,
    shapes,
    windows,
)
from wherry_caffe2.lowering import ALL, CUT, REMEDIES, TABLE, Lowering, Refusal, View
from wherry_caffe2.shuffle import KIND

if TYPE_CHECKING:
    import onnx

ALSO = (
    "log softmax",
    *(f"expand {name}" for name in ("Celu", "CenterCropPad", "Gelu", "GroupNormalization")),
    *(f"expand {name}" for name in ("MeanVarianceNormalization", "Mish", "RMSNormalization")),
)
"""What Caffe2 wants of `wherry.normalise` besides."""

PARTLY: Mapping[str, str] = {
    "Cast": "Only to float32, int32, int64 and bool.",
    "ConvTranspose": "Only over two axes, without dilation.",
    "Div": "Only of float32.",
    "LRN": "Only over an odd number of channels.",
    "LayerNormalization": "Only its first output.",
    "MaxPool": "Not with dilation, nor with its indices.",
    "Pad": "Not by less than nothing; by edge or reflection only pictures.",
    "Resize": "Only height and width; nearest or linear; no antialias.",
    "Upsample": "Only height and width.",
    "Where": "Only with a condition of the result's shape.",
    "ArgMax": "Not the last of several.",
    "ArgMin": "Not the last of several.",
}
"""What the pre-flight refuses of an operator, in words."""


def operators() -> Mapping[str, Support]:
    """Operators of which a form converts right."""
    others = ("CastLike", "Constant", "Dropout", "LogSoftmax")  # the normal form is without them
    found = {name: Support("yes") for name in (*others, *TABLE) if name != KIND}
    found |= {name: Support("partly", PARTLY[name]) for name in PARTLY}
    expanded = [name.split(" ")[1] for name in ALSO if name.startswith("expand ")]
    found |= {name: Support("yes") for name in expanded}
    found |= {name: Support("no", text) for name, text in REMEDIES.items()}
    found |= {name: Support("no", CUT) for name in ("Shape", "Size")}
    return found


def preflight(proto: onnx.ModelProto) -> list[Unsupported]:
    """What would not convert of a normal form with static shapes, by its own nodes."""
    view = View(proto)
    found: dict[tuple[str, str], Unsupported] = {}
    for kind, node, remedy in _refusals(view):
        seen = found.get((kind, remedy))
        found[kind, remedy] = (
            replace(seen, count=seen.count + 1) if seen else Unsupported(kind, 1, node, remedy)
        )
    return list(found.values())


def _refusals(view: View) -> Iterator[tuple[str, str, str]]:
    """(Words for it, node, remedy)."""
    yield from _ports(view)
    low = Lowering(view)
    for node in view.proto.graph.node:
        if node.op_type == "Constant" or not view.used.intersection(node.output):
            continue
        domain = "" if node.domain in {"", "ai.onnx"} else f"{node.domain}::"
        try:
            low.lower(node)
        except Refusal as refusal:
            words = f"{refusal.what} " if refusal.what else ""
            yield f"{words}{domain}{node.op_type}", node.name, refusal.remedy


def _ports(view: View) -> Iterator[tuple[str, str, str]]:
    """Inputs and outputs of types that Caffe2's blobs do not have."""
    for word, values in (("input", view.proto.graph.input), ("output", view.proto.graph.output)):
        for value in values:
            kind = view.kind(value.name)
            if kind not in ({*ALL, "uint8"} if word == "input" else ALL):
                readers = view.readers.get(value.name, ())
                node = view.makers.get(value.name) or (readers[0] if readers else None)
                named = node.name if node is not None else value.name
                whose = f" of {node.op_type}" if node is not None else ""
                remedy = "Give the network inputs and outputs in float32, int32, int64 or bool."
                yield f"{word} of type {kind}{whose}", named, remedy
