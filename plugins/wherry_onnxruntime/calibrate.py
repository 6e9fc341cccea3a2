"""Finds the least and the greatest value of every float32 activation over the given samples.

Runs alone, in a process of its own on the host's interpreter: ``calibrate.py REQUEST RESPONSE``.
The request names ``model`` and ``inputs``: input name to a ``.npy`` file whose first axis counts
the samples. Samples are read one at a time, and of each nothing but two numbers a tensor is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    inputs = {name: Path(path) for name, path in request["inputs"].items()}
    ranges = minmax(Path(request["model"]), inputs)
    broken = sorted(name for name, bounds in ranges.items() if not np.isfinite(bounds).all())
    if broken:
        response: dict[str, object] = {
            "error": {
                "message": f"{len(broken)} of {len(ranges)} activations became infinite or NaN on "
                f"the calibration data, first {broken[0]!r}",
                "remedy": "Look at the data's preprocessing, then at the model.",
            }
        }
    else:
        response = {"ranges": ranges}
    Path(response_path).write_text(json.dumps(response))


def minmax(path: Path, inputs: Mapping[str, Path]) -> dict[str, tuple[float, float]]:
    """Run the samples.

    Args:
        path: an ONNX file.
        inputs: input name to a .npy file of [samples, *shape].

    Returns:
        Tensor name to (least, greatest) of every float32 input and every float32 tensor that
        depends on an input; those inside of subgraphs are not looked at.
    """
    session, names = _session(path)
    fetched = [name for name in names if name not in inputs]
    low = dict.fromkeys(names, np.float32(np.inf))
    high = dict.fromkeys(names, np.float32(-np.inf))
    for index in range(min(len(_mapped(file)) for file in inputs.values())):
        feeds = {name: np.array(_mapped(file)[index]) for name, file in inputs.items()}
        arrays = {**feeds, **dict(zip(fetched, session.run(fetched, feeds), strict=True))}
        for name in names:
            if arrays[name].size:  # NaN must survive, so numpy's minimum and not min()
                low[name] = np.minimum(low[name], arrays[name].min())
                high[name] = np.maximum(high[name], arrays[name].max())
    return {name: (float(low[name]), float(high[name])) for name in names if low[name] != np.inf}


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
