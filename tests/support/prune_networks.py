"""Small networks to prune, and the jobs that do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from wherry_compress.job import Data, Job

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(0.2, 1, shape).astype(np.float32)


def network(body: str, values: dict[str, np.ndarray], output: str = "1, 4") -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(
        f"net (float[1, 3, 6, 6] x) => (float[{output}] y) {{ {body} }}"
    )
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def plain(width: int = 16, second: int = 16) -> onnx.ModelProto:
    """Conv, Relu, Conv without a bias, Relu, pool, Gemm."""
    return network(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) c = Conv (r, v) s = Relu (c)"
        " g = GlobalAveragePool (s) f = Flatten (g) y = Gemm <transB = 1> (f, m, o)",
        {
            "w": normal(width, 3, 3, 3),
            "b": normal(width),
            "v": normal(second, width, 3, 3) / 10,
            "m": normal(4, second),
            "o": normal(4),
        },
    )


def job(folder: Path, proto: onnx.ModelProto, parameters, samples: int = 20, **more) -> Job:
    onnx.save(proto, folder / "in.onnx")
    np.save(
        folder / "x.npy", np.random.default_rng(1).normal(size=(samples, 1, 3, 6, 6)).astype("f4")
    )
    data = {"calibration": Data({"x": folder / "x.npy"})}
    return Job(folder / "in.onnx", parameters.model_dump(mode="json"), folder, data, **more)
