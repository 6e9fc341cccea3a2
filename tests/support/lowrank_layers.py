"""A layer for the tests of low rank: a convolution with weights that are drawn."""

from __future__ import annotations

import numpy as np

from wherry_compress.graph.patches import Window
from wherry_compress.lowrank.layers import Layer


def made_layer(outputs: int, inputs: int, height: int, width: int) -> Layer:
    weights = np.random.default_rng(height).normal(size=(outputs, inputs, height, width))
    window = Window((height, width), (1, 1), ((0, 0), (0, 0)), (1, 1))
    size = (1, inputs, height + 4, width + 2)
    return Layer(
        "c", "Conv", weights.astype("f4"), None, True, "x", (1, 5, 3), size, window
    )  # fmt: skip
