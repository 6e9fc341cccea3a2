"""Makes the ONNX files of an artifact: in float32, with types, with Q/DQ, and their recipe.

A board builds its engine itself, and which file it takes its TensorRT decides: up to 10 a precision
is an option, and the file is in float32; from 11 on types stand in the file. So an artifact has
both, as far as they differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.artifact import Layer
from wherry.errors import ModelError, UnsupportedError
from wherry.keep import kept_nodes
from wherry.normalise import LEAST_OPSET, OPSET
from wherry.normalise.expand import set_opset
from wherry.normalise.prove import Proof
from wherry.onnx_file import default_opset
from wherry.quantize.form import TENSORRT
from wherry.quantize.given import float_model, is_quantised
from wherry.quantize.qdq import insert_qdq
from wherry_tensorrt.engines import RANGES, RECIPE
from wherry_tensorrt.graphs import Port, open_axes, set_ports, write_hard_swish
from wherry_tensorrt.retype import Half, retype

if TYPE_CHECKING:
    import onnx

    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model
    from wherry.normalise import Normalised

MODEL, TYPED = "model.onnx", "typed.onnx"
"""Names of the files: in float32, and with the types of the precision."""

GIVEN = "as given"

MOST = 17
"""The opset of the file for TensorRT up to 10: what 8.5 and 8.6 know."""
LEAST = 13
"""With it QuantizeLinear has an axis."""
_TYPED_LEAST, _TYPED_MOST = 19, 20  # of the file with types: Q/DQ in half; what 10 knows
_HALF: Mapping[str, Half] = {"fp16": "float16", "bf16": "bfloat16", "int8": "float16"}
_NO_LAYERS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Constant"})


@dataclass
class Graph:
    """A graph on its way to a file.

    Attributes:
        proto: of which parts may be rewritten in place.
        nodes: its nodes to those of the given model.
        quantised: names of nodes that take whole numbers.
        keep: names of those that stay in float32.
    """

    proto: onnx.ModelProto
    nodes: dict[str, tuple[str, ...]]
    quantised: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()


@dataclass
class Made:
    """What was written.

    Attributes:
        inputs: ports.
        outputs: likewise.
        layers: the nodes of the files.
        recipe: what ``RECIPE`` says.
        notes: for the artifact's provenance.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...]
    recipe: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


def make(
    model: Model,
    precision: str,
    options: Mapping[str, Any],
    keep_fp32: Sequence[Any],
    calibration: Calibration | None,
    context: StepContext,
) -> Made:
    """Write the files of an artifact into ``context.output``.

    Args:
        model: with static shapes.
        precision: the target's.
        options: the backend's, as JSON values.
        keep_fp32: the entries of that option.
        calibration: of int8.
        context: of the step.

    Raises:
        UnsupportedError: the model cannot be written so.
    """
    source = _Source(model, precision, options, keep_fp32, calibration, context)
    plain = source.graph(typed=False)
    half = _HALF.get(precision)
    wants_typed = half is not None and not (
        precision == "int8" and (options["int8_rest"] == "fp32" or source.implicit)
    )
    typed = None
    if wants_typed:
        try:
            typed = source.graph(typed=True)
        except UnsupportedError as error:  # TensorRT up to 10 does without
            context.warn(f"there is no file for TensorRT 11: {error}")
    notes: dict[str, Any] = {"opset": default_opset(plain.proto)}
    if typed is not None and half is not None:
        notes |= _write_typed(typed, half, context)
    graphs = [(plain, MODEL), *([(typed, TYPED)] if typed is not None else [])]
    for graph, _ in graphs:
        graph.nodes |= {
            part: graph.nodes.get(whole, ())
            for part, whole in write_hard_swish(graph.proto).items()
        }
    inputs, outputs = set_ports(plain.proto)
    names = {port.onnx: port.runtime for port in (*inputs, *outputs)}
    shapes = _shapes(model, options["shapes"], names)
    for graph, name in graphs:
        if graph is typed:
            set_ports(graph.proto)
        if shapes:
            _open(graph.proto, shapes, model, context)
        _save(graph.proto, context.output / name)
    if source.implicit:
        assert calibration is not None  # the backend says so
        ranges = {names.get(t, t): calibration.threshold(t) for t in calibration.ranges}
        (context.output / RANGES).write_text(json.dumps(ranges))
    recipe = {
        "precision": precision,
        "model": MODEL,
        "typed": TYPED if typed is not None else "",
        "quantised": source.how,
        "keep": sorted(plain.keep),
        "rest": options["int8_rest"],
        "shapes": shapes,
    }
    (context.output / RECIPE).write_text(json.dumps(recipe, indent=1))
    notes["quantised"] = source.note
    return Made(inputs, outputs, _layers(plain, typed, precision, options), recipe, notes)


class _Source:
    """Graphs of the given model: in the normal form, or as they came."""

    def __init__(
        self,
        model: Model,
        precision: str,
        options: Mapping[str, Any],
        keep_fp32: Sequence[Any],
        calibration: Calibration | None,
        context: StepContext,
    ) -> None:
        self.model, self.precision, self.context = model, precision, context
        self.calibration = calibration
        self.kept = kept_nodes(model, keep_fp32)
        self.implicit = precision == "int8" and options["int8"] == "implicit"
        self.how = ("implicit" if self.implicit else "explicit") if precision == "int8" else ""
        self.note = self.how
        self.as_given = False
        self.plain: Graph | None = None
        if precision == "int8" and is_quantised(model):
            why = "" if not (self.kept or self.implicit) else "options of this target change it"
            why = why or unlike_nvidia(model.proto())
            self.as_given = not why
            self.note = GIVEN if self.as_given else f"anew, with its ranges: {why}"
            if why:
                self.model, self.calibration = float_model(model, context.scratch)

    def graph(self, *, typed: bool) -> Graph:
        """A graph for the file with types, or for the one in float32, which comes first."""
        if self.as_given:
            return self._given(typed=typed)
        half_qdq = typed and self.precision == "int8"
        if half_qdq and self.plain is not None:
            raised, problem = self._raised(self.plain.proto)
            if not problem:  # weights are not rounded again
                return replace(self.plain, proto=raised, nodes=dict(self.plain.nodes))
        also = (
            (f"{LEAST_OPSET}{_TYPED_LEAST}", f"{OPSET}{_TYPED_MOST}")
            if half_qdq
            else (f"{LEAST_OPSET}{LEAST}", f"{OPSET}{MOST}")
        )
        normal = self.context.normalised(self.model, also)
        self._check_opset(normal, _TYPED_LEAST if half_qdq else LEAST, strict=self.how != "")
        keep = frozenset(n for n, nodes in normal.nodes.items() if self.kept.intersection(nodes))
        proto, nodes = normal.model.proto(), dict(normal.nodes)
        quantised: frozenset[str] = frozenset()
        if self.how == "explicit":
            assert self.calibration is not None  # the backend says so
            made = insert_qdq(proto, self.calibration, TENSORRT, keep)
            proto, quantised = made.proto, made.nodes
            if not quantised and not typed:
                self.context.warn(
                    "nothing of this model is quantised: see the operators in the docs"
                )
        self.plain = Graph(proto, nodes, quantised, keep)
        return self.plain

    def _check_opset(self, normal: Normalised, least: int, *, strict: bool) -> None:
        opset = default_opset(normal.model.proto())
        if strict and 0 < opset < least:
            raise UnsupportedError(
                f"int8 for TensorRT wants opset {least}, and this model (opset "
                f"{self.model.opset}) is not the same in it: {'; '.join(normal.warnings)}",
                remedy=f"Export the model with opset {least} or newer.",
            )

    def _raised(self, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
        """The same in the opset in which Q/DQ know half; and why it would not be the same."""
        if default_opset(proto) >= _TYPED_LEAST:
            return proto, ""
        proof = Proof(proto, self.model.inputs)
        problem = ""
        for raise_it in (_renumbered, _converted):
            try:
                raised = raise_it(proto)
                problem = proof.difference(raised)
            except (ModelError, RuntimeError) as error:  # RuntimeError: the converter's
                problem = " ".join(str(error).split())
            if not problem:
                return raised, ""
        return proto, problem

    def _given(self, *, typed: bool) -> Graph:
        """A model whose Q/DQ are NVIDIA's stays what it is; for types its opset may be raised."""
        proto = self.model.proto()
        if typed:
            proto, problem = self._raised(proto)
            if problem:
                raise UnsupportedError(
                    f"for TensorRT 11 the model has to be of opset {_TYPED_LEAST}, and would not "
                    f"be the same in it: {problem}",
                    remedy=f"Export it with opset {_TYPED_LEAST} or 20, or set int8_rest: fp32.",
                )
        nodes: dict[str, tuple[str, ...]] = {n.name: (n.name,) for n in proto.graph.node}
        makers = {name: node for node in proto.graph.node for name in node.output}
        quantised = frozenset(
            node.name
            for node in proto.graph.node
            if node.input
            and node.input[0] in makers
            and makers[node.input[0]].op_type == "DequantizeLinear"
        )
        return Graph(proto, nodes, quantised)


def _renumbered(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes in the newer opset: most mean the same."""
    import onnx

    raised = onnx.ModelProto()
    raised.CopyFrom(proto)
    set_opset(raised, _TYPED_LEAST)
    return raised


def _converted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """By ONNX's converter, for what is written otherwise there; RuntimeError where it cannot."""
    from onnx import version_converter

    converted: onnx.ModelProto = version_converter.convert_version(proto, _TYPED_LEAST)
    return converted


def unlike_nvidia(proto: onnx.ModelProto) -> str:
    """What of a quantised model NVIDIA's parser does not take; "": nothing is known of."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    if default_opset(proto) < LEAST:
        return f"it is of opset {default_opset(proto)}"
    for node in proto.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            if node.op_type.startswith(("QLinear", "QGemm", "DynamicQuantize")) or (
                node.op_type.endswith("Integer")
            ):
                return f"{node.op_type} {node.name!r} computes in whole numbers"
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None:
            return f"{node.op_type} {node.name!r} is of uint8"
        values = numpy_helper.to_array(zero)
        if values.dtype != np.int8 or values.any():
            return f"{node.op_type} {node.name!r} is of {values.dtype}" + (
                " with a zero point" if values.any() else ""
            )
    return ""


def _write_typed(graph: Graph, half: Half, context: StepContext) -> dict[str, Any]:
    """Give a graph its types; what is to be told of that."""
    made = retype(graph.proto, half, graph.keep)
    graph.proto = made.proto
    notes: dict[str, Any] = {"typed_opset": default_opset(made.proto)}
    if made.kept:
        notes["float32_nodes"] = made.kept
        context.warn(
            f"{len(made.kept)} nodes stay in float32 where types stand in the file, because a "
            f"constant is beyond float16's range (65504): {', '.join(made.kept[:5])}"
        )
    if made.clamped:
        notes["clamped"] = made.clamped
        context.warn(f"bounds beyond float16's range became 65504: {', '.join(made.clamped[:5])}")
    return notes


# --- shapes --------------------------------------------------------------------------------------


def _shapes(
    model: Model, asked: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> dict[str, dict[str, list[int]]]:
    """The option ``shapes`` by the names of the file; the usual shape is the model's own."""
    own = {spec.name: list(spec.static_shape) for spec in model.inputs}
    found: dict[str, dict[str, list[int]]] = {}
    for each in asked:
        name, least, most = each["input"], list(each["min"]), list(each["max"])
        if name not in own:
            raise UnsupportedError(
                f"shapes names the input {name!r}, and the model has {', '.join(own)}",
                remedy="Correct the name.",
            )
        usual = own[name]
        if not (
            len(least) == len(usual) == len(most)
            and all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        ):
            raise UnsupportedError(
                f"shapes of {name!r}: {usual}, which is measured, is not between {least} and "
                f"{most}",
                remedy="Give as many axes as the input has, the least and the greatest of each.",
            )
        found[names[name]] = {"min": least, "opt": usual, "max": most}
    if found:
        for name, usual in own.items():
            found.setdefault(names[name], {"min": usual, "opt": usual, "max": usual})
    return found


def _open(
    proto: onnx.ModelProto,
    shapes: Mapping[str, Mapping[str, list[int]]],
    model: Model,
    context: StepContext,
) -> None:
    """Open the axes, and see that the graph runs at both ends.

    Raises:
        UnsupportedError: it does not.
    """
    from wherry.reference import open_session, run_session

    open_axes(proto, shapes)
    if default_types(proto):
        return  # ONNX Runtime has no kernels for bfloat16; the float32 file has the same axes
    context.progress("trying the least and the greatest shapes")
    path = context.scratch / "open.onnx"
    _save(proto, path)
    generator = np.random.default_rng(0)
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    kind = "open"
    try:
        session = open_session(str(path), threads=1, where=str(path), as_written=True)
        for kind in ("min", "max"):
            given = {
                name: generator.standard_normal(spec[kind]).astype(
                    np.float32 if kinds[name] == 1 else np.int32
                )
                for name, spec in shapes.items()
            }
            run_session(session, given, where=str(path))
    except ModelError as error:
        raise UnsupportedError(
            f"the model does not run at the {kind} shapes: {error.message}",
            where=str(model.path),
            remedy="It may hold sizes as constants: leave shapes out, or export it with open axes.",
        ) from error


def default_types(proto: onnx.ModelProto) -> bool:
    """Whether bfloat16 stands in a graph."""
    from onnx import TensorProto

    return any(t.data_type == TensorProto.BFLOAT16 for t in proto.graph.initializer)


def _save(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    large = proto.ByteSize() > 2_000_000_000  # bytes; protobuf's own limit is 2**31 - 1
    onnx.save(proto, path, save_as_external_data=large, location=f"{path.name}.data")


# --- layers --------------------------------------------------------------------------------------


def _layers(
    plain: Graph, typed: Graph | None, precision: str, options: Mapping[str, Any]
) -> tuple[Layer, ...]:
    """The nodes of the files; TensorRT fuses them on the board, and is told by the first."""
    rest = options["int8_rest"] if precision == "int8" else precision
    found: dict[str, Layer] = {}
    for graph in filter(None, (plain, typed)):
        for node in graph.proto.graph.node:
            if node.op_type in _NO_LAYERS or node.name in found:
                continue
            kind = "fp32" if node.name in graph.keep else rest
            if node.name in graph.quantised:
                kind = "int8"
            if precision == "int8" and not graph.quantised:
                kind = "int8"  # implicit: TensorRT chooses
            found[node.name] = Layer(
                node.name, node.op_type, graph.nodes.get(node.name, ()), {}, kind
            )
    return tuple(found.values())
