"""``wherry debug layers``: the figures of each layer, and which of them are to blame."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wherry.artifact import Artifact
from wherry.debug.case import Case, Spread
from wherry.debug.figures import Tally, count, decibels, noise
from wherry.debug.graphs import Graphs
from wherry.errors import PluginError, ToolError, UnsupportedError
from wherry.quantize.given import float_model, is_quantised
from wherry.stages.context import FILES, HostContext, log_path, scratch_folder, take_or_build
from wherry.stages.keys import own_lock, plugin_code
from wherry.stages.layers import dissected
from wherry.stages.prepare import model_ready
from wherry.store import Key
from wherry.target import DEFAULT_PARITY

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from wherry.artifact import Layer
    from wherry.device import Session
    from wherry.model import Model

SAMPLES = 32
"""How many samples are looked at unless the user says."""

EFFECT_SAMPLES = 8
"""On how many of them the effect of each layer on the outputs is found, at a run a layer."""

TIMED_S = 1.0
"""About how long the layers are timed."""

STANDS_OUT = 0.2
"""Share of the errors' sum from which on a layer is named in ``keep_fp32:``."""

EXPOSED_FILE = "wherry-artifact.json"


@dataclass(frozen=True)
class LayerFigures:
    """One result of a layer, or a layer none of whose results stands for an ONNX tensor.

    Attributes:
        layer: as the artifact describes it.
        tensor: the ONNX tensor; None: there is none, and no figures.
        nodes: the ONNX nodes whose error is the own one: the layer's, and those of layers before
            it that give nothing that could be compared.
        readers: ONNX nodes of the layers that read the tensor.
        tally: None without a tensor.
        share: of the sum of all effects; 0 to 1.
        median_ms: of the layer; None: the backend's runner does not time layers.
    """

    layer: Layer
    tensor: str | None
    nodes: tuple[str, ...]
    readers: tuple[str, ...] = ()
    tally: Tally | None = None
    share: float = 0.0
    median_ms: float | None = None

    @property
    def narrow(self) -> bool:
        """Whether keeping it in fp32 could change anything."""
        if not self.nodes:
            return False
        exact = self.tally is None or self.tally.own.sqnr_db >= DEFAULT_PARITY["fp32"].sqnr_db
        return self.layer.precision != "fp32" or not exact

    @property
    def unit(self) -> tuple[str, ...]:
        """The nodes that have to stay in fp32 together for its own error to go away."""
        by_range = self.tally is not None and self.tally.by_range
        return tuple(dict.fromkeys((*self.nodes, *(self.readers if by_range else ()))))

    def to_json(self) -> dict[str, Any]:
        """Of the report."""
        values: dict[str, Any] = {
            "layer": self.layer.name,
            "type": self.layer.type,
            "precision": self.layer.precision,
            "nodes": list(self.nodes),
            "own_nodes": list(self.layer.nodes),
            "tensor": self.tensor,
            "median_ms": self.median_ms,
        }
        if self.tally is None:
            return values
        tally = self.tally
        return values | {
            "own": {"sqnr_db": tally.own.sqnr_db, "cosine": tally.own.cosine},
            "accumulated": {
                "sqnr_db": tally.accumulated.sqnr_db,
                "cosine": tally.accumulated.cosine,
            },
            "effect_db": decibels(tally.effect),
            "share": self.share,
            "reference_range": _finite(tally.reference_range),
            "deployed_range": _finite(tally.deployed_range),
            "saturation": tally.saturation,
            "by_range": tally.by_range,
        }


def _finite(ends: tuple[float, float]) -> list[float] | None:
    return list(ends) if all(map(math.isfinite, ends)) else None


@dataclass(frozen=True)
class LayerReport:
    """All layers of one artifact.

    Attributes:
        ranked: those that have figures, by what their own error does to the outputs, worst first.
        others: the rest, in the runtime's order.
        outputs: output to (SQNR in dB, cosine), of the device against the reference.
        predicted_db: the SQNR at the outputs if the layers' effects just added up.
        samples: how many were looked at.
        effect_samples: on how many of them effects were found.
        warnings: of timing the layers.
    """

    ranked: tuple[LayerFigures, ...]
    others: tuple[LayerFigures, ...]
    outputs: Mapping[str, tuple[float, float]]
    predicted_db: float
    samples: int
    effect_samples: int
    warnings: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[tuple[str, ...], ...]:
        """What can be kept in fp32, a layer at a time, the most worthwhile first."""
        found = [row.unit for row in self.ranked if row.narrow]
        return tuple(dict.fromkeys(found + [row.unit for row in self.others if row.narrow]))

    @property
    def blamed(self) -> tuple[str, ...]:
        """The nodes of the layers that stand out."""
        rows = [row for row in self.ranked if row.narrow and row.share >= STANDS_OUT]
        return tuple(dict.fromkeys(node for row in rows for node in row.unit))


def exposed(case: Case) -> Artifact:
    """The artifact that gives its intermediate tensors too; made once.

    Raises:
        UnsupportedError: the backend cannot.
    """
    backend, artifact, services = case.backend, case.artifact, case.services
    expose = backend.expose
    if expose is None or not artifact.layers:
        raise UnsupportedError(
            f"the backend {backend.name} does not show what its layers give",
            where=case.target.describe(),
            remedy="Debug another backend of the manifest, or ask its author for Backend.expose.",
        )
    key = Key(
        "expose",
        {
            "artifact": artifact.digest,
            "layers": artifact.to_json()["layers"],
            "model": case.model.digest,
            "code": plugin_code(services, "backends", backend.name, backend.convert_files),
            "tool": None
            if backend.converter is None
            else services.environment_lock(backend.converter),
            "host": own_lock(),
        },
    )

    def build(context: HostContext) -> None:
        (context.output / FILES).mkdir()
        inner = replace(context, output=context.output / FILES)
        made = expose(artifact, case.model, inner)
        _check(made, artifact)
        (context.output / EXPOSED_FILE).write_text(json.dumps(made.to_json()))

    entry, _, _ = take_or_build(services, "expose", key, build)
    values = json.loads((entry.directory / EXPOSED_FILE).read_text())
    return Artifact.from_json(values, entry.directory / FILES)


def described(case: Case, scratch: Path) -> Model:
    """The model whose nodes and tensors the artifact's layers name.

    Of a model that comes with Q/DQ it is that model where the runtime runs these nodes, else the
    float network of it, which the backend converted.
    """
    if not is_quantised(case.model):
        return case.model
    float_one, _ = float_model(case.model, scratch)
    known = {node for nodes in float_one.operators().values() for node in nodes}
    named = {node for layer in case.artifact.layers for node in layer.nodes}
    return float_one if named <= known else case.model


def _check(made: Artifact, artifact: Artifact) -> None:
    """What was made is the same artifact with more outputs."""
    own = [binding.onnx for binding in artifact.outputs]
    names = [binding.onnx for binding in made.outputs]
    if names[: len(own)] != own or len(set(names)) < len(names):
        raise PluginError(
            f"the backend {artifact.backend} exposes the tensors {names[:5]}..., and the model's "
            f"outputs {own} have to come first, each tensor once",
            remedy="Report this to the author of the plugin.",
        )


def look(
    case: Case, session: Session, samples: int, progress: Callable[[str], None]
) -> LayerReport:
    """Run the exposed artifact on the device beside the reference, and rank its layers.

    Args:
        case: what is debugged.
        session: with its device.
        samples: how many, evenly spread over the data.
        progress: told what is being done.

    Raises:
        UnsupportedError: the backend cannot expose tensors.
        ParityError: a tensor came back in another shape than the model's.
    """
    progress("exposing tensors")
    artifact = exposed(case)
    bindings = {binding.onnx: binding for binding in artifact.outputs}
    with scratch_folder(case.services) as scratch:
        graphs = Graphs(described(case, scratch), bindings)
    owners = {
        tensor: layer for layer in artifact.layers for tensor in layer.outputs if tensor in bindings
    }
    tallies = {
        name: Tally(
            name,
            bindings[name],
            owners[name].precision if name in owners else artifact.precision,
        )
        for name in graphs.tensors
    }
    ready = model_ready(Spread(case.dataset, samples), case.model, case.services)
    step = max(1, -(-len(ready) // EFFECT_SAMPLES))
    disturb = frozenset(range(0, len(ready), step))

    def inputs() -> Iterator[Mapping[str, np.ndarray]]:
        for sample in ready:
            case.services.check()
            yield sample.inputs

    progress("comparing layers")
    with session.host(artifact, case.target, case.backend, {}) as hosted:
        for done in count(graphs, tallies, inputs(), hosted.infer(inputs()), disturb):
            progress(f"comparing layers: {done}/{len(ready)} samples")
    progress("timing layers")
    times, warnings = _times(case, session, ready[0].inputs)
    outputs = {
        name: (tallies[name].accumulated.sqnr_db, tallies[name].accumulated.cosine)
        for name in graphs.outputs
        if name in tallies
    }
    report = _ranked(artifact, graphs, tallies, outputs, len(ready), len(disturb))
    return replace(
        report,
        ranked=_timed(report.ranked, times),
        others=_timed(report.others, times),
        warnings=warnings,
    )


def _times(
    case: Case, session: Session, inputs: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Layer to its median time, ms, in the artifact as it is deployed, and warnings.

    The comparison is worth having without times: what the runner cannot time is said, and that
    is all.
    """
    import numpy as np

    services = case.services
    try:
        with scratch_folder(services) as scratch:
            context = HostContext(services, "debug", scratch, scratch, log_path(services, "debug"))
            artifact = dissected(case.artifact, case.backend, context)
        with session.host(artifact, case.target, case.backend, {}) as hosted:
            found = hosted.time_layers(inputs, TIMED_S) or {}
    except ToolError as error:
        return {}, (*context.warnings, f"the layers are not timed: {error}")
    times = {name: float(np.median(values)) / 1e6 for name, values in found.items()}
    return times, tuple(context.warnings)


def _timed(rows: tuple[LayerFigures, ...], times: Mapping[str, float]) -> tuple[LayerFigures, ...]:
    return tuple(replace(row, median_ms=times.get(row.layer.name)) for row in rows)


def _ranked(
    artifact: Artifact,
    graphs: Graphs,
    tallies: Mapping[str, Tally],
    outputs: Mapping[str, tuple[float, float]],
    samples: int,
    effect_samples: int,
) -> LayerReport:
    total = sum(tally.effect for tally in tallies.values())
    fellows = {node: layer.nodes for layer in artifact.layers for node in layer.nodes}
    figures: list[LayerFigures] = []
    others: list[LayerFigures] = []
    for layer in artifact.layers:
        shown = [name for name in layer.outputs if name in tallies]
        if not shown:
            others.append(LayerFigures(layer, None, layer.nodes))
        for name in shown:
            tally = tallies[name]
            nodes = {*graphs.pieces[name], *layer.nodes}
            figures.append(
                LayerFigures(
                    layer,
                    name,
                    tuple(sorted(nodes, key=lambda node: (graphs.order.get(node, -1), node))),
                    tuple(
                        dict.fromkeys(
                            each
                            for node in graphs.readers[name]
                            for each in fellows.get(node, (node,))
                        )
                    ),
                    tally,
                    tally.effect / total if total else 0.0,
                )
            )
    ranked = sorted(
        figures, key=lambda row: (-row.share, -noise(row.tally.own) if row.tally else 0)
    )
    return LayerReport(
        tuple(ranked), tuple(others), outputs, decibels(total), samples, effect_samples
    )
