"""What a converted network does, layer by layer, in words of the model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.artifact import Binding, Layer
from wherry.errors import ModelError, ToolError, UnsupportedError
from wherry.npy import load_arrays
from wherry.reference import open_session, random_inputs, run_session
from wherry_ncnn import names

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from wherry.context import StepContext
    from wherry.model import Model
    from wherry.requirements import Requirements
    from wherry_ncnn import param

HERE = Path(__file__).parent
SAMPLES = 2
SAME = {"fp32": 1e-3, "fp16": 1e-2}
"""Relative error up to which a blob stands for a tensor, by the type of the weights."""
RIGHT = {"fp32": 1e-2, "fp16": 5e-2}
"""The same for an output of the network: beyond it, it computes something else."""

_WRONG = "Write it with other operators, or use another backend."


def find(
    model: Model,
    layers: Sequence[param.Layer],
    bindings: tuple[Sequence[Binding], Sequence[Binding]],
    precision: str,
    context: StepContext,
    tool: tuple[Requirements, Mapping[str, Any]],
) -> names.Names:
    """Run model and network on random inputs and compare; see `wherry_ncnn.names`.

    Args:
        model: that was converted.
        layers: of the network in ``context.output``.
        bindings: its inputs and outputs.
        precision: of its weights.
        context: of the step.
        tool: what ncnn needs on the host, and the options of the runner.

    Returns:
        No names where the model does not run on random inputs.

    Raises:
        UnsupportedError: ncnn does not run the network, or an output has other values.
    """
    proto = model.proto()
    try:
        samples = list(_reference(model, proto))
    except ModelError as error:
        context.warn(f"layers have no names: {error.message}")
        return names.Names()
    blobs = _run(layers, bindings[0], samples, context, (*tool, model.listed()))
    tensors = {name: [sample[name] for sample in samples] for name in samples[0]}
    order = {name: place for place, name in enumerate(names.activations(proto.graph))}
    floats = {name: tensors[name] for name in sorted(tensors, key=order.__getitem__)}
    found = names.match(proto.graph, floats, layers, blobs, SAME[precision])
    _check(proto.graph, found, bindings[1], tensors, blobs, RIGHT[precision])
    return found


def _reference(model: Model, proto: onnx.ModelProto) -> Sequence[dict[str, np.ndarray]]:
    """Every float activation on every sample, inputs first."""
    import numpy as np
    import onnx

    given = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    wanted = [name for name in names.activations(proto.graph) if name not in given]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    source = proto.SerializeToString()
    session = open_session(source, threads=1, where=str(model.path), as_written=True)
    reached = set(names.activations(proto.graph))
    found = []
    for sample in random_inputs(model.inputs, SAMPLES):
        values = {**sample, **run_session(session, sample, where=str(model.path))}
        inputs = {name: array.astype(np.float32) for name, array in sample.items()}
        floats = {
            name: array
            for name, array in values.items()
            if name in reached and getattr(array, "dtype", None) == np.float32
        }
        found.append({**inputs, **floats})
    return found


def _run(
    layers: Sequence[param.Layer],
    inputs: Sequence[Binding],
    samples: Sequence[Mapping[str, np.ndarray]],
    context: StepContext,
    tool: tuple[Requirements, Mapping[str, Any], str],
) -> dict[str, list[np.ndarray]]:
    """Every blob on every sample; the tool's third part says what the model is made of."""
    import numpy as np

    given: dict[str, Any] = {}
    for index, sample in enumerate(samples):
        for binding in inputs:
            array = sample[binding.onnx]
            array = array if binding.permutation is None else array.transpose(binding.permutation)
            given[f"{index}/{binding.runtime}"] = array[0] if binding.drop_batch else array
    np.savez(context.scratch / "inputs.npz", **given)
    wanted = [blob for layer in layers for blob in layer.outputs]
    try:
        context.run_tool(
            HERE / "blobs.py",
            {
                "directory": str(context.output),
                "inputs": str(context.scratch / "inputs.npz"),
                "samples": len(samples),
                "blobs": wanted,
                "options": dict(tool[1]),
                "output": str(context.scratch / "blobs.npz"),
            },
            requirements=tool[0],
        )
    except ToolError as error:
        raise UnsupportedError(
            f"ncnn does not run what pnnx made of {tool[2]}: {error.message}",
            remedy="Use another backend for it, or other operators.",
        ) from error
    found = load_arrays(context.scratch / "blobs.npz")
    return {
        blob: [found[f"{sample}/{index}"] for sample in range(len(samples))]
        for index, blob in enumerate(wanted)
    }


def _check(
    graph: onnx.GraphProto,
    found: names.Names,
    outputs: Sequence[Binding],
    tensors: Mapping[str, Sequence[np.ndarray]],
    blobs: Mapping[str, Sequence[np.ndarray]],
    most: float,
) -> None:
    """Raise `UnsupportedError` where an output has other values than in the model."""
    for binding in outputs:
        pairs = list(zip(blobs[binding.runtime], tensors[binding.onnx], strict=True))
        if binding.permutation is not None:
            pairs = [(ours, theirs.transpose(binding.permutation)) for ours, theirs in pairs]
        for ours, theirs in pairs:
            if ours.size == theirs.size and names.error(ours, theirs) <= most:
                continue
            node = next(names.unclaimed(graph, found), None)
            whose = f"{node.op_type} (node {node.name!r})" if node is not None else "the network"
            raise UnsupportedError(
                f"pnnx does not convert this form of {whose}: the output {binding.onnx!r} has "
                "other values than in the model on random inputs",
                where=f"node {node.name}" if node is not None else None,
                remedy=_WRONG,
            )


def describe(
    layers: Sequence[param.Layer], found: names.Names, precision: str, whole: Mapping[str, object]
) -> tuple[Layer, ...]:
    """The layers of an artifact.

    Args:
        layers: of its network.
        found: their names.
        precision: of all layers but those of ``whole``.
        whole: layers that compute in int8.
    """
    return tuple(
        Layer(
            layer.name,
            layer.type,
            found.nodes.get(layer.name, ()),
            found.outputs.get(layer.name, {}),
            "int8" if layer.name in whole else precision,
        )
        for layer in layers
        if layer.type not in {"Input", "MemoryData"}
    )
