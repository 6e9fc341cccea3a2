"""Which rank each layer gets: by energy, by a budget of multiplications, or as listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wherry_compress.graph.patterns import meant
from wherry_compress.lowrank.factors import Choice
from wherry_compress.lowrank.layers import Layer, chain_macs

Table = dict[str, list[Choice]]
"""Layer to what it could become, ascending in energy and in multiplications; none has more of
these than it."""

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
    """As `by_budget`, of the table without the choices that are not faster.

    A choice leaves the table if it is slow, or if the first of its group is: that has hardly less
    to do, and a timing is saved. Neither depends on the budget. So, with the same times, a tighter
    budget never gives a larger network, and where it cannot be met each layer has the cheapest
    choice that the table would have.

    Only what is chosen on the way is timed. A level at which the network is too large stays so when
    choices leave, so the first level at which all are faster is the highest.

    Args:
        table: see `Table`.
        layers: by name.
        whole: multiplications of the network.
        budget: share of them.
        faster: has to give the same answer when it is asked again. Of a group whose first is slow
            no other is asked, so that few are where all are slow.

    Returns:
        The level, and the choices there; each is faster.
    """
    groups = {name: _groups(layers[name], choices) for name, choices in table.items()}
    left = dict(table)
    while True:
        level, chosen = by_budget(left, layers, whole, budget)
        slow = {}
        for name, choice in chosen.items():
            group = next(each for each in groups[name] if choice in each)
            if not faster(layers[name], group[0]):
                slow[name] = group
            elif not faster(layers[name], choice):
                slow[name] = [choice]
        if not slow:
            return level, chosen
        for name, those in slow.items():
            left[name] = [choice for choice in left[name] if choice not in those]


def _groups(layer: Layer, choices: Sequence[Choice]) -> list[list[Choice]]:
    """Neighbours: each group's first is its cheapest, and has over 0.8 of any other's work."""
    groups: list[list[Choice]] = []
    least = 0.0
    for choice in choices:
        macs = chain_macs(layer, choice.chain)
        if not groups or least <= 0.8 * macs:
            groups.append([])
            least = macs
        groups[-1].append(choice)
    return groups


def as_listed(
    listed: Mapping[str, int | Sequence[int]], names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Node to the rank that is listed for it."""
    ranks: dict[str, tuple[int, ...]] = {}
    for pattern, rank in listed.items():
        for name in meant([pattern], names, "ranks"):
            ranks.setdefault(name, (rank,) if isinstance(rank, int) else tuple(rank))
    return ranks
