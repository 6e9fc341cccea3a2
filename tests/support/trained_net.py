"""A small network that is trained in milliseconds, for the passes that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper
from pydantic import BaseModel

from wherry_compress.job import Data, Job

SAMPLES = 96


def jobs(folder: Path, zeros: float = 0.0) -> Callable[..., Job]:
    """Writes the network and its samples; gives what makes a job of parameters.

    Args:
        folder: for the files.
        zeros: share of the convolution's weights.
    """
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.5, shape).astype(np.float32)

    graph = onnx.parser.parse_graph(
        """net (float[1, 2, 5, 5] x) => (float[1, 4] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) g = GlobalAveragePool (r)
            f = Flatten (g) y = Gemm <transB = 1> (f, m, o)
        }"""
    )
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    weights = {"w": normal(8, 2, 3, 3), "b": normal(8), "m": normal(4, 8), "o": normal(4)}
    weights["w"][random.random(weights["w"].shape) < zeros] = 0
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "in.onnx")
    np.save(folder / "x.npy", random.normal(size=(SAMPLES, 1, 2, 5, 5)).astype(np.float32))
    data = {"training": Data({"x": folder / "x.npy"})}

    def make(parameters: BaseModel, **about: Any) -> Job:
        given = parameters.model_dump(mode="json")
        path = folder / "in.onnx"
        return Job(path, given, folder, data, original=path, seed=3, **about)

    return make
