"""The forms of Q/DQ that runtimes want: types, placement, operators."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QdqForm:
    """How `wherry.quantize.qdq.insert_qdq` writes a quantised graph.

    Attributes:
        symmetric: activations are int8 without a zero point; else uint8 with one.
        heavy: operators that are quantised wherever their ranges are known.
        light: operators that are quantised only behind others that are: alone they gain nothing.
        passing: operators that move values without changing them: what they give has the scale
            of what they take, where that is quantised already.
        results: Q/DQ stand behind quantised nodes too, so that these give whole numbers; else
            only before them.
        absorb: a Relu or Clip behind a quantised node is left out where the saturation of its
            result does the same.
        whole_bias: biases are int32, of the scales of input and weights; else they stay float.
        residual: where an Add takes the result of a Conv that nobody else reads, that input
            stays float: the runtime adds within the convolution.
        half_scales: scales are numbers that float16 holds, rounded up, so that the graph may
            become one of float16 without another scale.
    """

    symmetric: bool
    heavy: frozenset[str]
    light: frozenset[str]
    passing: frozenset[str] = frozenset()
    results: bool = True
    absorb: bool = True
    whole_bias: bool = True
    residual: bool = False
    half_scales: bool = False


ONNXRUNTIME = QdqForm(
    symmetric=False,
    heavy=frozenset({"Conv", "Gemm", "MatMul"}),
    light=frozenset(
        {"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"}
    ),
    passing=frozenset(
        {"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape"}
        | {"Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"}
        | {"Unsqueeze"}
    ),
)
"""What its QDQ fusions make QLinear kernels of; 8-bit kernels exist for all of these."""

TENSORRT = QdqForm(
    symmetric=True,
    heavy=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    light=frozenset({"Add", "AveragePool", "GlobalAveragePool", "MaxPool"}),
    results=False,
    absorb=False,
    whole_bias=False,
    residual=True,
    half_scales=True,
)
"""What NVIDIA's parser takes: symmetric, float biases, Q/DQ on inputs alone."""
