"""Convolutions and poolings: padding in numbers, no rounding up, weights' shapes in attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wherry.normalise.graph import Graph, attributes

if TYPE_CHECKING:
    import onnx


def padding(graph: Graph, node: onnx.NodeProto) -> bool:
    """``auto_pad`` becomes ``pads``; ``kernel_shape`` is written out."""
    about = attributes(node)
    word = about.pop("auto_pad", "NOTSET")
    found = _window(graph, node, about)
    if found is None or any(node.output[1:]):
        return False
    lengths, sizes, kernel, spans, strides = found
    if word == "NOTSET" and "kernel_shape" in about and "output_shape" not in about:
        return False
    about["kernel_shape"] = list(kernel)
    if node.op_type == "ConvTranspose":
        extra = about.get("output_padding", [0] * len(lengths))
        totals = [
            stride * (length - 1) + more + span - size
            for stride, length, more, span, size in zip(
                strides, lengths, extra, spans, sizes, strict=True
            )
        ]
        upper = word == "SAME_UPPER"
        asked = about.pop("output_shape", None) is not None or word.startswith("SAME")
    else:
        totals = [
            max(0, (size - 1) * stride + span - length)
            for size, stride, span, length in zip(sizes, strides, spans, lengths, strict=True)
        ]
        upper, asked = word == "SAME_UPPER", word.startswith("SAME")
    if node.op_type == "ConvTranspose" and min(totals, default=0) < 0:
        extra = about.get("output_padding", [0] * len(lengths))
        about["output_padding"] = [
            each - min(total, 0) for each, total in zip(extra, totals, strict=True)
        ]
        totals = [max(total, 0) for total in totals]
    if asked:
        less = [total // 2 for total in totals]
        more = [total - each for total, each in zip(totals, less, strict=True)]
        about["pads"] = less + more if upper else more + less
        if node.op_type == "ConvTranspose" and word == "NOTSET":
            about["pads"] = more + less
    elif word == "VALID":
        about["pads"] = [0] * (2 * len(lengths))
    graph.replace([node], (node.op_type, list(node.input), about))
    return True


def rounding(graph: Graph, node: onnx.NodeProto) -> bool:
    """``ceil_mode`` becomes more padding at the end, where that is the same."""
    about = attributes(node)
    if not about.pop("ceil_mode", 0) or any(node.output[1:]):
        return False
    if about.get("auto_pad", "NOTSET") != "NOTSET":  # written out first
        return False
    found = _window(graph, node, about)
    if found is None:
        return False
    lengths, sizes, kernel, spans, strides = found
    pads = about.get("pads", [0] * (2 * len(lengths)))
    begins, ends = pads[: len(lengths)], pads[len(lengths) :]
    more = [
        max(0, (size - 1) * stride + span - length - begin - end)
        for size, stride, span, length, begin, end in zip(
            sizes, strides, spans, lengths, begins, ends, strict=True
        )
    ]
    if any(more) and (
        (node.op_type == "AveragePool" and about.get("count_include_pad", 0))
        or any(end + each >= size for end, each, size in zip(ends, more, kernel, strict=True))
    ):
        return False
    about["pads"] = [*begins, *(end + each for end, each in zip(ends, more, strict=True))]
    graph.replace([node], (node.op_type, list(node.input), about))
    return True


def _window(
    graph: Graph, node: onnx.NodeProto, about: dict[str, Any]
) -> tuple[Sequence[int], Sequence[int], list[int], list[int], list[int]] | None:
    """Lengths before and after, kernel, its span with dilation, strides; None: not known."""
    given, made = graph.shape(node.input[0]), graph.shape(node.output[0])
    if given is None or made is None:
        return None
    kernel = about.get("kernel_shape")
    if kernel is None:
        weight = graph.shape(node.input[1]) if len(node.input) > 1 else None
        if weight is None:
            return None
        kernel = list(weight[2:])
    ones = [1] * len(kernel)
    dilations = about.get("dilations", ones)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    return given[2:], made[2:], list(kernel), spans, list(about.get("strides", ones))
