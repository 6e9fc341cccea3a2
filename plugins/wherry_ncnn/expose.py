"""An artifact that also gives what lies between its layers, for ``wherry debug layers``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from wherry.artifact import Artifact, Binding

if TYPE_CHECKING:
    from wherry.context import StepContext
    from wherry.model import Model

WHOLE = "whole_blobs"
"""Key of the provenance: blobs that hold whole numbers, to how many of these make a 1.0."""


def expose(artifact: Artifact, model: Model, context: StepContext) -> Artifact:
    """The same files, with the layers' blobs as outputs: ncnn gives any blob when it is asked.

    Blobs between convolutions that write whole numbers for each other come as these, and nothing
    that ncnn fuses is taken apart. ncnn casts them to float32, without changing their values.
    """
    for name in artifact.files:
        shutil.copyfile(artifact.directory / name, context.output / name)
    own = {binding.onnx for binding in artifact.outputs}
    shapes = _shapes(model)
    whole = artifact.provenance.get(WHOLE, {})
    bindings = [
        Binding(
            name, blob, "float32", shapes[name], scale=1 / whole[blob] if blob in whole else None
        )
        for layer in artifact.layers
        for name, blob in layer.outputs.items()
        if name not in own and name in shapes
    ]
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


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The static shapes of the tensors of which the model says it."""
    graph = model.proto().graph
    return {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
        if all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim)
    }
