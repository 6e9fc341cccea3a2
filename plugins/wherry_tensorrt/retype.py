"""Writes a float32 graph in float16 or bfloat16, by types in the file, as TensorRT 11 wants.

Inputs and outputs of the model stay float32. A tensor has one type of its own, that in which its
maker gives it, and a cast beside it for readers of the other one; so between nodes that stay in
float32 nothing is cast to half and back. Scales of Q/DQ become half like all other constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import onnx

Half = Literal["float16", "bfloat16"]
_MOST = float(np.finfo(np.float16).max)
_STANDARD = {"", "ai.onnx"}
# Their output's type is an attribute's to say, and may count more than half can.
_TYPED_BY_ATTRIBUTE = frozenset(
    {"Bernoulli", "Cast", "CastLike", "ConstantOfShape", "EyeLike", "Multinomial"}
    | {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# Where a constant is added or compared, one beyond float16 means "very large": float16's
# greatest will do.
_BOUNDS = frozenset({"Add", "Clip", "Concat", "Expand", "Max", "Min", "Pad", "Sub", "Where"})


class Retyped:
    """What `retype` made.

    Attributes:
        proto: the model.
        kept: names of nodes that stay in float32 though nobody asked for it, because a constant
            of theirs is beyond float16.
        clamped: names of constants that became float16's greatest.
    """

    def __init__(self, proto: onnx.ModelProto, kept: list[str], clamped: list[str]) -> None:
        self.proto, self.kept, self.clamped = proto, kept, clamped


def retype(proto: onnx.ModelProto, half: Half, keep: frozenset[str] = frozenset()) -> Retyped:
    """A copy in half.

    Args:
        proto: with named nodes in topological order, weights inside. With Q/DQ it has to be of
            opset 19 or newer: before, these know float32 alone.
        half: the type.
        keep: names of nodes that stay in float32.
    """
    return _Retyper(proto, half, keep).write()


class _Retyper:
    def __init__(self, proto: onnx.ModelProto, half: Half, keep: frozenset[str]) -> None:
        import onnx
        from onnx import TensorProto, numpy_helper

        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.half, self.keep = half, keep
        self.types = {"half": getattr(TensorProto, half.upper()), "float": TensorProto.FLOAT}
        graph = self.proto.graph
        _lift_constants(graph)
        inferred = onnx.shape_inference.infer_shapes(self.proto).graph
        self.floats = {
            value.name
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self.outputs = {value.name for value in graph.output}
        self.versions = {entry.domain: entry.version for entry in proto.opset_import}
        self.taken = set(_all_names(graph))
        self.home: dict[str, str] = {}  # float tensor to the type in which it is given
        self.casts: dict[tuple[str, str], str] = {}  # tensor and type to its name in that type
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, Any] = {}
        self.kept: list[str] = []
        self.clamped: list[str] = []

    def write(self) -> Retyped:
        graph = self.proto.graph
        for value in graph.input:
            self.home[value.name] = "float"
        for node in graph.node:
            self._node(node)
        self._finish()
        return Retyped(self.proto, self.kept, sorted(set(self.clamped)))

    def _node(self, node: onnx.NodeProto) -> None:
        inner = list(_graphs(node))
        wants, gives = self._wants(node)
        if gives == "half" and self._has_beyond(node, wants):
            wants, gives = ["float"] * len(node.input), "float"
            self.kept.append(node.name)
        for index, name in enumerate(node.input):
            if name and self._is_float(name) and wants[index]:
                node.input[index] = self._read(name, wants[index])
        for each in inner:
            self._rename_inside(each)
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if name and name in self.floats:
                self._give(node, index, name, gives)

    def _wants(self, node: onnx.NodeProto) -> tuple[list[str], str]:
        """The type that each input is wanted in, "" for what it has, and that of the outputs."""
        import onnx

        floats = ["float"] * len(node.input)
        if node.op_type == "Cast":
            return [""] * len(node.input), "float"
        if node.name in self.keep or node.op_type in _TYPED_BY_ATTRIBUTE:
            return floats, "float"
        if any(True for _ in _graphs(node)) or node.domain not in _STANDARD:
            return floats, "float"
        try:
            schema = onnx.defs.get_schema(node.op_type, self.versions[node.domain], "")
        except onnx.defs.SchemaError:
            return floats, "float"
        allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}

        def may(kind: str) -> bool:
            return "tensor(float16)" in allowed.get(kind, ())

        formal = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(node.input))]
        float_inputs = [
            each.type_str
            for each, name in zip(formal, node.input, strict=True)
            if name and self._is_float(name)
        ]
        given = schema.outputs[0].type_str if schema.outputs else ""
        if not may(given) and any(name in self.floats for name in node.output):
            return floats, "float"
        if float_inputs and not any(map(may, float_inputs)):
            return floats, "float"
        return ["half" if may(each.type_str) else "float" for each in formal], "half"

    def _is_float(self, name: str) -> bool:
        return name in self.constants or name in self.floats

    def _has_beyond(self, node: onnx.NodeProto, wants: list[str]) -> bool:
        """Whether a constant is beyond float16 where its value counts; bounds are clamped."""
        if self.half != "float16" or node.op_type in _BOUNDS:
            return False
        return any(
            name in self.constants and want == "half" and _is_beyond(self.constants[name])
            for name, want in zip(node.input, wants, strict=True)
        )

    def _read(self, name: str, want: str) -> str:
        """A tensor's name in a type; a cast is written where it has none."""
        if name in self.constants:
            return self._constant(name, want)
        if self.home.get(name, "float") == want:
            return name
        found = self.casts.get((name, want))
        if found is None:
            found = self.casts[name, want] = self._fresh(f"{name}/{self._word(want)}")
            self._cast(name, found, want)
        return found

    def _constant(self, name: str, want: str) -> str:
        import onnx

        if want == "float":
            self.added.setdefault(name, None)
            return name
        found = self.casts.get((name, want))
        if found is None:
            found = self.casts[name, want] = self._fresh(f"{name}/{self._word(want)}")
            values = self.constants[name]
            if self.half == "float16" and _is_beyond(values):
                self.clamped.append(name)
                values = np.clip(values, -_MOST, _MOST)
            self.added[found] = onnx.TensorProto(
                name=found,
                data_type=self.types["half"],
                dims=values.shape,
                raw_data=self._bytes(values),
            )
        return found

    def _bytes(self, values: np.ndarray) -> bytes:
        """In half, rounded to the nearest even, little-endian."""
        if self.half == "float16":
            return values.astype("<f2").tobytes()
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()

    def _give(self, node: onnx.NodeProto, index: int, name: str, gives: str) -> None:
        self.home[name] = gives
        if gives == "half" and name in self.outputs:
            node.output[index] = self.casts[name, "half"] = self._fresh(f"{name}/{self.half}")
            self.home[name] = "float"
            self._cast(node.output[index], name, "float")

    def _cast(self, source: str, out: str, to: str) -> None:
        import onnx

        name = self._fresh(f"{out}/Cast")
        self.nodes.append(
            onnx.helper.make_node("Cast", [source], [out], name=name, to=self.types[to])
        )

    def _rename_inside(self, graph: onnx.GraphProto) -> None:
        """Graphs inside of nodes stay in float32, and read tensors of the outer one so."""
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name in self.home or name in self.constants:
                    node.input[index] = self._read(name, "float")
            for each in _graphs(node):
                self._rename_inside(each)
        for value in graph.output:
            if value.name in self.constants:
                self.added.setdefault(value.name, None)

    def _word(self, want: str) -> str:
        return self.half if want == "half" else "float32"

    def _fresh(self, name: str) -> str:
        found, number = name, 0
        while found in self.taken:
            number += 1
            found = f"{name}_{number}"
        self.taken.add(found)
        return found

    def _finish(self) -> None:
        """Put all in place; what is stored of other types than float32 stays as it is."""
        graph = self.proto.graph
        reads = {name for node in self.nodes for name in node.input} | self.outputs
        initializers = [
            tensor
            for tensor in graph.initializer
            if tensor.name not in self.constants
            or tensor.name in self.added
            or tensor.name in reads
        ]
        initializers += [tensor for tensor in self.added.values() if tensor is not None]
        values = [v for v in graph.value_info if v.name not in self.floats]
        values += [
            v
            for v in graph.value_info
            if v.name in self.floats and self.home.get(v.name) == "float"
        ]
        for part, filling in (
            (graph.node, self.nodes),
            (graph.initializer, initializers),
            (graph.value_info, values),
        ):
            copied = [type(each).FromString(each.SerializeToString()) for each in filling]
            del part[:]
            part.extend(copied)


def _is_beyond(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(np.abs(finite).max(initial=0) > _MOST)


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Float Constant nodes become initializers, which have no type of their own to keep."""
    import onnx
    from onnx import numpy_helper

    for node in [node for node in graph.node if node.op_type == "Constant"]:
        (attribute,) = node.attribute
        if attribute.name in {"value_float", "value_floats"}:
            value = onnx.helper.get_attribute_value(attribute)
            tensor = numpy_helper.from_array(np.asarray(value, np.float32), node.output[0])
        elif attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
            tensor = numpy_helper.from_array(numpy_helper.to_array(attribute.t), node.output[0])
        else:
            continue
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    for part in (graph.input, graph.output, graph.initializer):
        yield from (entry.name for entry in part)
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for inner in _graphs(node):
            yield from _all_names(inner)
