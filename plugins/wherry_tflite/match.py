"""Which tensor of a .tflite file stands for which of the model: by running both on the same values.

It runs in the converter's environment. onnx2tf says which tensors it made of which, and names many
that are fused away: only equal values prove it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from wherry_tflite import files
else:  # alone, where this file's folder is the first place to look
    import files

if TYPE_CHECKING:
    import numpy as np

MOST_ERROR = 1e-4
"""Of a value, relative to the greatest of its tensor."""

Layout = Sequence[int] | None


class Found:
    """What was found.

    Attributes:
        stands: tensor's index to the ONNX tensor that it is.
        layouts: likewise, the permutation of the ONNX tensor's axes.
        alike: tensor's index to the ONNX tensors that have the same values in some order.
    """

    def __init__(self) -> None:
        self.stands: dict[int, str] = {}
        self.layouts: dict[int, Layout] = {}
        self.alike: dict[int, list[str]] = {}

    def to_json(self) -> dict[str, Any]:
        """As JSON values; keys are texts."""
        return {
            "stands": {str(index): name for index, name in self.stands.items()},
            "layouts": {str(index): layout for index, layout in self.layouts.items()},
            "alike": {str(index): names for index, names in self.alike.items()},
        }


def match(
    path: Path,
    inputs: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    layouts: Callable[[Sequence[int], Sequence[int]], list[Any]],
) -> Found:
    """Run the file, and compare every tensor with the model's.

    Args:
        path: the float file.
        inputs: of the file, by name.
        values: ONNX tensor to what the model gave for these inputs, in the model's order.
        names: ONNX tensor to the file's tensor, as onnx2tf has it.
        layouts: the permutations that lead from an ONNX shape to the file's.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[detail["name"]])
    interpreter.invoke()
    graph = files.read(path).subgraphs[0]
    indices = [int(index) for index in graph.inputs]
    indices += [int(index) for each in graph.operators or () for index in each.outputs]
    named: dict[str, list[str]] = {}
    for onnx, name in names.items():
        named.setdefault(name, []).append(onnx)
    known = _Known(values)
    found = Found()
    for index in dict.fromkeys(indices):
        try:
            value = interpreter.get_tensor(index)
        except ValueError:  # of a nested graph, or a variable: it holds nothing afterwards
            continue
        name = graph.tensors[index].name.decode()
        said = [each for each in values if each in named.get(name, ()) or each == name]
        _place(found, index, value, known, said, layouts)
    return found


def _place(
    found: Found,
    index: int,
    value: np.ndarray,
    known: _Known,
    said: Sequence[str],
    layouts: Callable[[Sequence[int], Sequence[int]], list[Any]],
) -> None:
    """Enter one tensor. Of several that it may be, it is the last: it does the work of all."""
    alike = known.alike(value, said)
    if alike:
        found.alike[index] = alike
    for names in (said, alike):
        for name in reversed(names):
            for layout in layouts(known.values[name].shape, value.shape) if name in alike else ():
                turned = known.values[name]
                turned = turned if layout is None else turned.transpose(layout)
                if is_close(value, turned):
                    found.stands[index], found.layouts[index] = name, layout
                    found.alike[index] = [name]
                    return


class _Known:
    """The model's tensors, found by their values in whatever order these stand."""

    def __init__(self, values: Mapping[str, np.ndarray]) -> None:
        self.values = values
        self._sizes: dict[int, list[str]] = {}
        for name, value in values.items():
            self._sizes.setdefault(value.size, []).append(name)
        self._sorted: dict[str, np.ndarray] = {}

    def alike(self, value: np.ndarray, said: Iterable[str]) -> list[str]:
        """Those with the same values; what is all the same value has to be ``said``."""
        import numpy as np

        ordered = np.sort(value, None)
        same = bool(ordered.size) and ordered[0] == ordered[-1]
        names = self._sizes.get(value.size, [])
        if same:
            names = [name for name in names if name in said]
        return [name for name in names if is_close(ordered, self._order(name))]

    def _order(self, name: str) -> np.ndarray:
        import numpy as np

        if name not in self._sorted:
            self._sorted[name] = np.sort(self.values[name], None)
        return self._sorted[name]


def is_close(value: np.ndarray, wanted: np.ndarray) -> bool:
    """The same kind of numbers, and the same ones but for rounding."""
    import numpy as np

    if value.shape != wanted.shape or (value.dtype.kind == "f") != (wanted.dtype.kind == "f"):
        return False
    if value.dtype.kind != "f":
        return bool(np.array_equal(value, wanted))
    most = float(np.abs(wanted).max(initial=0.0))
    return bool(np.isfinite(most) and np.allclose(value, wanted, rtol=0, atol=MOST_ERROR * most))
