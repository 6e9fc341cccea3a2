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

import itertools
import json
import math
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING or __package__:
    from wherry_tflite import files
    from wherry_tflite.match import Found, match
    from wherry_tflite.prepare import repair
else:  # alone, where this file's folder is the first place to look
    import files
    from match import Found, match
    from prepare import repair

if TYPE_CHECKING:
    import numpy as np
    import onnx

FILE = "model.tflite"
RANKS = (3, 4, 5)  # of tensors whose layout may change

Layout = tuple[int, ...] | None
"""A permutation of an ONNX tensor's axes, or none."""

LEAST_HALVED = 256  # elements; below, the operator that widens a constant outweighs what it saves
LEAST_SQNR_DB = 60.0  # of a constant in float16: about 73 unless it leaves float16's range
MOST_ERROR = {"fp32": 1e-3, "fp16": 0.03}
"""Relative, of an output on random inputs; what a wrong layout or operator exceeds by far."""


class RefusalError(Exception):
    """What the response says instead of a result."""

    def __init__(
        self, message: str, *, where: str = "", remedy: str = "", unsupported: bool = False
    ) -> None:
        super().__init__(message)
        self.error: dict[str, Any] = {"message": message, "unsupported": unsupported}
        if where:
            self.error["where"] = where
        if remedy:
            self.error["remedy"] = remedy


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


# --- the file ------------------------------------------------------------------------------------


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


# --- inputs and outputs --------------------------------------------------------------------------


def layouts(shape: Sequence[int], runtime: Sequence[int]) -> list[Layout]:
    """The permutations that onnx2tf may have made from an ONNX shape to the runtime's.

    Of those that give the same values, as they only move axes of one, the first stands for all.
    """
    axes = tuple(range(len(shape)))
    found: dict[tuple[int, ...], Layout] = {}
    for layout in candidates(len(shape)):
        order = layout or axes
        if [shape[axis] for axis in order] == list(runtime):
            found.setdefault(tuple(axis for axis in order if shape[axis] > 1), layout)
    return list(found.values())


def candidates(rank: int) -> tuple[Layout, ...]:
    """As it is, channels last, and what channels first is called in channels last."""
    if rank not in RANKS:
        return (None,)
    axes = tuple(range(rank))
    return (None, (0, *axes[2:], 1), (0, rank - 1, *axes[1:-1]))


def bind(
    path: Path,
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
    reference: str | None,
    makers: Mapping[str, str],
    most: float,
) -> dict[str, list[dict[str, Any]]]:
    """How the file's inputs and outputs stand for the model's: the bindings, as JSON values.

    Args:
        path: the file.
        inputs: ONNX name to shape.
        outputs: likewise.
        reference: see the module.
        makers: ONNX tensor to the operator and the node that make it.
        most: the error that an output may have.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise RefusalError(
            f"LiteRT does not load what onnx2tf made of {listed(makers)}: {str(error).strip()}",
            remedy="Write it with other operators or types, or take another backend.",
            unsupported=True,
        ) from error
    takes = ports(inputs, interpreter.get_input_details(), makers, scalars=False)
    gives = ports(outputs, interpreter.get_output_details(), makers, scalars=True)
    chosen = [port.layouts[0] for port in takes + gives]
    if reference is not None:
        chosen = decide(interpreter, takes, gives, reference, makers, most)
    elif any(len(port.layouts) > 1 for port in takes + gives):
        raise RefusalError(
            "the shapes of inputs and outputs do not tell their layouts, and the model does not "
            "run on random inputs, which would",
            unsupported=True,
            remedy="Take another backend, or give inputs that are parameters as constants.",
        )
    bindings = [
        {
            "onnx": port.name,
            "runtime": port.detail["name"],
            "dtype": port.detail["dtype"].__name__,
            "permutation": layout,
        }
        for port, layout in zip(takes + gives, chosen, strict=True)
    ]
    return {"inputs": bindings[: len(takes)], "outputs": bindings[len(takes) :]}


class Port(NamedTuple):
    """An input or output: its ONNX name, the runtime's detail, the possible layouts."""

    name: str
    detail: Mapping[str, Any]
    layouts: list[Layout]


def ports(
    shapes: Mapping[str, Sequence[int]],
    details: Iterable[Mapping[str, Any]],
    makers: Mapping[str, str],
    *,
    scalars: bool,
) -> list[Port]:
    """One for each of the model's; with ``scalars`` a vector of one may stand for a scalar."""
    by_name = {detail["name"]: detail for detail in details}
    found = []
    for name, shape in shapes.items():
        if name not in by_name:
            raise RefusalError(
                f"the converted network has no {name!r}, of {makers.get(name, 'no node')}; it has "
                f"{', '.join(by_name) or 'none'}",
                unsupported=True,
                remedy="Remove inputs that nothing uses and outputs that are inputs or constants.",
            )
        runtime = [int(size) for size in by_name[name]["shape"]]
        possible = layouts(shape, runtime)
        if not possible and scalars and math.prod(shape) == math.prod(runtime) == 1:
            possible = [None]
        if not possible:
            raise RefusalError(
                f"{name!r}, of {makers.get(name, 'no node')}, is {list(shape)} in the model and "
                f"{runtime} in what onnx2tf wrote: no change of layout leads from one to the other",
                unsupported=True,
                remedy="Take another backend, or cut the network before this tensor.",
            )
        found.append(Port(name, by_name[name], possible))
    return found


def decide(
    interpreter: Any,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    reference: str,
    makers: Mapping[str, str],
    most: float,
) -> list[Layout]:
    """The layouts under which the network gives what the model gave on the same random values."""
    import numpy as np

    arrays = np.load(reference)
    best, blamed = float("inf"), ""
    chosen: list[Layout] = []
    for layout in itertools.product(*(port.layouts for port in inputs)):
        for index, (port, axes) in enumerate(zip(inputs, layout, strict=True)):
            value = turned(arrays[f"in{index}"].astype(port.detail["dtype"]), axes)
            interpreter.set_tensor(port.detail["index"], np.ascontiguousarray(value))
        try:
            interpreter.invoke()
        except RuntimeError as error:
            raise RefusalError(
                f"LiteRT does not run what onnx2tf made of {listed(makers)}: {str(error).strip()}",
                unsupported=True,
                remedy="Write it with other operators or types, or take another backend.",
            ) from error
        found = []
        for index, port in enumerate(outputs):
            value, wanted = interpreter.get_tensor(port.detail["index"]), arrays[f"out{index}"]
            errors = [relative_error(value, turned(wanted, axes)) for axes in port.layouts]
            found.append((min(errors), port.layouts[int(np.argmin(errors))]))
        worst = max(error for error, _ in found)
        if worst < best or not chosen:
            best, chosen = worst, [*layout, *(axes for _, axes in found)]
            name = outputs[[error for error, _ in found].index(worst)].name
            blamed = f"the output {name!r}, which {makers.get(name, 'nothing')} makes,"
    if best > most:
        raise RefusalError(
            f"{blamed or 'an output'} has other values than in the model after onnx2tf, in every "
            f"layout that the shapes allow (relative error {best:.2g} on random inputs)",
            unsupported=True,
            remedy="Write it with other operators, or take another backend for this model.",
        )
    return chosen


def listed(makers: Mapping[str, str]) -> str:
    """The first nodes of a network."""
    names = list(dict.fromkeys(makers.values()))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def turned(value: np.ndarray, axes: Layout) -> np.ndarray:
    """The value with its axes in another order."""
    return value if axes is None else value.transpose(axes)


def relative_error(value: np.ndarray, wanted: np.ndarray) -> float:
    """The length of the difference over that of what is wanted, where that is finite."""
    import numpy as np

    value, wanted = (array.astype(np.float64).ravel() for array in (value, wanted))
    if value.size != wanted.size:  # it is known only once it has run
        return float("inf")
    finite = np.isfinite(wanted)
    value, wanted = value[finite], wanted[finite]
    if not np.isfinite(value).all():
        return float("inf")
    return float(np.linalg.norm(value - wanted) / max(float(np.linalg.norm(wanted)), 1e-6))


if __name__ == "__main__":
    main(*sys.argv[1:])
