"""Models: an ONNX file with its typed inputs and outputs, identified by the hash of its bytes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import ModelError

if TYPE_CHECKING:
    import onnx

DTYPES = {"bool"} | {
    f"{kind}{bits}"
    for kind in ("float", "int", "uint")
    for bits in (8, 16, 32, 64)
    if (kind, bits) != ("float", 8)
}
"""Of inputs and outputs: those that numpy has of itself."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: the ONNX name.
        dtype: numpy's name of the element type, e.g. ``float32``.
        shape: each axis a number, or the symbol of a dynamic one (``?`` where it has no name).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape, where every axis is a number; raises ValueError otherwise."""
        return tuple(int(axis) for axis in self.shape)


@dataclass(frozen=True)
class Model:
    """An ONNX file.

    Attributes:
        path: the file; external data lies beside it.
        digest: sha256, hex, over the file's bytes and those of its external data.
        inputs: without those that are initializers.
        outputs: in order.
        opset: version of ONNX's default domain.
        ir_version: of the file.
        metadata: of the file, what its maker or a pass noted there: key to value.
    """

    path: Path
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, path: Path) -> Model:
        """Read and check a file; raises `wherry.errors.ModelError`."""
        from wherry import onnx_file

        with onnx_file.texts(path):
            proto, digest = onnx_file.read(path)
            onnx_file.check(path, proto)
            constants = {tensor.name for tensor in proto.graph.initializer}
            inputs = [value for value in proto.graph.input if value.name not in constants]
            for word, values in (("inputs", inputs), ("outputs", proto.graph.output)):
                if not values:
                    raise ModelError(
                        f"the model has no {word}",
                        where=str(path),
                        remedy="wherry runs networks that make outputs from inputs.",
                    )
            return cls(
                path=path,
                digest=digest,
                inputs=tuple(_spec(path, value, "input") for value in inputs),
                outputs=tuple(_spec(path, value, "output") for value in proto.graph.output),
                opset=onnx_file.default_opset(proto),
                ir_version=proto.ir_version,
                metadata={entry.key: entry.value for entry in proto.metadata_props},
            )

    def proto(self) -> onnx.ModelProto:
        """The parsed file, external data loaded; a new one at each call, to be changed at will.

        Raises:
            ModelError: the file is not any more what was loaded.
        """
        from wherry import onnx_file

        proto, digest = onnx_file.read(self.path)
        if digest != self.digest:
            raise ModelError(
                "the file has changed since it was first read",
                where=str(self.path),
                remedy="Run again.",
            )
        return proto

    def operators(self) -> Mapping[str, tuple[str, ...]]:
        """Every operator in the model with the names of its nodes, in order of appearance.

        Nested graphs and the bodies of functions are included. An operator is ``Conv``, or
        ``com.microsoft::FusedConv`` outside ONNX's own domain. Nodes without a name have the one
        that `with_static_shapes` gives them.
        """
        return self._operators

    @cached_property
    def _operators(self) -> dict[str, tuple[str, ...]]:
        proto = self.proto()
        _normalise(proto)
        found: dict[str, list[str]] = {}
        for node in _nodes(proto.graph):
            domain = "" if node.domain in {"", "ai.onnx"} else f"{node.domain}::"
            found.setdefault(domain + node.op_type, []).append(node.name)
        return {operator: tuple(names) for operator, names in found.items()}

    def listed(self, most: int = 5) -> str:
        """The first nodes with their operators, for people: ``Conv (node 'c'), ...``."""
        found = [
            f"{kind} (node {name!r})" for kind, names in self.operators().items() for name in names
        ]
        return ", ".join(found[:most]) + (", ..." if len(found) > most else "")

    def with_static_shapes(self, shapes: Mapping[str, tuple[int, ...]], directory: Path) -> Model:
        """Write a copy that every converter can take: ``directory/model.onnx``.

        It has the same bytes whenever it is made. All inputs and outputs have static shapes: an
        input's are those given, else a leading axis without a number is 1. A symbol means the same
        number wherever it stands. Every node has a name of its own, functions are inlined, and
        weights, external ones too, are constants inside the file.

        Args:
            shapes: input name to shape, for inputs with other axes without a number.
            directory: an existing folder.

        Raises:
            ModelError: a shape is missing, contradicts the model, or names no input; the shape of
                an output depends on the data.
        """
        import onnx

        from wherry import onnx_file

        proto = self.proto()
        known = self._bind(shapes)
        _normalise(proto)
        for value in proto.graph.input:
            _set_shape(value, known[value.name])
        # Shapes with symbols would be kept beside the numbers that are now inferred.
        inner = [value for value in proto.graph.value_info if _is_static(value)]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(inner)
        for value in proto.graph.output:
            if not _is_static(value):
                value.type.tensor_type.ClearField("shape")
        try:
            proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise ModelError(
                f"the model does not take these input shapes, {known}: "
                f"{onnx_file.shorten(str(error))}",
                where=str(self.path),
                remedy="Correct `model.inputs.NAME.shape` in the manifest.",
            ) from error
        _find_output_shapes(proto, self)
        path = directory / "model.onnx"
        part = directory / "model.onnx.part"
        part.write_bytes(proto.SerializeToString(deterministic=True))
        os.replace(part, path)  # noqa: PTH105 -- Path.replace would return the path, unused
        return Model.load(path)

    def _bind(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The static shape of every input."""
        specs = {spec.name: spec for spec in self.inputs}
        for name in shapes:
            if name not in specs:
                raise self._no_input(name)
        symbols: dict[str, int] = {}
        for name, shape in shapes.items():
            said = specs[name].shape
            fits = len(shape) == len(said) and min(shape, default=1) > 0
            for symbol, size in zip(said, shape, strict=False):
                if isinstance(symbol, str):
                    fits &= symbol == "?" or symbols.setdefault(symbol, size) == size
                else:
                    fits &= symbol == size
            if not fits:
                raise ModelError(
                    f"input {name!r} cannot have the shape {_text(shape)}: the model says "
                    + _text(said)
                    + (f", with {symbols}" if symbols else ""),
                    where=str(self.path),
                    remedy=f"Correct `model.inputs.{name}.shape` in the manifest.",
                )
        for spec in self.inputs:
            if spec.shape and isinstance(spec.shape[0], str) and spec.name not in shapes:
                symbols.setdefault(spec.shape[0], 1)
        return {
            spec.name: tuple(
                shapes.get(spec.name)
                or (self._size(spec, axis, symbols) for axis in range(len(spec.shape)))
            )
            for spec in self.inputs
        }

    def _size(self, spec: TensorSpec, axis: int, symbols: Mapping[str, int]) -> int:
        size = spec.shape[axis]
        if isinstance(size, int):
            return size
        if axis == 0 and size == "?":
            return 1
        if size != "?" and size in symbols:
            return symbols[size]
        key = f"model.inputs.{spec.name}.shape"
        raise ModelError(
            f"input {spec.name!r} has the shape {_text(spec.shape)}, and axis {axis} ({size}) "
            "has no number",
            where=str(self.path),
            remedy=f"Give the whole shape in the manifest, as `{key}`.",
        )

    def _no_input(self, name: str) -> ModelError:
        names = [spec.name for spec in self.inputs]
        near = difflib.get_close_matches(name, names, 1)
        return ModelError(
            f"the model has no input {name!r}; it has {', '.join(map(repr, names))}",
            where=str(self.path),
            remedy=f"Did you mean {near[0]!r}?" if near else "Correct the name.",
        )


def _text(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _spec(path: Path, value: onnx.ValueInfoProto, word: str) -> TensorSpec:
    import onnx

    kind = value.type.WhichOneof("value")
    tensor = value.type.tensor_type
    name = "?"
    if kind == "tensor_type" and tensor.elem_type:
        number = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        name = (
            number.name
            if number.name in DTYPES
            else onnx.TensorProto.DataType.Name(tensor.elem_type)
        )
    if name not in DTYPES:
        what = (kind or "untyped").removesuffix("_type") if kind != "tensor_type" else name.lower()
        raise ModelError(
            f"{word} {value.name!r} is of type {what}, and wherry exchanges tensors of numbers",
            where=str(path),
            remedy="Cut or cast it in the network, and export that.",
        )
    return TensorSpec(value.name, name, tuple(_axis(dim) for dim in tensor.shape.dim))


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    """0 and -1 are what some exporters write for an axis without a number."""
    return dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?"


def _is_static(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim)


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    value.type.tensor_type.shape.ClearField("dim")
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def _normalise(proto: onnx.ModelProto) -> None:
    """Inline functions, make initializers constants, and give every node a name of its own."""
    import onnx.inliner

    if proto.functions:
        proto.CopyFrom(onnx.inliner.inline_local_functions(proto))
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) < len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.ir_version = max(proto.ir_version, 4)  # before, every initializer had to be an input
    taken = {node.name for node in _nodes(proto.graph)}
    seen: set[str] = set()
    for node in _nodes(proto.graph):
        if not node.name or node.name in seen:
            # After an output, whose name passes keep, rather than after its place, which they move.
            base = node.name or f"{node.op_type}_{next(filter(None, node.output), '')}"
            node.name = next(
                name
                for number in range(len(taken) + 2)
                if (name := f"{base}_{number}" if number else base) not in taken
            )
            taken.add(node.name)
        seen.add(node.name)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, each followed by those of the graphs nested in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for nested in attribute.graphs:
                yield from _nodes(nested)


def _find_output_shapes(proto: onnx.ModelProto, model: Model) -> None:
    """Fill in what was not inferred: run twice; a shape that differs depends on the data."""
    if all(_is_static(value) for value in proto.graph.output):
        return
    from wherry.reference import open_session, random_inputs, run_session

    where = str(model.path)
    specs = tuple(_spec(model.path, value, "input") for value in proto.graph.input)
    session = open_session(proto.SerializeToString(), threads=1, where=where)
    runs = [run_session(session, inputs, where=where) for inputs in random_inputs(specs, 2)]
    for value in proto.graph.output:
        first, second = (outputs[value.name].shape for outputs in runs)
        if first != second or 0 in first:
            raise ModelError(
                f"output {value.name!r} is empty"
                if first == second
                else f"the shape of output {value.name!r} depends on the data: {_text(first)} and "
                f"{_text(second)} for two inputs of random numbers",
                where=where,
                remedy="Cut the network before that output, and export what is left.",
            )
        _set_shape(value, first)
