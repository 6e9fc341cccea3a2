"""Finds more words of codebooks that are known: layers too small to pay for one of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from wherry.packing.region import Region, words_at
from wherry.packing.tables import FLOATS, at_step, multiples

_LEAST = 12  # words
_MOST_STEPS = 8
_MOST_MULTIPLE = 1 << 15


def known(data: memoryview, single: Sequence[Region], found: Sequence[Region]) -> list[Region]:
    """Regions between those that were found, of words that stand in them, or of their steps.

    Args:
        data: what the regions are of.
        single: of them, those that are no vectors.
        found: in their order.
    """
    codebooks = {width: _Codebook(data, single, width) for width in {each.width for each in single}}
    more: list[Region] = []
    edges = [0, *(edge for each in found for edge in (each.start, each.stop)), len(data)]
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        more += _between(data, start, stop, codebooks)
    return more


class _Codebook:
    """All words of one width that were found, and the steps of those that are multiples."""

    def __init__(self, data: memoryview, found: Sequence[Region], width: int) -> None:
        self.steps: list[float] = []
        each = [
            np.unique(np.frombuffer(data[region.start : region.stop], f"<u{width}"))
            for region in found
            if region.width == width
        ]
        for words in each:
            if len(words) >= 3 and (told := multiples(words.view(FLOATS[width]))) is not None:
                self.steps.append(told[0])
        self.steps = sorted(set(self.steps), key=self.steps.count, reverse=True)[:_MOST_STEPS]
        self.words = np.unique(np.concatenate(each))

    def has(self, words: np.ndarray, width: int) -> np.ndarray:
        """Whether each word is one of these."""
        there = np.isin(words, self.words)
        values = words.view(FLOATS[width])
        real = np.where(np.isfinite(values), values, 0).astype(np.float64)
        for step in self.steps:
            numbers = np.rint(real / step)
            near = np.abs(numbers) < _MOST_MULTIPLE
            made = at_step(np.where(near, numbers, 0), step, values.dtype)
            there |= near & (made.view(words.dtype) == words)
        return there


def _between(
    data: memoryview, start: int, stop: int, codebooks: dict[int, _Codebook]
) -> Iterator[Region]:
    """The longest run of known words in a gap, at any alignment; and those beside it."""
    best: Region | None = None
    score = _LEAST - 1.0
    for width, codebook in codebooks.items():
        for phase in range(width):
            first, words = words_at(data, width, phase, start, stop)
            if len(words) < _LEAST:
                continue
            # zeros are no sign of a codebook
            sign = np.where(words == 0, 0.0, np.where(codebook.has(words, width), 1.0, -2.0))
            total = np.concatenate([[0.0], np.cumsum(sign)])
            gain = total - np.minimum.accumulate(total)
            last = int(np.argmax(gain))
            if gain[last] * width / 4 > score:
                begin = int(np.argmin(total[: last + 1]))
                score = float(gain[last]) * width / 4
                best = Region(first + begin * width, first + last * width, width)
    if best is not None:
        yield from _between(data, start, best.start, codebooks)
        yield best
        yield from _between(data, best.stop, stop, codebooks)
