"""Makes of onnx2tf's file what is shipped; it runs in the converter's environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from wherry_tflite import files
    from wherry_tflite.refusal import RefusalError
else:  # alone, where this file's folder is the first place to look
    import files
    from refusal import RefusalError

if TYPE_CHECKING:
    import numpy as np

LEAST_HALVED = 256  # elements; below, the operator that widens a constant outweighs what it saves
LEAST_SQNR_DB = 60.0  # of a constant in float16: about 73 unless it leaves float16's range


def finish(path: Path, *, halve: bool) -> tuple[bytes, list[str]]:
    """The file as it is shipped.

    Without the metadata by which onnx2tf allows a runtime to compute in less than float32. With
    ``halve`` large constants become float16, each widened by a DEQUANTIZE; XNNPACK folds these
    when it loads, and without it they run once.

    Returns:
        The bytes, and the constants that float16 cannot hold and that stay in float32.
    """
    model, schema = files.read(path), files.schema()
    model.metadata = None
    files.name_apart(model)
    check_outputs(model)
    restart_states(model, schema)
    kept = halve_constants(model, schema) if halve else []
    files.drop_unused(model)
    return files.packed(model), kept


def check_outputs(model: Any) -> None:
    """Refuse outputs that nothing computes: onnx2tf merges two that are the same tensor."""
    graph = model.subgraphs[0]
    made = {index for operator in graph.operators or () for index in operator.outputs}
    for index in graph.outputs:
        tensor = graph.tensors[index]
        if index not in made and index not in graph.inputs:
            raise RefusalError(
                f"nothing computes the output {tensor.name.decode()!r} in what onnx2tf wrote",
                remedy="Remove outputs that are constants, or the same as another output.",
                unsupported=True,
            )


def restart_states(model: Any, schema: Any) -> None:
    """Let recurrent operators begin anew in each inference, as in ONNX.

    They keep their state in a variable, which onnx2tf leaves as the last inference left it, or sets
    by a RESHAPE of a constant that some runtimes do once. A sum is done in every inference.
    """
    import numpy as np

    graph = model.subgraphs[0]
    makers = {index: each for each in graph.operators for index in each.outputs}
    sums: list[Any] = []
    for index, variable in enumerate(list(graph.tensors)):
        if not variable.isVariable:
            continue
        start = np.zeros(math.prod(variable.shape), "<f4")
        maker = makers.get(index)
        if maker is not None:
            data = model.buffers[graph.tensors[maker.inputs[0]].buffer].data
            if data is None:  # computed: set in every inference already
                continue
            start = np.frombuffer(bytes(data), "<f4")
            graph.operators.remove(maker)
        terms = [
            add_constant(model, schema, variable.name + b"/start", variable.shape, start),
            add_constant(model, schema, variable.name + b"/zero", [1], np.zeros(1, "<f4")),
        ]
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs, operator.outputs = terms, [index]
        operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
        operator.builtinOptions = schema.AddOptionsT()
        sums.append(operator)
    put_first(model, schema, sums, schema.BuiltinOperator.ADD, version=1)


def halve_constants(model: Any, schema: Any) -> list[str]:
    """Store the main graph's large float32 constants as float16; see `finish`."""
    import numpy as np

    graph = model.subgraphs[0]
    kept: list[str] = []
    stored: dict[Any, int] = {}  # buffer and shape to the constant that holds it in float16
    casts = []
    for index, tensor in enumerate(list(graph.tensors)):
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None or len(data) < 4 * LEAST_HALVED:
            continue
        key = (tensor.buffer, *tensor.shape)
        if key not in stored:
            half = as_half(np.frombuffer(bytes(data), "<f4"))
            if half is None:
                kept.append(tensor.name.decode())
                continue
            name = tensor.name + b"/float16"
            stored[key] = add_constant(model, schema, name, tensor.shape, half)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs, operator.outputs = [stored[key]], [index]
        operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        operator.builtinOptions = schema.DequantizeOptionsT()
        casts.append(operator)
        tensor.buffer = 0
    put_first(model, schema, casts, schema.BuiltinOperator.DEQUANTIZE, version=3)  # of float16
    return kept


def add_constant(
    model: Any, schema: Any, name: bytes, shape: Sequence[int], value: np.ndarray
) -> int:
    """A new constant of the main graph, float32 or float16; returns its index."""
    import numpy as np

    kinds = {4: schema.TensorType.FLOAT32, 2: schema.TensorType.FLOAT16}
    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = value.view(np.uint8)
    model.buffers.append(buffer)
    tensor.name, tensor.shape, tensor.type = name, shape, kinds[value.itemsize]
    tensor.buffer = len(model.buffers) - 1
    tensors = model.subgraphs[0].tensors
    tensors.append(tensor)
    return len(tensors) - 1


def put_first(model: Any, schema: Any, operators: list[Any], kind: int, *, version: int) -> None:
    """Put operators of a new kind, of index ``len(operatorCodes)``, before all others."""
    if not operators:
        return
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = version
    model.operatorCodes.append(code)
    model.subgraphs[0].operators[:0] = operators


def as_half(values: np.ndarray) -> np.ndarray | None:
    """The values in float16; None where that is not what they are."""
    import numpy as np

    with np.errstate(over="ignore"):  # found by the figure below
        half = values.astype("<f2")
    noise = float(np.sum(np.square(half.astype(np.float64) - values)))
    power = float(np.sum(np.square(values.astype(np.float64))))
    return half if noise <= power * 10 ** (-LEAST_SQNR_DB / 10) else None
