"""Finds where a file has runs of few distinct words: weights that share their values.

Nothing is known of the file's format. At each alignment, blocks of words and all unions of 2, 4,
8... of them are priced, as they are and as a codebook with the entropy of its indices, and the
cheapest cut into such blocks is found (best basis: Coifman and Wickerhauser 1992). The prices say
which alignment is the cheapest where (a shortest path, as in Viterbi 1967), and the blocks there
are grown from their middle to the words where their codebook ends. Of those that overlap, the set
that saves most is taken, and what lies between is looked at again.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from wherry.packing.known import known
from wherry.packing.region import Region, words_at
from wherry.packing.tables import Table

WIDTHS = (4, 2)
"""Bytes of the words that are looked for."""

VECTORS = (8, 16, 32)
"""And where words come in vectors (vector quantisation): bytes of those."""

MOST_ENTRIES = 1 << 14
"""Of a codebook."""

_PIECE = 1 << 21  # bytes that are looked at together
_LEAST_BLOCK = 256  # bytes
_MOST_BLOCKS = 1 << 11  # in larger pieces blocks are larger; what lies between is looked at again
_SAMPLE_BYTES = 2048
_ENTRY = 6.0  # bits for the length of a code, and for its word where that is a multiple of a step
_OVERHEAD = 160.0  # bits of a region, besides its entries
_STORED = 0.92  # of a byte of float weights that is deflated
_OVERLAP = 32  # bytes
_SURE = 32  # words
_SAMPLE_WORDS = 1 << 14
_ROUNDS = 4
_COUNT_BITS = 22  # a piece has fewer words
_HASH_BITS = 18
_WINDOW_BYTES = 1 << 14
_WINDOWS = 16
_JOINT = 0.8
_SWITCH = 320.0  # bits, to go on at another alignment


def find(data: bytes) -> list[Region]:
    """The regions of a file in their order; they do not overlap."""
    return [
        region
        for offset in range(0, len(data), _PIECE)
        for region in _within(memoryview(data)[offset : offset + _PIECE], offset, _ROUNDS)
    ]


def _within(data: memoryview, offset: int, rounds: int) -> list[Region]:
    """The regions of a part of a file, and then those between them."""
    chosen = _chosen(_grown(data))
    if not chosen:
        return []
    found: list[Region] = []
    at = 0
    for region in [*chosen, Region(len(data), len(data), 1)]:
        if rounds > 1 and region.start - at >= 2 * _LEAST_BLOCK:
            found += _within(data[at : region.start], at, rounds - 1)
        found.append(region)
        at = region.stop
    del found[-1]
    for _ in range(_ROUNDS if rounds == _ROUNDS else 0):
        more = known(data, [each for each in found if each.width in WIDTHS], found)
        if not more:
            break
        found = sorted([*found, *more], key=lambda region: region.start)
    if rounds == _ROUNDS:
        found = _aligned(data, found)
    return [Region(each.start + offset, each.stop + offset, each.width) for each in found]


def _aligned(data: memoryview, found: Sequence[Region]) -> list[Region]:
    """The same regions, moved by parts of a word where the codebook is cheaper there.

    Where some bytes of all words are alike, the words are as few at another alignment, but no
    multiples of a step.
    """
    moved: list[Region] = []
    stops = [each.start for each in found[1:]] + [len(data)]
    for region, last in zip(found, stops, strict=True):
        first = moved[-1].stop if moved else 0
        best, least = region, float("inf")
        shifts = range(1 - region.width, region.width) if region.width in WIDTHS else ()
        for shift in sorted(shifts, key=abs):
            start, stop = region.start + shift, region.stop + shift
            if start < first or stop > last:
                start += region.width if start < first else 0
                stop -= region.width if stop > last else 0
            sample = data[start : min(stop, start + _SAMPLE_WORDS * region.width)]
            words = np.frombuffer(sample, f"<u{region.width}")
            if len(words):
                # what is left out at either end is not coded
                bits = Table.of(words, region.width).bits
                bits += 8.0 * (region.stop - region.start - (stop - start))
                if bits < least:
                    best, least = Region(start, stop, region.width), bits
        moved.append(best)
    return moved


@dataclass(frozen=True)
class _Candidate:
    region: Region
    gain: float


def _chosen(candidates: Sequence[_Candidate]) -> list[Region]:
    """Those that together save most and do not overlap but for some words, which one loses."""
    ordered = sorted(candidates, key=lambda each: (each.region.stop, each.region.start))
    stops = [each.region.stop - _OVERLAP for each in ordered]
    best = [0.0]
    before: list[int] = []
    for index, each in enumerate(ordered):
        before.append(bisect_right(stops, each.region.start, 0, index))
        best.append(max(best[-1], best[before[-1]] + each.gain))
    taken: list[Region] = []
    index = len(ordered)
    while index:
        if best[index] > best[index - 1]:
            taken.append(ordered[index - 1].region)
            index = before[index - 1]
        else:
            index -= 1
    found: list[Region] = []
    at = 0
    for region in reversed(taken):
        start = max(region.start, at + (region.start - at) % region.width)
        if region.stop > start:
            found.append(Region(start, region.stop, region.width))
            at = region.stop
    return found


def _grown(data: memoryview) -> list[_Candidate]:
    """Candidates; they may overlap."""
    block = _LEAST_BLOCK
    while len(data) > block * _MOST_BLOCKS:
        block *= 2
    widths = WIDTHS + (VECTORS if _has_vectors(data) else ())
    places = [(width, phase) for width in widths for phase in range(width)]
    blocks = len(data) // block + 1
    prices = [_deflated(data, blocks, block)]
    for width, phase in places:
        _, words = words_at(data, width, phase, 0, len(data))
        prices.append(np.full(blocks, np.inf))
        priced = _Words(words, width, block).prices()
        prices[-1][: len(priced)] = priced
    found: dict[Region, float] = {}
    for which, first, last in _path(np.array(prices)):
        if which:
            width, phase = places[which - 1]
            span = (last - first + 64) * block
            start = max(0, first * block - span)
            offset, words = words_at(data, width, phase, start, last * block + span)
            core = [(each * block - offset) // width for each in (first, last)]
            own = _Words(words, width, block)
            for one, other, price in own.regions(max(0, core[0]), core[1]):
                found[Region(offset + one * width, offset + other * width, width)] = price
    return [
        _Candidate(region, stored - price)
        for region, price in found.items()
        if (stored := 8.0 * len(zlib.compress(data[region.start : region.stop], 1))) > price
    ]


def _has_vectors(data: memoryview) -> bool:
    """Whether pairs of words are clearly fewer bits than the two words, somewhere."""
    for start in range(0, len(data), max(_WINDOW_BYTES, len(data) // _WINDOWS)):
        stop = start + _WINDOW_BYTES
        phases = [words_at(data, 4, phase, start, stop)[1] for phase in range(4)]
        if len(phases[-1]) <= 2 * _SURE:
            continue
        words = min(phases, key=_bits_of).astype(np.uint64)  # others hold parts of two words
        for shift in range(2):
            one, other = (words[shift + place :: 2][: len(words) // 2 - 1] for place in range(2))
            joint = _bits_of(one << np.uint64(32) | other)
            if joint < _JOINT * min(2 * _bits_of(words), math.log2(len(one))):
                return True
    return False


def _bits_of(words: np.ndarray) -> float:
    """The entropy of a word, bits."""
    _, counts = np.unique(words, return_counts=True)
    shares = counts / len(words)
    return float(-shares @ np.log2(shares))


def _deflated(data: memoryview, blocks: int, block: int) -> np.ndarray:
    """Bits of each block where it is not coded."""
    found = np.zeros(blocks)
    size = max(_SAMPLE_BYTES, block)
    for start in range(0, len(data), size):
        chunk = data[start : start + size]
        bits = 8.0 * len(zlib.compress(chunk, 1)) * block / len(chunk)
        first = start // block
        found[first : first + size // block] = bits
    return found


def _path(prices: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of blocks (which row, first block, block behind the last) of the least sum.

    Args:
        prices: [rows, blocks].
    """
    rows, blocks = prices.shape
    came = np.zeros((blocks, rows), np.int64)
    cost = prices[:, 0].copy()
    for block in range(1, blocks):
        best = int(np.argmin(cost))
        stay = cost <= cost[best] + _SWITCH
        came[block] = np.where(stay, np.arange(rows), best)
        cost = np.where(stay, cost, cost[best] + _SWITCH) + prices[:, block]
    row = int(np.argmin(cost))
    path = [row]
    for block in range(blocks - 1, 0, -1):
        row = int(came[block][row])
        path.append(row)
    taken = np.array(path[::-1])
    edges = [0, *(np.flatnonzero(np.diff(taken)) + 1).tolist(), blocks]
    return [(int(taken[i]), i, j) for i, j in pairwise(edges)]


class _Words:
    """A piece as words of one alignment.

    Args:
        words: of it.
        width: bytes of each.
        block: bytes of the least block that is looked at.
    """

    def __init__(self, words: np.ndarray, width: int, block: int) -> None:
        self._bits = 8 * width
        self._block = block // width
        self._words = words
        if width == 2:
            counts = np.bincount(words, minlength=1 << 16)
            self._values = np.flatnonzero(counts > 1)
            self._counts = counts[self._values]
        else:
            values, counts = np.unique(words, return_counts=True)
            self._values, self._counts = values[counts > 1], counts[counts > 1]
        self._rare = len(self._values)

    @cached_property
    def _ids(self) -> np.ndarray:
        """Of each word its place among those that come more than once; `_rare` for the others."""
        if self._bits == 16:
            place = np.full(1 << 16, self._rare, np.int32)
            place[self._values] = np.arange(self._rare)
            found: np.ndarray = place[self._words]
            return found
        # a table by a hash, which is checked; what it misses is looked for
        table = np.zeros(1 << _HASH_BITS, np.int32)
        table[_hashed(self._values)] = np.arange(self._rare)
        found = table[_hashed(self._words)]
        missed = np.flatnonzero(self._values[found] != self._words)
        wanted = self._words[missed]
        places = np.minimum(np.searchsorted(self._values, wanted), self._rare - 1)
        places[self._values[places] != wanted] = self._rare
        found[missed] = places
        return found

    def prices(self) -> np.ndarray:
        """Of each block within the cheapest cut, bits; an entry is paid for where it is used."""
        found = np.full(-(-len(self._words) // self._block), self._stored(self._block))
        for start, stop, _ in self._best():
            ids = self._ids[start:stop]
            counts = np.maximum(np.bincount(ids, minlength=self._rare + 1), 1)
            counts[self._rare] = 1
            entry = math.log2(stop - start) - np.log2(counts) + (self._bits + _ENTRY) / counts
            first = start // self._block
            sums = np.add.reduceat(entry[ids], np.arange(0, stop - start, self._block))
            found[first : first + len(sums)] = sums
        return found

    def regions(self, first: int, last: int) -> list[tuple[int, int, float]]:
        """(first word, word behind the last, bits) of what grows from some of the words."""
        found = []
        cut = [(a, b) for a, b, _ in self._best() if a < last and b > first]
        for start, stop in self._joined(cut):
            one, other = self._grow(max(start, first), min(stop, last))
            quarter = (other - one) // 4
            if quarter > _SURE:  # again from what is surely of it
                one, other = self._grow(one + quarter, other - quarter)
            if other > one:
                found.append((one, other, self._price(one, other)))
        return found

    def _grow(self, start: int, stop: int) -> tuple[int, int]:
        """From the middle of a run of words to where its own words end on either side.

        Zeros are no sign of a codebook.
        """
        core = self._ids[start:stop]
        counts = np.bincount(core, minlength=self._rare + 1)
        score = np.where(counts >= max(2, len(core) // 512), 1.0, -1.0)
        score[self._rare] = -1.0
        if self._rare and self._values[0] == 0:
            score[0] = 0.0
        scores = score[self._ids]
        middle = (start + stop) // 2
        right = np.cumsum(scores[middle:])
        left = np.cumsum(scores[:middle][::-1])
        stop = middle + int(np.argmax(right)) + 1
        return (middle - int(np.argmax(left)) - 1 if len(left) and left.max() > 0 else middle), stop

    def _best(self) -> list[tuple[int, int, float]]:
        """The coded blocks of the cheapest cut: first word, word behind the last, bits."""
        total = len(self._words)
        if self._counts.sum() <= 0.02 * total:
            return []  # hardly a word comes twice, or there is none
        ids, bits = self._ids, self._rare.bit_length()
        starts = np.arange(0, total, self._block)
        sizes = np.diff(starts, append=total).astype(np.float64)
        often = ids != self._rare
        rare = sizes - np.add.reduceat(often, starts, dtype=np.int64)
        # at most 2**11 blocks, and fewer than 2**20 words
        block = np.repeat(np.arange(len(starts), dtype=np.int32) << bits, self._block)[:total]
        keys, counts = np.unique((block + ids)[often], return_counts=True)
        keys = keys.astype(np.int64)
        levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # see `_cut`
        least: np.ndarray | None = None
        while True:
            price = self._prices(keys >> bits, counts, rare, sizes)
            stored = _STORED * self._bits * sizes
            own = np.minimum(price, stored)
            if least is not None:
                padded = np.append(least, 0.0) if len(least) % 2 else least
                halves = padded[0::2] + padded[1::2]
                whole = own < halves
                own = np.minimum(own, halves)
            else:
                whole = np.ones(len(own), bool)
            levels.append((whole, price < stored, price))
            if len(sizes) == 1:
                break
            least = own
            keys, counts = _halved(keys, counts, bits)
            sizes, rare = (_pairs(values) for values in (sizes, rare))
        return self._cut(levels)

    def _cut(
        self, levels: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
    ) -> list[tuple[int, int, float]]:
        """The coded blocks, from the largest down.

        Args:
            levels: for blocks of each size: whether one stays whole, whether it is coded, bits.
        """
        found: list[tuple[int, int, float]] = []
        open_blocks = [(len(levels) - 1, 0)]
        while open_blocks:
            level, index = open_blocks.pop()
            whole, coded, price = levels[level]
            if whole[index]:
                if coded[index]:
                    size = self._block << level
                    stop = min((index + 1) * size, len(self._words))
                    found.append((index * size, stop, float(price[index])))
            elif level:
                below = len(levels[level - 1][0])
                children = [(level - 1, 2 * index + 1), (level - 1, 2 * index)]
                open_blocks += [child for child in children if child[1] < below]
        return sorted(found)

    def _prices(
        self, owners: np.ndarray, counts: np.ndarray, rare: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Bits of each block as a codebook and its indices."""
        blocks = len(sizes)
        distinct = np.bincount(owners, minlength=blocks) + rare
        weighted = counts * np.log2(counts)
        indices = sizes * np.log2(sizes) - np.bincount(owners, weighted, minlength=blocks)
        prices: np.ndarray = indices + distinct * (self._bits + _ENTRY) + _OVERHEAD
        return prices

    def _stored(self, count: int) -> float:
        return _STORED * self._bits * count

    def _price(self, start: int, stop: int) -> float:
        """`_prices` of any run of words."""
        counts = np.bincount(self._ids[start:stop], minlength=self._rare + 1)
        rare = int(counts[self._rare])
        counts = counts[: self._rare]
        counts = counts[counts > 0]
        if (distinct := len(counts) + rare) > MOST_ENTRIES:
            return math.inf
        indices = (stop - start) * math.log2(stop - start) - float(counts @ np.log2(counts))
        return indices + distinct * (self._bits + _ENTRY) + _OVERHEAD

    def _joined(self, blocks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Neighbours that are cheaper together are one."""
        joined: list[tuple[int, int]] = []
        prices: list[float] = []
        for start, stop in blocks:
            first, last, price = start, stop, self._price(start, stop)
            while joined and joined[-1][1] == first:
                together = self._price(joined[-1][0], last)
                if together > prices[-1] + price:
                    break
                first, price = joined.pop()[0], together
                prices.pop()
            joined.append((first, last))
            prices.append(price)
        return joined


def _hashed(words: np.ndarray) -> np.ndarray:
    """Of 32 bit words, by their product with 2**32 over the golden ratio (Knuth 1973, 6.4)."""
    found: np.ndarray = (words * np.uint32(0x9E3779B1)) >> np.uint32(32 - _HASH_BITS)
    return found


def _halved(keys: np.ndarray, counts: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The counts of blocks as those of pairs of blocks; keys are block << bits | word."""
    if not len(keys):
        return keys, counts
    halves = keys >> (bits + 1) << bits | keys & ((1 << bits) - 1)
    merged = (halves << _COUNT_BITS) + counts
    merged.sort()
    keys, counts = merged >> _COUNT_BITS, merged & ((1 << _COUNT_BITS) - 1)
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(counts, first)


def _pairs(values: np.ndarray) -> np.ndarray:
    padded = np.append(values, 0.0) if len(values) % 2 else values
    sums: np.ndarray = padded[0::2] + padded[1::2]
    return sums
