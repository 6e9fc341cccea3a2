"""INT8 for ONNX Runtime, on the host: the Q/DQ graph, and what its names mean in the model."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.artifact import Artifact, Binding, Layer
from wherry.errors import UnsupportedError
from wherry.keep import kept_nodes
from wherry.normalise import LEAST_OPSET
from wherry.onnx_file import default_opset
from wherry.quantize.form import ONNXRUNTIME
from wherry.quantize.given import is_quantised
from wherry.quantize.qdq import insert_qdq, quantise_weights

if TYPE_CHECKING:
    import onnx

    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model
    from wherry.target import Target

LEAST = 10
"""The opset that brought Q/DQ and the 8-bit operators that ONNX Runtime makes of them."""

OLDEST = 7
"""The opset from which on operators mean what they mean in that one, but for..."""

RENEWED = frozenset({"Slice", "TopK", "Upsample"})
"""these, which have other inputs there."""

ALSO = (f"{LEAST_OPSET}{LEAST}",)

GIVEN = "given"
"""What ``provenance["quantized"]`` says of a model that came with Q/DQ."""


@dataclass(frozen=True)
class Source:
    """What is handed to the converter, and whose names it has.

    Attributes:
        path: an ONNX file.
        quantized: ``static``, ``weights`` or `GIVEN`; empty: it is float.
        nodes: names of its nodes to those of the model's, where they differ.
        tensors: names of its tensors to those of the model's, where they differ.
    """

    path: Path
    quantized: str = ""
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


def quantise(
    model: Model, target: Target, calibration: Calibration | None, context: StepContext
) -> Source:
    """Write the Q/DQ graph; a model that has Q/DQ already stays what it is.

    Raises:
        UnsupportedError: such a model, and options that would change it.
    """
    how = target.options.model_dump()["quantize"]
    if is_quantised(model):
        asked = "keep_fp32" if target.options.keep_fp32 else ""
        asked = asked or ("quantize: weights" if how == "weights" else "")
        if asked:
            raise UnsupportedError(
                f"the model is quantised already and runs as it is; {asked} cannot be had",
                remedy="Give the network in float32, or leave the option out.",
            )
        return Source(model.path, GIVEN, tensors=_dequantised(model.proto()))
    normal = context.normalised(model, ALSO)
    if 0 < default_opset(normal.model.proto()) < LEAST:
        raise UnsupportedError(
            f"opset {model.opset} has no 8-bit operators, and this model is not the same in opset "
            f"{LEAST}: {'; '.join(normal.warnings)}",
            remedy=f"Export the model with opset {LEAST} or newer.",
        )
    kept = kept_nodes(model, target.options.keep_fp32)
    keep = frozenset(name for name, nodes in normal.nodes.items() if kept.intersection(nodes))
    proto = normal.model.proto()
    if how == "weights":
        made = quantise_weights(proto, keep)
    else:
        assert calibration is not None  # the backend says so
        made = insert_qdq(proto, calibration, ONNXRUNTIME, keep)
    if not made.nodes:
        context.warn("nothing of this model is quantised: see the operators in the docs")
    path = context.scratch / "quantised.onnx"
    _save(made.proto, path)
    nodes = {
        node.name: normal.originals([node.name, *made.absorbed.get(node.name, ())])
        for node in made.proto.graph.node
    }
    return Source(path, how, nodes, made.stored)


def _dequantised(proto: onnx.ModelProto) -> dict[str, str]:
    """Quantised tensors of a given model to what DequantizeLinear makes of them."""
    return {
        node.input[0]: node.output[0]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear"
    }


def _save(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    large = proto.ByteSize() > 2_000_000_000  # bytes; protobuf's own limit is 2**31 - 1
    onnx.save(proto, path, save_as_external_data=large, location=f"{path.name}.data")


# --- layers --------------------------------------------------------------------------------------


def describe(
    found: Iterable[Mapping[str, Any]], model: Model, source: Source, precision: str
) -> tuple[Layer, ...]:
    """The converter's layers in the names of the model.

    A tensor belongs to the layer that does its node: a cast or a DequantizeLinear behind it, where
    that is a layer of its own, has none.
    """
    proto = model.proto()
    makers = {name: node.name for node in proto.graph.node for name in node.output if name}
    known = set(makers.values())
    rows = [
        (
            layer,
            tuple(
                dict.fromkeys(
                    name
                    for each in layer["nodes"]
                    for name in source.nodes.get(each, (each,))
                    if name in known
                )
            ),
        )
        for layer in found
    ]
    owners = {name: place for place, (_, nodes) in enumerate(rows) for name in nodes}
    outputs: list[dict[str, str]] = [{} for _ in rows]
    for place, (layer, _) in enumerate(rows):
        for tensor in layer["tensors"]:
            name = source.tensors.get(tensor, tensor)
            if name not in makers or shape_of(proto, name) is None:
                continue
            owner = owners.get(makers[name], place)
            outputs[owner].setdefault(name, tensor)
    return tuple(
        Layer(layer["name"], layer["type"], nodes, outputs[place], _precision(layer, precision))
        for place, (layer, nodes) in enumerate(rows)
    )


def _precision(layer: Mapping[str, Any], precision: str) -> str:
    """What a layer computes in, by what it gives."""
    types = set(layer["tensors"].values())
    if layer["type"].startswith(("QLinear", "QGemm")) or types & {"INT8", "UINT8"}:
        return "int8" if precision != "fp16" else "fp16"
    return "fp16" if "FLOAT16" in types else "fp32"


def shape_of(proto: onnx.ModelProto, tensor: str) -> tuple[int, ...] | None:
    """A tensor's static shape; None where the model does not say."""
    for value in (*proto.graph.value_info, *proto.graph.output):
        if value.name == tensor and value.type.tensor_type.HasField("shape"):
            axes = value.type.tensor_type.shape.dim
            if all(axis.HasField("dim_value") for axis in axes):
                return tuple(axis.dim_value for axis in axes)
    return None


# --- exposing ------------------------------------------------------------------------------------


def expose(artifact: Artifact, model: Model, context: StepContext) -> Artifact:
    """The same file with the layers' tensors as outputs: whole numbers where it has these.

    A QuantizeLinear's output is what ONNX Runtime's 8-bit kernel gives, so that no fusion is lost.
    """
    import onnx

    from wherry.reference import open_session

    for name in artifact.files:
        shutil.copyfile(artifact.directory / name, context.output / name)
    path = context.output / "model.onnx"
    proto = onnx.load(path, load_external_data=False)
    own = {binding.onnx for binding in artifact.outputs}
    exposed = {
        name: tensor
        for layer in artifact.layers
        for name, tensor in layer.outputs.items()
        if name not in own
    }
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=tensor) for tensor in dict.fromkeys(exposed.values())
    )
    onnx.save(proto, path)
    session = open_session(str(path), threads=1, where=str(path))
    types = {value.name: value.type for value in session.get_outputs()}
    scales = _scales(proto)
    shapes = model.proto()
    bindings = []
    for name, tensor in exposed.items():
        shape = shape_of(shapes, name)
        assert shape is not None  # `describe` left out all others
        scale, zero_point = scales.get(tensor, (None, 0)) if name != tensor else (None, 0)
        dtype = _DTYPES.get(types[tensor], types[tensor])
        bindings.append(Binding(name, tensor, dtype, shape, scale=scale, zero_point=zero_point))
    return Artifact.from_directory(
        context.output,
        backend=artifact.backend,
        precision=artifact.precision,
        format=artifact.format,
        inputs=artifact.inputs,
        outputs=(*artifact.outputs, *bindings),
        provenance=artifact.provenance,
        layers=artifact.layers,
    )


_DTYPES = {
    f"tensor({word})": name
    for word, name in (("float", "float32"), ("double", "float64"), ("float16", "float16"))
} | {
    f"tensor({name})": name
    for name in ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
}


def _scales(proto: onnx.ModelProto) -> dict[str, tuple[float, int]]:
    """Tensors of whole numbers to their scale and zero point, of those that have one of each."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    found = {}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[1] not in constants:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if scale.size == 1:
            zero_point = 0 if zero is None else int(numpy_helper.to_array(zero).reshape(()))
            found[node.input[0]] = (float(scale.reshape(())), zero_point)
    return found
