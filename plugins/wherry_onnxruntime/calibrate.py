"""Finds the range of every float32 activation over the given samples.

Runs alone, in a process of its own on the host's interpreter: ``calibrate.py REQUEST RESPONSE``.
The request names ``model``, ``inputs`` (input name to a ``.npy`` file whose first axis counts the
samples), ``method`` and ``percentile`` (see ``ranges.py``); the response gives ``ranges`` and
``thresholds``. Samples are read one at a time, and of each nothing is kept but two numbers a
tensor and what it adds to the tensor's histogram, whose size is fixed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime

if TYPE_CHECKING or __package__:
    from wherry_onnxruntime.ranges import Histogram, choose
else:  # alone, where this file's folder is the first place to look
    from ranges import Histogram, choose

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    inputs = {name: Path(path) for name, path in request["inputs"].items()}
    method = request["method"]
    found = run(Path(request["model"]), inputs, counted=method != "minmax")
    broken = sorted(name for name, histogram in found.items() if not histogram.finite)
    if broken:
        response: dict[str, object] = {
            "error": {
                "message": f"{len(broken)} of {len(found)} activations became infinite or NaN on "
                f"the calibration data, first {broken[0]!r}",
                "remedy": "Look at the data's preprocessing, then at the model.",
            }
        }
    else:
        chosen = {name: choose(each, method, request["percentile"]) for name, each in found.items()}
        response = {
            "ranges": {name: (choice.low, choice.high) for name, choice in chosen.items()},
            "thresholds": {name: choice.threshold for name, choice in chosen.items()},
        }
    Path(response_path).write_text(json.dumps(response))


def run(path: Path, inputs: Mapping[str, Path], *, counted: bool) -> dict[str, Histogram]:
    """Run the samples.

    Args:
        path: an ONNX file.
        inputs: input name to a .npy file of [samples, *shape].
        counted: whether the values between the least and the greatest are of use.

    Returns:
        Tensor name to what its values were, for every float32 input and every float32 tensor
        that depends on an input. Those inside of subgraphs are not looked at, and those that had
        no values are left out.
    """
    session, names = _session(path)
    fetched = [name for name in names if name not in inputs]
    found = {name: Histogram(counted=counted) for name in names}
    for index in range(min(len(_mapped(file)) for file in inputs.values())):
        feeds = {name: np.array(_mapped(file)[index]) for name, file in inputs.items()}
        # asked for nothing, ONNX Runtime would give everything
        values = session.run(fetched, feeds) if fetched else []
        arrays = {**feeds, **dict(zip(fetched, values, strict=True))}
        for name in names:
            found[name].add(arrays[name])
    return {name: each for name, each in found.items() if not each.empty}


def _mapped(path: Path) -> np.ndarray:
    """A .npy file; mapped anew for each sample, or all that was read would stay in memory."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _session(path: Path) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """A session that gives the activations, and the names of the float32 ones, inputs first."""
    model = onnx.load(path, load_external_data=False)  # ONNX Runtime reads it itself
    reached = {value.name for value in model.graph.input}
    kept = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if reached.intersection(node.input) or _looks_outside(node, reached):
            made = [name for name in node.output if name]
            reached.update(made)
            new = [name for name in made if name not in kept]
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # While a histogram takes the values in, the other threads would keep their cores busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Nothing may be fused away, and the ranges are those of the model as it is written.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(_DATA_FOLDER, str(path.parent))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = [*session.get_inputs(), *session.get_outputs()]
    names = [value.name for value in values if value.type == "tensor(float)"]
    return session, list(dict.fromkeys(name for name in names if name in reached))


def _looks_outside(node: onnx.NodeProto, names: set[str]) -> bool:
    """Whether a subgraph of the node uses one of the names."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return any(
        names.intersection(inner.input) or _looks_outside(inner, names)
        for graph in graphs
        for inner in graph.node
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
