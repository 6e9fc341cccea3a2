"""What pnnx and ncnn can do, found by trying, and the pre-flight that tells it before any cost.

The lists hold for pnnx 20261020 and ncnn 1.0.20261020. How they were made: every operator in
several forms stands in a small network of its own (``tests/conformance/operators.py``), which is
converted, run, and compared with ONNX Runtime; `OPERATORS` are those of which a form came out
right, and `_wrong_form` names the forms that came out wrong without a word. `LAYERS` was asked of
ncnn's own registry. The conformance tests repeat both, so that a new version cannot pass unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wherry.target import Unsupported
from wherry_ncnn.prepare import castable_inputs

if TYPE_CHECKING:
    import numpy as np
    import onnx

NEWEST_OPSET = 26
MOST_AXES = 4  # of ncnn's tensors

ALSO = (
    *("extremes", "log softmax", "pairs", "powers", f"opset {NEWEST_OPSET}"),
    *("expand ReduceSumSquare", "expand ReduceLogSum"),
    *("expand LayerNormalization if outputs", "expand RMSNormalization if batch"),
)
"""What ncnn wants of `wherry.normalise` besides."""

_OPERATORS = """
Abs Acos Add Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu Clip
Concat Conv ConvTranspose Cos Cosh DepthToSpace Div Dropout Einsum Elu Erf Exp Expand Flatten
Floor GRU Gather Gelu Gemm GlobalAveragePool GlobalMaxPool GridSample GroupNormalization
HardSigmoid HardSwish Identity InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Log
LogSoftmax MatMul Max MaxPool Min Mish Mod Mul Neg PRelu Pad Pow RMSNormalization RNN Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum
ReduceSumSquare Relu Reshape Resize Round Selu Shrink Sigmoid Sign Sin Sinh Slice Softmax
Softplus Split Sqrt Squeeze Sub Sum Swish Tan Tanh Transpose Unsqueeze Upsample
"""
OPERATORS = frozenset(_OPERATORS.split())
"""ONNX operators of which at least one form converts right."""

_LAYERS = """
AbsVal BNLL BatchNorm Bias BinaryOp CELU Cast Clip Concat Convolution Convolution1D Convolution3D
ConvolutionDepthWise ConvolutionDepthWise1D ConvolutionDepthWise3D CopyTo Crop CumulativeSum
Deconvolution Deconvolution1D Deconvolution3D DeconvolutionDepthWise DeconvolutionDepthWise1D
DeconvolutionDepthWise3D DeepCopy DeformableConv2D Dequantize DetectionOutput Diag Dropout ELU
Einsum Eltwise Embed Erf Exp ExpandDims Flatten Flip Fold GELU GLU GRU Gemm GridSample GroupNorm
HardSigmoid HardSwish InnerProduct Input InstanceNorm Interp InverseSpectrogram LRN LSTM LayerNorm
Log MVN MatMul MemoryData Mish MultiHeadAttention Noop Normalize PReLU PSROIPooling Packing
Padding Permute PixelShuffle Pooling Pooling1D Pooling3D Power PriorBox Proposal Quantize RMSNorm
RNN ROIAlign ROIPooling ReLU Reduction Reorg Requantize Reshape RotaryEmbed SDPA SELU Scale Shrink
ShuffleChannel Sigmoid Slice Softmax Softplus Spectrogram Split Squeeze StatisticsPooling Swish
TanH Threshold Tile UnaryOp Unfold YoloDetectionOutput Yolov3DetectionOutput
"""
LAYERS = frozenset(_LAYERS.split())
"""Layers that ncnn registers."""

TORCH_WORDS = {
    "Tensor.slice": "Slice",
    "Tensor.to": "Cast",
    "F.max_pool2d": "MaxPool",
    "F.avg_pool2d": "AveragePool",
    "F.avg_pool3d": "AveragePool",
    "F.linear": "Gemm",
    "F.max_pool3d": "MaxPool",
    "torch.eq": "Equal",
    "torch.ge": "GreaterOrEqual",
    "torch.gt": "Greater",
    "torch.le": "LessOrEqual",
    "torch.lt": "Less",
    "torch.where": "Where",
}
"""pnnx's names of layers that it leaves as they are, and the operators that they come from."""

PARAMETERS = {
    **dict.fromkeys(
        ("Reshape", "Squeeze", "Unsqueeze", "Expand", "Split", "Upsample", "Dropout"), (1,)
    ),
    **dict.fromkeys((name for name in OPERATORS if name.startswith("Reduce")), (1,)),
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
}
"""Operators to those of their inputs that pnnx has to know in advance."""

_CUT = "End the network before it, or compute it outside of the network."
REMEDIES = {
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "Hardmax"), _CUT),
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear"), "Give the network in float32, not quantised."
    ),
    **dict.fromkeys(
        ("Conv", "ConvTranspose", "MaxPool", "AveragePool"),
        "Write its padding as numbers, not as auto_pad, and do without unusual attributes.",
    ),
    "Cast": "ncnn computes in floating point alone: do without other types.",
    "DepthToSpace": "Use its mode CRD, which PyTorch's PixelShuffle is.",
    "ReduceMax": "Use GlobalMaxPool for the maximum over height and width.",
    "Slice": "ncnn cuts one run out of an axis: do without steps.",
}


def remedy(kind: str) -> str:
    """What to do about an operator that pnnx does not convert."""
    return REMEDIES.get(kind, "Write it with other operators, or use another backend.")


def preflight(graph: onnx.GraphProto, opset: int) -> list[Unsupported]:
    """What pnnx or ncnn would refuse or get wrong.

    Args:
        graph: with static shapes, every node named.
        opset: of the model.
    """
    if opset > NEWEST_OPSET:
        older = f"Export the model with opset {NEWEST_OPSET} or older; pnnx reads no newer one."
        first = graph.node[0].name
        return [Unsupported(f"every operator (opset {opset})", len(graph.node), first, older)]
    view = _View.of(graph, opset)
    found: dict[tuple[str, str], Unsupported] = {}
    for kind, node, instead in (*_tensors(view), *_nodes(view)):
        seen = found.get((kind, instead))
        count = seen.count + 1 if seen else 1
        found[kind, instead] = Unsupported(kind, count, seen.node if seen else node, instead)
    return list(found.values())


@dataclass
class _View:
    """A graph and what follows from it.

    Attributes:
        constants: tensors that do not depend on the inputs; pnnx computes them itself.
        values: those that are weights.
        used: tensors that an output depends on.
        shapes: of the tensors of which the model says it.
    """

    graph: onnx.GraphProto
    opset: int
    constants: set[str] = field(default_factory=set)
    values: dict[str, onnx.TensorProto] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: onnx.GraphProto, opset: int) -> _View:
        view = cls(graph, opset)
        view.values = {tensor.name: tensor for tensor in graph.initializer}
        view.constants = {"", *view.values}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                view.values[node.output[0]] = node.attribute[0].t
            static = node.op_type in {"Shape", "Size"} or view.constants.issuperset(node.input)
            if static and not any(a.HasField("g") for a in node.attribute):
                view.constants.update(node.output)
        view.used = {value.name for value in graph.output}
        for node in reversed(graph.node):
            if view.used.intersection(node.output):
                view.used.update(node.input)
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.HasField("shape"):
                axes = value.type.tensor_type.shape.dim
                view.shapes[value.name] = tuple(axis.dim_value for axis in axes)
        return view

    def value(self, name: str) -> np.ndarray | None:
        """A weight as an array; None where it is none."""
        from onnx import numpy_helper

        tensor = self.values.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


def _tensors(view: _View) -> Iterator[tuple[str, str, str]]:
    """What is wrong with inputs and outputs: (words for it, node, remedy)."""
    from onnx import TensorProto

    whose = nodes_of(view.graph)
    castable = castable_inputs(view.graph)
    for value in view.graph.input:
        kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        operator, node = whose.get(value.name, ("no node", value.name))
        if kind != "float" and value.name not in castable:
            yield (
                f"input of type {kind} of {operator}",
                node,
                "ncnn computes in floating point: give the network a float32 input.",
            )
        if not value.type.tensor_type.shape.dim and value.name in view.used:
            instead = "Give it as a constant, or as a vector of one."
            yield f"input without axes of {operator}", node, instead
    inputs = {value.name for value in view.graph.input}
    sources = {
        node.output[0]: node.input[0] for node in view.graph.node if node.op_type == "Identity"
    }
    seen: set[str] = set()
    for value in view.graph.output:
        kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        name = value.name
        operator, node = whose.get(name, ("no node", name))
        while name in sources:
            name = sources[name]
        if name in inputs or name in seen or name in view.constants:
            instead = "Remove this output from the network: it is known without running it."
            yield (
                f"output that is an input, a constant or another output of {operator}",
                node,
                instead,
            )
        elif kind != "float":
            yield f"output of type {kind} of {operator}", node, _CUT
        seen.add(name)


def nodes_of(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """Tensor to (operator, name) of the node that makes it; an input to one that takes it."""
    words = [(node, (node.op_type, node.name)) for node in graph.node]
    found = {name: named for node, named in reversed(words) for name in node.input if name}
    return found | {name: named for node, named in words for name in node.output if name}


def _nodes(view: _View) -> Iterator[tuple[str, str, str]]:
    """Nodes that pnnx or ncnn cannot do: (operator, node, remedy)."""
    for node in view.graph.node:
        if view.constants.issuperset(node.output) or not view.used.intersection(node.output):
            continue
        domain = "" if node.domain in {"", "ai.onnx"} else f"{node.domain}::"
        if domain or node.op_type not in OPERATORS:
            yield domain + node.op_type, node.name, remedy(node.op_type)
        elif any(_is_deep(view.shapes.get(name, ())) for name in (*node.input, *node.output)):
            yield node.op_type, node.name, "Do with tensors of 4 axes besides a batch of 1."
        elif instead := _wrong_form(node, view):
            yield node.op_type, node.name, instead


def _is_deep(shape: tuple[int, ...]) -> bool:
    """A tensor has more axes than ncnn's, of which the batch is none."""
    return len(shape) - (shape[:1] == (1,)) > MOST_AXES


def _wrong_form(node: onnx.NodeProto, view: _View) -> str | None:
    """The remedy where this form of an operator would be converted to something else."""
    import onnx

    about = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kind, more = node.op_type, view.used.intersection(node.output[1:]) - {""}
    parameters = [node.input[i] for i in PARAMETERS.get(kind, ()) if i < len(node.input)]
    if not view.constants.issuperset(parameters):
        return "Give its parameters as constants; only its data may be computed."
    if kind in {"RNN", "GRU", "LSTM"}:
        return _wrong_recurrence(kind, about, last_used=bool(more))
    if more and kind in {"MaxPool", "Dropout", "BatchNormalization", "LayerNormalization"}:
        return "ncnn gives its first output alone: do without the others."
    if kind in {"Resize", "Upsample"}:
        return _wrong_resize(about, view.opset, view.shapes.get(node.output[0], ()))
    if kind == "GridSample" and (
        about.get("mode", b"linear") not in {b"linear", b"bilinear"}
        or about.get("padding_mode", b"zeros") == b"reflection"
    ):
        return "ncnn samples linearly, and pads with zeros or the border."
    if kind == "Shrink" and (about.get("bias", 0.0), about.get("lambd", 0.5)) != (0.0, 0.5):
        return "pnnx has the Shrink with its defaults only: write it with Where."
    if kind == "Pow":
        exponent = view.value(node.input[1])
        number = None if exponent is None or exponent.size != 1 else float(exponent.ravel()[0])
        if number is None or (number.is_integer() and number not in {1, 2, 3, 4}):
            return "ncnn has no powers of what is below zero: write whole ones as products."
    if kind == "Mod" and not about.get("fmod"):
        return "ncnn has the Mod of floating point only, fmod=1."
    if kind == "Gather":
        indices = view.value(node.input[1])
        if indices is None or indices.ndim:
            return "ncnn takes one index known in advance: use Slice, or gather outside."
    if kind == "Slice":
        steps = view.value(node.input[4]) if len(node.input) > 4 else None
        if steps is not None and (steps < 0).any():
            return "ncnn does not go backwards: turn the tensor around outside of the network."
    return None


def _wrong_recurrence(kind: str, about: dict[str, Any], *, last_used: bool) -> str | None:
    if last_used:
        return f"Take the last step of the {kind}'s first output instead of its last state."
    if about.get("direction") == b"reverse":
        return "Use a bidirectional one, or reverse the sequence outside of the network."
    if about.get("clip") or about.get("activations"):
        return f"ncnn has the {kind} with its usual activations and without a clip only."
    if kind == "GRU" and not about.get("linear_before_reset"):
        return "ncnn has the GRU with linear_before_reset=1 only, as PyTorch has it."
    return None


def _wrong_resize(about: dict[str, Any], opset: int, made: tuple[int, ...]) -> str | None:
    mode = about.get("mode", b"nearest")
    default = b"half_pixel" if opset > 10 else b"asymmetric"  # opset 10 knew no other way
    way = about.get("coordinate_transformation_mode", default)
    if mode == b"nearest":
        rounding = about.get("nearest_mode", b"round_prefer_floor" if opset > 10 else b"floor")
        right = (way, rounding) == (b"asymmetric", b"floor")
    else:
        right = way in {b"half_pixel", b"pytorch_half_pixel", b"align_corners"}
        right = right and not (way == b"pytorch_half_pixel" and 1 in made[2:])
        right = right and not about.get("exclude_outside") and "cubic_coeff_a" not in about
    if right and not about.get("antialias"):
        return None
    return (
        "ncnn resizes nearest with asymmetric coordinates and floor, linear and cubic with "
        "half_pixel or align_corners, all without antialias."
    )
