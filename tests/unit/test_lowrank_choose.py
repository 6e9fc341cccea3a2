"""Which ranks a budget chooses: the highest level that meets it, of what is faster."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowrank_layers import made_layer

from wherry_compress.lowrank.choose import Table, by_budget, by_energy, saved, within_budget
from wherry_compress.lowrank.factors import Choice, Matrix
from wherry_compress.lowrank.layers import Layer, Shape, chain_macs

energies = st.lists(st.floats(0.01, 1), min_size=1, max_size=6, unique=True)


@given(st.lists(energies, min_size=1, max_size=4), st.floats(0.05, 1))
def test_the_budget_is_met_by_the_highest_level_that_can(tables, budget):
    layers, table = {}, {}
    for number, levels in enumerate(tables):
        layer = made_layer(6, 6, 3, 3)
        layers[str(number)] = layer
        table[str(number)] = [
            Choice((rank,), (Shape(rank, 6, takes=(0, 1)), Shape(6, rank)), energy)
            for rank, energy in enumerate(sorted(levels), start=1)
            if chain_macs(layer, (Shape(rank, 6, takes=(0, 1)), Shape(6, rank))) < layer.macs
        ]
    whole = sum(layer.macs for layer in layers.values())

    def left(level: float) -> int:
        chosen = by_energy(table, level)
        return sum(
            chain_macs(layer, chosen[name].chain) if name in chosen else layer.macs
            for name, layer in layers.items()
        )

    level, chosen = by_budget(table, layers, whole, budget)
    every = sorted({choice.energy for choices in table.values() for choice in choices})
    fitting = [each for each in every if left(each) <= budget * whole]
    assert level == (fitting[-1] if fitting else every[0])
    assert chosen == by_energy(table, level)
    assert within_budget(table, layers, whole, budget, lambda *_: True) == (level, chosen)


def made_table(tables: list[list[tuple[float, bool]]]) -> tuple[Table, dict[str, Layer], set]:
    """A table of energies, its layers, and the name and ranks of those that are faster."""
    layers = {str(number): made_layer(16, 6, 3, 3) for number in range(len(tables))}
    table: Table = {}
    quick = set()
    for (name, layer), column in zip(layers.items(), tables, strict=True):
        table[name] = []
        for rank, (energy, is_quick) in enumerate(sorted(column), start=1):
            table[name].append(Choice((rank,), Matrix().chain(layer, (rank,)), energy))
            if is_quick:
                quick.add((name, (rank,)))
    return table, layers, quick


columns = st.lists(
    st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=12, unique_by=lambda c: c[0]
)
budgets = st.lists(st.floats(0.02, 1), min_size=2, max_size=5)


@settings(deadline=None)
@given(st.lists(columns, min_size=1, max_size=4), budgets)
def test_a_budget_is_met_by_what_is_faster_whatever_that_is(tables, asked):
    table, layers, quick = made_table(tables)
    whole = sum(layer.macs for layer in layers.values())

    def macs(name: str, choice: Choice) -> int:
        return chain_macs(layers[name], choice.chain)

    def near(name: str, choice: Choice) -> bool:
        """The first of its group is faster: see `within_budget`."""
        first = table[name][0]
        for each in table[name]:
            if macs(name, first) <= 0.8 * macs(name, each):
                first = each
            if each == choice:
                break
        return (name, first.ranks) in quick

    may = {
        name: [c for c in choices if (name, c.ranks) in quick and near(name, c)]
        for name, choices in table.items()
    }
    least = whole - sum(
        layers[name].macs - macs(name, choices[0]) for name, choices in may.items() if choices
    )
    last = 0
    for budget in sorted(asked):
        timed = []

        def is_faster(layer: Layer, choice: Choice) -> bool:
            name = next(name for name, each in layers.items() if each is layer)
            timed.append((name, choice.ranks))  # noqa: B023
            return (name, choice.ranks) in quick

        level, chosen = within_budget(table, layers, whole, budget, is_faster)
        assert {(name, choice.ranks) for name, choice in chosen.items()} <= quick & set(timed)
        reached = whole - saved(layers, chosen)
        assert reached >= last, "a tighter budget gave a larger network"
        last = reached
        assert reached <= budget * whole or reached == least
        assert (level, chosen) == by_budget(may, layers, whole, budget), "not the best"
        assert all(timed.count(key) == 1 for key in set(timed) - quick), "slow ones asked again"
        of_slow = {key for key in timed if not near(key[0], table[key[0]][key[1][0] - 1])}
        assert not of_slow & quick, "asked after the first of its group was slow"


def test_what_is_slow_at_a_low_rank_keeps_a_higher_one():
    column = [(rank / 12, rank > 4) for rank in range(1, 13)]
    table, layers, _ = made_table([column, column])
    whole = sum(layer.macs for layer in layers.values())
    reached, replaced = [], []
    for budget in (0.9, 0.5, 0.3, 0.1):
        _, chosen = within_budget(
            table, layers, whole, budget, lambda _, choice: choice.ranks > (4,)
        )
        reached.append(1 - saved(layers, chosen) / whole)
        replaced.append(len(chosen))
    assert reached == sorted(reached, reverse=True) and replaced == [2, 2, 2, 2]
    assert reached[0] <= 0.9 and reached[1] <= 0.5
    assert reached[2] == reached[3] == min(reached) == pytest.approx(5 * 70 / 864)


def test_few_are_timed_where_all_are_slow():
    column = [(rank / 12, False) for rank in range(1, 13)]
    table, layers, _ = made_table([column])
    timed = []
    within_budget(table, layers, layers["0"].macs, 0.5, lambda _, c: timed.append(c.ranks[0]))
    assert sorted(timed) == [1, 2, 3, 4, 5, 7, 9, 12]
