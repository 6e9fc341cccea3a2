"""Operators that NVIDIA's ONNX parser knows, and types that TensorRT does not compute in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from wherry.operators import Support
from wherry.requirements import Requirements
from wherry.target import Unsupported

if TYPE_CHECKING:
    from wherry.model import Model
    from wherry.operators import Asking

PARSER = Requirements(
    packages=("numpy==2.4.6",),
    no_deps=("tensorrt_rtx_cu13==1.7.1.116", "tensorrt_rtx_cu13_bindings==1.7.1.116",
             "tensorrt_rtx_cu13_libs==1.7.1.116"),
    python=">=3.11",
)  # fmt: skip
"""TensorRT-RTX: NVIDIA's parser and ahead-of-time builder, which need no GPU. Its licence is
proprietary."""

KNOWN = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "Attention", "AveragePool", "BatchNormalization", "BlackmanWindow", "Cast", "CastLike",
    "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose",
    "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum",
    "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool",
    "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization",
    "HammingWindow", "HannWindow", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul",
    "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg",
    "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow",
    "QuantizeLinear", "RMSNormalization", "RNN", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign",
    "RotaryEmbedding", "Round", "STFT", "Scan", "Scatter", "ScatterElements", "ScatterND",
    "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax",
    "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish",
    "Tan", "Tanh", "TensorScatter", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu",
    "Unsqueeze", "Upsample", "Where", "Xor",
})  # fmt: skip
"""Of ONNX's own domain, as TensorRT-RTX 1.7's parser says; a test asks it again. Older parsers know
fewer, which the board then says."""

GIVEN_WHOLE = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)
_REMEDY = "Write it with other operators, or take the backend onnxruntime."


def preflight(model: Model) -> Sequence[Unsupported]:
    """Operators that the parser does not know."""
    found = []
    for name, nodes in model.operators().items():
        if name in KNOWN:
            continue
        remedy = _REMEDY
        if "::" in name:
            remedy = (
                f"The domain {name.partition('::')[0]} is not one that TensorRT knows: write it "
                "with ONNX's own operators."
            )
        elif name in GIVEN_WHOLE:
            remedy = "Give the network in float32 or with Q/DQ: it is then quantised for TensorRT."
        found.append(Unsupported(name, len(nodes), nodes[0], remedy))
    return [*found, *_forms(model)]


def _forms(model: Model) -> Iterator[Unsupported]:
    """Forms of operators that the parser refuses, of those that are not rare."""
    if not {"MaxPool", "Resize"} & model.operators().keys():
        return
    refused: dict[str, list[str]] = {}
    for node in model.proto().graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
            refused.setdefault("MaxPool with indices", []).append(node.name)
        if node.op_type == "Resize":
            mode = attributes.get("coordinate_transformation_mode")
            if mode is not None and mode.s == b"tf_crop_and_resize":
                refused.setdefault("Resize of a crop", []).append(node.name)
            if "antialias" in attributes and attributes["antialias"].i:
                refused.setdefault("Resize with antialias", []).append(node.name)
    for name, nodes in refused.items():
        yield Unsupported(name, len(nodes), nodes[0], _REMEDY)


def operators(tools: Asking) -> Mapping[str, Support]:
    """What the parser knows, by the list: its licence is not one to install it unasked."""
    del tools
    found = {name: Support("yes") for name in sorted(KNOWN)}
    found["MaxPool"] = Support("partly", "Its second output is refused.")
    found["Resize"] = Support("partly", "Antialias and tf_crop_and_resize are refused.")
    return found
