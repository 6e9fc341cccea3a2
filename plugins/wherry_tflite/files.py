""".tflite files as objects: what the converter's tools share. It runs in their environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any


@cache
def schema() -> Any:
    """The classes of the flatbuffer."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@cache
def _kinds() -> dict[int, str]:
    operators = schema().BuiltinOperator
    return {value: name for name, value in vars(operators).items() if name.isupper()}


def read(path: Path) -> Any:
    """A file's objects."""
    return schema().ModelT.InitFromObj(schema().Model.GetRootAs(path.read_bytes(), 0))


def packed(model: Any) -> bytes:
    """The file of the objects."""
    import flatbuffers  # type: ignore[import-untyped] # it brings no types

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def kind(model: Any, operator: Any) -> str:
    """An operator's name, e.g. ``CONV_2D``."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _kinds()[max(code.builtinCode, code.deprecatedBuiltinCode)]


def opcode(model: Any, code: str, version: int) -> int:
    """The index of an operator's code of at least this version; it is added where there is none."""
    value = getattr(schema().BuiltinOperator, code)
    for index, each in enumerate(model.operatorCodes):
        if max(each.builtinCode, each.deprecatedBuiltinCode) == value and each.version >= version:
            return index
    made = schema().OperatorCodeT()
    made.builtinCode, made.deprecatedBuiltinCode = value, min(value, 127)
    made.version = version
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1


def operator(
    model: Any, code: str, inputs: Sequence[int], outputs: Sequence[int], *, version: int
) -> Any:
    """A QUANTIZE or DEQUANTIZE."""
    made = schema().OperatorT()
    made.opcodeIndex = opcode(model, code, version)
    made.inputs, made.outputs = list(inputs), list(outputs)
    options = {"QUANTIZE": "QuantizeOptions", "DEQUANTIZE": "DequantizeOptions"}[code]
    made.builtinOptionsType = getattr(schema().BuiltinOptions, options)
    made.builtinOptions = getattr(schema(), f"{options}T")()
    return made


def operators(model: Any) -> list[dict[str, Any]]:
    """The main graph's operators in their order, as JSON values.

    Each has its ``type``, its ``inputs`` (indices of tensors that are not constant), its
    ``outputs`` and their ``names``, and its ``name``, that of its first output.
    """
    graph = model.subgraphs[0]
    made = {int(index) for each in graph.operators or () for index in each.outputs}
    made.update(map(int, graph.inputs))
    found = []
    for place, each in enumerate(graph.operators or ()):
        names = [graph.tensors[int(index)].name.decode() for index in each.outputs]
        found.append(
            {
                "name": names[0] if names else f"operator {place}",
                "type": kind(model, each),
                "inputs": [int(index) for index in each.inputs if int(index) in made],
                "outputs": [int(index) for index in each.outputs],
                "names": names,
            }
        )
    return found


def name_apart(model: Any) -> None:
    """Give each tensor of the main graph a name of its own; inputs and outputs keep theirs."""
    graph = model.subgraphs[0]
    ports = dict.fromkeys(map(int, (*graph.inputs, *graph.outputs)))
    seen: set[bytes] = set()
    for index in (*ports, *(i for i in range(len(graph.tensors)) if i not in ports)):
        name = stem = graph.tensors[index].name or b"tensor"
        count = 1
        while name in seen:
            count += 1
            name = stem + b"#%d" % count
        seen.add(name)
        graph.tensors[index].name = name


def drop_unused(model: Any) -> None:
    """Empty the buffers that no operator and no output of the main graph needs any more."""
    graph = model.subgraphs[0]
    used = {int(index) for each in graph.operators for index in (*each.inputs, *each.outputs)}
    used.update(map(int, (*graph.inputs, *graph.outputs)))
    kept = {tensor.buffer for i, tensor in enumerate(graph.tensors) if i in used}
    kept |= {tensor.buffer for each in model.subgraphs[1:] for tensor in each.tensors}
    for index, buffer in enumerate(model.buffers):
        if index not in kept:
            buffer.data = None
