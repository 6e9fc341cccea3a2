"""Convolutions, poolings, paddings and resizings: what moves a window over a picture.

MACE knows the padding of both ends of an axis as one sum, of which it puts the smaller half in
front. Where ONNX wants another split, an equal one is looked for (what lies beyond a picture is
nothing for both, so that only the padding in front and the size of the result count); where there
is none, an explicit Pad comes before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wherry_mace.format import Value
from wherry_mace.translate import Handler, Node, RefusedError, Translator

if TYPE_CHECKING:
    import numpy as np

AVG, MAX = 1, 2
"""MACE's pooling_type."""
FLOOR, CEIL = 0, 1
"""MACE's round_mode."""
CONSTANT, REFLECT = 0, 1
"""MACE's pad_type."""
ASYMMETRIC, HALF_PIXEL, PYTORCH_HALF_PIXEL = 0, 1, 2
"""MACE's coordinate_transformation_mode."""

FUSED = {"Relu": "RELU", "Sigmoid": "SIGMOID", "Tanh": "TANH", "LeakyRelu": "LEAKYRELU"}
"""Activations that MACE's convolutions do themselves, on any device."""

_LEAST = -3.4028234663852886e38  # of float32
_DEEP = "MACE has one- and two-dimensional windows only: use another backend."


def activation(t: Translator, name: str) -> tuple[Node, dict[str, str | float]] | None:
    """The activation that alone takes a tensor, and MACE's words for it."""
    node = t.taker(name)
    if node is None or node.name in t.done:
        return None
    if node.kind == "Clip":
        bounds = limits(t, node)
        if bounds is None or bounds[0] != 0 or not 0 < bounds[1] < math.inf:
            return None
        return node, {"activation": "RELUX", "max_limit": float(bounds[1])}
    word = FUSED.get(node.kind)
    if word is None or (t.whole and word != "RELU"):
        return None
    about: dict[str, str | float] = {"activation": word}
    if node.kind == "LeakyRelu":
        about["activation_coefficient"] = float(node.about.get("alpha", 0.01))
    return node, about


def limits(t: Translator, node: Node) -> tuple[float, float] | None:
    """The bounds of a Clip; None where they are computed."""
    found = []
    for index, (word, default) in enumerate((("min", -math.inf), ("max", math.inf)), 1):
        bound = node.about.get(word, default)
        if index < len(node.inputs) and node.inputs[index]:
            value = t.value(node.inputs[index])
            if value is None:
                return None
            bound = value.reshape(-1)[0]
        number = float(bound)
        found.append(default if abs(number) >= -_LEAST else number)
    return found[0], found[1]


def padding(
    lengths: Sequence[int],
    sizes: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
    begins: Sequence[int],
    modes: Sequence[int] = (FLOOR,),
) -> tuple[list[int], int] | None:
    """MACE's sums of the padding and its rounding that are the same as ONNX's; None: none are.

    Args:
        lengths: of the axes, before.
        sizes: after.
        spans: of the window, with its dilation.
        strides: of it.
        begins: the padding in front.
        modes: roundings that may be chosen.
    """
    for mode in modes:
        totals: list[int] = []
        for length, size, span, stride, begin in zip(
            lengths, sizes, spans, strides, begins, strict=True
        ):
            for total in (2 * begin, 2 * begin + 1):
                room = length + total - span
                steps = -(-room // stride) if mode == CEIL else room // stride
                if steps + 1 == size:
                    totals.append(total)
                    break
        if len(totals) == len(lengths):
            return totals, mode
    return None


class _Window:
    """A window of a node over a picture [n, c, h, w], to which an axis is added where it has one.

    Args:
        t: the translator.
        node: whose first input is the picture.
        kernel: its sizes, where the node does not say them.
    """

    def __init__(self, t: Translator, node: Node, kernel: Sequence[int] | None = None) -> None:
        shape, made = t.shape(node.inputs[0]), t.shape(node.outputs[0])
        axes = len(shape) - 2
        if axes not in {1, 2}:
            raise RefusedError(_DEEP)
        about = node.about
        one = (1,) * (2 - axes)
        self.lifted = axes == 1
        self.shape = (*shape[:2], *one, *shape[2:])
        self.made = (*made[:2], *one, *made[2:])
        sizes = about.get("kernel_shape") or list(kernel or ())
        self.kernel = [*one, *sizes]
        self.strides = [*one, *about.get("strides", [1] * axes)]
        self.dilations = [*one, *about.get("dilations", [1] * axes)]
        pads = about.get("pads", [0] * (2 * axes))
        zero = (0,) * (2 - axes)
        self.begins, self.ends = [*zero, *pads[:axes]], [*zero, *pads[axes:]]
        if about.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
            raise RefusedError("Give the model static shapes, and pads in numbers.")
        if min(*self.begins, *self.ends) < 0:
            raise RefusedError("Write negative pads with a Slice.")
        self.spans = [
            (size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)
        ]

    def check_dilation(self) -> None:
        """MACE has either dilations or strides in an axis."""
        for stride, dilation in zip(self.strides, self.dilations, strict=True):
            if stride > 1 and dilation > 1:
                raise RefusedError("MACE has a stride or a dilation in an axis, and not both.")

    def padding(self, modes: Sequence[int] = (FLOOR,)) -> tuple[list[int], int] | None:
        """See `padding`."""
        lengths, sizes = self.shape[2:], self.made[2:]
        return padding(lengths, sizes, self.spans, self.strides, self.begins, modes)

    def padded(self, t: Translator, node: Node, x: str, fill: float = 0.0) -> str:
        """The picture with the padding around it."""
        pads = list(zip(self.begins, self.ends, strict=True))
        made = _pad(t, node, x, self.shape, [(0, 0), (0, 0), *pads], fill)
        self.shape = (*self.shape[:2], *(
            length + begin + end
            for length, (begin, end) in zip(self.shape[2:], pads, strict=True)
        ))  # fmt: skip
        self.begins, self.ends = [0, 0], [0, 0]
        return made


def conv(t: Translator, node: Node) -> None:
    """Conv2D, DepthwiseConv2d; with other groups Split, Conv2D and Concat."""
    weight, bias = t.parameter(node, 1), t.given(node, 2)
    window = _Window(t, node, weight.shape[2:])
    window.check_dilation()
    groups, x = int(node.about.get("group", 1)), node.inputs[0]
    if window.lifted:
        x = t.reshaped(node, x, window.shape)
        weight = weight.reshape(*weight.shape[:2], 1, weight.shape[2])
    found = window.padding()
    if found is None:
        x = window.padded(t, node, x)
        found = window.padding()
        assert found is not None, "a window without padding"
    about = {
        "strides": window.strides,
        "padding_values": found[0],
        "dilations": window.dilations,
    }
    _weighted(t, node, x, weight, bias, groups, window, about)


def _weighted(
    t: Translator,
    node: Node,
    x: str,
    weight: np.ndarray,
    bias: np.ndarray | None,
    groups: int,
    window: _Window,
    about: Mapping[str, Sequence[int]],
) -> None:
    """Write a convolution [outputs, inputs of a group, h, w] with the activation behind it."""
    nodes, output, more = [node], node.outputs[0], {}
    depthwise = groups > 1 and weight.shape[1] == 1
    if not window.lifted and (groups == 1 or depthwise):
        fused = activation(t, output)
        if fused is not None:
            nodes, output, more = [node, fused[0]], fused[0].outputs[0], fused[1]
            t.done.add(fused[0].name)
    if groups > 1 and not depthwise:
        made = _grouped(t, node, x, weight, bias, groups, window, about)
    else:
        kind = "DepthwiseConv2d" if depthwise else "Conv2D"
        if depthwise:
            # MACE's channel c * multiplier + m has the weights [m, c]
            parts = weight.reshape(groups, -1, *weight.shape[2:])
            weight = parts.transpose(1, 0, 2, 3)
        inputs = [x, t.constant(f"{node.inputs[1]}/weights", weight)]
        if bias is not None:
            inputs.append(t.constant(f"{node.inputs[2]}/bias", bias.reshape(-1)))
        arguments = {"kernels": window.kernel, "group": groups, **about, **more}
        if not window.lifted:
            t.add(kind, nodes, inputs, output, free=True, about=arguments)
            return
        made = t.part(kind, node, inputs, window.made, free=True, about=arguments)
        t.bounds[made] = output
    if window.lifted:
        t.reshape_to(node, made, output)


def _grouped(
    t: Translator,
    node: Node,
    x: str,
    weight: np.ndarray,
    bias: np.ndarray | None,
    groups: int,
    window: _Window,
    about: Mapping[str, Sequence[int]],
) -> str:
    """MACE has no groups but depthwise ones."""
    batch, channels = window.shape[:2]
    parts = split(t, node, x, window.shape, 1, [channels // groups] * groups)
    count = weight.shape[0] // groups
    shape = (batch, count, *window.made[2:])
    made = []
    for index, part in enumerate(parts):
        rows = slice(index * count, (index + 1) * count)
        inputs = [part, t.constant(f"{node.inputs[1]}/{index}", weight[rows])]
        if bias is not None:
            inputs.append(t.constant(f"{node.inputs[2]}/{index}", bias.reshape(-1)[rows]))
        each = t.part(
            "Conv2D", node, inputs, shape, free=True, about=about, kernels=window.kernel, group=1
        )
        t.bounds[each] = node.outputs[0]
        made.append(each)
    if window.lifted:
        whole = t.part("Concat", node, made, window.made, free=True, axis=3, has_data_format=1)
        t.bounds[whole] = node.outputs[0]
        return whole
    t.add("Concat", node, made, node.outputs[0], free=True, axis=3, has_data_format=1)
    return node.outputs[0]


def split(
    t: Translator, node: Node, x: str, shape: Sequence[int], axis: int, sizes: Sequence[int]
) -> list[str]:
    """Parts of a tensor of four axes, under names of wherry's own."""
    names = [t.graph.fresh(f"{node.outputs[0]}/part{index}") for index in range(len(sizes))]
    shapes = [[*shape[:axis], size, *shape[axis + 1 :]] for size in sizes]
    add_split(t, node, x, names, shapes, axis, sizes)
    for name in names:
        t.bounds[name] = t.bounds.get(x, x)
    return names


def add_split(
    t: Translator,
    node: Node,
    x: str,
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    axis: int,
    sizes: Sequence[int],
) -> None:
    """Write a Split; MACE names the axes of four as NHWC."""
    import numpy as np

    free = len(shapes[0]) == 4
    inputs = [x]
    if len(set(sizes)) > 1:
        inputs.append(t.constant(f"{names[0]}/sizes", np.asarray(sizes, np.int32)))
    about: dict[str, int] = {"has_data_format": 1} if free else {}
    t.add(
        "Split", node, inputs, names, shapes, free=free,
        axis=NHWC_AXIS[axis] if free else axis, about=about,
    )  # fmt: skip


NHWC_AXIS = (0, 3, 1, 2)
"""An axis of NCHW to the same in NHWC."""


def conv_transpose(t: Translator, node: Node) -> None:
    """Deconv2D; where the padding is not MACE's, the whole result is made and cut."""
    import numpy as np

    weight, bias = t.parameter(node, 1), t.given(node, 2)
    window = _Window(t, node, weight.shape[2:])
    if any(step != 1 for step in window.dilations):
        raise RefusedError("MACE has no dilated transposed convolution: use another backend.")
    if "output_shape" in node.about:
        raise RefusedError("Give the model static shapes, and pads in numbers.")
    groups, x = int(node.about.get("group", 1)), node.inputs[0]
    if window.lifted:
        x = t.reshaped(node, x, window.shape)
        weight = weight.reshape(*weight.shape[:2], 1, weight.shape[2])
    whole = [
        (length - 1) * stride + size
        for length, stride, size in zip(
            window.shape[2:], window.strides, window.kernel, strict=True
        )
    ]
    sizes, begins = window.made[2:], window.begins
    totals = [most - size for most, size in zip(whole, sizes, strict=True)]
    cut = any(total < 0 or total // 2 != begin for total, begin in zip(totals, begins, strict=True))
    if any(b + size > most for b, size, most in zip(begins, sizes, whole, strict=True)):
        raise RefusedError("MACE has no output_padding beyond the kernel: use another backend.")
    shape = (*window.made[:2], *(whole if cut else sizes))
    about = {
        "strides": window.strides,
        "padding_values": [0, 0] if cut else totals,
        "dilations": [1, 1],
        "group": 1,
        "kernels": window.kernel,
    }
    count = weight.shape[1]
    parts = [x]
    if groups > 1:
        parts = split(t, node, x, window.shape, 1, [window.shape[1] // groups] * groups)
    made = []
    for index, part in enumerate(parts):
        rows = weight[index * len(weight) // groups : (index + 1) * len(weight) // groups]
        values = np.ascontiguousarray(rows.transpose(1, 0, 2, 3))
        inputs = [part, t.constant(f"{node.inputs[1]}/{index}", values)]
        if bias is not None:
            values = bias.reshape(-1)[index * count : (index + 1) * count]
            inputs.append(t.constant(f"{node.inputs[2]}/{index}", values))
        last = groups == 1 and not cut and not window.lifted
        if last:
            t.add("Deconv2D", node, inputs, node.outputs[0], free=True, about=about)
            return
        each = (shape[0], count, *shape[2:])
        made.append(t.part("Deconv2D", node, inputs, each, free=True, about=about))
    joined = made[0]
    if groups > 1:
        joined = t.part("Concat", node, made, shape, free=True, axis=3, has_data_format=1)
    if cut:
        ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
        joined = sliced(t, node, joined, window.made, [0, 0, *begins], [*shape[:2], *ends], [1] * 4)
    t.reshape_to(node, joined, node.outputs[0])


def sliced(
    t: Translator,
    node: Node,
    x: str,
    shape: Sequence[int],
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int],
    output: str | None = None,
) -> str:
    """Write a StridedSlice over all axes; a stop of -1 is before the first element."""
    import numpy as np

    name = output or t.graph.fresh(f"{node.outputs[0]}/sliced")
    numbers = (
        ("begin", starts),
        ("end", [max(stop, 0) for stop in stops]),
        ("strides", steps),
    )
    inputs = [
        t.constant(f"{name}/{word}", np.asarray(values, np.int32)) for word, values in numbers
    ]
    mask = sum(1 << axis for axis, stop in enumerate(stops) if stop < 0)
    t.add("StridedSlice", node, [x, *inputs], name, [shape], end_mask=mask)
    if output is None:
        t.bounds[name] = t.bounds.get(x, x)
    return name


def pool(t: Translator, node: Node) -> None:
    """Pooling, with the windows that ONNX has."""
    window = _Window(t, node)
    window.check_dilation()
    average = node.kind == "AveragePool"
    if average and any(step != 1 for step in window.dilations):
        raise RefusedError("MACE has no dilated average pooling: use another backend.")
    x = node.inputs[0]
    if window.lifted:
        x = t.reshaped(node, x, window.shape)
    inside = average and bool(node.about.get("count_include_pad", 0))
    padded = any(window.begins) or any(window.ends)
    found = None if inside and padded else window.padding((FLOOR, CEIL))
    if inside and node.about.get("ceil_mode", 0) and window.padding() is None:
        raise RefusedError("MACE does not count the padding of windows that are rounded up.")
    if found is None:
        if average and not inside:
            raise RefusedError("Give it as much padding in front as behind, or one less.")
        x = window.padded(t, node, x, 0.0 if average else _LEAST)
        found = window.padding((FLOOR, CEIL))
        if found is None:
            raise RefusedError("Give it padding in numbers instead of ceil_mode.")
    _pooling(t, node, x, window, AVG if average else MAX, found)


def global_pool(t: Translator, node: Node) -> None:
    """Pooling with a window of the whole picture."""
    shape = t.shape(node.inputs[0])
    if len(shape) < 3:
        raise RefusedError(_DEEP)
    x, picture = node.inputs[0], tuple(shape)
    if len(shape) != 4:
        picture = (*shape[:2], int(math.prod(shape[2:])), 1)
        x = t.reshaped(node, x, picture)
    about: dict[str, Value] = {
        "pooling_type": AVG if node.kind == "GlobalAveragePool" else MAX,
        "kernels": list(picture[2:]),
        "strides": [1, 1],
        "padding_values": [0, 0],
        "dilations": [1, 1],
        "round_mode": FLOOR,
    }
    if len(shape) == 4:
        t.add("Pooling", node, [x], node.outputs[0], free=True, about=about)
        return
    made = t.part("Pooling", node, [x], (*shape[:2], 1, 1), free=True, about=about)
    t.bounds[made] = node.outputs[0]
    t.reshape_to(node, made, node.outputs[0])


def _pooling(
    t: Translator, node: Node, x: str, window: _Window, kind: int, found: tuple[list[int], int]
) -> None:
    about: dict[str, Value] = {
        "pooling_type": kind,
        "kernels": window.kernel,
        "strides": window.strides,
        "padding_values": found[0],
        "dilations": window.dilations,
        "round_mode": found[1],
    }
    if not window.lifted:
        t.add("Pooling", node, [x], node.outputs[0], free=True, about=about)
        return
    made = t.part("Pooling", node, [x], window.made, free=True, about=about)
    t.bounds[made] = node.outputs[0]
    t.reshape_to(node, made, node.outputs[0])


def _pad(
    t: Translator,
    node: Node,
    x: str,
    shape: Sequence[int],
    pads: Sequence[tuple[int, int]],
    fill: float,
    kind: int = CONSTANT,
    output: str | None = None,
) -> str:
    """Write a Pad of four axes."""
    made = [length + begin + end for length, (begin, end) in zip(shape, pads, strict=True)]
    flat = [number for axis in (0, 2, 3, 1) for number in pads[axis]]
    name = output or t.graph.fresh(f"{node.outputs[0]}/padded")
    t.add(
        "Pad", node, [x], name, [made], free=True,
        has_data_format=1, paddings=flat, pad_type=kind, constant_value=float(fill),
    )  # fmt: skip
    if output is None:
        t.bounds[name] = t.bounds.get(x, x)
    return name


def pad(t: Translator, node: Node) -> None:
    """Pad, of up to four axes."""
    mode = node.about.get("mode", "constant")
    if mode not in {"constant", "reflect"}:
        raise RefusedError("MACE pads with a constant or reflects: choose one of these.")
    x, shape = node.inputs[0], t.shape(node.inputs[0])
    numbers = node.about.get("pads")
    if numbers is None:
        numbers = t.parameter(node, 1).reshape(-1).tolist()
    given = t.given(node, 2)
    fill = float(node.about.get("value", 0.0) if given is None else given.reshape(-1)[0])
    if len(shape) > 4 or len(node.inputs) > 3:
        raise RefusedError("Do with up to four axes, and pads for all of them.")
    pads = list(zip(numbers[: len(shape)], numbers[len(shape) :], strict=True))
    if min(map(min, pads)) < 0:
        raise RefusedError("Write negative pads with a Slice.")
    more = 4 - len(shape)
    picture, wide = (*[1] * more, *shape), [*[(0, 0)] * more, *pads]
    kind = CONSTANT if mode == "constant" else REFLECT
    if not more:
        _pad(t, node, x, picture, wide, fill, kind, node.outputs[0])
        return
    made = _pad(t, node, t.reshaped(node, x, picture), picture, wide, fill, kind)
    t.reshape_to(node, made, node.outputs[0])


HANDLERS: dict[str, Handler] = {
    "AveragePool": pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "MaxPool": pool,
    "Pad": pad,
}
