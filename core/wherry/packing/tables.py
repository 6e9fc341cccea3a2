"""Codebooks and the codes of their entries: of each region, and shared where that is cheaper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wherry.packing.codes import canonical, code_lengths, written

RUNS = 0
"""As a width: the entries are run lengths."""
_LONGEST_RUN = 1 << 12  # words; of longer ones the rest is another run
_NEAR = 24  # tables of so many regions before are tried for another
_MOST_ENTRIES = 1 << 14
_MOST_MULTIPLE = 1 << 20
FLOATS: Mapping[int, Any] = {2: np.float16, 4: np.float32}


@dataclass(frozen=True)
class Table:
    """What is coded, and how often each comes.

    Attributes:
        width: of a word in bytes, or `RUNS`.
        entries: rising; int64, or bytes of words of more than 4 bytes (vectors of words).
        counts: of each.
    """

    width: int
    entries: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, width: int) -> Table:
        """The table of what stands in a region."""
        entries, counts = np.unique(_sortable(values), return_counts=True)
        return cls(width, entries, counts)

    @property
    def bits(self) -> float:
        """What it costs: the codes of all that is coded, and about the table itself."""
        codes = float(self.counts @ table_lengths(self).astype(np.int64))
        return codes + 8 * len(self.described()) + 4 * len(self.entries)

    @property
    def least_bits(self) -> float:
        """Less than `bits` and quicker: the entropy, and a byte for each entry."""
        total = float(self.counts.sum())
        entropy = total * np.log2(total) - float(self.counts @ np.log2(self.counts))
        return float(entropy) + 12 * len(self.entries)

    def with_(self, other: Table) -> Table:
        """One table for both."""
        entries, places = np.unique(
            np.concatenate([self.entries, other.entries]), return_inverse=True
        )
        counts = np.bincount(places.reshape(-1), np.concatenate([self.counts, other.counts]))
        return Table(self.width, entries, counts.astype(np.int64))

    def described(self) -> bytes:
        """The table in the directory, but for the lengths of codes."""
        head = bytes([self.width])
        many = varint(len(self.entries))
        if self.width == RUNS:
            return head + b"\0" + many + b"".join(map(varint, self.entries.tolist()))
        if self.width not in FLOATS:
            return head + b"\0" + many + self.entries.tobytes()
        words = self.entries.astype(f"<u{self.width}")
        multiples = self._multiples(words)
        if multiples is None:
            return head + b"\0" + many + words.tobytes()
        step, numbers = multiples
        first = int(numbers[0])
        text = head + b"\1" + many + np.float32(step).tobytes()
        text += varint(2 * first if first >= 0 else -2 * first - 1)
        return text + b"".join(varint(gap) for gap in (np.diff(numbers) - 1).tolist())

    def order(self) -> np.ndarray:
        """Places of the entries in the directory: as they are, but multiples of a step by value."""
        if self.width not in FLOATS:
            return np.arange(len(self.entries))
        words = self.entries.astype(f"<u{self.width}")
        if self._multiples(words) is None:
            return np.arange(len(self.entries))
        return np.argsort(words.view(FLOATS[self.width]), kind="stable")

    def _multiples(self, words: np.ndarray) -> tuple[float, np.ndarray] | None:
        """The step, and the multiples in their order, where all words are such floats."""
        if len(words) < 3:
            return None
        return multiples(words.view(FLOATS[self.width]))


def multiples(values: np.ndarray) -> tuple[float, np.ndarray] | None:
    """The step of which distinct floats are multiples, and the rising multiples; None: no step."""
    if not np.isfinite(values).all():
        return None
    rising = np.sort(values.astype(np.float64))
    sizes, gaps = np.abs(rising[rising != 0]), np.diff(rising)
    if not len(sizes) or gaps.min() <= 0:
        return None
    least = float(sizes.min())
    guesses = (float(min(least, gaps.min())), least, least / 2, least / 3, _lowest_bit(sizes))
    for guess in dict.fromkeys(guesses):
        step = float(np.float32(guess))
        if step and np.abs(rising).max() / step < _MOST_MULTIPLE:
            numbers = np.rint(rising / step).astype(np.int64)
            # by their bits: a zero with a sign is no multiple
            unsigned = f"u{values.dtype.itemsize}"
            made = at_step(numbers, step, values.dtype).view(unsigned)
            if np.array_equal(made, np.sort(values).view(unsigned)):
                return step, numbers
    return None


def _lowest_bit(values: np.ndarray) -> float:
    """The greatest power of two of which positive floats of 24 bits or less are multiples."""
    unit = 2.0 ** (np.frexp(values.min())[1] - 24)
    if values.max() / unit >= 1 << 62:
        return 0.0
    whole = int(np.bitwise_or.reduce((values / unit).astype(np.int64)))
    return float((whole & -whole) * unit)


def at_step(numbers: np.ndarray, step: float, dtype: np.dtype[Any]) -> np.ndarray:
    """Multiples as the board computes them: in double precision, and then rounded once."""
    with np.errstate(over="ignore"):  # infinities are not what is looked for
        return (numbers.astype(np.float64) * step).astype(dtype)


@dataclass(frozen=True)
class Coded:
    """A region as it is coded.

    Attributes:
        length: of it, bytes.
        streams: what is coded, in turns: words; or run lengths and words, of which the last may
            be missing.
        tables: of the streams; `shared` gives the same to several regions.
    """

    length: int
    streams: tuple[np.ndarray, ...]
    tables: tuple[Table, ...]

    @classmethod
    def of(cls, data: bytes, width: int) -> Coded:
        """The cheaper of words alone, and words with the runs of zeros between them."""
        if width not in FLOATS:
            vectors = np.frombuffer(data, f"V{width}")
            return cls(len(data), (vectors,), (Table.of(vectors, width),))
        words = np.frombuffer(data, f"<u{width}")
        plain = cls(len(data), (words,), (Table.of(words, width),))
        if not 0 < np.count_nonzero(words) <= 0.8 * len(words):
            return plain
        runs, others = _runs(words)
        tables = (Table.of(runs, RUNS), Table.of(others, width))
        if sum(table.bits for table in tables) >= plain.tables[0].bits:
            return plain
        return cls(len(data), (runs, others), tables)

    def payload(self) -> bytes:
        """The codes."""
        ends = sum(len(stream) for stream in self.streams)
        codes, lengths = np.zeros(ends, np.uint16), np.zeros(ends, np.uint8)
        for offset, (stream, table) in enumerate(zip(self.streams, self.tables, strict=True)):
            of_it = table_lengths(table)
            places = np.searchsorted(table.entries, _sortable(stream))
            order = table.order()
            ordered = np.zeros(len(order), np.uint16)
            ordered[order] = canonical(of_it[order])
            codes[offset :: len(self.streams)] = ordered[places]
            lengths[offset :: len(self.streams)] = of_it[places]
        return written(codes, lengths)


def _sortable(values: np.ndarray) -> np.ndarray:
    """Words as `Table.entries` has them."""
    return values if values.dtype.kind == "V" else values.astype(np.int64)


def table_lengths(table: Table) -> np.ndarray:
    """Bits of each entry's code, in the order of ``Table.entries``."""
    return code_lengths(table.counts)


def _runs(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many zeros come before each word, and the words; at the end there may be a run alone."""
    places = np.flatnonzero(words)
    gaps = np.diff(places, prepend=-1) - 1
    rest = len(words) - 1 - (int(places[-1]) if len(places) else -1)
    # a run that is too long ends in a zero as its word
    filled, last = np.divmod(np.append(gaps, rest), _LONGEST_RUN + 1)
    ends = np.cumsum(filled + 1) - 1
    runs = np.full(int(ends[-1]) + 1, _LONGEST_RUN, np.int64)
    runs[ends] = last
    others = np.zeros(len(runs), words.dtype)
    others[ends[:-1]] = words[places]
    return (runs if last[-1] else runs[:-1]), others[:-1]


def shared(regions: Sequence[Coded]) -> list[Coded]:
    """The same regions with one table for several, where that is cheaper."""
    tables = [table for region in regions for table in region.tables]
    owner = _joined(tables)
    found, at = [], 0
    for region in regions:
        many = len(region.tables)
        found.append(Coded(region.length, region.streams, tuple(owner[at : at + many])))
        at += many
    return found


def _joined(tables: Sequence[Table]) -> list[Table]:
    """For each table the one that stands for it."""
    groups: list[tuple[Table, float, list[int]]] = []
    for index, table in enumerate(tables):
        groups.append((table, table.bits, [index]))
        while (better := _nearest(groups)) is not None:
            other, joined, bits = better
            members = groups[other][2] + groups[-1][2]
            del groups[-1], groups[other]
            groups.append((joined, bits, members))
    owner = dict.fromkeys(range(len(tables)), tables[0]) if tables else {}
    for table, _, members in groups:
        owner.update(dict.fromkeys(members, table))
    return [owner[index] for index in range(len(tables))]


def _nearest(groups: Sequence[tuple[Table, float, list[int]]]) -> tuple[int, Table, float] | None:
    """The group that the last one is best joined with: its place, the table of both, its cost."""
    last, own, _ = groups[-1]
    best: tuple[int, Table, float] | None = None
    least = 0.0
    for place in range(max(0, len(groups) - 1 - _NEAR), len(groups) - 1):
        table, bits, _ = groups[place]
        if table.width == last.width and len(table.entries) + len(last.entries) <= _MOST_ENTRIES:
            joined = table.with_(last)
            if bits + own - joined.least_bits <= least:
                continue  # a code is not needed to tell
            gain = bits + own - (cost := joined.bits)
            if gain > least:
                least, best = gain, (place, joined, cost)
    return best


def varint(value: int) -> bytes:
    """A number from 0 on in groups of 7 bits, the lowest first."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
