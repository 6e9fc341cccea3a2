"""An artifact that also gives what lies between its layers, for ``wherry debug layers``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from wherry.artifact import Artifact, Binding
from wherry_caffe2.nets import PREDICT_NET, messages

if TYPE_CHECKING:
    from wherry.context import StepContext
    from wherry.model import Model


def expose(artifact: Artifact, model: Model, context: StepContext) -> Artifact:
    """The same networks, with the layers' blobs as outputs.

    Any blob can be read when a network has run. For those in 8 bits operators are added at the end
    that make them real numbers in ONNX's layout; nothing before them changes.
    """
    for name in artifact.files:
        shutil.copyfile(artifact.directory / name, context.output / name)
    own = {binding.onnx for binding in artifact.outputs}
    types = _types(model)
    net = messages()["NetDef"]()
    net.ParseFromString((context.output / PREDICT_NET).read_bytes())
    bindings = []
    for layer in artifact.layers:
        for name, blob in layer.outputs.items():
            if name in own or name not in types:
                continue
            own.add(name)
            dtype, shape = types[name]
            is_whole = layer.precision == "int8"
            runtime = _real(net, blob, picture=len(shape) == 4) if is_whole else blob
            bindings.append(Binding(name, runtime, dtype, shape))
            net.external_output.append(runtime)
    (context.output / PREDICT_NET).write_bytes(net.SerializeToString(deterministic=True))
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


def _real(net: Any, blob: str, *, picture: bool) -> str:
    """Operators that make an 8-bit blob real; the result's name."""
    real = f"{blob}/exposed"
    net.op.add(type="Int8Dequantize", name=real, input=[blob], output=[real])
    if not picture:
        return real
    turned = f"{real}/nchw"
    net.op.add(type="NHWC2NCHW", name=turned, input=[real], output=[turned])
    return turned


def _types(model: Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and static shape of the tensors of which the model says them."""
    from onnx import helper

    graph = model.proto().graph
    found = {}
    for value in (*graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type and all(axis.HasField("dim_value") for axis in tensor.shape.dim):
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            found[value.name] = dtype, tuple(axis.dim_value for axis in tensor.shape.dim)
    return found
