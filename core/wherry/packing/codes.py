"""Canonical Huffman codes: their lengths, and words written in them."""

from __future__ import annotations

import heapq

import numpy as np

LONGEST = 15
"""Bits of a code, at most."""

_BLOCK = 1 << 18  # codes that are written at a time, each in some 200 bytes


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of each symbol's code, uint8; a complete code, or one bit for a symbol alone.

    Args:
        counts: how often each symbol occurs, at least once; at most 2**15 symbols.
    """
    if len(counts) == 1:
        return np.ones(1, np.uint8)
    weights = counts.astype(np.int64)
    while (lengths := _huffman(weights)).max() > LONGEST:
        weights = weights // 2 + 1  # rare ones count for more, until no code is too long
    return lengths


def _huffman(counts: np.ndarray) -> np.ndarray:
    heap = [(int(count), index) for index, count in enumerate(counts)]
    heapq.heapify(heap)
    parents: dict[int, int] = {}
    node = len(counts)
    while len(heap) > 1:
        first, one = heapq.heappop(heap)
        second, other = heapq.heappop(heap)
        parents[one] = parents[other] = node
        heapq.heappush(heap, (first + second, node))
        node += 1
    depths = {node - 1: 0}
    for inner in range(node - 2, -1, -1):  # a parent has a higher number than its children
        depths[inner] = depths[parents[inner]] + 1
    return np.array([depths[index] for index in range(len(counts))], np.uint8)


def canonical(lengths: np.ndarray) -> np.ndarray:
    """The codes, uint16, of their lengths: shorter ones first, then in the symbols' order."""
    codes = np.zeros(len(lengths), np.uint16)
    code = before = 0
    for index in np.lexsort((np.arange(len(lengths)), lengths)):
        if lengths[index]:
            code <<= int(lengths[index]) - before
            before = int(lengths[index])
            codes[index] = code
            code += 1
    return codes


def written(codes: np.ndarray, lengths: np.ndarray) -> bytes:
    """Codes one after another, from the first bit of a byte on; the last byte filled with zeros.

    Args:
        codes: uint16, one for each thing that is written.
        lengths: bits of each.
    """
    parts: list[bytes] = []
    left: np.ndarray = np.zeros(0, np.uint8)
    for start in range(0, len(codes), _BLOCK):
        sizes = lengths[start : start + _BLOCK].astype(np.int64)
        ends = np.cumsum(sizes)
        behind = np.repeat(ends, sizes) - 1 - np.arange(ends[-1])  # bits of the code after it
        bits = (np.repeat(codes[start : start + _BLOCK].astype(np.int64), sizes) >> behind) & 1
        bits = np.concatenate([left, bits.astype(np.uint8)])
        whole = len(bits) // 8 * 8
        parts.append(np.packbits(bits[:whole]).tobytes())
        left = bits[whole:]
    return b"".join(parts) + np.packbits(left).tobytes()
