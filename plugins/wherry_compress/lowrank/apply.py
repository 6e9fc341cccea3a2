"""The passes ``lowrank.*``: find the layers, choose their ranks, and write the chains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wherry.normalise.graph import Graph
from wherry_compress.graph.costs import measure as costs_of
from wherry_compress.graph.patterns import meant
from wherry_compress.job import Done, Job, Refusal
from wherry_compress.lowrank import faster
from wherry_compress.lowrank.choose import (
    Table,
    as_listed,
    by_energy,
    saved,
    within_budget,
)
from wherry_compress.lowrank.factors import (
    Choice,
    Columns,
    Matrix,
    Scheme,
    Tucker,
    error,
    even,
    refit,
)
from wherry_compress.lowrank.iterated import Basis, Canonical
from wherry_compress.lowrank.layers import (
    Layer,
    chain_macs,
    chain_size,
    find_layers,
    write_chain,
)
from wherry_compress.lowrank.moments import Moments, measure

_ENERGY = 0.9
_TOLD = 60  # layers in the figures


def spatial_svd(job: Job) -> Done:
    """Both schemes of Jaderberg et al. 2014."""
    return lower(job, Basis() if job.parameters["scheme"] == 1 else Columns(), {"Conv"})


def channel_svd(job: Job) -> Done:
    """See `factors.Matrix`."""
    return lower(job, Matrix(), {"Conv"})


def tucker2(job: Job) -> Done:
    """See `factors.Tucker`."""
    return lower(job, Tucker(), {"Conv"})


def cp(job: Job) -> Done:
    """See `iterated.Canonical`."""
    return lower(job, Canonical(), {"Conv"})


def fc_svd(job: Job) -> Done:
    """See `factors.Matrix`."""
    return lower(job, Matrix(), {"Gemm", "MatMul"})


@dataclass
class _Work:
    """What is known of a network on the way.

    Attributes:
        layers: by name, those that may be replaced.
        left: node to why it stays.
        moments: of the layers, where data counts.
        timed: layer and ranks to times.
    """

    graph: Graph
    scheme: Scheme
    layers: dict[str, Layer]
    left: dict[str, str]
    moments: dict[str, Moments] = field(default_factory=dict)
    timed: dict[tuple[str, tuple[int, ...]], faster.Times] = field(default_factory=dict)

    def is_faster(self, layer: Layer, choice: Choice) -> bool:
        key = (layer.name, choice.ranks)
        if key not in self.timed:
            self.timed[key] = faster.compare(self.graph.proto, layer, choice.chain)
        return self.timed[key].faster

    def table(self, round_to: int) -> Table:
        """Of each layer the choices with fewer multiplications, each dearer than the one before."""
        made: Table = {}
        for name, layer in self.layers.items():
            every = self.scheme.choices(layer, self.moments.get(name), round_to)
            less = [c for c in every if chain_macs(layer, c.chain) < layer.macs]
            if less:
                made[name] = _rising(layer, less)
            else:
                self.left[name] = "no rank has fewer multiplications"
        return made


def _rising(layer: Layer, choices: Sequence[Choice]) -> list[Choice]:
    """Without those that cost more for less energy."""
    best: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (chain_macs(layer, c.chain), -c.energy)):
        if not best or choice.energy > best[-1].energy:
            best.append(choice)
    return best


def lower(job: Job, scheme: Scheme, kinds: set[str]) -> Done:
    """Apply a scheme to the layers of some operators.

    Raises:
        Refusal: a pattern means no node, a listed rank is too high or diverges, data is asked for
            and there is none, or no layer can be replaced.
    """
    asked = job.parameters
    work = _found(job, scheme, kinds)
    costs = costs_of(work.graph.proto)
    whole, size = costs.macs, costs.parameters
    if asked["reconstruction"] == "data":
        those = list(work.layers.values())
        found = measure(work.graph.proto, those, job.data["calibration"], job.seed)
        work.moments = {layer.name: moments for layer, moments in found}
    level, chosen, warnings = _chosen(work, asked, whole)
    if not chosen:
        warnings.append("no layer was replaced: " + "; ".join(_reasons(work.left)))
    rows = []
    for name, choice in chosen.items():
        rows.append(replace(work, work.layers[name], choice))
        work.moments.pop(name, None)
    work.graph.drop_unused()
    after = costs_of(work.graph.proto)
    figures = {
        "macs_before": whole,
        "macs_after": after.macs,
        "params_before": size,
        "params_after": after.parameters,
        **({} if level is None else {"energy": round(level, 6)}),
        "layers": rows[:_TOLD],
        "left": [{"node": n, "why": why} for n, why in work.left.items()][:_TOLD],
        **({"timed": faster.HOW} if work.timed else {}),
    }
    return Done(work.graph.proto, figures, tuple(warnings))


def _found(job: Job, scheme: Scheme, kinds: set[str]) -> _Work:
    """The layers that the scheme and the user allow."""
    asked = job.parameters
    graph = Graph(job.load(), {})
    every, left = find_layers(graph)
    of_kind = {node.name for node in graph.proto.graph.node if node.op_type in kinds}
    names = [node.name for node in graph.proto.graph.node if node.name in of_kind]
    wanted = meant(asked["nodes"], names, "nodes") if names else frozenset()
    wanted -= meant(asked["keep"], names, "keep")
    layers = {}
    why = {name: text for name, text in left.items() if name in wanted}
    for layer in every:
        if layer.name not in wanted:
            continue
        if problem := scheme.suits(layer):
            why[layer.name] = problem
        else:
            layers[layer.name] = layer
    if not layers:
        told = "; ".join(f"{name!r}: {text}" for name, text in list(why.items())[:3])
        raise Refusal(
            f"there is no layer to decompose among {len(wanted)} {' and '.join(sorted(kinds))} "
            f"nodes{f' ({told})' if told else ''}"
        )
    return _Work(graph, scheme, layers, why)


def _chosen(
    work: _Work, asked: Mapping[str, Any], whole: int
) -> tuple[float | None, dict[str, Choice], list[str]]:
    """The level of energy where there is one, the choices, and warnings."""
    if asked["ranks"]:
        return None, _listed(work, asked), []
    table = work.table(asked["round_to"])
    only = asked["only_where_faster"]
    warnings: list[str] = []
    if asked["macs"] is not None:
        level, chosen = within_budget(
            table, work.layers, whole, asked["macs"], work.is_faster if only else lambda *_: True
        )
        reached = 1 - saved(work.layers, chosen) / whole
        if reached > asked["macs"]:
            warnings.append(
                f"macs: {asked['macs']:g} was asked, and {reached:.3g} is the least that "
                + (
                    "was found where only what is faster is replaced"
                    if only
                    else "these layers reach"
                )
            )
    else:
        level = asked["energy"] or _ENERGY
        chosen = by_energy(table, level)
        if only:
            chosen = {n: c for n, c in chosen.items() if work.is_faster(work.layers[n], c)}
    slow = {name for (name, _), times in work.timed.items() if not times.faster}
    for name in table.keys() - chosen.keys():
        work.left[name] = (
            "it is not faster"
            if name in slow
            else "no rank with fewer multiplications keeps enough energy"
        )
    return level, chosen, warnings


def _reasons(left: Mapping[str, str]) -> Iterator[str]:
    """Why layers stay, and how many."""
    for why in dict.fromkeys(left.values()):
        yield f"{sum(each == why for each in left.values())} stay, as {why}"


def _listed(work: _Work, asked: Mapping[str, Any]) -> dict[str, Choice]:
    """Choices as the user lists them."""
    chosen = {}
    ranks = as_listed(asked["ranks"], list(work.layers))
    for name in work.layers.keys() - ranks.keys():
        work.left[name] = "no rank is listed for it"
    for name, layer in work.layers.items():
        if name not in ranks:
            continue
        rank, full = ranks[name], work.scheme.full(layer)
        rank = rank * len(full) if len(rank) < len(full) else rank
        if len(rank) > len(full) or any(r > f for r, f in zip(rank, full, strict=True)):
            raise Refusal(
                f"the rank {_text(rank)} is listed, and the layer's full one is {_text(full)}",
                where=name,
                remedy="List a lower one.",
            )
        choice = Choice(rank, work.scheme.chain(layer, rank), 0.0)
        if chain_macs(layer, choice.chain) >= layer.macs:
            work.left[name] = f"at rank {_text(rank)} it has no fewer multiplications"
        elif asked["only_where_faster"] and not work.is_faster(layer, choice):
            work.left[name] = f"at rank {_text(rank)} it is not faster"
        else:
            chosen[name] = choice
    return chosen


def _text(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def replace(work: _Work, layer: Layer, choice: Choice) -> dict[str, Any]:
    """Write a chain in a layer's place; what the figures say of it."""
    moments = work.moments.get(layer.name)
    factors, bias = work.scheme.factors(layer, moments, choice.ranks), None
    if moments is not None:
        factors, bias = refit(layer, factors, moments)
    lost = error(layer, factors, moments)
    write_chain(work.graph, layer, list(even(factors)), bias)
    row = {
        "node": layer.name,
        "rank": list(choice.ranks),
        "energy": round(1 - lost, 6),
        "macs_before": layer.macs,
        "macs_after": chain_macs(layer, choice.chain),
        "params_before": int(layer.weights.size),
        "params_after": chain_size(layer, choice.chain),
    }
    times = work.timed.get((layer.name, choice.ranks))
    if times is not None:
        row |= {"ms_before": round(times.before, 4), "ms_after": round(times.after, 4)}
    return row
