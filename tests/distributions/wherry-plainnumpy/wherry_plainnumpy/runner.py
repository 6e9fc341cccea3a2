"""Runs the program on a board (Python 3.8, numpy, threadpoolctl)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl


def versions() -> dict[str, str]:
    """What runs here, for the record."""
    return {"numpy": np.__version__}


def load(directory: str, artifact: dict[str, Any], options: dict[str, Any]) -> Runner:
    """Read the program and its constants."""
    program = json.loads((Path(directory) / "program.json").read_text())
    with np.load(Path(directory) / "constants.npz", allow_pickle=False) as archive:
        constants = {name: archive[key] for name, key in program["constants"].items()}
    return Runner(program, constants, options)


class Runner:
    """Interprets the program, a step after the other."""

    def __init__(
        self, program: dict[str, Any], constants: dict[str, np.ndarray], options: dict[str, Any]
    ) -> None:
        self._steps = program["steps"]
        self._outputs = program["outputs"]
        self._values = dict(constants)
        self._check = options["check_finite"]
        self._limits = threadpoolctl.threadpool_limits(options["threads"], user_api="blas")

    def set_inputs(self, inputs: dict[str, np.ndarray]) -> None:
        """Keep the arrays, by name."""
        self._values.update(inputs)

    def run(self) -> None:
        """One inference."""
        values = self._values
        for step in self._steps:
            result = OPERATORS[step["op"]](
                *[values[name] for name in step["inputs"] if name], **step["attributes"]
            )
            if step["relu"]:
                result = relu(result)
            if self._check and not np.isfinite(result).all():
                raise ArithmeticError(f"{step['output']} gave NaN or infinity")
            values[step["output"]] = result

    def get_outputs(self) -> dict[str, np.ndarray]:
        """The arrays of the last run, by name."""
        return {name: self._values[name] for name in self._outputs}

    def close(self) -> None:
        """Give the threads back."""
        self._limits.restore_original_limits()


def gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    *,
    alpha: float,
    beta: float,
    transA: int,  # noqa: N803 -- ONNX's name
    transB: int,  # noqa: N803 -- ONNX's name
) -> np.ndarray:
    """ONNX's Gemm, in the type of its inputs."""
    product = (a.T if transA else a) @ (b.T if transB else b)
    if alpha != 1:
        product *= product.dtype.type(alpha)
    if c is not None:
        product += c if beta == 1 else c * c.dtype.type(beta)
    return product


def flatten(x: np.ndarray, *, axis: int) -> np.ndarray:
    """To two dimensions, parted at the axis."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def softmax(x: np.ndarray, *, axis: int) -> np.ndarray:
    """Along one axis (opset 13 and later)."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def relu(x: np.ndarray) -> np.ndarray:
    """Zero and above; NaN stays."""
    return np.maximum(x, x.dtype.type(0))


OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Flatten": flatten,
    "Gemm": gemm,
    "MatMul": np.matmul,
    "Relu": relu,
    "Softmax": softmax,
}
