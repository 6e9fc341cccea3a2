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
    """The words of an alignment that lie within bytes ``start`` to ``stop``, and their place.

    Of vectors, words of more than 4 bytes, it is hashes of 32 bits: some few are alike by chance.
    """
    first = start + (phase - start) % width
    count = max(0, (min(stop, len(data)) - first) // width)
    if width > 4:
        return first, _hashes(data[first : first + count * width], width)
    if not count:
        return first, np.zeros(0, f"<u{width}")
    return first, np.frombuffer(data, f"<u{width}", count, first)


def _hashes(data: memoryview, width: int) -> np.ndarray:
    """Of vectors of words; equal vectors have equal ones, and zeros zero."""
    found = np.zeros(len(data) // width, np.uint32)
    for column in np.frombuffer(data, "<u4").reshape(-1, width // 4).T:
        found = (found ^ column) * np.uint32(0x85EBCA6B)
        found ^= found >> np.uint32(15)
    return found
