"""What the results of a layer sum over: patches of its input, some of them, drawn by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wherry.normalise.graph import attributes

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input, a number an axis.

    Attributes:
        kernel: its sizes.
        strides: of it.
        pads: zeros before and after each axis.
        dilations: of it.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, kernel: Sequence[int]) -> Self:
        """That of a Conv in the normal form, which has its padding in numbers."""
        about, axes = attributes(node), len(kernel)
        pads = about.get("pads", [0] * 2 * axes)
        return cls(
            tuple(kernel),
            tuple(about.get("strides", [1] * axes)),
            tuple((pads[a], pads[a + axes]) for a in range(axes)),
            tuple(about.get("dilations", [1] * axes)),
        )

    @property
    def spans(self) -> tuple[int, ...]:
        """Of the kernel with its dilations, a number an axis."""
        pairs = zip(self.kernel, self.dilations, strict=True)
        return tuple((size - 1) * step + 1 for size, step in pairs)

    def places(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many there are, a number an axis, for an input of some sizes."""
        each = zip(sizes, self.pads, self.spans, self.strides, strict=True)
        return tuple((size + sum(pad) - span) // stride + 1 for size, pad, span, stride in each)


def drawn(
    values: np.ndarray, window: Window | None, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Patches, [at most count, values of a patch], channel by channel.

    Args:
        values: the input of a convolution, [batch, inputs, *axes]; without a window, of a product
            of matrices, [..., inputs].
        window: of the convolution.
        count: the most.
        generator: of the draw.
    """
    if window is None:
        rows = values.reshape(-1, values.shape[-1])
        if len(rows) <= count:
            return rows.copy()
        return rows[np.sort(generator.choice(len(rows), count, replace=False))]
    total = values.shape[0] * prod(window.places(values.shape[2:]))
    chosen = np.arange(total)
    if total > count:
        chosen = np.sort(generator.choice(total, count, replace=False))
    return taken(values, window, chosen)


def taken(values: np.ndarray, window: Window, places: np.ndarray) -> np.ndarray:
    """Patches of some places, [places, values of a patch], channel by channel.

    Args:
        values: the input of a convolution, [batch, inputs, *axes].
        window: of the convolution.
        places: flat indices into its results of one output, [batch, *places].
    """
    padded = np.pad(values, [(0, 0), (0, 0), *window.pads])
    views = np.lib.stride_tricks.sliding_window_view(
        padded, window.spans, axis=tuple(range(2, values.ndim))
    )
    steps = tuple(slice(None, None, stride) for stride in window.strides)
    inside = tuple(slice(None, None, d) for d in window.dilations)
    views = views[(slice(None), slice(None), *steps, *inside)]
    batch, *place = np.unravel_index(places, (len(values), *window.places(values.shape[2:])))
    # [patches, inputs, *kernel]: an index in front of a slice brings its axis to the front
    index: tuple[Any, ...] = (batch, slice(None), *place)
    return np.ascontiguousarray(views[index]).reshape(len(places), -1)
