"""What MACE can do of ONNX, asked of the converter's own walk before any cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from wherry.operators import Support
from wherry.target import Unsupported
from wherry_mace import elementwise, shapes, windows
from wherry_mace.translate import EXPANDED, Handler, Translator

if TYPE_CHECKING:
    import onnx

    from wherry.model import Model
    from wherry.operators import Asking

HANDLERS: Mapping[str, Handler] = {
    **windows.HANDLERS,
    **elementwise.HANDLERS,
    **shapes.HANDLERS,
}
"""Operator of the normal form to what writes it."""

PARTLY: Mapping[str, str] = {
    "AveragePool": "Not dilated, over three dimensions, or with more padding in front than behind "
    "that is not counted.",
    "Cast": "Only to and from what is float32 after all, and of inputs.",
    "CastLike": "Only to and from what is float32 after all.",
    "Conv": "Not over three dimensions, with a stride and a dilation in one axis, or with computed "
    "weights.",
    "ConvTranspose": "Not over three dimensions, dilated, or with output_padding beyond the "
    "kernel.",
    "Gather": "Only neighbours that are known in advance.",
    "Gemm": "Only with weights that are known in advance.",
    "InstanceNormalization": "Only of pictures.",
    "LRN": "Only of pictures, over an odd number of channels.",
    "MatMul": "Batches only of one size, or one matrix with each.",
    "MaxPool": "Not over three dimensions, with a stride and a dilation in one axis, or with its "
    "indices.",
    "PRelu": "Only one slope, or one for each channel.",
    "Pad": "Only constant and reflect, of up to four axes.",
    "Resize": "Nearest only where MACE takes the same pixels; no cubic, no antialias.",
    "Slice": "Of up to five axes.",
    "Transpose": "Of up to four axes that move apart.",
    "Upsample": "As Resize.",
}
"""What the pre-flight refuses of an operator, in words."""

NORMALISED = ("CastLike", "Constant")
"""Operators that the normal form takes out, in the forms that can be."""


def translated(proto: onnx.ModelProto, *, whole: bool = False, gpu: bool = False) -> Translator:
    """The walk over a normal form, in 8 bits or not, for a GPU or not; with what it refused."""
    translator = Translator(proto, HANDLERS, whole=whole)
    translator.run()
    if gpu:
        translator.refused.extend(_in_another_order(translator))
    return translator


def _in_another_order(walk: Translator) -> Iterator[Unsupported]:
    """Operations on pictures that MACE would compute in a GPU's order, NHWC, as if it were NCHW."""
    kinds = {node.name: node.kind for node in walk.nodes}
    whole: dict[str, tuple[int, ...]] = {}
    for op in walk.ops:
        whole.update(zip(op.outputs, op.shapes, strict=True))
        known = [whole.get(name) or walk.graph.shape(name) or () for name in op.inputs]
        pictures = [shape for shape in (*known, *op.shapes) if len(shape) == 4]
        alike = op.type == "Reshape" and all(
            sum(size > 1 for size in shape[1:]) <= 1 for shape in pictures
        )
        if not op.free and pictures and not alike:
            node = op.nodes[-1]
            yield Unsupported(kinds[node], 1, node, "MACE's GPU cannot: ask for runtime: cpu.")


def counted(
    found: Sequence[Unsupported], sources: Mapping[str, Sequence[str]], model: Mapping[str, str]
) -> tuple[Unsupported, ...]:
    """Refusals of a normal form by the model's own nodes, those that are alike in one.

    Args:
        found: one for each node of the normal form.
        sources: node of the normal form to the model's.
        model: the model's nodes to their operators.
    """
    counts: dict[tuple[str, str], list[str]] = {}
    for each in found:
        node = next(iter(sources.get(each.node, ())), each.node)
        kind = each.op_type if " " in each.op_type else model.get(node, each.op_type)
        counts.setdefault((kind, each.remedy), []).append(node)
    return tuple(
        Unsupported(kind, len(set(nodes)), nodes[0], remedy)
        for (kind, remedy), nodes in counts.items()
    )


def kinds(model: Model) -> dict[str, str]:
    """Nodes of a model to their operators."""
    return {name: kind for kind, names in model.operators().items() for name in names}


def operators(tools: Asking) -> Mapping[str, Support]:
    """Operators that the converter writes; it is wherry's own, so that nobody has to be asked."""
    del tools
    found = {name: Support("yes") for name in (*HANDLERS, *EXPANDED, *NORMALISED)}
    return found | {name: Support("partly", text) for name, text in PARTLY.items()}
