"""Channels and what ties them: labels for single channels, and sets of them that fall together.

Each channel that a filter makes has a label, a whole number. Where the graph says that two channels
can only be removed together (they are added, say), their labels are tied; where it says that one
must stay, it is frozen, with a reason. Label 0 stands for what was never made by filters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FIXED = 0
"""The label of channels that no filter makes: those of inputs and constants."""


@dataclass(frozen=True)
class Along:
    """The channels of a tensor.

    Attributes:
        axis: along which they lie.
        ids: the label of each position on it, int64 [length of the axis].
    """

    axis: int
    ids: np.ndarray


@dataclass(frozen=True)
class Reason:
    """Why channels must stay.

    Attributes:
        where: the node that asks for it, or the output.
        why: a clause without a subject: ``normalises over its channels``.
    """

    where: str
    why: str


class Ties:
    """Disjoint sets of labels (union-find, the smallest label is the root), and frozen ones."""

    def __init__(self) -> None:
        self._parents: list[int] = [FIXED]
        self._frozen: list[tuple[np.ndarray, Reason]] = []

    def fresh(self, count: int) -> np.ndarray:
        """New labels, int64 [count]."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def tie(self, ids: np.ndarray, others: np.ndarray, reason: Reason) -> None:
        """Tie labels to others, one by one; those tied to `FIXED` are frozen.

        Args:
            ids: [n].
            others: [n].
            reason: for those that are frozen.
        """
        lone = (ids == FIXED) != (others == FIXED)
        if lone.any():
            self.freeze(np.maximum(ids, others)[lone], reason)
        for one, other in zip(ids[~lone].tolist(), others[~lone].tolist(), strict=True):
            first, second = self._root(one), self._root(other)
            self._parents[max(first, second)] = min(first, second)

    def tie_rows(self, table: np.ndarray, reason: Reason) -> np.ndarray:
        """Tie all labels of a row to each other.

        Args:
            table: [rows, labels]
            reason: for those that are tied to `FIXED`.

        Returns:
            A label for each row, [rows].
        """
        for column in range(1, table.shape[1]):
            different = table[:, column] != table[:, 0]
            if different.any():
                self.tie(table[different, 0], table[different, column], reason)
        # a row with FIXED in it is frozen, whichever label stands for it
        found: np.ndarray = table.max(axis=1)
        return found

    def freeze(self, ids: np.ndarray, reason: Reason) -> None:
        """Say that these have to stay."""
        self._frozen.append((ids[ids != FIXED], reason))

    def roots(self) -> np.ndarray:
        """The label that stands for the set of each label, int64 [labels]."""
        return np.array([self._root(label) for label in range(len(self._parents))], np.int64)

    def reasons(self) -> dict[int, Reason]:
        """Roots of frozen sets to the first reason."""
        found: dict[int, Reason] = {}
        for ids, reason in self._frozen:
            for label in ids.tolist():
                found.setdefault(self._root(label), reason)
        return found

    def _root(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label


def reshaped(
    along: Along, before: Sequence[int], after: Sequence[int]
) -> tuple[int, np.ndarray] | None:
    """Where channels lie after a Reshape.

    Channels must lie along one axis again. Where a channel axis is split in two (a shuffle, heads),
    that is the one that needs no ties; else the longest; of equals the last.

    Args:
        along: before it; its axis is longer than 1.
        before: the tensor's shape; no axis is 0.
        after: its shape behind; as many elements.

    Returns:
        The axis, and the labels at each of its positions, [length, labels], which have to be tied.
        None: no axis is left that is longer than 1, which cannot be.
    """
    ends = [math.prod(before[:i]) for i in range(len(before) + 1)]
    new_ends = [math.prod(after[:i]) for i in range(len(after) + 1)]
    low = max(i for i in range(along.axis + 1) if ends[i] in new_ends)
    high = min(i for i in range(along.axis + 1, len(ends)) if ends[i] in new_ends)
    start = max(i for i, end in enumerate(new_ends) if end == ends[low])
    stop = min(i for i, end in enumerate(new_ends) if end == ends[high])
    view = [1] * (high - low)
    view[along.axis - low] = -1
    whole = np.broadcast_to(along.ids.reshape(view), before[low:high]).reshape(after[start:stop])
    best: tuple[int, int] | None = None
    for axis in range(whole.ndim):
        if whole.shape[axis] > 1:
            others = [other for other in range(whole.ndim) if other != axis]
            alone = all((whole == whole.take([0], axis=other)).all() for other in others)
            rank = whole.shape[axis] + (whole.size if alone else 0)
            if best is None or rank >= best[0]:
                best = (rank, axis)
    if best is None:
        return None
    axis = best[1]
    table = np.moveaxis(whole, axis, 0).reshape(whole.shape[axis], -1)
    return start + axis, table
