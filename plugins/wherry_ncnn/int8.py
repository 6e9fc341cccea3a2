"""Decides which layers of a converted network become int8, and writes its files again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry.keep import kept_nodes
from wherry_ncnn import param, weights
from wherry_ncnn.quantize import Quantised, breaks_in_int8, may_be_quantised, quantise

if TYPE_CHECKING:
    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model
    from wherry.target import Target
    from wherry_ncnn.names import Names

PARAM, WEIGHTS = "model.param", "model.bin"
HEAVY = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that become layers with int8 kernels."""


def rewrite(
    layers: Sequence[param.Layer],
    names: Names,
    model: Model,
    target: Target,
    calibration: Calibration,
    context: StepContext,
) -> Quantised:
    """Write the files again, in int8 where it can be done and nobody wants fp32."""
    path = context.output / WEIGHTS
    arrays = weights.read(layers, path.read_bytes())
    kept = kept_nodes(model, target.options.keep_fp32)
    operators_of = {name: kind for kind, nodes in model.operators().items() for name in nodes}
    thresholds: dict[str, float] = {}
    unknown, broken = [], []
    for layer in layers:
        if not may_be_quantised(layer, arrays):
            continue
        if breaks_in_int8(layer):
            broken.append(layer.name)
            continue
        nodes = names.nodes.get(layer.name, ())
        heavy = [name for name in nodes if operators_of[name] in HEAVY]
        known = [
            name for name in names.tensors.get(layer.inputs[0], ()) if name in calibration.ranges
        ]
        if len(heavy) != 1 or not known:
            unknown.append(layer.name)
        elif not kept.intersection(nodes):
            thresholds[layer.name] = max(map(calibration.threshold, known))
    if unknown:
        context.warn(
            f"{len(unknown)} layers stay in fp32, because it is not certain what they do in the "
            f"model or what range their input has: {', '.join(unknown[:5])}"
        )
    if broken:
        context.warn(
            f"{len(broken)} grouped convolutions stay in fp32, because ncnn's int8 kernel computes "
            f"them wrong (8 or more outputs a group): {', '.join(broken[:5])}"
        )
    options = target.options.model_dump()
    made = quantise(layers, arrays, thresholds, options["winograd_int8"])
    if not made.table:
        context.warn("nothing of this model is quantised: see the layers in the docs")
    (context.output / PARAM).write_text(param.write(made.layers), encoding="utf-8")
    path.write_bytes(weights.write(made.layers, made.weights))
    return made
