"""Makes ``model.onnx`` for ONNX Runtime: the model as it is, or its weights and sums in float16.

Runs alone, in a process of its own on the host's interpreter: ``convert.py REQUEST RESPONSE``.
The request names ``model``, ``output`` (a folder), ``precision`` and ``keep`` (nodes that stay in
float32); the response tells what was kept in float32 and with which version, and the layers (see
``layers.py``). What is written has been loaded by ONNX Runtime once.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from onnx import numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

if TYPE_CHECKING or __package__:
    from wherry_onnxruntime.layers import find
    from wherry_onnxruntime.runner import UNWANTED
else:  # alone, where this file's folder is the first place to look
    from layers import find
    from runner import UNWANTED

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_PROTOBUF_LIMIT = 2_000_000_000  # bytes; protobuf's own is 2**31 - 1
_EXTERNAL = "model.data"
_QUANTISED = ["QuantizeLinear", "DequantizeLinear"]  # their scales are float32's to keep
# A bound or a mask means "very large" wherever it is added or compared: the largest float16 will
# do. In every other place the value counts, and the node stays in float32.
_BOUNDS = {"Add", "Sub", "Where", "Clip", "Min", "Max", "Pad", "Expand", "Concat"}


class Refusal(Exception):  # noqa: N818 -- an answer, not a fault
    """What the response says instead of a result."""

    def __init__(self, message: str, remedy: str, *, unsupported: bool) -> None:
        super().__init__(message)
        self.answer = {"message": message, "remedy": remedy, "unsupported": unsupported}


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    try:
        response = convert(
            Path(request["model"]), Path(request["output"]), request["precision"], request["keep"]
        )
    except Refusal as refusal:
        response = {"error": refusal.answer}
    Path(response_path).write_text(json.dumps(response))


def convert(
    source: Path, output: Path, precision: str, keep: Collection[str] = ()
) -> dict[str, object]:
    """Write ``output/model.onnx``, and ``model.data`` where protobuf cannot hold the weights."""
    target = output / "model.onnx"
    model = onnx.load(source, load_external_data=False)
    external = any(onnx.external_data_helper.uses_external_data(t) for t in _tensors(model.graph))
    response: dict[str, object] = {"onnxruntime": onnxruntime.__version__}
    if precision != "fp16" and not external:
        shutil.copyfile(source, target)
    else:
        model = onnx.load(source)
        if precision == "fp16":
            model, response["float32_nodes"], response["clamped"] = to_float16(model, keep)
        _save(model, target)
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        _load(target, optimised)
        response["layers"] = find(target, optimised)
    return response


def to_float16(
    model: onnx.ModelProto, keep: Collection[str] = ()
) -> tuple[onnx.ModelProto, list[str], list[str]]:
    """Float16 inside, float32 inputs and outputs.

    Args:
        model: the float32 one.
        keep: names of nodes that stay in float32.

    Returns:
        The model, the names of the nodes that stay in float32 because a weight is beyond
        float16's range, and the names of weights that were clamped to it.
    """
    model = onnx.inliner.inline_local_functions(model)
    for graph in _graphs(model.graph):
        _lift_constants(graph)
    _name_nodes(model)
    float32_nodes, clamped = _out_of_range(model)
    own = {node.name for graph in _graphs(model.graph) for node in graph.node}
    converted = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_QUANTISED, *_without_float16(model)],
        node_block_list=[*float32_nodes, *keep],
        max_finite_val=_FLOAT16_MAX,
    )
    _join_float32(converted, own)
    return converted, float32_nodes, clamped


def _join_float32(model: onnx.ModelProto, own: Collection[str]) -> None:
    """Let float32 nodes meet: the converter casts to float16 and back between any two.

    Args:
        model: converted.
        own: names of the nodes that it had before; a Cast of another name is the converter's.
    """
    graphs = list(_graphs(model.graph))
    casts = [n for n in model.graph.node if n.op_type == "Cast" and n.name not in own]
    made = {name for node in model.graph.node for name in node.output}
    outputs = {value.name for graph in graphs for value in graph.output}
    readers = Counter(name for graph in graphs for node in graph.node for name in node.input)
    names: dict[str, str] = {}
    gone: set[str] = set()
    for there in casts:
        source, narrow = there.input[0], there.output[0]
        backs = [node for node in casts if node.input[0] == narrow]
        if not backs or there.attribute[0].i != onnx.TensorProto.FLOAT16:
            continue
        unread = readers[narrow] == len(backs) and narrow not in outputs
        ends = [node.output[0] for node in backs if node.output[0] in outputs]
        name = source
        if source in made and (ends or unread):
            name = ends[0] if ends else narrow  # the name that the model has for it
            names[source] = name
        for back in backs:
            if name == source and back.output[0] in outputs:  # an input that is an output
                back.op_type, back.input[0] = "Identity", source
                del back.attribute[:]
                continue
            names[back.output[0]] = name
            gone.add(back.name)
        if unread:
            gone.add(there.name)
    for graph in graphs:
        for node in [node for node in graph.node if node.name in gone]:
            graph.node.remove(node)
        for node in graph.node:
            for part in (node.input, node.output):
                part[:] = [names.get(name, name) for name in part]
    left = [value for value in model.graph.value_info if value.name not in names]
    types = {value.name: value for value in left}
    for name in names.values():
        if name in types:
            types[name].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del model.graph.value_info[:]
    model.graph.value_info.extend(left)


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn float Constant nodes into initializers: they are then converted as weights are."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        (attribute,) = node.attribute
        if attribute.name in {"value_float", "value_floats"}:
            value = onnx.helper.get_attribute_value(attribute)
            tensor = numpy_helper.from_array(np.asarray(value, np.float32), node.output[0])
        elif attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
            tensor = numpy_helper.from_array(numpy_helper.to_array(attribute.t), node.output[0])
        else:
            continue
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give nodes without a name one, for the list of those that stay in float32."""
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    taken = {node.name for node in nodes}
    for index, node in enumerate(nodes):
        name = node.name or f"{node.op_type}_{index}"
        while not node.name and name in taken:
            name += "_"
        node.name = name
        taken.add(name)


def _out_of_range(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Nodes that use a weight beyond float16 as a value, and weights that are only bounds."""
    large = {
        tensor.name
        for graph in _graphs(model.graph)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and np.abs(np.nan_to_num(numpy_helper.to_array(tensor))).max(initial=0) > _FLOAT16_MAX
    }
    nodes, clamped = [], set()
    for graph in _graphs(model.graph):
        for node in graph.node:
            used = large.intersection(node.input)
            if node.op_type in _BOUNDS:
                clamped |= used
            elif used:
                nodes.append(node.name)
    return nodes, sorted(clamped)


def _without_float16(model: onnx.ModelProto) -> set[str]:
    """Operator types whose definition takes float32 and not float16, or is not ONNX's."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    blocked = set()
    for graph in _graphs(model.graph):
        for node in graph.node:
            try:
                version = versions[node.domain]
                schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            except (KeyError, onnx.defs.SchemaError):
                blocked.add(node.op_type)
                continue
            for constraint in schema.type_constraints:
                allowed = constraint.allowed_type_strs
                if "tensor(float)" in allowed and "tensor(float16)" not in allowed:
                    blocked.add(node.op_type)
    return blocked


def _save(model: onnx.ModelProto, target: Path) -> None:
    """One file, or two where protobuf cannot hold the weights."""
    if model.ByteSize() < _PROTOBUF_LIMIT:
        onnx.save(model, target)
    else:
        onnx.save(model, target, save_as_external_data=True, location=_EXTERNAL)


def _load(path: Path, optimised: Path) -> None:
    """Load the file as a runner will, and write what ONNX Runtime makes of it.

    Raises:
        Refusal: it does not load; with ONNX Runtime's own words.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimised)
    # Beside the graph, which is looked at; protobuf could not hold large ones.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "optimised.data"
    )
    try:
        onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED
        )
    except Exception as error:  # its exceptions have no other common class
        text = " ".join(str(error).split())
        raise Refusal(
            f"ONNX Runtime {onnxruntime.__version__} does not load the model: {text}",
            "Export the model again with standard operators of a released opset.",
            unsupported="NOT_IMPLEMENTED" in text,
        ) from error


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner: Iterable[onnx.GraphProto] = (
                [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            )
            for subgraph in inner:
                yield from _graphs(subgraph)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a file stores: weights, and those in attributes."""
    for part in _graphs(graph):
        yield from part.initializer
        for node in part.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


if __name__ == "__main__":
    main(*sys.argv[1:])
