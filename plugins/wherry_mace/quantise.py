"""A float network in MACE's 8 bits: whole numbers from 0 to 255, a scale and a zero point a tensor.

Convolutions, depthwise ones and products with weights are computed in 8 bits, and so are the
poolings, sums and concatenations between them; all else stays in float32, with Quantize and
Dequantize where the two meet. Activations have the ranges of the calibration. Weights have one
scale for all of a tensor (MACE has no scales of channels) and never the whole number 0, which
MACE's products do not allow; biases are 32 bits in steps of both scales.

MACE keeps all of a quantised network in NHWC, and its float operations compute in NCHW: these keep
their tensors as they are written here, and Transposes stand between the two. Two traps are kept
clear of: MACE's FullyConnected forgets the zero point of its result on processors other than ARM,
so that a product is written as a convolution with a window of the whole picture; and its Relu in 8
bits exists on ARM alone, so that the saturation of the operation before does its work.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wherry.quantize.weights import MOST, quantise_weight
from wherry_mace.format import FLOAT, UINT8, Constant, Net, Op, Quantisation, Value, nhwc
from wherry_mace.translate import CONSTANTS_IN_NHWC

if TYPE_CHECKING:
    import numpy as np

Range = tuple[float, float]

CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2d"})
ACTIVATIONS = frozenset({"RELU", "RELUX"})
"""Those that a saturation does."""
_SUM, _SUB = 0, 1
_MIDDLE = 128
_MOST_BIAS = 2**31 - 1


@dataclass(frozen=True)
class Quantised:
    """What became of a network.

    Attributes:
        net: the network.
        unknown: heavy operations that stay in float32 because a range is not known, or because
            their scales are none that MACE can take.
    """

    net: Net
    unknown: tuple[str, ...] = ()


def quantise(
    net: Net, ranges: Mapping[str, Range], bounds: Mapping[str, str], kept: Collection[str]
) -> Quantised:
    """Quantise a float network.

    Args:
        net: the network.
        ranges: tensor to its least and greatest value.
        bounds: tensors without a range of their own to those whose range holds theirs.
        kept: operations that stay in float32.
    """
    return _Pass(net, ranges, bounds, kept).run()


def quantisation(low: float, high: float) -> Quantisation:
    """That of a range, which is widened to hold 0; the scale is a float32."""
    import numpy as np

    low, high = min(0.0, low), max(0.0, high)
    if high == low:
        high = 1.0
    scale = np.float32((high - low) / 255)
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        scale = np.float32(1.0)
    zero_point = round(-low / float(scale))
    return Quantisation(float(scale), min(255, max(0, zero_point)))


@dataclass
class _Pass:
    net: Net
    ranges: Mapping[str, Range]
    bounds: Mapping[str, str]
    kept: Collection[str]
    ops: list[Op] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    whole: dict[str, tuple[str, Quantisation]] = field(default_factory=dict)
    real: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    turned: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.makers = {name: op for op in self.net.ops for name in op.outputs}
        self.takers: dict[str, list[Op]] = {}
        for op in self.net.ops:
            for name in op.inputs:
                self.takers.setdefault(name, []).append(op)
        self.shapes = {tensor.name: tensor.shape for tensor in self.net.inputs}
        for op in self.net.ops:
            self.shapes.update(zip(op.outputs, op.shapes, strict=True))
        self.wanted = {tensor.name for tensor in self.net.outputs}
        self.constants.update(self.net.constants)
        self.pictures = {t.name for t in self.net.inputs if len(t.shape) == 4}
        self.real.update(t.name for t in self.net.inputs if len(t.shape) != 4)
        self.done: set[str] = set()
        self.names = {*self.shapes, *self.net.constants}

    def run(self) -> Quantised:
        for op in self.net.ops:
            if op.name in self.done:
                continue
            if not self._in_whole_numbers(op):
                inputs = tuple(self._given(op, index) for index in range(len(op.inputs)))
                self.ops.append(replace(op, inputs=inputs, free=False, fixed=True))
                self.real.update(op.outputs)
        for tensor in self.net.outputs:
            self._real(tensor.name)
        ops = _needed(self.ops, self.wanted)
        used = {name for op in ops for name in op.inputs}
        constants = {name: value for name, value in self.constants.items() if name in used}
        any_whole = any(op.kind == UINT8 for op in ops)
        if not any_whole:
            return Quantised(self.net, tuple(self.unknown))
        return Quantised(
            replace(self.net, ops=ops, constants=constants, quantised=True), tuple(self.unknown)
        )

    # --- operations ------------------------------------------------------------------------------

    def _in_whole_numbers(self, op: Op) -> bool:
        """Write an operation in 8 bits; False where it stays in float32."""
        if op.name in self.kept:
            return False
        if op.type in CONVOLUTIONS:
            return self._noted(op, self._convolution(op))
        if op.type == "MatMul" and op.inputs[1] in self.net.constants:
            return self._noted(op, self._product(op))
        given = [name in self.whole for name in op.inputs]
        if not all(given):
            return False
        if op.type == "Pooling" and op.arguments["dilations"] == [1, 1]:
            name, found = self.whole[op.inputs[0]]
            self._write(op, (name,), found, op.arguments)
            return True
        if op.type == "Concat" and op.free:
            return self._joined(op)
        if op.type == "Eltwise" and op.arguments["type"] in {_SUM, _SUB}:
            return self._sum(op)
        return False

    def _noted(self, op: Op, written: bool) -> bool:
        if not written:
            self.unknown.append(op.name)
        return written

    def _convolution(self, op: Op) -> bool:
        weight = self.net.constants[op.inputs[1]].values
        dilated = op.arguments.get("dilations", [1, 1]) != [1, 1]
        word = op.arguments.get("activation")
        if (dilated and op.type == "Conv2D") or (word and word not in ACTIVATIONS):
            return False
        found = self._range(op.outputs[0])
        if found is None:
            return False
        made = quantisation(*_saturated(found, word, op.arguments.get("max_limit")))
        axes = (0, 2, 3, 1) if op.type == "Conv2D" else (2, 3, 1, 0)  # OHWI, HWIM
        inputs = self._weighted(op, op.inputs[0], weight, axes, made)
        if inputs is None:
            return False
        self._write(op, inputs, made, op.arguments)
        return True

    def _product(self, op: Op) -> bool:
        """A MatMul [rows, inputs] with weights [outputs, inputs], as a convolution."""
        weight = self.net.constants[op.inputs[1]].values
        shape, output = self.shapes[op.inputs[0]], op.outputs[0]
        found = self._range(output)
        if len(shape) != 2 or op.arguments.get("transpose_b") != 1 or found is None:
            return False
        made = quantisation(*found)
        source, picture = op.inputs[0], (*shape, 1, 1)
        before = self.makers.get(source)
        if before is not None and before.type == "Reshape":
            given = self.shapes[before.inputs[0]]
            if len(given) == 4 and given[0] == shape[0] and before.inputs[0] in self.whole:
                source, picture = before.inputs[0], given
        if source == op.inputs[0]:
            source = f"{op.inputs[0]}/picture"
            if source not in self.shapes:
                self._real(op.inputs[0])
                self.shapes[source] = picture
                self._add("Reshape", source, (op.inputs[0],), nhwc(picture), {"dim": nhwc(picture)})
                self.pictures.add(source)
            self.bounds = {**self.bounds, source: self.bounds.get(op.inputs[0], op.inputs[0])}
        kernels = weight.reshape(len(weight), *picture[1:])
        inputs = self._weighted(op, source, kernels, (0, 2, 3, 1), made)
        if inputs is None:
            return False
        about: dict[str, Value] = {
            "strides": [1, 1],
            "padding_values": [0, 0],
            "dilations": [1, 1],
            "kernels": list(picture[2:]),
            "group": 1,
        }
        wide = (shape[0], len(weight), 1, 1)
        name, column = (self._fresh(f"{output}/{word}") for word in ("whole", "column"))
        self.ops.append(
            replace(
                op, type="Conv2D", inputs=inputs, outputs=(name,), shapes=(wide,), free=True,
                arguments=about, kind=UINT8, quantisations=(made,),
            )
        )  # fmt: skip
        self._add("Dequantize", column, (name,), wide, {}, kind=UINT8, free=True)
        self._add("Reshape", output, (column,), op.shapes[0], {"dim": list(op.shapes[0])})
        self.real.add(output)
        return True

    def _joined(self, op: Op) -> bool:
        found = self._range(op.outputs[0])
        if found is None:
            return False
        inputs = tuple(self.whole[name][0] for name in op.inputs)
        about = {key: value for key, value in op.arguments.items() if key != "has_data_format"}
        self._write(op, inputs, quantisation(*found), about)
        return True

    def _sum(self, op: Op) -> bool:
        """A sum or difference of two alike; with the Relu behind it, which saturates."""
        if len(op.inputs) != 2 or len({self.shapes[name] for name in op.inputs}) != 1:
            return False
        takers = self.takers.get(op.outputs[0], [])
        follows = takers[0] if len(takers) == 1 and op.outputs[0] not in self.wanted else None
        nodes, output, word, limit = op.nodes, op.outputs[0], None, None
        if (
            follows is not None
            and follows.type == "Activation"
            and follows.arguments["activation"] in ACTIVATIONS
            and follows.name not in self.kept
        ):
            nodes, output = (*op.nodes, *follows.nodes), follows.outputs[0]
            word, limit = follows.arguments["activation"], follows.arguments.get("max_limit")
        found = self._range(output)
        if found is None:
            return False
        if word is not None and follows is not None:
            self.done.add(follows.name)
        inputs = tuple(self.whole[name][0] for name in op.inputs)
        about = {key: value for key, value in op.arguments.items() if key != "has_data_format"}
        made = quantisation(*_saturated(found, word, limit))
        self._write(replace(op, nodes=nodes, outputs=(output,)), inputs, made, about)
        return True

    # --- parts -----------------------------------------------------------------------------------

    def _weighted(
        self, op: Op, source: str, weight: np.ndarray, axes: tuple[int, ...], made: Quantisation
    ) -> tuple[str, ...] | None:
        """The inputs of a convolution in 8 bits; None where MACE cannot scale its sums."""
        import numpy as np

        greatest = float(np.abs(weight).max(initial=0))
        given = self._quantisation(source)
        if given is None or not math.isfinite(greatest):
            return None
        scale = float(np.float32(greatest / MOST if greatest else 1.0))
        factor = np.float32(given.scale) * np.float32(scale) / np.float32(made.scale)
        if not 0 < factor < 1:
            return None
        channels = weight if op.type != "DepthwiseConv2d" else weight.transpose(1, 0, 2, 3)
        stored = quantise_weight(channels, np.asarray([scale]), 0)
        if op.type == "DepthwiseConv2d":
            stored = stored.transpose(1, 0, 2, 3)
        values = (stored.astype(np.int16) + _MIDDLE).astype(np.uint8).transpose(axes)
        names = [self._whole(source)]
        name = self._fresh(f"{op.inputs[1]}/whole")
        self.constants[name] = Constant(np.ascontiguousarray(values), Quantisation(scale, _MIDDLE))
        names.append(name)
        if len(op.inputs) > 2:
            step = float(np.float32(given.scale) * np.float32(scale))
            bias = np.rint(self.net.constants[op.inputs[2]].values.astype(np.float64) / step)
            bias = np.clip(bias, -_MOST_BIAS, _MOST_BIAS).astype(np.int32)
            name = self._fresh(f"{op.inputs[2]}/whole")
            self.constants[name] = Constant(bias, Quantisation(step, 0))
            names.append(name)
        return tuple(names)

    def _write(
        self, op: Op, inputs: tuple[str, ...], made: Quantisation, about: Mapping[str, Value]
    ) -> None:
        """An operation whose one result is whole numbers."""
        name = self._fresh(f"{op.outputs[0]}/whole")
        self.ops.append(
            replace(
                op, inputs=inputs, outputs=(name,), free=True, kind=UINT8,
                arguments=about, quantisations=(made,), stands_for=op.outputs[0],
            )
        )  # fmt: skip
        self.whole[op.outputs[0]] = (name, made)

    def _fresh(self, text: str) -> str:
        """A tensor's name that no other has."""
        while text in self.names:
            text += "'"
        self.names.add(text)
        return text

    def _range(self, name: str) -> Range | None:
        found = self.ranges.get(name)
        return found if found is not None else self.ranges.get(self.bounds.get(name, ""))

    def _quantisation(self, name: str) -> Quantisation | None:
        """That a tensor has, or would have."""
        if name in self.whole:
            return self.whole[name][1]
        found = self._range(name)
        return None if found is None else quantisation(*found)

    def _whole(self, name: str) -> str:
        """A tensor in whole numbers."""
        if name not in self.whole:
            made = self._quantisation(name)
            assert made is not None, "asked before"
            target, shape, given = self._fresh(f"{name}/quantised"), self.shapes[name], name
            if len(shape) == 4 and name not in self.pictures:
                given = self._fresh(f"{name}/nhwc")
                self._add("Transpose", given, (name,), nhwc(shape), {"dims": [0, 2, 3, 1]})
            self._add("Quantize", target, (given,), shape, {}, kind=UINT8, free=True, made=made)
            self.whole[name] = (target, made)
        return self.whole[name][0]

    def _real(self, name: str) -> None:
        """See that a tensor is there in float32."""
        if name in self.real or name not in self.whole:
            return
        shape, (source, _) = self.shapes[name], self.whole[name]
        made = self._fresh(f"{name}/nhwc") if len(shape) == 4 else name
        self._add("Dequantize", made, (source,), shape, {}, kind=UINT8, free=True)
        if len(shape) == 4:
            self._add("Transpose", name, (made,), shape, {"dims": [0, 3, 1, 2]})
        self.real.add(name)

    def _given(self, op: Op, index: int) -> str:
        """What a float operation takes, in ONNX's order."""
        name = op.inputs[index]
        if name in self.pictures:  # it lies in NHWC
            if name not in self.turned:
                self.turned[name] = self._fresh(f"{name}/nchw")
                about = {"dims": [0, 3, 1, 2]}
                self._add("Transpose", self.turned[name], (name,), self.shapes[name], about)
            return self.turned[name]
        constant = self.net.constants.get(name)
        turned = index == 0 or op.type in CONSTANTS_IN_NHWC
        if constant is not None and constant.values.ndim == 4 and turned:
            return self._unturned(name, constant.values)
        self._real(name)
        return name

    def _unturned(self, name: str, values: np.ndarray) -> str:
        """A constant that was written in NHWC, in ONNX's order: MACE turns those of four axes."""
        if name not in self.turned:
            values = values.transpose(0, 3, 1, 2)
            flat, made = self._fresh(f"{name}/flat"), self._fresh(f"{name}/nchw")
            self.constants[flat] = Constant(values.reshape(-1))
            self._add("Reshape", made, (flat,), values.shape, {"dim": list(values.shape)})
            self.turned[name] = made
        return self.turned[name]

    def _add(
        self,
        kind_word: str,
        output: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        about: Mapping[str, Value],
        *,
        kind: int = FLOAT,
        free: bool = False,
        made: Quantisation | None = None,
    ) -> None:
        """An operation of wherry's own."""
        taken = {op.name for op in (*self.net.ops, *self.ops)}
        name = f"wherry/{kind_word}/{len(self.ops)}"
        while name in taken:
            name += "_"
        self.ops.append(
            Op(
                kind_word, name, inputs, (output,), (shape,), about, free, not free,
                kind=kind, quantisations=() if made is None else (made,),
            )
        )  # fmt: skip


def _saturated(found: Range, word: Value | None, limit: Value | None) -> Range:
    """The range of what an activation gives."""
    if word is None:
        return found
    low, high = 0.0, max(0.0, found[1])
    if word == "RELUX":
        assert isinstance(limit, float)
        high = min(high, limit)
    return low, high


def _needed(ops: list[Op], wanted: Collection[str]) -> tuple[Op, ...]:
    """Without what nobody takes any more."""
    used, kept = set(wanted), []
    for op in reversed(ops):
        if used.intersection(op.outputs):
            kept.append(op)
            used.update(op.inputs)
    return tuple(reversed(kept))
