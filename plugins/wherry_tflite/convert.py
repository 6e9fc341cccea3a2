"""ONNX to .tflite, alone in the converter's environment: ``convert.py REQUEST.json RESPONSE.json``.

onnx2tf's own writer makes the file (no TensorFlow) from what `prepare.repair` left, and `finish`
makes it what is shipped. Then it runs once on random inputs, and has to give what the model gave;
the layouts of inputs and outputs are found by their shapes, and by this run where these leave a
choice.

The request: ``model``, ``output`` (a folder), ``precision`` (``fp32`` or ``fp16``), ``inputs`` and
``outputs`` (ONNX name to static shape), ``reference`` (an .npz file with ``in0``.., ``out0``..,
``tensor0``..; null where the model itself does not run on random inputs), ``tensors`` (the names of
the last, in the model's order).

The response: ``repaired`` (the nodes that were rewritten), ``inputs`` and ``outputs`` (bindings),
``operators`` (see `files.operators`; their ``source`` is the place without those that widen
float16, for which it is null), ``matches`` (see `match.Found`), and what explains.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from wherry_tflite import files
    from wherry_tflite.finish import finish
    from wherry_tflite.layouts import bind, layouts, listed, turned
    from wherry_tflite.match import Found, match
    from wherry_tflite.prepare import repair
    from wherry_tflite.refusal import RefusalError
else:  # alone, where this file's folder is the first place to look
    import files
    from finish import finish
    from layouts import bind, layouts, listed, turned
    from match import Found, match
    from prepare import repair
    from refusal import RefusalError

if TYPE_CHECKING:
    import onnx

FILE = "model.tflite"
MOST_ERROR = {"fp32": 1e-3, "fp16": 0.03}
"""Relative, of an output on random inputs; what a wrong layout or operator exceeds by far."""


def main(request_path: str, response_path: str) -> None:
    """Read the request, convert, write the response."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    try:
        response = convert(request)
    except RefusalError as refusal:
        response = {"error": refusal.error}
    Path(response_path).write_text(json.dumps(response), encoding="utf-8")


def convert(request: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``model.tflite`` into the request's output folder and describe it."""
    import onnx

    proto = onnx.load(request["model"])
    repaired = repair(proto)
    check_operators(proto)
    path, halve = Path(request["output"], FILE), request["precision"] == "fp16"
    with tempfile.TemporaryDirectory() as folder:
        written, names = lower(proto, folder)
        data, kept = finish(written, halve=halve)
        path.write_bytes(data)
        makers, most = whose(proto), MOST_ERROR[request["precision"]]
        bound = bind(
            path, request["inputs"], request["outputs"], request["reference"], makers, most
        )
        plain = path
        if halve:  # its tensors have the same places, and all but exact values
            plain = Path(folder, "plain.tflite")
            plain.write_bytes(finish(written, halve=False)[0])
        found = matched(plain, bound["inputs"], request, names)
        operators = files.operators(files.read(path))
        casts = len(operators) - len(files.operators(files.read(plain)))
    return {
        "repaired": repaired,
        **bound,
        "float32_constants": kept,
        "operators": [
            {**each, "source": place - casts if place >= casts else None}
            for place, each in enumerate(operators)
        ],
        "matches": found.to_json(),
        "versions": versions(),
    }


def matched(
    path: Path,
    inputs: Sequence[Mapping[str, Any]],
    request: Mapping[str, Any],
    names: Mapping[str, str],
) -> Found:
    """Which tensors are the model's; by onnx2tf's word alone where the model cannot be run."""
    import numpy as np

    if request["reference"] is not None:
        arrays = np.load(request["reference"])
        given = {
            each["runtime"]: np.ascontiguousarray(
                turned(arrays[f"in{index}"], each["permutation"]).astype(each["dtype"])
            )
            for index, each in enumerate(inputs)
        }
        values = {name: arrays[f"tensor{i}"] for i, name in enumerate(request["tensors"])}
        return match(path, given, values, names, layouts)
    found = Found()
    places = {each.name.decode(): i for i, each in enumerate(files.read(path).subgraphs[0].tensors)}
    for onnx_name, name in names.items():  # the last of several does the work of all
        if name in places:
            found.stands[places[name]] = onnx_name
            found.alike[places[name]] = [onnx_name]
    return found


def whose(proto: onnx.ModelProto) -> dict[str, str]:
    """Every tensor to the operator and the node that make it; an input to one that takes it."""
    words = [(node, f"{node.op_type} (node {node.name!r})") for node in proto.graph.node]
    found = {name: text for node, text in reversed(words) for name in node.input if name}
    return found | {name: text for node, text in words for name in node.output}


def versions() -> dict[str, str]:
    """Of the tools that made the file."""
    from importlib.metadata import version

    return {name: version(name) for name in ("onnx2tf", "onnx", "ai-edge-litert")}


def check_operators(proto: onnx.ModelProto) -> None:
    """Refuse operators that the writer has never heard of."""
    from onnx2tf.tflite_builder.op_registry import get_supported_onnx_ops

    known = {*get_supported_onnx_ops(), "Constant"}
    for node in proto.graph.node:
        if node.op_type not in known or node.domain not in {"", "ai.onnx"}:
            raise unsupported(node.op_type, node.name, "onnx2tf does not know this operator")


def unsupported(operator: str, node: str, reason: str) -> RefusalError:
    """TFLite cannot have this node."""
    return RefusalError(
        f"TFLite conversion does not support {operator} (node {node!r}): {reason}",
        where=f"node {node}",
        remedy="Write it with other operators, or take another backend for this model.",
        unsupported=True,
    )


# --- to TFLite -----------------------------------------------------------------------------------


def lower(proto: onnx.ModelProto, folder: str) -> tuple[Path, dict[str, str]]:
    """Write a float32 file with onnx2tf.

    Returns:
        Its path, and the ONNX tensors that it still holds, by the names that they have in it.
    """
    from onnx2tf.tflite_builder import export_tflite_model_flatbuffer_direct

    try:
        made = export_tflite_model_flatbuffer_direct(
            onnx_graph=proto,
            output_folder_path=folder,
            output_file_name="model",
            flatbuffer_direct_show_progress=False,
        )
    except NotImplementedError as error:
        raise not_implemented(str(error), proto) from error
    except Exception as error:
        traceback.print_exc()
        raise RefusalError(
            f"onnx2tf fails on {listed(whose(proto))}: {type(error).__name__}: {error}",
            remedy="Write it with other operators, or take another backend for this model.",
            unsupported=True,
        ) from error
    report = json.loads(Path(made["tensor_correspondence_report_path"]).read_text("utf-8"))
    tensors = {
        record["onnx_output_name"]: record["resolved_tflite_tensor_name"]
        for record in report["records"]
        if record["exists_in_final_model"]
    }
    return Path(made["float32_tflite_path"]), tensors


def not_implemented(text: str, proto: onnx.ModelProto) -> RefusalError:
    """onnx2tf's words in ours: which node it does not take, and why."""
    kinds = {node.name: node.op_type for node in proto.graph.node}
    long = re.search(r"op=(\S+) node=(.*) reason_code=(\S+) message=(.*)", text, re.DOTALL)
    if long:
        operator, node, code, reason = long.groups()
        if code == "custom_op_candidate_disabled":
            reason = "TFLite has no operators for this form of it"
        return unsupported(operator, node, reason)
    short = re.match(r"(.*?) op=(.*?)(?: [\w]+=|$)", text, re.DOTALL)
    if short and short[2] in kinds:
        return unsupported(kinds[short[2]], short[2], short[1])
    return RefusalError(f"onnx2tf cannot convert the model: {text}", unsupported=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
