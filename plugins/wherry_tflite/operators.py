"""The pre-flight: what onnx2tf does not convert, or converts wrong, found without running it.

`OPERATORS` is what onnx2tf 2.6.9 answers when it is asked, in its own environment::

    from onnx2tf.tflite_builder.op_registry import get_supported_onnx_ops
    print(" ".join(get_supported_onnx_ops()))

`REFUSED` and `RULES` are what is not right all the same. They were found by converting every form
of every operator that the tests generate, and the single-operator tests of ONNX itself
(``onnx.backend.test.case.node``), and comparing with ONNX Runtime. What nobody foresaw still ends
in the converter's own refusal, or in the parity check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from wherry.model import Model
from wherry.normalise import preview
from wherry.target import Target, Unsupported

if TYPE_CHECKING:
    import numpy as np
    import onnx

OPERATORS = frozenset(
    """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat
    ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT DeformConv
    DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp
    Expand EyeLike Flatten Floor FusedConv FusedMatMul GRU Gather GatherElements GatherND Gelu
    Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNorm GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity
    If InstanceNormalization Inverse IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max MaxPool
    MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul
    MultiHeadAttention Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot
    OptionalHasElement Or PRelu Pad Pow QGemm QLinearAdd QLinearAveragePool QLinearConcat
    QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMatMul QLinearMul
    QLinearSigmoid QLinearSoftmax QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign RotaryEmbedding Round STFT Scatter ScatterElements ScatterND Selu
    Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze StringNormalizer Sub Sum Tan Tanh TensorScatter
    ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 -- as the tool prints it
)

ALSO = ("log softmax", "expand Attention", "expand RotaryEmbedding")
"""What tflite wants of `wherry.normalise` besides."""

OTHER = "Write it with other operators of ONNX, or take another backend for this model."
QUANTISED = "The model is quantised already: give the float model."
RANDOM = "Take the random numbers out of the network, or give them to it as an input."
CONSTANT = "Give what decides its shape as constants: then it is one itself."
BODY = "Unroll it when exporting, or take another backend for this model."

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
            "ConvInteger",
            "MatMulInteger",
            "QGemm",
        ),
        QUANTISED,
    ),
    **dict.fromkeys((name for name in OPERATORS if name.startswith("QLinear")), QUANTISED),
    **dict.fromkeys((name for name in OPERATORS if name.startswith("Random")), RANDOM),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), CONSTANT),
    **dict.fromkeys(("ConstantOfShape", "Range"), CONSTANT),
    "Bernoulli": RANDOM,
    "BitShift": "Multiply or divide by a power of two instead.",
    "DFT": OTHER,
    "STFT": OTHER,
    "StringNormalizer": OTHER,
    "Unique": OTHER,
}
"""Operators that onnx2tf lists and that come out wrong, or in no form, to what to do."""

PARAMETERS: Mapping[str, Sequence[int]] = {
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Expand", "Tile", "Split", "TopK", "Upsample"), (1,)),
    **dict.fromkeys(
        ("Reshape", "CenterCropPad", "CumSum", "CumProd", "AffineGrid", "OneHot"), (1,)
    ),
    **dict.fromkeys((name for name in OPERATORS if name.startswith("Reduce")), (1,)),
    "Col2Im": (1, 2),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
}
"""Operators to those of their inputs that decide a shape or an axis."""

WIDE = (11, 13)  # TensorProto.DOUBLE and UINT64, which most kernels of TFLite do not know
MOST_AXES = 6

UNKNOWN: Mapping[str, str] = {
    "Swish": "Export the model with opset 23 or older, where it is a Sigmoid and a Mul.",
    "SwiGLU": "Export the model with opset 23 or older.",
    "RMSNormalization": "Export the model with opset 22 or older, where it is made of Pow, "
    "ReduceMean and Sqrt.",
    "Scan": BODY,
}
"""Operators that onnx2tf does not list, to a better remedy than the general one."""


def preflight(model: Model, target: Target) -> Sequence[Unsupported]:
    """What will not be converted; the same for every target."""
    del target
    return _found(model)


@lru_cache(maxsize=32)
def _found(model: Model) -> tuple[Unsupported, ...]:
    proto, sources = preview(model, ALSO)
    return unsupported(proto, sources, model)


def unsupported(
    proto: onnx.ModelProto, sources: Mapping[str, Sequence[str]], model: Model
) -> tuple[Unsupported, ...]:
    """What of a normal form will not be converted, in words of the model that it was made from.

    Args:
        proto: the normal form.
        sources: its nodes to those of the model.
        model: the model.
    """
    graph = proto.graph
    written = {name: kind for kind, names in model.operators().items() for name in names}
    values = [*graph.input, *graph.value_info, *graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes = {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folded = set(constants)
    found: dict[tuple[str, str], Unsupported] = {}
    for node in _computed(graph.node, folded):
        remedy = _remedy(Seen(node, model.opset, shapes, kinds, constants, folded))
        if not remedy:
            continue
        said = next(iter(sources.get(node.name, ())), node.name) or node.output[0]
        name = node.op_type if _is_standard(node) else f"{node.domain}::{node.op_type}"
        name = written.get(said, name)
        first = found.get((name, remedy))
        found[name, remedy] = Unsupported(
            op_type=name,
            count=first.count + 1 if first else 1,
            node=first.node if first else said,
            remedy=remedy,
        )
    return tuple(found.values())


def _computed(nodes: Iterable[onnx.NodeProto], folded: set[str]) -> Iterator[onnx.NodeProto]:
    """The nodes that are left when constants are folded, those of nested graphs too.

    What is constant is entered in ``folded``.
    """
    for node in nodes:
        bodies = [graph for a in node.attribute for graph in [a.g, *a.graphs] if graph.node]
        if not bodies and all(name in folded for name in node.input if name):
            folded.update(node.output)
            continue
        yield node
        for body in bodies:
            folded.update(each.name for each in body.initializer)
            yield from _computed(body.node, folded)


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in {"", "ai.onnx"}


def _remedy(seen: Seen) -> str:
    """What to do about a node; empty where it is fine."""
    kind = seen.node.op_type
    if not _is_standard(seen.node):
        return "Export the model with operators of ONNX alone."
    if kind not in OPERATORS:
        return UNKNOWN.get(kind, OTHER)
    if kind in REFUSED:
        return REFUSED[kind]
    tensors = [name for name in (*seen.node.input, *seen.node.output) if name]
    if any(seen.kinds.get(name) in WIDE for name in tensors):
        return "Compute in float32, or in int64 instead of uint64."
    if any(len(seen.shapes.get(name, ())) > MOST_AXES for name in tensors):
        return f"Do with tensors of {MOST_AXES} axes or fewer."
    if any(seen.has(i) and seen.node.input[i] not in seen.folded for i in PARAMETERS.get(kind, ())):
        return "Give its parameters as constants; only its data may be computed."
    return RULES[kind](seen) if kind in RULES else ""


@dataclass(frozen=True)
class Seen:
    """A node and what is known around it.

    Attributes:
        node: the node.
        opset: of the model.
        shapes: of those tensors of which the model says it.
        kinds: element types, likewise.
        constants: the initializers.
        folded: the names of all tensors that are constant.
    """

    node: onnx.NodeProto
    opset: int
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, int]
    constants: Mapping[str, onnx.TensorProto]
    folded: Set[str]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, texts as ``str``."""
        from onnx import helper

        for attribute in self.node.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def has(self, index: int) -> bool:
        """The node has an input there."""
        return len(self.node.input) > index and bool(self.node.input[index])

    def gives(self, index: int) -> bool:
        """The node has an output there."""
        return len(self.node.output) > index and bool(self.node.output[index])

    def value(self, index: int) -> np.ndarray | None:
        """The constant that is an input; None where there is none."""
        from onnx import numpy_helper

        tensor = self.constants.get(self.node.input[index]) if self.has(index) else None
        return None if tensor is None else numpy_helper.to_array(tensor)

    def shape(self, index: int) -> tuple[int, ...]:
        """Of an input; empty where it is not known."""
        return self.shapes.get(self.node.input[index], ()) if self.has(index) else ()


# --- rules: what to do about a node of this kind, or an empty text -------------------------------


def _pool(seen: Seen) -> str:
    if any(step != 1 for step in seen.get("dilations", ())):
        return "Pool without dilation."
    if seen.node.op_type == "MaxPool" and seen.gives(1):
        return "Pool without asking for the indices."
    return ""


def _resize(seen: Seen) -> str:
    if seen.get("antialias", 0):
        return "Resize without antialias."
    if seen.get("axes") or seen.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "Give the scales or sizes of all axes, and no keep_aspect_ratio_policy."
    way = seen.get("coordinate_transformation_mode", "half_pixel")
    if way in {"tf_crop_and_resize", "tf_half_pixel_for_nn", "half_pixel_symmetric"}:
        return "Resize with half_pixel, asymmetric or align_corners coordinates."
    if seen.get("mode", "nearest") == "nearest":
        return ""
    scales, shape = seen.value(2), seen.shape(0)
    made = seen.shapes.get(seen.node.output[0], ())
    if scales is not None and scales.size and len(shape) == len(made):
        exact = [float(size * scale) for size, scale in zip(shape, scales, strict=True)]
        if any(abs(size - each) > 1e-4 for size, each in zip(made, exact, strict=True)):
            return "Resize to sizes, or by scales that give whole sizes."
    if way == "pytorch_half_pixel" and 1 in made[2:]:
        return "Resize to one row or column with a pooling."
    return ""


def _recurrent(seen: Seen) -> str:
    if seen.get("clip") is not None:
        return "Export it without clip."
    if seen.get("layout", 0):
        return "Export it with the time as the first axis (layout 0)."
    if seen.has(4):
        return "Export it without sequence_lens: all sequences have the length of the input."
    usual = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
    given = [kind.decode() for kind in seen.get("activations", [])]
    expected = usual[seen.node.op_type]
    possible = [expected, expected * 2]
    if seen.node.op_type == "RNN":
        possible += [["Relu"], ["Relu"] * 2]
    if given and given not in possible:
        return f"Export it with the activations {', '.join(expected)}."
    if seen.node.op_type == "LSTM" and (seen.has(7) or seen.get("input_forget", 0)):
        return "Export it without peepholes and without coupled gates."
    if seen.node.op_type == "LSTM" and seen.gives(2):
        return "Export it without the final cell state; the final hidden state is possible."
    return ""


def _slice(seen: Seen) -> str:
    starts, ends, steps = (seen.value(index) for index in (1, 2, 4))
    if steps is None or starts is None or ends is None:
        return ""
    for start, end, step in zip(starts, ends, steps, strict=True):
        if step < 0 and not (step == -1 and start == -1 and end <= -(2**31) + 1):
            return "Reverse the whole axis (start -1, end -2147483648, step -1) or none of it."
    return ""


def _l2(seen: Seen) -> str:
    axis, rank = seen.get("axis", -1), len(seen.shape(0))
    if axis == -1 or (rank and axis == rank - 1):
        return ""
    return "Write it as a division by ReduceL2."


def _when(wrong: Callable[[Seen], Any], remedy: str) -> Callable[[Seen], str]:
    return lambda seen: remedy if wrong(seen) else ""


_weighted = _when(
    lambda seen: seen.node.input[1] not in seen.folded,
    "Only convolutions whose weights are constants can be converted.",
)
_replacing = _when(
    lambda seen: seen.get("reduction", "none") != "none", "Scatter without a reduction."
)

RULES: Mapping[str, Callable[[Seen], str]] = {
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
    **dict.fromkeys(("Conv", "ConvTranspose"), _weighted),
    **dict.fromkeys(("ScatterND", "ScatterElements"), _replacing),
    "BatchNormalization": _when(
        lambda seen: seen.get("training_mode", 0) or seen.gives(1), "Export the model in eval mode."
    ),
    "Dropout": _when(lambda seen: seen.gives(1), "Export the model in eval mode."),
    "GridSample": _when(
        lambda seen: (
            seen.get("padding_mode") == "reflection"
            or seen.get("mode", "linear") in {"cubic", "bicubic"}
        ),
        "Sample linearly or the nearest value, padding with zeros or the border.",
    ),
    "LpNormalization": _l2,
    "Mod": _when(lambda seen: seen.get("fmod", 0), "Write it as x - y * trunc(x / y)."),
    "Resize": _resize,
    "RoiAlign": _when(
        lambda seen: (
            seen.get("mode", "avg") != "avg"
            or seen.get("coordinate_transformation_mode") != "output_half_pixel"
        ),
        "Only mode avg with output_half_pixel coordinates (aligned=False) is right.",
    ),
    "Slice": _slice,
    "Upsample": _when(
        lambda seen: seen.get("mode", "nearest") != "nearest",
        "Export the model with opset 11 or newer, where it is a Resize.",
    ),
}
