"""Small networks that every backend has to run right or to refuse with a reason.

Their pictures are not square and their weights are not symmetric, so that a wrong layout cannot
pass by luck.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

    from wherry.model import Model

NETWORKS: Mapping[str, str] = {
    # a matrix in, a matrix out
    "mlp": """(float[1,12] features) => (float[1,5] scores)
        <float[12,16] w0, float[16] b0, float[16,5] w1, float[5] b1>
    {
        h = Gemm(features, w0, b0)
        r = Relu(h)
        m = MatMul(r, w1)
        a = Add(m, b1)
        scores = Softmax <axis = 1> (a)
    }""",
    # a picture in, a matrix out: stride, padding on one side, a depthwise convolution, pooling
    "convnet": """(float[1,3,17,22] image) => (float[1,7] logits)
        <float[8,3,3,3] w0, float[8] b0, float[8,1,3,3] w1, float[8] b1, float[7,8] w2,
         float[7] b2>
    {
        c0 = Conv <kernel_shape = [3,3], strides = [2,2], pads = [0,0,1,1]> (image, w0, b0)
        r0 = Relu(c0)
        c1 = Conv <kernel_shape = [3,3], pads = [1,1,1,1], group = 8> (r0, w1, b1)
        r1 = Relu(c1)
        p = GlobalAveragePool(r1)
        f = Flatten(p)
        logits = Gemm <transB = 1> (f, w2, b2)
    }""",
    # the order in which a feature map is flattened
    "flattened": """(float[1,2,6,9] image) => (float[1,4] logits)
        <float[3,2,3,3] w0, float[3] b0, float[4,36] w1, float[4] b1>
    {
        c = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (image, w0, b0)
        p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (c)
        f = Flatten(p)
        logits = Gemm <transB = 1> (f, w1, b1)
    }""",
    # maps in and out, a skip connection
    "residual": """(float[1,4,10,13] image) => (float[1,4,10,13] features)
        <float[4,4,3,3] w0, float[4] b0, float[4,4,1,1] w1, float[4] b1>
    {
        c0 = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (image, w0, b0)
        r0 = Relu(c0)
        c1 = Conv <kernel_shape = [1,1]> (r0, w1, b1)
        features = Add(c1, image)
    }""",
    # two inputs of different ranks, two outputs, one of which is used further
    "two_by_two": """(float[1,5] extra, float[1,3,8,11] image)
        => (float[1,6] logits, float[1,8] embedding)
        <float[8,3,3,3] w0, float[8] b0, float[13,6] w1, float[6] b1>
    {
        c = Conv <kernel_shape = [3,3]> (image, w0, b0)
        p = GlobalAveragePool(c)
        embedding = Flatten(p)
        j = Concat <axis = 1> (embedding, extra)
        logits = Gemm(j, w1, b1)
    }""",
}
"""Name to a graph in ONNX's text form; the weights are filled in by `build`."""


def build(name: str, path: Path) -> None:
    """Write the network with seeded weights, small enough that activations stay near 1."""
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    text = f'<ir_version: 8, opset_import: ["" : 17]>\n{name} {NETWORKS[name]}'
    proto: onnx.ModelProto = onnx.parser.parse_model(text)
    generator = np.random.default_rng(7)
    for weight in proto.graph.value_info:
        shape = [axis.dim_value for axis in weight.type.tensor_type.shape.dim]
        fan_in = max(1, int(np.prod(shape)) // max(shape))
        values = generator.normal(0.1, fan_in**-0.5, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, weight.name))
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.name = f"/{node.op_type}/{node.output[0]}"
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def samples(model: Model, count: int) -> list[dict[str, np.ndarray]]:
    """Seeded normal values for every input; all networks here take float32."""
    generator = np.random.default_rng(1)
    return [
        {
            spec.name: generator.normal(0.3, 1.0, spec.static_shape).astype(np.float32)
            for spec in model.inputs
        }
        for _ in range(count)
    ]


def build_unknown(path: Path) -> None:
    """Write a network with an operator that no backend can know, twice."""
    import onnx
    import onnx.parser

    text = """<ir_version: 8, opset_import: ["" : 17, "example.test" : 1]>
    unknown (float[1,4] x) => (float[1,4] y) {
        h = example.test.NoSuchOperator(x)
        r = Relu(h)
        y = example.test.NoSuchOperator(r)
    }"""
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = f"/{node.op_type}/{node.output[0]}"
    onnx.save(proto, path)
