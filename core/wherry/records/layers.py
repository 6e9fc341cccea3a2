"""The times of layers in the report's JSON: each with the ONNX nodes that it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.measurement import Measurement


NO_LAYERS: Mapping[str, Any] = {"layers": None, "layers_sum_ms": None, "layers_runs": None}
"""The fields of a result whose layers were not timed."""


def layer_fields(artifact: Artifact, measured: Measurement) -> Mapping[str, Any]:
    """The report's ``layers``, their sum, and how many inferences they are over."""
    if not measured.layers:
        return NO_LAYERS
    return {
        "layers": _rows(artifact, measured.layers),
        "layers_sum_ms": sum(measured.layers.values()),
        "layers_runs": measured.layer_runs,
    }


def _rows(artifact: Artifact, times: Mapping[str, float]) -> list[dict[str, Any]]:
    """The layers: those of the artifact in its order, then what it does not know.

    A layer of the artifact that the runtime did not time has no time; it is not left out.
    """
    known = {layer.name for layer in artifact.layers}
    rows: list[dict[str, Any]] = [
        {
            "name": layer.name,
            "type": layer.type,
            "nodes": list(layer.nodes),
            "precision": layer.precision,
            "median_ms": times.get(layer.name),
        }
        for layer in artifact.layers
    ]
    rows += [
        {"name": name, "type": "", "nodes": [], "precision": None, "median_ms": value}
        for name, value in times.items()
        if name not in known
    ]
    total = sum(times.values())
    for row in rows:
        value = row["median_ms"]
        row["share"] = None if value is None or not total else value / total
    return rows
