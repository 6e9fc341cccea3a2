"""Other files from a .tflite one, alone in its environment: ``cut.py REQUEST RESPONSE``.

The request: ``model``, ``output`` (a path), and one of these. ``add``: names of tensors that become
outputs behind the others; the response's ``outputs`` gives for each ``dtype``, ``scale`` and
``zero_point``. ``pieces``: true; then ``output`` is a folder, each operator of the main graph
becomes a file there, and ``layers.json`` lists them; ``left`` are those that cannot stand alone.
What reads constants alone (weights that are stored as fp16 or int8 become float so) is computed
once, when the network is loaded: it is no layer, and stands in the files of those that need it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from wherry_tflite import files
else:  # alone, where this file's folder is the first place to look
    import files

INDEX = "layers.json"
NESTED = frozenset({"IF", "WHILE", "CALL_ONCE", "CALL", "STABLEHLO_COMPOSITE"})
RESOURCES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "HASHTABLE")


def main(request_path: str, response_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    model, output = files.read(Path(request["model"])), Path(request["output"])
    if "add" in request:
        response: dict[str, Any] = {"outputs": exposed(model, request["add"])}
        output.write_bytes(files.packed(model))
    else:
        response = {"left": dissected(model, output)}
    Path(response_path).write_text(json.dumps(response), encoding="utf-8")


def exposed(model: Any, names: list[str]) -> dict[str, Any]:
    """Make tensors outputs of the network, in this order."""
    graph, schema = model.subgraphs[0], files.schema()
    indices = {tensor.name.decode(): index for index, tensor in enumerate(graph.tensors)}
    graph.outputs = [*map(int, graph.outputs), *(indices[name] for name in names)]
    model.signatureDefs = None  # they would have to say the same; nothing here reads them
    kinds = {v: k.lower() for k, v in vars(schema.TensorType).items() if k.isupper()}
    described = {}
    for name in names:
        tensor = graph.tensors[indices[name]]
        about = tensor.quantization
        whole = about is not None and about.scale is not None and len(about.scale) == 1
        described[name] = {
            "dtype": kinds[tensor.type],
            "scale": float(about.scale[0]) if whole else None,
            "zero_point": int(about.zeroPoint[0]) if whole else 0,
        }
    return described


def dissected(model: Any, folder: Path) -> list[str]:
    """Write one file for each operator; returns the names of those that have none."""
    entries, left = [], []
    still: dict[int, list[Any]] = {}  # tensors of constants alone, to what makes them, in order
    graph = model.subgraphs[0]
    described = files.operators(model)
    for place, (operator, about) in enumerate(zip(graph.operators, described, strict=True)):
        if about["type"] in NESTED or about["type"].startswith(RESOURCES):
            left.append(about["name"])
            continue
        before = [each for index in about["inputs"] for each in still.get(index, ())]
        inputs = [index for index in about["inputs"] if index not in still]
        if not inputs:
            still.update((index, [*before, operator]) for index in about["outputs"])
            continue
        path = folder / f"{place:05}.tflite"
        operators = list({id(each): each for each in (*before, operator)}.values())
        path.write_bytes(files.packed(piece(model, operators, inputs, about["outputs"])))
        entries.append({"name": about["name"], "file": path.name})
    (folder / INDEX).write_text(json.dumps(entries), encoding="utf-8")
    return left


def piece(model: Any, operators: list[Any], inputs: list[int], outputs: list[int]) -> Any:
    """A model of some operators, between tensors of the main graph."""
    schema, graph = files.schema(), model.subgraphs[0]
    alone, only = schema.ModelT(), schema.SubGraphT()
    touched = (int(i) for each in operators for i in (*each.inputs, *each.outputs))
    used = dict.fromkeys(index for index in touched if index >= 0)
    places = {index: place for place, index in enumerate(used)}
    alone.version = model.version
    alone.buffers, only.tensors = [schema.BufferT()], []
    for index in used:
        tensor = schema.TensorT()
        tensor.__dict__.update(graph.tensors[index].__dict__)
        buffer = model.buffers[tensor.buffer]
        tensor.buffer = 0
        if buffer.data is not None:
            tensor.buffer = len(alone.buffers)
            alone.buffers.append(buffer)
        only.tensors.append(tensor)
    alone.operatorCodes, only.operators = [], []
    for operator in operators:
        moved = schema.OperatorT()
        moved.__dict__.update(operator.__dict__)
        moved.opcodeIndex = len(alone.operatorCodes)
        moved.inputs = [places.get(int(index), -1) for index in operator.inputs]
        moved.outputs = [places[int(index)] for index in operator.outputs]
        alone.operatorCodes.append(model.operatorCodes[operator.opcodeIndex])
        only.operators.append(moved)
    only.inputs = list(dict.fromkeys(places[index] for index in inputs))
    only.outputs = [places[index] for index in outputs]
    alone.subgraphs = [only]
    return alone


if __name__ == "__main__":
    main(*sys.argv[1:])
