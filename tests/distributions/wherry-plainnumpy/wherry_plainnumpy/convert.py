"""ONNX to ``program.json`` and ``constants.npz``. Runs alone: ``convert.py REQUEST RESPONSE``.

The program is a list of steps: operator, names of inputs, name of the output, attributes, and
whether a Relu follows in the same step. Constants are named ``c0``, ``c1``, ... in the archive.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Add": {},
    "Flatten": {"axis": 1},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "MatMul": {},
    "Relu": {},
    "Softmax": {"axis": -1},
}
"""Each operator's attributes with ONNX's defaults."""


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    response = convert(Path(request["model"]), Path(request["output"]), fuse=request["fuse"])
    Path(response_path).write_text(json.dumps(response))


def convert(source: Path, output: Path, *, fuse: bool) -> dict[str, Any]:
    """Write the program and its constants; returns what the record should tell."""
    graph = onnx.load(source).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    steps = []
    for node in graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            ((kind, value),) = given.items()
            constants[node.output[0]] = (
                numpy_helper.to_array(value) if kind == "value" else np.asarray(value)
            )
            continue
        if node.op_type not in ATTRIBUTES:
            return {"error": refusal(node)}
        steps.append(
            {
                "op": node.op_type,
                "inputs": list(node.input),
                "output": node.output[0],
                "attributes": {
                    name: given.get(name, default)
                    for name, default in ATTRIBUTES[node.op_type].items()
                },
                "relu": False,
            }
        )
    outputs = [value.name for value in graph.output]
    fused = fuse_relus(steps, outputs) if fuse else 0
    keys = {name: f"c{index}" for index, name in enumerate(constants)}
    np.savez(output / "constants.npz", **{keys[name]: array for name, array in constants.items()})
    program = {"constants": keys, "steps": steps, "outputs": outputs}
    (output / "program.json").write_text(json.dumps(program, indent=1))
    return {"steps": len(steps), "fused": fused, "numpy": np.__version__}


def fuse_relus(steps: list[dict[str, Any]], outputs: list[str]) -> int:
    """Move each Relu into the step before it where nobody else reads that step's output."""
    readers: dict[str, int] = dict.fromkeys(outputs, 1)
    for step in steps:
        for name in step["inputs"]:
            readers[name] = readers.get(name, 0) + 1
    makers = {step["output"]: step for step in steps}
    relus = [step for step in steps if step["op"] == "Relu"]
    fused = 0
    for relu in relus:
        maker = makers.get(relu["inputs"][0])
        if maker is None or readers[maker["output"]] > 1:
            continue
        maker.update(output=relu["output"], relu=True)
        makers[relu["output"]] = maker
        steps.remove(relu)
        fused += 1
    return fused


def refusal(node: onnx.NodeProto) -> dict[str, Any]:
    """What wherry shows for an operator that got past the pre-flight."""
    return {
        "message": f"plainnumpy has no {node.op_type}",
        "where": f"node {node.name}",
        "remedy": "Choose another backend.",
        "unsupported": True,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
