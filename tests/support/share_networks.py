"""Small networks whose weights are to share values, and the passes on them."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from wherry_compress.job import Data, Job
from wherry_compress.plugin import MEMBERS

RANDOM = np.random.default_rng(0)
BODY = "a = Conv(x, w, b) r = Relu(a) f = Flatten(r) y = Gemm(f, v, c)"


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def network(body=BODY, weights=None, output=10):
    text = f"net (float[1, 4, 6, 6] x) => (float[1, {output}] y) {{ {body} }}"
    graph = onnx.parser.parse_graph(text)
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    weights = weights or {
        "w": normal(16, 4, 3, 3),
        "b": normal(16),
        "v": normal(256, 10) / 16,
        "c": normal(10),
    }
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


def apply(tmp_path, name, proto, seed=0, samples=None, **parameters):
    member = MEMBERS[name]
    onnx.save(proto, tmp_path / "given.onnx")
    values = member.descriptor.parameters(**parameters).model_dump(mode="json")
    data = {}
    if samples is not None:
        np.save(tmp_path / "x.npy", samples)
        data = {"calibration": Data({"x": tmp_path / "x.npy"})}
    module, function = member.function.split(":")
    job = Job(tmp_path / "given.onnx", values, tmp_path, data, seed=seed)
    done = getattr(importlib.import_module(module), function)(job)
    onnx.checker.check_model(done.model, full_check=True)
    return done


def weights(proto):
    return {t.name: numpy_helper.to_array(t).copy() for t in proto.graph.initializer}


def error(one, other):
    return float(np.sum((one.astype(np.float64) - other) ** 2))
