"""Times of layers in reports: what a result's say in a sentence, and node by node over backends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.reports import words
from wherry.reports.words import Result

NAMED = 3
"""How many layers the sentence names."""


def timed(result: Result) -> Sequence[Mapping[str, Any]]:
    """A result's layers, the slowest first; those that the runtime did not time come last."""
    layers: Sequence[Mapping[str, Any]] = result.get("layers") or ()
    return sorted(layers, key=lambda layer: -(layer["median_ms"] or 0.0))


def sum_text(result: Result) -> str:
    """The sum of a result's layers against the whole inference; empty where none were timed."""
    if not result.get("layers"):
        return ""
    total, whole = result["layers_sum_ms"], result["latency"]["median_ms"]
    text = f"the layers add up to {words.ms_text(total)} ms"
    if whole:
        text += f", x{total / whole:.2f} of the whole inference's {words.ms_text(whole)} ms"
    if result["latency"]["emulated"]:
        text += "; on an emulated board, where times mean nothing"
    return text


def slowest_text(result: Result) -> str:
    """The slowest layers of a result, for one line; empty where none were timed."""
    found = [layer for layer in timed(result) if layer["share"] is not None][:NAMED]
    if not found:
        return ""
    shares = (f"{name(layer)} {100 * layer['share']:.0f} %" for layer in found)
    return f"slowest layers {', '.join(shares)}; {sum_text(result)}."


def name(layer: Mapping[str, Any]) -> str:
    """A layer by its ONNX node, or by the runtime's name where it has none or several."""
    nodes = layer["nodes"]
    if not nodes:
        return str(layer["name"])
    return str(nodes[0]) + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "")


@dataclass(frozen=True)
class Piece:
    """Nodes that no backend splits further in a way that the others share.

    Attributes:
        nodes: in their order; none for what a runtime does of its own.
        times_ms: of each result, the sum over its layers that do these nodes; None: it has none
            of them, or did not time them.
    """

    nodes: tuple[str, ...]
    times_ms: tuple[float | None, ...]

    @property
    def label(self) -> str:
        """Its first node, and how many more there are."""
        return name({"nodes": self.nodes, "name": "the runtime's own"})


@dataclass(frozen=True)
class Comparison:
    """The layers of several results for one variant on one device.

    Attributes:
        title: which.
        heads: what tells the results apart.
        pieces: in the order of the model.
        emulated: the device is: the times mean nothing.
    """

    title: str
    heads: tuple[str, ...]
    pieces: tuple[Piece, ...]
    emulated: bool = False

    def slowest(self, most: int) -> list[Piece]:
        """The slowest pieces, in the order of the model."""

        def time(piece: Piece) -> float:
            return max((value for value in piece.times_ms if value is not None), default=0.0)

        kept = set(sorted(self.pieces, key=time, reverse=True)[:most])
        return [piece for piece in self.pieces if piece in kept]


def comparisons(results: Iterable[Result], least: int = 2) -> list[Comparison]:
    """One for each variant and device of which so many results have their layers timed."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.get("layers"):
            groups.setdefault((result["variant"], result["target"]["device"]), []).append(result)
    return [
        Comparison(
            f"{variant} on {device}",
            _heads(group),
            _pieces(group),
            any(result["latency"]["emulated"] for result in group),
        )
        for (variant, device), group in groups.items()
        if len(group) >= least
    ]


def _heads(group: Sequence[Result]) -> tuple[str, ...]:
    """Backend and precision, and the options where they differ within the group."""
    options = words.differing_options(group)
    heads = []
    for result in group:
        target = result["target"]
        told = [
            f"{option}={words.option_text(target['options'][option])}"
            for option in options
            if option in target["options"]
        ]
        heads.append(" ".join([target["backend"], target["precision"], *told]))
    return tuple(heads)


def _pieces(group: Sequence[Result]) -> tuple[Piece, ...]:
    """The finest sets of nodes such that every layer of every result lies within one of them."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for result in group:
        for layer in result["layers"]:
            for node in layer["nodes"]:
                parent.setdefault(node, node)
                parent[root(node)] = root(layer["nodes"][0])
    nodes: dict[str, list[str]] = {}
    for node in parent:
        nodes.setdefault(root(node), []).append(node)
    times: dict[str, list[float | None]] = {key: [None] * len(group) for key in [*nodes, ""]}
    for index, result in enumerate(group):
        for layer in result["layers"]:
            if layer["median_ms"] is None:
                continue
            row = times[root(layer["nodes"][0]) if layer["nodes"] else ""]
            row[index] = (row[index] or 0.0) + layer["median_ms"]
    pieces = [Piece(tuple(members), tuple(times[key])) for key, members in nodes.items()]
    if any(value is not None for value in times[""]):
        pieces.append(Piece((), tuple(times[""])))
    return tuple(pieces)
