"""Which layouts a file's inputs and outputs have; it runs in the converter's environment.

They are found by shapes, and where these leave a choice by running the file on the random inputs
that the model was run on. What it gives has to be what the model gave.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING or __package__:
    from wherry_tflite.refusal import RefusalError
else:  # alone, where this file's folder is the first place to look
    from refusal import RefusalError

if TYPE_CHECKING:
    import numpy as np

RANKS = (3, 4, 5)  # of tensors whose layout may change

Layout = tuple[int, ...] | None
"""A permutation of an ONNX tensor's axes, or none."""


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
        reference: an .npz file with ``in0``.., ``out0``..; None: the model does not run on them.
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
