"""INT8 for TensorFlow Lite, on the host: the calibration's ranges by the file's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.keep import kept_nodes
from wherry.quantize import weights

if TYPE_CHECKING:
    from wherry.calibration import Calibration
    from wherry.context import StepContext
    from wherry.model import Model
    from wherry.requirements import Requirements
    from wherry.target import Target
    from wherry_tflite.layers import Matches

HERE = Path(__file__).parent
FILE = "model.tflite"


@dataclass(frozen=True)
class Float:
    """The float file, which lies in the step's scratch folder.

    Attributes:
        operators: see `files.operators`.
        nodes: for each operator the nodes that it does.
        matches: which tensor is which.
        requirements: of the environment that the tools run in.
    """

    operators: Sequence[Mapping[str, Any]]
    nodes: Sequence[Sequence[str]]
    matches: Matches
    requirements: Requirements


def quantise(
    model: Model,
    target: Target,
    calibration: Calibration | None,
    context: StepContext,
    given: Float,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Write the file in 8 bits; its operators and its ports, see ``quantize.py``."""
    options = target.options.model_dump()
    how, io = options["quantize"], options["io"]
    kept = kept_nodes(model, target.options.keep_fp32)
    keep = [place for place, nodes in enumerate(given.nodes) if kept.intersection(nodes)]
    context.progress("quantising")
    response = context.run_tool(
        HERE / "quantize.py",
        {
            "model": str(context.scratch / FILE),
            "output": str(context.output / FILE),
            "quantize": how,
            "io": io,
            "ranges": ranges(given.matches, calibration) if how == "static" else {},
            "keep": keep,
            "rounding": weights.__file__,
        },
        requirements=given.requirements,
    )
    for places, cause in (
        (response["unknown"], "the calibration has no range of what they take or give"),
        (response["unsafe"], "their sums would overflow in 8 bits"),
    ):
        if places:
            words = [_words(given, place) for place in places]
            few = "; ".join(words[:5]) + ("; ..." if len(words) > 5 else "")
            context.warn(f"{len(words)} operators stay in fp32, because {cause}: {few}")
    if io == "integer" and (floats := response["floats"]):
        context.warn(f"inputs and outputs whose range is not known stay float: {', '.join(floats)}")
    operators = response["operators"]
    if not any(each["precision"] == "int8" or _is_widened(each, how) for each in operators):
        context.warn("nothing of this model is quantised: see the operators in the docs")
    return operators, response["ports"]


def _is_widened(operator: Mapping[str, Any], how: str) -> bool:
    return how == "weights" and operator["type"] == "DEQUANTIZE" and operator["source"] is None


def _words(given: Float, place: int) -> str:
    nodes = given.nodes[place]
    kind: str = given.operators[place]["type"]
    return kind + (f" ({', '.join(nodes)})" if nodes else "")


def ranges(matches: Matches, calibration: Calibration | None) -> dict[str, tuple[float, float]]:
    """Index of a tensor to its range.

    That of the ONNX tensor that it stands for, or of those that have the same values.
    """
    assert calibration is not None  # the backend says so
    found = {}
    for index, alike in matches.alike.items():
        stands = matches.stands.get(index)
        names = [stands] if stands is not None and stands in calibration.ranges else alike
        known = [calibration.ranges[name] for name in names if name in calibration.ranges]
        if known:
            found[str(index)] = (min(low for low, _ in known), max(high for _, high in known))
    return found
