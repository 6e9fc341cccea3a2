"""Small ONNX networks with real structure, for the backends' tests.

Every builder returns a valid model with seeded weights whose outputs are neither near zero nor
constant, and whose pictures are not square, so that a wrong layout cannot pass by luck. `NETWORKS`
names them all; ONNX Runtime runs them all. A backend has to run each right, or to refuse it with a
reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {}


def network(builder: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    """Enter a builder under its name."""
    NETWORKS[builder.__name__] = builder
    return builder


def sample(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs: normal floats, integers 0 to 9."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if np.issubdtype(dtype, np.floating):
            feeds[value.name] = rng.normal(0.3, 1.0, shape).astype(dtype)
        else:
            feeds[value.name] = rng.integers(0, 10, shape).astype(dtype)
    return feeds


@dataclass
class Net:
    """Collects nodes and weights; every method that adds a node returns its output's name."""

    name: str
    opset: int = 17
    seed: int = 1
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def input(self, name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def const(self, array: object, dtype: str = "float32") -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, "int64")

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        """He-scaled normal values, so that activations stay near 1."""
        return self.const(self.rng.normal(0, np.sqrt(2 / fan_in), shape))

    def ops(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        name = f"{kind.lower()}_{len(self.nodes)}"
        made = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, name=f"/{name}", **attributes))
        return made

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        return self.ops(kind, *inputs, **attributes)[0]

    def conv(self, x: str, cin: int, cout: int, k: int = 3, groups: int = 1, **attributes) -> str:
        w = self.weight(cout, cin // groups, k, k, fan_in=cin // groups * k * k)
        if "auto_pad" not in attributes:
            attributes.setdefault("pads", [k // 2] * 4)
        bias = self.const(self.rng.normal(0, 0.2, cout))
        return self.op("Conv", x, w, bias, group=groups, kernel_shape=[k, k], **attributes)

    def bn(self, x: str, channels: int) -> str:
        scale, var = (self.const(self.rng.uniform(0.7, 1.5, channels)) for _ in range(2))
        shift, mean = (self.const(self.rng.normal(0, 0.3, channels)) for _ in range(2))
        return self.op("BatchNormalization", x, scale, shift, mean, var, epsilon=1e-4)

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.const(0.0), self.const(6.0))

    def gemm(self, x: str, cin: int, cout: int) -> str:
        w = self.weight(cout, cin, fan_in=cin)
        return self.op("Gemm", x, w, self.const(self.rng.normal(0, 0.2, cout)), transB=1)

    def head(self, x: str, channels: int, classes: int = 10) -> str:
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.gemm(pooled, channels, classes)

    def model(self, *, shape: tuple[int, ...] | None = None, **outputs: str) -> onnx.ModelProto:
        """Finish; ``outputs`` maps the outputs' names to the tensors that they are.

        ``shape`` is that of float outputs whose operator ONNX's shape inference does not know.
        """
        for name, tensor in outputs.items():
            if not self.rename(tensor, name):
                self.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"/{name}"))
        values = [helper.make_empty_tensor_value_info(name) for name in outputs]
        if shape is not None:
            known = helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
            values = [helper.make_value_info(name, known) for name in outputs]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, values, self.weights)
        opset = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        strict = shape is None
        model = onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)
        onnx.checker.check_model(model, full_check=strict)
        del model.graph.value_info[:]
        return model

    def rename(self, tensor: str, name: str) -> bool:
        """Give a node's output the name ``name`` everywhere; False where it is no node's."""
        maker = [node for node in self.nodes if tensor in node.output]
        for node in maker:
            node.output[list(node.output).index(tensor)] = name
        if maker:
            for node in self.nodes:
                for index, used in enumerate(node.input):
                    if used == tensor:
                        node.input[index] = name
        return bool(maker)


# --- classifiers -------------------------------------------------------------------------------


@network
def mobilenet() -> onnx.ModelProto:
    """Inverted residuals: Conv, BatchNormalization, Clip, depthwise, Add, Gemm (opset 13)."""
    n = Net("mobilenet", opset=13)
    x = n.relu6(n.bn(n.conv(n.input("image", 1, 3, 24, 32), 3, 8, strides=[2, 2]), 8))
    y = n.relu6(n.bn(n.conv(x, 8, 16, k=1), 16))
    y = n.relu6(n.bn(n.conv(y, 16, 16, groups=16), 16))
    x = n.op("Add", x, n.bn(n.conv(y, 16, 8, k=1), 8))
    y = n.relu6(n.conv(n.conv(x, 8, 16, k=1), 16, 16, groups=16, strides=[2, 2]))
    return n.model(logits=n.head(y, 16))


@network
def softmax_classifier() -> onnx.ModelProto:
    """MaxPool and a Flatten over a map that is not 1x1: the order of its elements matters."""
    n = Net("softmax_classifier")
    x = n.op("Relu", n.conv(n.input("image", 1, 3, 12, 20), 3, 6))
    x = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = n.gemm(n.op("Flatten", x), 6 * 6 * 10, 7)
    return n.model(probabilities=n.op("Softmax", x, axis=1))


@network
def shufflenet() -> onnx.ModelProto:
    """Split, a depthwise branch, Concat, and a channel shuffle by Reshape and Transpose."""
    n = Net("shufflenet")
    x = n.conv(n.input("image", 1, 3, 16, 20), 3, 8)
    left, right = n.ops("Split", x, n.ints(4, 4), outputs=2, axis=1)
    right = n.op("Relu", n.conv(n.conv(right, 4, 4, groups=4), 4, 4, k=1))
    x = n.op("Concat", left, right, axis=1)
    x = n.op("Reshape", x, n.ints(1, 2, 4, 16, 20))
    x = n.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = n.op("Reshape", x, n.ints(1, 8, 16, 20))
    return n.model(logits=n.head(n.op("Relu", n.conv(x, 8, 12)), 12))


@network
def squeeze_excite() -> onnx.ModelProto:
    """MobileNetV3's block: HardSwish, and a gate of HardSigmoid that multiplies the channels."""
    n = Net("squeeze_excite")
    x = n.op("HardSwish", n.bn(n.conv(n.input("image", 1, 3, 18, 14), 3, 8), 8))
    s = n.op("Relu", n.conv(n.op("GlobalAveragePool", x), 8, 4, k=1))
    s = n.op("HardSigmoid", n.conv(s, 4, 8, k=1), alpha=1 / 6, beta=0.5)
    return n.model(logits=n.head(n.conv(n.op("Mul", x, s), 8, 8), 8))


@network
def inception() -> onnx.ModelProto:
    """Parallel branches, AveragePool with padding counted or not, dilation, groups, odd pads."""
    n = Net("inception")
    x = n.conv(n.input("image", 1, 4, 17, 22), 4, 8)
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    branches = (
        n.conv(x, 8, 4, k=1),
        n.conv(x, 8, 4, pads=[2, 2, 2, 2], dilations=[2, 2]),
        n.conv(x, 8, 4, k=5, groups=4),
        n.op("AveragePool", x, **pool),
        n.op("AveragePool", x, count_include_pad=1, **pool),
        n.op("MaxPool", x, **pool),
    )
    x = n.op("Concat", *branches, axis=1)
    x = n.op("Relu", n.conv(x, 36, 8, pads=[0, 1, 2, 0], strides=[2, 1]))
    return n.model(logits=n.head(x, 8))


@network
def activations() -> onnx.ModelProto:
    """PRelu per channel, LeakyRelu, Elu, Sigmoid, Tanh, SiLU, Softplus."""
    n = Net("activations")
    x = n.conv(n.input("image", 1, 3, 9, 13), 3, 6)
    x = n.op("PRelu", x, n.const(n.rng.uniform(0.1, 0.5, (6, 1, 1))))
    x = n.op("LeakyRelu", n.conv(x, 6, 6), alpha=0.2)
    x = n.op("Elu", n.conv(x, 6, 6), alpha=0.7)
    x = n.op("Tanh", n.conv(x, 6, 6))
    x = n.conv(x, 6, 6)
    x = n.op("Softplus", n.conv(n.op("Mul", x, n.op("Sigmoid", x)), 6, 6))
    return n.model(logits=n.head(x, 6))


@network
def same_padding() -> onnx.ModelProto:
    """auto_pad SAME_UPPER and SAME_LOWER with stride 2 on odd sizes, and a MaxPool rounding up."""
    n = Net("same_padding")
    x = n.conv(n.input("image", 1, 3, 23, 17), 3, 6, auto_pad="SAME_UPPER", strides=[2, 2])
    x = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    x = n.conv(n.op("Relu", x), 6, 6, auto_pad="SAME_LOWER", strides=[2, 2])
    return n.model(logits=n.head(x, 6))


@network
def reductions() -> onnx.ModelProto:
    """ReduceMean as attributes and as inputs (opset 18), ReduceMax, keepdims of both kinds."""
    n = Net("reductions", opset=18)
    x = n.conv(n.input("image", 1, 3, 10, 14), 3, 6)
    mean = n.op("ReduceMean", x, n.ints(2, 3), keepdims=0)
    peak = n.op("ReduceMax", x, n.ints(2, 3), keepdims=0)
    centred = n.op("Sub", x, n.op("ReduceMean", x, n.ints(1), keepdims=1))
    power = n.op("ReduceMean", n.op("Mul", centred, centred), n.ints(2, 3), keepdims=0)
    return n.model(logits=n.gemm(n.op("Concat", mean, peak, power, axis=1), 18, 5))


@network
def scalars() -> onnx.ModelProto:
    """Arithmetic with scalars, with a value per channel, and with a value per column."""
    n = Net("scalars")
    x = n.op("Div", n.op("Sub", n.input("image", 1, 3, 8, 11), n.const(0.25)), n.const(0.5))
    x = n.op("Mul", x, n.const(n.rng.uniform(0.5, 2, (1, 3, 1, 1))))
    x = n.op("Add", x, n.const(n.rng.normal(0, 1, 11)))
    x = n.op("Add", n.op("Sqrt", n.op("Abs", x)), n.op("Pow", x, n.const(2.0)))
    return n.model(logits=n.head(n.conv(n.op("Exp", n.op("Neg", x)), 3, 6), 6))


# --- maps in and maps out ----------------------------------------------------------------------


@network
def segmentation() -> onnx.ModelProto:
    """Down, ConvTranspose, Resize (linear and nearest), a skip; the output has four dimensions."""
    n = Net("segmentation")
    x = n.op("Relu", n.conv(n.input("image", 1, 3, 16, 24), 3, 6))
    y = n.op("Relu", n.conv(x, 6, 8, strides=[2, 2]))
    up = n.op("ConvTranspose", y, n.weight(8, 6, 2, 2, fan_in=8), strides=[2, 2])
    scales = n.const([1.0, 1.0, 2.0, 2.0])
    near = n.op("Resize", n.conv(y, 8, 6), "", scales, mode="nearest", nearest_mode="floor",
                coordinate_transformation_mode="asymmetric")  # fmt: skip
    smooth = n.op("Resize", n.conv(y, 8, 6), "", scales, mode="linear",
                  coordinate_transformation_mode="half_pixel")  # fmt: skip
    x = n.op("Add", n.op("Add", x, up), n.op("Add", near, smooth))
    return n.model(mask=n.conv(x, 6, 4, k=1))


@network
def pixel_shuffle() -> onnx.ModelProto:
    """Super-resolution's DepthToSpace (CRD), reflecting and constant Pad, Slice with steps."""
    n = Net("pixel_shuffle")
    x = n.op("Pad", n.input("image", 1, 1, 10, 14), n.ints(0, 0, 1, 2, 0, 0, 1, 2), mode="reflect")
    x = n.op("Relu", n.conv(x, 1, 8, pads=[0, 0, 0, 0]))
    x = n.op("DepthToSpace", n.conv(x, 8, 12), blocksize=2, mode="CRD")
    x = n.op("Pad", x, n.ints(0, 0, 0, 1, 0, 0, 2, 0), n.const(0.5))
    return n.model(picture=n.op("Slice", x, n.ints(1, 0), n.ints(17, 100), n.ints(2, 3),
                                n.ints(1, 2)))  # fmt: skip


@network
def detector() -> onnx.ModelProto:
    """Two scales, each made [1, anchors, values] by Transpose and Reshape, joined by Concat."""
    n = Net("detector")
    x = n.op("Relu", n.conv(n.input("image", 1, 3, 16, 24), 3, 8, strides=[2, 2]))
    y = n.op("Relu", n.conv(x, 8, 8, strides=[2, 2]))
    parts = []
    for feature in (x, y):
        head = n.op("Transpose", n.conv(feature, 8, 2 * 5), perm=[0, 2, 3, 1])
        parts.append(n.op("Reshape", head, n.ints(1, -1, 5)))
    boxes = n.op("Concat", *parts, axis=1)
    scores = n.op("Sigmoid", n.op("Slice", boxes, n.ints(0), n.ints(2), n.ints(2)))
    return n.model(boxes=boxes, scores=scores)


@network
def norms() -> onnx.ModelProto:
    """InstanceNormalization, a BatchNormalization that no convolution precedes, an L2 norm."""
    n = Net("norms")
    x = n.bn(n.input("image", 1, 4, 10, 12), 4)
    scale, shift = n.const(n.rng.uniform(0.5, 2, 6)), n.const(n.rng.normal(0, 0.5, 6))
    x = n.op("InstanceNormalization", n.conv(x, 4, 6), scale, shift)
    length = n.op("ReduceL2", x, axes=[1], keepdims=1)
    return n.model(features=n.op("Div", x, n.op("Clip", length, n.const(1e-6))))


# --- other ranks -------------------------------------------------------------------------------


@network
def mlp() -> onnx.ModelProto:
    """A matrix in, a matrix out: Gemm, MatMul with Add."""
    n = Net("mlp")
    x = n.op("Relu", n.gemm(n.input("features", 1, 16), 16, 24))
    x = n.op("Add", n.op("MatMul", x, n.weight(24, 12, fan_in=24)), n.const(n.rng.normal(0, 1, 12)))
    return n.model(logits=n.gemm(n.op("Tanh", x), 12, 5))


@network
def transformer() -> onnx.ModelProto:
    """One block on a [1, tokens, channels] input: LayerNormalization, attention, GELU by Erf."""
    n = Net("transformer")
    x = n.input("tokens", 1, 10, 16)

    def dense(value: str, cin: int, cout: int) -> str:
        product = n.op("MatMul", value, n.weight(cin, cout, fan_in=2 * cin))
        return n.op("Add", product, n.const(n.rng.normal(0, 0.1, cout)))

    def norm(value: str) -> str:
        scale, shift = n.const(n.rng.uniform(0.5, 2, 16)), n.const(n.rng.normal(0, 0.3, 16))
        return n.op("LayerNormalization", value, scale, shift, axis=-1, epsilon=1e-5)

    def heads(value: str, perm: list[int]) -> str:
        return n.op("Transpose", n.op("Reshape", value, n.ints(1, 10, 2, 8)), perm=perm)

    h = norm(x)
    q, k, v = (dense(h, 16, 16) for _ in range(3))
    score = n.op("MatMul", heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1]))
    score = n.op("Softmax", n.op("Mul", score, n.const(8**-0.5)), axis=-1)
    mixed = n.op("Transpose", n.op("MatMul", score, heads(v, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    x = n.op("Add", x, dense(n.op("Reshape", mixed, n.ints(1, 10, 16)), 16, 16))
    h = dense(norm(x), 16, 32)
    gate = n.op("Add", n.op("Erf", n.op("Div", h, n.const(2**0.5))), n.const(1.0))
    h = n.op("Mul", n.op("Mul", h, gate), n.const(0.5))
    return n.model(encoded=n.op("Add", x, dense(h, 32, 16)))


@network
def keyword_spotting() -> onnx.ModelProto:
    """Conv over one dimension: [1, channels, time] in, a [1, channels, time] map and logits out."""
    n = Net("keyword_spotting")
    x = n.input("audio", 1, 4, 40)
    x = n.op("Relu", n.op("Conv", x, n.weight(8, 4, 5, fan_in=20), kernel_shape=[5], strides=[2],
                          pads=[2, 2]))  # fmt: skip
    y = n.op("Conv", x, n.weight(8, 1, 3, fan_in=3), kernel_shape=[3], pads=[1, 1], group=8)
    pooled = n.op("ReduceMean", y, axes=[2], keepdims=0)
    return n.model(logits=n.gemm(pooled, 8, 6), features=y)


@network
def vector() -> onnx.ModelProto:
    """One dimension in and out: there is no batch axis at all."""
    n = Net("vector")
    x = n.op("Mul", n.input("signal", 12), n.const(n.rng.uniform(0.5, 2, 12)))
    return n.model(filtered=n.op("Tanh", n.op("Add", x, n.const(0.5))))


@network
def video() -> onnx.ModelProto:
    """Conv over three dimensions: [1, channels, frames, height, width]."""
    n = Net("video")
    x = n.input("clip", 1, 2, 4, 8, 10)
    w = n.weight(4, 2, 3, 3, 3, fan_in=54)
    x = n.op("Relu", n.op("Conv", x, w, kernel_shape=[3, 3, 3], pads=[1] * 6))
    return n.model(logits=n.head(n.op("MaxPool", x, kernel_shape=[2, 2, 2], strides=[2, 2, 2]), 4))


@network
def gru() -> onnx.ModelProto:
    """A GRU over [1, time, channels] turned to time first, linear_before_reset as torch has it."""
    n = Net("gru")
    x = n.op("Transpose", n.input("sequence", 1, 12, 6), perm=[1, 0, 2])
    w, r, b = n.weight(1, 24, 6, fan_in=12), n.weight(1, 24, 8, fan_in=16), n.weight(1, 48)
    hidden, last = n.ops("GRU", x, w, r, b, outputs=2, hidden_size=8, linear_before_reset=1)
    flat = n.op("Transpose", n.op("Squeeze", hidden, n.ints(1)), perm=[1, 0, 2])
    return n.model(states=flat, logits=n.gemm(n.op("Squeeze", last, n.ints(0)), 8, 5))


# --- several inputs and outputs, integers, odd graphs --------------------------------------------


@network
def two_inputs() -> onnx.ModelProto:
    """A picture, another one of other channels, and a vector, declared out of order."""
    n = Net("two_inputs")
    extra, depth, image = (
        n.input("extra", 1, 5),
        n.input("depth", 1, 1, 12, 18),
        n.input("image", 1, 3, 12, 18),
    )
    x = n.op("Relu", n.conv(n.op("Concat", image, depth, axis=1), 4, 8))
    x = n.op("Flatten", n.op("GlobalAveragePool", x))
    return n.model(logits=n.gemm(n.op("Concat", x, extra, axis=1), 13, 6))


@network
def many_outputs() -> onnx.ModelProto:
    """Logits, an embedding that is used further, and an inner map, in this order."""
    n = Net("many_outputs")
    features = n.op("Relu", n.conv(n.input("image", 1, 3, 11, 15), 3, 6))
    embedding = n.op("Flatten", n.op("GlobalAveragePool", n.conv(features, 6, 8)))
    return n.model(logits=n.gemm(embedding, 8, 4), embedding=embedding, features=features)


@network
def class_index() -> onnx.ModelProto:
    """ArgMax: an int64 output beside the scores."""
    n = Net("class_index")
    scores = n.head(n.conv(n.input("image", 1, 3, 9, 12), 3, 8), 8)
    return n.model(index=n.op("ArgMax", scores, axis=1, keepdims=0), scores=scores)


@network
def segment_index() -> onnx.ModelProto:
    """ArgMax over the channels of a map: an int64 output with four dimensions."""
    n = Net("segment_index")
    scores = n.conv(n.input("image", 1, 3, 9, 12), 3, 5)
    return n.model(index=n.op("ArgMax", scores, axis=1, keepdims=1))


@network
def embedding() -> onnx.ModelProto:
    """int64 tokens in, Gather from a table."""
    n = Net("embedding")
    x = n.op("Gather", n.weight(10, 6), n.input("ids", 1, 7, dtype=TensorProto.INT64), axis=0)
    return n.model(logits=n.gemm(n.op("ReduceMean", x, axes=[1], keepdims=0), 6, 4))


@network
def byte_image() -> onnx.ModelProto:
    """A uint8 picture, cast and scaled inside the model, channels last as a camera gives it."""
    n = Net("byte_image")
    x = n.op("Cast", n.input("image", 1, 10, 12, 3, dtype=TensorProto.UINT8), to=TensorProto.FLOAT)
    x = n.op("Transpose", n.op("Div", x, n.const(10.0)), perm=[0, 3, 1, 2])
    return n.model(logits=n.head(n.conv(x, 3, 6), 6))


@network
def batch_of_two() -> onnx.ModelProto:
    """A fixed batch of 2."""
    n = Net("batch_of_two")
    return n.model(logits=n.head(n.op("Relu", n.conv(n.input("image", 2, 3, 8, 10), 3, 6)), 6))


@network
def batch_axis_used() -> onnx.ModelProto:
    """The batch axis of 1 is moved and merged: the answer depends on it being there."""
    n = Net("batch_axis_used")
    x = n.conv(n.input("image", 1, 3, 6, 8), 3, 4)
    x = n.op("Transpose", x, perm=[1, 0, 3, 2])
    return n.model(turned=n.op("Reshape", x, n.ints(2, 2, 48)))


@network
def unused_and_shared() -> onnx.ModelProto:
    """An input is an output too, a tensor is two outputs, a node is dead, a weight is shared."""
    n = Net("unused_and_shared")
    x = n.input("image", 1, 3, 6, 8)
    w = n.weight(3, 3, 1, 1, fan_in=3)
    y = n.op("Conv", n.op("Conv", x, w), w)
    n.op("Sigmoid", y)
    same = n.op("Identity", y)
    return n.model(passed=x, first=y, second=same)


@network
def constant_shapes() -> onnx.ModelProto:
    """Shape, Gather, Unsqueeze, Concat, Reshape, as exporters write view(x.size(0), -1)."""
    n = Net("constant_shapes", opset=13)
    x = n.op("Relu", n.conv(n.input("image", 1, 3, 8, 10), 3, 4))
    size = n.op("Gather", n.op("Shape", x), n.const(0, "int64"), axis=0)
    shape = n.op("Concat", n.op("Unsqueeze", size, n.ints(0)), n.ints(-1), axis=0)
    return n.model(logits=n.gemm(n.op("Reshape", x, shape), 320, 5))


@network
def wide_range() -> onnx.ModelProto:
    """Activations beyond what fp16 can hold (65,504), brought back to 1 at the end."""
    n = Net("wide_range")
    x = n.op("Mul", n.conv(n.input("image", 1, 3, 8, 10), 3, 4), n.const(3e5))
    x = n.op("Mul", n.op("Relu", x), n.const(1 / 3e5))
    return n.model(logits=n.head(x, 4))


@network
def conditional() -> onnx.ModelProto:
    """If: the branches are graphs of their own, with weights of their own."""
    n = Net("conditional")
    x = n.head(n.conv(n.input("image", 1, 3, 8, 10), 3, 6), 6)
    total = n.op("ReduceSum", x, n.ints(0, 1), keepdims=0)
    branches = {}
    for side, factor in (("then_branch", 2.0), ("else_branch", -3.0)):
        nodes = [helper.make_node("Mul", [x, f"{side}_w"], [f"{side}_y"], name=f"/{side}_mul")]
        weight = numpy_helper.from_array(np.asarray(factor, "float32"), f"{side}_w")
        value = helper.make_tensor_value_info(f"{side}_y", TensorProto.FLOAT, [1, 10])
        branches[side] = helper.make_graph(nodes, side, [], [value], [weight])
    return n.model(logits=n.op("If", n.op("Greater", total, n.const(0.0)), **branches))
