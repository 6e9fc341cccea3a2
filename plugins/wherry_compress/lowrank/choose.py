"""Which rank each layer gets: by energy, by a budget of multiplications, or as listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wherry_compress.graph.patterns import meant
from wherry_compress.lowrank.factors import Choice
from wherry_compress.lowrank.layers import Layer, chain_macs

Table = dict[str, list[Choice]]
"""Layer to what it could become, ascending in energy; none has more multiplications than it."""

Faster = Callable[[Layer, Choice], bool]


def at_level(choices: Sequence[Choice], level: float) -> Choice | None:
    """The cheapest choice that keeps so much energy."""
    return next((choice for choice in choices if choice.energy >= level), None)


def by_energy(table: Table, level: float) -> dict[str, Choice]:
    """Each layer's cheapest choice; those that have none stay as they are."""
    found = {name: at_level(choices, level) for name, choices in table.items()}
    return {name: choice for name, choice in found.items() if choice is not None}


def saved(layers: Mapping[str, Layer], chosen: Mapping[str, Choice]) -> int:
    """Multiplications less."""
    return sum(layers[n].macs - chain_macs(layers[n], c.chain) for n, c in chosen.items())


def by_budget(
    table: Table, layers: Mapping[str, Layer], whole: int, budget: float
) -> tuple[float, dict[str, Choice]]:
    """The highest level of energy at which the network is within the budget; else the lowest.

    Args:
        table: see `Table`.
        layers: by name.
        whole: multiplications of the network.
        budget: share of them.

    Returns:
        The level, and the choices there.
    """
    levels = sorted({choice.energy for choices in table.values() for choice in choices})
    low, high = 0, len(levels) - 1
    while low < high:  # a lower level never has more multiplications
        middle = (low + high + 1) // 2
        if whole - saved(layers, by_energy(table, levels[middle])) <= budget * whole:
            low = middle
        else:
            high = middle - 1
    if not levels:
        return 1.0, {}
    return levels[low], by_energy(table, levels[low])


def within_budget(
    table: Table, layers: Mapping[str, Layer], whole: int, budget: float, faster: Faster
) -> tuple[float, dict[str, Choice]]:
    """As `by_budget`, of choices that are faster: those that are not leave the table."""
    left = {name: list(choices) for name, choices in table.items()}
    while True:
        level, chosen = by_budget(left, layers, whole, budget)
        slow = {name for name, choice in chosen.items() if not faster(layers[name], choice)}
        if not slow:
            return level, chosen
        for name in slow:
            # one with hardly less to do would not be faster either
            bound = 0.8 * chain_macs(layers[name], chosen[name].chain)
            left[name] = [c for c in left[name] if chain_macs(layers[name], c.chain) < bound]


def as_listed(
    listed: Mapping[str, int | Sequence[int]], names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Node to the rank that is listed for it."""
    ranks: dict[str, tuple[int, ...]] = {}
    for pattern, rank in listed.items():
        for name in meant([pattern], names, "ranks"):
            ranks.setdefault(name, (rank,) if isinstance(rank, int) else tuple(rank))
    return ranks
