"""A run of words in a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """Bytes of a file that are few distinct words.

    Attributes:
        start: the first byte.
        stop: the byte behind the last.
        width: of a word, bytes.
    """

    start: int
    stop: int
    width: int


def words_at(
    data: memoryview, width: int, phase: int, start: int, stop: int
) -> tuple[int, np.ndarray]:
    """The words of an alignment that lie within bytes ``start`` to ``stop``, and their place."""
    first = start + (phase - start) % width
    count = max(0, (min(stop, len(data)) - first) // width)
    if not count:
        return first, np.zeros(0, f"<u{width}")
    return first, np.frombuffer(data, f"<u{width}", count, first)
