"""A float .tflite file in 8 bits, alone in its environment: ``quantize.py REQUEST RESPONSE``.

Nothing is calibrated here: the ranges come with the request. The kinds are those of TensorFlow
Lite's own specification of 8 bits: ``static`` (weights and activations are int8, sums int32),
``dynamic`` (weights are int8, the runtime quantises what they meet in each inference) and
``weights`` (weights are int8 and widened when the file is loaded).

The request: ``model`` (the float file), ``output`` (where to write), ``quantize`` (see above),
``io`` (``float`` or ``integer``), ``ranges`` (index of a tensor, as a text, to its least and
greatest value), ``keep`` (operators that stay float, by their place), ``rounding`` (the file
``wherry/quantize/weights.py``).

The response: ``operators`` (see `files.operators`, each with its ``precision``, and the place that
it had as ``source``), ``ports`` (name to dtype, scale and zero point of inputs and outputs that are
whole numbers), ``floats`` (names of those that are not), ``unknown`` (places of operators that stay
float because a range is not known), ``unsafe`` (those that stay float because 8 bits would
overflow).
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING or __package__:
    from wherry_tflite import files
else:  # alone, where this file's folder is the first place to look
    import files

if TYPE_CHECKING:
    import numpy as np


class Form(NamedTuple):
    """What an int8 tensor's numbers stand for: ``(number - zero_point) * scale``."""

    scale: float
    zero_point: int


class Weighted(NamedTuple):
    """Where an operator with constant weights has its inputs, and the axis of output channels."""

    data: int
    weights: int
    bias: int
    axis: int


WEIGHTED = {
    "CONV_2D": Weighted(0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": Weighted(0, 1, 2, 3),
    "FULLY_CONNECTED": Weighted(0, 1, 2, 0),
    "TRANSPOSE_CONV": Weighted(2, 1, 3, 0),
}
PASSING = {
    **dict.fromkeys(("MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "TRANSPOSE", "SQUEEZE"), 0),
    **dict.fromkeys(("EXPAND_DIMS", "PAD", "PADV2", "MIRROR_PAD", "SLICE", "STRIDED_SLICE"), 0),
    **dict.fromkeys(("SPLIT_V", "GATHER", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), 0),
    **dict.fromkeys(("SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "TILE", "UNPACK"), 0),
    "SPLIT": 1,
}
"""Operators whose results have the form of what they take, to the place of that input."""

JOINING = frozenset({"CONCATENATION", "PACK", "MAXIMUM", "MINIMUM"})
"""Operators all of whose inputs and results have one form."""

FREE = frozenset(
    {"ADD", "SUB", "MUL", "MEAN", "SUM", "BATCH_MATMUL"}
    | {"RELU", "RELU6", "LEAKY_RELU", "PRELU", "HARD_SWISH"}
)
"""Operators whose inputs and results have forms of their own."""

FIXED = {
    "SOFTMAX": Form(1 / 256, -128),
    "LOGISTIC": Form(1 / 256, -128),
    "TANH": Form(1 / 128, 0),
    "LOG_SOFTMAX": Form(16 / 256, 127),
}
"""Operators whose results have a form that the kernels take for granted."""

REARRANGING = frozenset({"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"})
DYNAMIC = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
VERSIONS = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), 3),
    "FULLY_CONNECTED": 4,
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PRELU", "HARD_SWISH"), 1),
}
"""Least versions in int8, where that is not 2."""

LEAST_WEIGHTS = 256  # elements, for ``dynamic`` and ``weights``; below, nothing is saved
MOST_TERMS = 2**16  # of a sum in 32 bits: 127 * 255 * 2**16 is just below 2**31
SMALLEST = 1e-9  # scale


def main(request_path: str, response_path: str) -> None:
    """Read the request, write the file and the response."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    model = files.read(Path(request["model"]))
    work = Quantiser(model, request)
    response = work.static() if request["quantize"] == "static" else work.weights()
    Path(request["output"]).write_bytes(files.packed(model))
    Path(response_path).write_text(json.dumps(response), encoding="utf-8")


def rounding(path: Path) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """``quantise_weight`` of a file."""
    spec = importlib.util.spec_from_file_location("wherry_rounding", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[np.ndarray, np.ndarray, int], np.ndarray] = module.quantise_weight
    return found


def channels_first(weights: np.ndarray, axis: int) -> np.ndarray:
    """Weights of TensorFlow Lite as [outputs, inputs, *kernel]."""
    import numpy as np

    moved = np.moveaxis(weights, axis, 0)
    return np.moveaxis(moved, -1, 1) if axis == 0 and moved.ndim > 2 else moved


def channels_last(weights: np.ndarray, axis: int) -> np.ndarray:
    """The inverse of `channels_first`."""
    import numpy as np

    moved = np.moveaxis(weights, 1, -1) if axis == 0 and weights.ndim > 2 else weights
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


class Quantiser:
    """Rewrites the main graph of a model.

    Args:
        model: the flatbuffer's objects.
        request: see the module.
    """

    def __init__(self, model: Any, request: Mapping[str, Any]) -> None:
        self.model = model
        self.graph = model.subgraphs[0]
        self.codes = [files.kind(model, operator) for operator in self.graph.operators]
        self.how: str = request["quantize"]
        self.integer = request["io"] == "integer"
        self.kept = frozenset(request["keep"])
        self.rounded = rounding(Path(request["rounding"]))
        self.ranges = {int(i): (low, high) for i, (low, high) in request["ranges"].items()}
        self.takers: dict[int, list[int]] = {}
        self.makers: dict[int, int] = {}
        for place, operator in enumerate(self.graph.operators):
            for index in operator.inputs:
                self.takers.setdefault(int(index), []).append(place)
            for index in operator.outputs:
                self.makers[int(index)] = place
        self.unknown: list[int] = []
        self.unsafe: list[int] = []
        self.forms: dict[int, Form] = {}
        self.wide: dict[int, int] = {}  # an int8 tensor's float twin
        self.narrow: dict[int, dict[Form, int]] = {}  # a float or int8 tensor's int8 twins
        self.stored: dict[Any, int] = {}  # constants in another form
        self.made: list[tuple[Any, int | None, str]] = []

    # --- what is known ---------------------------------------------------------------------------

    def constant(self, index: int) -> np.ndarray | None:
        """A float32 constant's values."""
        import numpy as np

        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if not self.is_float(index) or data is None or tensor.isVariable:
            return None
        shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
        return np.frombuffer(bytes(data), "<f4").reshape(shape)

    def is_float(self, index: int) -> bool:
        """A tensor is of float32."""
        return index >= 0 and self.graph.tensors[index].type == files.schema().TensorType.FLOAT32

    def activations(self, place: int) -> list[int]:
        """The float inputs of an operator that are not constant."""
        inputs = [int(index) for index in self.graph.operators[place].inputs]
        return [i for i in inputs if self.is_float(i) and self.constant(i) is None]

    def outputs(self, place: int) -> list[int]:
        """The results of an operator."""
        return [int(index) for index in self.graph.operators[place].outputs]

    def spread(self) -> None:
        """Find more ranges, through operators that do not change them."""
        before = -1
        while before != len(self.ranges):
            before = len(self.ranges)
            for place, code in enumerate(self.codes):
                results = self.outputs(place)
                if code in PASSING:
                    source = int(self.graph.operators[place].inputs[PASSING[code]])
                    value = self.constant(source)
                    if value is not None and value.size:
                        self.ranges.setdefault(source, (float(value.min()), float(value.max())))
                    if source in self.ranges:
                        for index in results:
                            self.ranges.setdefault(index, self.ranges[source])
                    elif code in REARRANGING and results[0] in self.ranges:
                        self.ranges[source] = self.ranges[results[0]]
                elif code in {"RELU", "RELU6"} and results[0] not in self.ranges:
                    low, high = self.ranges.get(self.activations(place)[0], (1.0, -1.0))
                    if low <= high:
                        most = 6.0 if code == "RELU6" else math.inf
                        self.ranges[results[0]] = (0.0, min(max(high, 0.0), most))
                elif code in FIXED and results[0] not in self.ranges:
                    form = FIXED[code]
                    self.ranges[results[0]] = (
                        (-128 - form.zero_point) * form.scale,
                        (127 - form.zero_point) * form.scale,
                    )

    def is_able(self, place: int) -> bool:
        """An operator has a kernel in int8 that does what its float one does, by what is known."""
        code, operator = self.codes[place], self.graph.operators[place]
        known = code in WEIGHTED or code in PASSING or code in JOINING or code in FREE
        if place in self.kept or not (known or code in FIXED):
            return False
        results = self.outputs(place)
        numbers = self.activations(place)
        if not all(map(self.is_float, results)) or not (numbers or code == "GATHER"):
            return False
        if code in PASSING:
            return self._passes(place)
        if any(self.graph.tensors[i].isVariable for i in (*numbers, *results)):
            return False
        if any(index not in self.ranges for index in (*numbers, *results)):
            self.unknown.append(place)
            return False
        if code in WEIGHTED:
            about = WEIGHTED[code]
            weights = self.constant(int(operator.inputs[about.weights]))
            bias = int(operator.inputs[about.bias]) if len(operator.inputs) > about.bias else -1
            if weights is None or (bias >= 0 and self.constant(bias) is None):
                return False
            terms = weights.size // max(weights.shape[about.axis], 1)
            if numbers != [int(operator.inputs[about.data])] or terms > MOST_TERMS:
                return False
        if code in {"ADD", "SUB"}:
            # The kernels align both inputs with 20 bits; beyond these they end the process.
            forms = [self._form_of_range(self._range(int(index))) for index in operator.inputs]
            most = 2 * max(form.scale for form in forms) / 2**20
            if most >= 0.5 * self._form_of_range(self.ranges[results[0]]).scale:
                self.unsafe.append(place)
                return False
        return True

    def _passes(self, place: int) -> bool:
        operator, code = self.graph.operators[place], self.codes[place]
        source = int(operator.inputs[PASSING[code]])
        if not self.is_float(source) or self.graph.tensors[source].isVariable:
            return False
        if source not in self.ranges:
            self.unknown.append(place)
            return False
        if code == "PADV2":
            value, (low, high) = self.constant(int(operator.inputs[2])), self._range(source)
            if value is None:
                return False
            takers = self.takers.get(self.outputs(place)[0], [])
            if self.outputs(place)[0] in self.graph.outputs:
                return False
            below = bool((value < low).all()) and all(
                self.codes[taker] == "MAX_POOL_2D" and taker not in self.kept for taker in takers
            )
            return below or bool(((value >= low) & (value <= high)).all())
        return True

    def _range(self, index: int) -> tuple[float, float]:
        value = self.constant(index)
        if value is None:
            low, high = self.ranges[index]
        else:
            low, high = float(value.min()), float(value.max())
        return min(low, 0.0), max(high, 0.0)

    @staticmethod
    def _form_of_range(bounds: tuple[float, float]) -> Form:
        """The form that holds a range and 0."""
        import numpy as np

        low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
        if high - low < 255 * SMALLEST:
            low, high = 0.0, max(high, 255 * SMALLEST)
        scale = float(np.float32((high - low) / 255))
        return Form(scale, max(-128, min(127, round(-128 - low / scale))))

    # --- static ----------------------------------------------------------------------------------

    def static(self) -> dict[str, Any]:
        """Quantise all operators that can be; the response."""
        self.spread()
        able = [self.is_able(place) for place in range(len(self.codes))]
        wanted = self._wanted(able)
        chosen = self._chosen(able, wanted)
        aims = self._aims(chosen)
        ports = self._inputs()
        for place, operator in enumerate(list(self.graph.operators)):
            if chosen[place]:
                self._quantise(place, operator, aims)
                self.made.append((operator, place, "int8"))
            else:
                operator.inputs = [
                    self._widened(int(index)) if int(index) in self.forms else index
                    for index in operator.inputs
                ]
                self.made.append((operator, place, "fp32"))
            for index in self.outputs(place):
                self._finish_output(index, ports)
        return self._response(ports)

    def _response(self, ports: Mapping[str, Any]) -> dict[str, Any]:
        self.graph.operators = [operator for operator, _, _ in self.made]
        files.name_apart(self.model)
        files.drop_unused(self.model)
        described = files.operators(self.model)
        for entry, (_, source, precision) in zip(described, self.made, strict=True):
            entry["source"], entry["precision"] = source, precision
        return {
            "operators": described,
            "ports": ports,
            "floats": [self._name(i).decode() for i in self._ends() if self.is_float(i)],
            "unknown": sorted(set(self.unknown)),
            "unsafe": sorted(set(self.unsafe)),
        }

    def _wanted(self, able: Sequence[bool]) -> set[int]:
        """Tensors that an operator takes in int8, through others that only pass them on."""
        wanted: set[int] = set()
        for place in reversed(range(len(self.codes))):
            if not able[place]:
                continue
            if self.codes[place] not in PASSING:
                wanted.update(self.activations(place))
            elif wanted.intersection(self.outputs(place)):
                wanted.add(int(self.graph.operators[place].inputs[PASSING[self.codes[place]]]))
        return wanted

    def _chosen(self, able: Sequence[bool], wanted: set[int]) -> list[bool]:
        """Operators that only pass on follow what they take, or what takes from them."""
        whole: set[int] = set()
        chosen = []
        for place, code in enumerate(self.codes):
            yes = able[place]
            if yes and code in PASSING:
                source = int(self.graph.operators[place].inputs[PASSING[code]])
                first = source in self.graph.inputs or self.constant(source) is not None
                yes = source in whole or (first and not wanted.isdisjoint(self.outputs(place)))
            if yes:
                whole.update(self.outputs(place))
            chosen.append(yes)
        return chosen

    def _aims(self, chosen: Sequence[bool]) -> dict[int, Form]:
        """Forms of tensors that only a joining operator takes: that one's, to save a step."""
        aims: dict[int, Form] = {}
        for place in reversed(range(len(self.codes))):
            if not chosen[place] or self.codes[place] not in JOINING:
                continue
            form = aims[self.outputs(place)[0]] = self._joint(place)
            for index in self.activations(place):
                maker = self.makers.get(index)
                if (
                    maker is not None
                    and chosen[maker]
                    and (self.codes[maker] in WEIGHTED or self.codes[maker] in FREE)
                    and self.takers[index] == [place]
                    and index not in self.graph.outputs
                    and self._is_within(index, form)
                ):
                    aims[index] = form
        return aims

    def _is_within(self, index: int, form: Form) -> bool:
        low, high = self._range(index)
        slack = form.scale / 2
        return (-128 - form.zero_point) * form.scale - slack <= low and high <= (
            127 - form.zero_point
        ) * form.scale + slack

    def _joint(self, place: int) -> Form:
        indices = [int(index) for index in self.graph.operators[place].inputs]
        if self.codes[place] == "CONCATENATION" or self.codes[place] == "PACK":
            ranges = [self._range(index) for index in indices]
        else:
            ranges = [self._range(index) for index in (*indices, *self.outputs(place))]
        return self._form_of_range((min(r[0] for r in ranges), max(r[1] for r in ranges)))

    def _inputs(self) -> dict[str, Any]:
        """Whole numbers as the network's inputs, where these are asked for."""
        ports: dict[str, Any] = {}
        for index in map(int, self.graph.inputs) if self.integer else ():
            if self.is_float(index) and index in self.ranges:
                self._to_int8(index, self._form_of_range(self.ranges[index]))
                ports[self._name(index).decode()] = self._port(index)
        return ports

    def _finish_output(self, index: int, ports: dict[str, Any]) -> None:
        """An output keeps its name and is what was asked for."""
        if index not in self.graph.outputs:
            return
        if self.integer and index not in self.forms and self.is_float(index):
            if index not in self.ranges:
                return
            twin = self._twin(index, b"/int8")
            self._to_int8(twin, self._form_of_range(self.ranges[index]))
            self._convert("QUANTIZE", index, twin)
            self._swap(index, twin, b"/float32")
            ports[self._name(twin).decode()] = self._port(twin)
        elif self.integer and index in self.forms:
            ports[self._name(index).decode()] = self._port(index)
        elif index in self.forms:
            self._swap(index, self._widened(index), b"/int8")

    def _ends(self) -> list[int]:
        return [int(index) for index in (*self.graph.inputs, *self.graph.outputs)]

    def _swap(self, index: int, twin: int, ending: bytes) -> None:
        """Let the twin be the network's output, under its name."""
        tensors = self.graph.tensors
        tensors[twin].name = self._name(index)
        tensors[index].name += ending
        self.graph.outputs = [twin if each == index else each for each in self.graph.outputs]
        for signature in self.model.signatureDefs or ():
            for entry in signature.outputs:
                if entry.tensorIndex == index:
                    entry.tensorIndex = twin

    def _port(self, index: int) -> dict[str, Any]:
        form = self.forms[index]
        return {"dtype": "int8", "scale": form.scale, "zero_point": form.zero_point}

    def _quantise(self, place: int, operator: Any, aims: Mapping[int, Form]) -> None:
        """Give an operator int8 inputs and outputs."""
        code, results = self.codes[place], self.outputs(place)
        form = FIXED.get(code) or aims.get(results[0]) if results else None
        if code in PASSING:
            at = PASSING[code]
            source = self._narrowed(int(operator.inputs[at]), None)
            form = self.forms[source]
            operator.inputs = [
                source if i == at else self._narrowed(int(index), form) if self.is_float(int(index))
                else index
                for i, index in enumerate(operator.inputs)
            ]  # fmt: skip
        form = form or self._form_of_range(self.ranges[results[0]])
        if code in WEIGHTED:
            self._weigh(operator, WEIGHTED[code], form)
        elif code not in PASSING:
            joint = form if code in JOINING else None
            operator.inputs = [
                self._narrowed(int(index), joint) if self._is_real(int(index)) else index
                for index in operator.inputs
            ]
        for index in results:
            self._to_int8(index, form)
        operator.opcodeIndex = files.opcode(self.model, code, VERSIONS.get(code, 2))

    def _is_real(self, index: int) -> bool:
        """A tensor stands for real numbers: it is float, or int8 of ours."""
        return self.is_float(index) or index in self.forms

    def _weigh(self, operator: Any, about: Weighted, result: Form) -> None:
        """Weights to int8 for each channel, the bias to int32."""
        import numpy as np

        source = self._narrowed(int(operator.inputs[about.data]), None)
        scale = self.forms[source].scale
        weights = self.constant(int(operator.inputs[about.weights]))
        assert weights is not None  # `is_able`
        index = int(operator.inputs[about.bias]) if len(operator.inputs) > about.bias else -1
        bias = self.constant(index) if index >= 0 else None
        moved = np.moveaxis(weights, about.axis, 0).reshape(weights.shape[about.axis], -1)
        steps = np.abs(moved).max(1).astype(np.float64) / 127
        if bias is not None:  # it has to fit into 30 bits
            room = np.abs(bias.astype(np.float64)).reshape(-1) / (scale * 2**29)
            steps = np.maximum(steps, room)
        steps = np.maximum(steps, result.scale / scale * 2.0**-20)  # the kernels' least factor
        inputs = [int(each) for each in operator.inputs]
        inputs[about.data] = source
        inputs[about.weights], steps = self._whole_weights(inputs[about.weights], steps, about.axis)
        if bias is not None:
            key = (index, "bias", steps.tobytes(), scale)
            if key not in self.stored:
                factors = steps.astype(np.float64) * np.float32(scale)
                whole = np.rint(bias.reshape(-1) / factors).astype("<i4")
                self.stored[key] = self._add(self._name(index) + b"/int32", bias.shape, whole)
                self._describe(self.stored[key], factors.astype(np.float32), np.zeros(len(factors)))
            inputs[about.bias] = self.stored[key]
        operator.inputs = inputs

    def _whole_weights(self, index: int, steps: np.ndarray, axis: int) -> tuple[int, np.ndarray]:
        """The constant in int8 with these steps for its channels; returns the steps in float32."""
        import numpy as np

        steps = steps.astype(np.float32)
        key = (index, "weights", axis, steps.tobytes())
        if key not in self.stored:
            weights = self.constant(index)
            assert weights is not None
            kernels = channels_first(weights, axis)
            whole = self.rounded(kernels.reshape(*kernels.shape[:2], -1), steps, 0)
            whole = channels_last(whole.reshape(kernels.shape), axis)
            self.stored[key] = self._add(self._name(index) + b"/int8", weights.shape, whole)
            self._describe(self.stored[key], steps, np.zeros(len(steps)), axis)
        return self.stored[key], steps

    # --- weights alone ---------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        """Quantise weights; what they meet stays float. Returns the response."""
        import numpy as np

        first: list[tuple[Any, int | None, str]] = []
        widened: dict[int, int] = {}
        for place, operator in enumerate(list(self.graph.operators)):
            code = self.codes[place]
            about = WEIGHTED.get(code)
            precision = "fp32"
            if about is not None and place not in self.kept:
                index = int(operator.inputs[about.weights])
                weights = self.constant(index)
                if weights is not None and weights.size >= LEAST_WEIGHTS:
                    moved = np.moveaxis(weights, about.axis, 0).reshape(
                        weights.shape[about.axis], -1
                    )
                    steps = np.maximum(np.abs(moved).max(1) / 127, SMALLEST)
                    if self.how == "dynamic" and code == "FULLY_CONNECTED":
                        # Older runtimes take the first scale for all.
                        steps = steps.max(keepdims=True)
                    whole, _ = self._whole_weights(index, steps, about.axis)
                    inputs = [int(each) for each in operator.inputs]
                    if self.how == "dynamic" and code in DYNAMIC:
                        inputs[about.weights] = whole
                        precision = "int8"
                        version = {"FULLY_CONNECTED": 9, "CONV_2D": 5, "DEPTHWISE_CONV_2D": 6}
                        operator.opcodeIndex = files.opcode(self.model, code, version[code])
                        if code == "FULLY_CONNECTED":
                            operator.builtinOptions.asymmetricQuantizeInputs = True
                    else:
                        if whole not in widened:
                            widened[whole] = self._twin(index, b"/widened")
                            cast = files.operator(
                                self.model, "DEQUANTIZE", [whole], [widened[whole]], version=5
                            )
                            first.append((cast, None, "fp32"))
                        inputs[about.weights] = widened[whole]
                    operator.inputs = inputs
            self.made.append((operator, place, precision))
        self.made = first + self.made
        return self._response({})

    # --- tensors ---------------------------------------------------------------------------------

    def _name(self, index: int) -> bytes:
        name: bytes = self.graph.tensors[index].name
        return name

    def _twin(self, index: int, ending: bytes) -> int:
        """A float tensor of the shape of another."""
        given = self.graph.tensors[index]
        tensor = files.schema().TensorT()
        tensor.name, tensor.shape = given.name + ending, given.shape
        tensor.shapeSignature = given.shapeSignature
        tensor.hasRank = given.hasRank
        tensor.type, tensor.buffer = files.schema().TensorType.FLOAT32, 0
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _add(self, name: bytes, shape: Sequence[int], value: np.ndarray) -> int:
        """A constant of int8 or int32."""
        import numpy as np

        schema = files.schema()
        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        self.model.buffers.append(buffer)
        kinds = {1: schema.TensorType.INT8, 4: schema.TensorType.INT32}
        tensor.name, tensor.shape, tensor.type = name, list(shape), kinds[value.itemsize]
        tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _describe(self, index: int, scales: np.ndarray, zeros: np.ndarray, axis: int = 0) -> None:
        about = files.schema().QuantizationParametersT()
        about.scale = [float(scale) for scale in scales]
        about.zeroPoint = [int(zero) for zero in zeros]
        about.quantizedDimension = axis
        self.graph.tensors[index].quantization = about

    def _to_int8(self, index: int, form: Form) -> None:
        """A tensor becomes int8."""
        import numpy as np

        self.graph.tensors[index].type = files.schema().TensorType.INT8
        self._describe(index, np.array([form.scale]), np.array([form.zero_point]))
        self.forms[index] = form

    def _narrowed(self, index: int, form: Form | None) -> int:
        """A tensor in int8, in this form or, with None, in the one that it has or that fits it."""
        import numpy as np

        value = self.constant(index)
        if value is not None:
            form = form or self._form_of_range(self._range(index))
            key = (index, "constant", form)
            if key not in self.stored:
                whole = np.rint(value.astype(np.float64) / form.scale) + form.zero_point
                whole = np.clip(whole, -128, 127).astype(np.int8)
                self.stored[key] = self._add(self._name(index) + b"/int8", value.shape, whole)
                self._to_int8(self.stored[key], form)
            return self.stored[key]
        own = self.forms.get(index)
        form = form or own or self._form_of_range(self.ranges[index])
        if own == form:
            return index
        twins = self.narrow.setdefault(index, {})
        if form not in twins:
            twin = self._twin(index, b"/int8" if own is None else b"/rescaled")
            self._to_int8(twin, form)
            self._convert("QUANTIZE", index, twin)
            twins[form] = twin
        return twins[form]

    def _widened(self, index: int) -> int:
        """An int8 tensor in float32."""
        if index not in self.wide:
            self.wide[index] = self._twin(index, b"/float32")
            self._convert("DEQUANTIZE", index, self.wide[index])
        return self.wide[index]

    def _convert(self, code: str, source: int, result: int) -> None:
        operator = files.operator(self.model, code, [source], [result], version=2)
        self.made.append((operator, None, "fp32" if code == "DEQUANTIZE" else "int8"))


if __name__ == "__main__":
    main(*sys.argv[1:])
