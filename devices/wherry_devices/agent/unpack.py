"""Unpacks a container: a file of few distinct words, as codebooks and Huffman codes.

The host packs the files of an artifact whose weights are shared or pruned (`wherry.packing`); here
they become the same bytes again. Little-endian, numbers of any length as in LEB128 ("varint")::

    4 bytes   magic b"WPK" and the format's version
    u64       length of the file
    32 bytes  its sha256
    u32       length of the directory
    directory deflated (zlib's form): tables, segments, varint length of the rest
    payloads  of the segments, one after another
    rest      deflated

    tables    varint how many; each: u8 width of its words in bytes (0: it holds run lengths), u8
              form, varint entries, the words by their form, a byte for the length of each code
              form 0: the words' bytes (at most 64 each: vectors of weights are words, too), or run
              lengths as varints
              form 1: f32 step, varint first multiple (zigzag), varints how many multiples are
              left out before each of the others; a word is multiple * step in float16 or float32
    segments  varint how many; each: u8 kind, varint bytes of the file, then by kind
              0 the next bytes of the rest
              1 varint table, varint length of the payload: a code for each word
              2 varint table of words, varint table of runs, varint length of the payload: codes in
                turns, for how many words of zero bytes come next and for the word after them

A code is at most 15 bits long, canonical (shorter ones first, then in the order of the table),
written from its first bit on; a payload is filled up with zero bits.

After Han et al., "Deep Compression", ICLR 2016, section 4. What is cut, damaged or hostile ends in
`ContainerError`: never more than the announced length is written. Standard library only.
"""

from __future__ import annotations

import array
import hashlib
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MAGIC = b"WPK\x01"
REST, WORDS, SPARSE = range(3)
LONGEST_CODE = 15  # bits
LONGEST_RUN = 1 << 16  # words
WIDEST = 64  # bytes of a word
_PREFIX = struct.Struct("<4sQ32sI")
_MOST_DIRECTORY = 1 << 22  # bytes
_MOST_ENTRIES = 1 << LONGEST_CODE
_WINDOW = 12  # bits that are looked up at once, at least
_PIECE = 1 << 20  # bytes that are written at once, about
_FLOATS = {2: "<e", 4: "<f"}


class ContainerError(Exception):
    """This is no container, or it is damaged; the text says what is wrong."""


class _Table:
    """Entries and their codes.

    Args:
        width: of a word in bytes; 0: the entries are run lengths.
        entries: words as bytes, or run lengths.
        lengths: of each entry's code, bits; 0: it has none.
    """

    def __init__(self, width: int, entries: Sequence[Any], lengths: Sequence[int]) -> None:
        self.width = width
        self._entries = entries
        self._lengths = lengths
        self._singles: list[tuple[Any, int]] = []
        self._windows: list[tuple[bytes, int, int]] = []

    def singles(self) -> tuple[list[tuple[Any, int]], int]:
        """What each window of bits begins with, (entry, bits of its code); the window's bits."""
        if not self._singles:
            coded = sorted((size, index) for index, size in enumerate(self._lengths) if size)
            bits = coded[-1][0] if coded else 0
            whole = sum(1 << (bits - size) for size, _ in coded) == 1 << bits
            if len(coded) == 1 and bits == 1:  # half a code: there is nothing else to tell it from
                coded *= 2
            elif not (0 < bits <= LONGEST_CODE and whole):
                raise ContainerError("the codes of a table are not a whole code")
            for size, index in coded:
                self._singles += [(self._entries[index], size)] * (1 << (bits - size))
        return self._singles, len(self._singles).bit_length() - 1

    def windows(self) -> tuple[list[tuple[bytes, int, int]], int]:
        """All the words that a wider window holds, (bytes, bits, how many bytes); its bits."""
        singles, bits = self.singles()
        window = max(bits, _WINDOW)
        if not self._windows:
            for value in range(1 << window):
                words, used = b"", 0
                while used < window:
                    rest = value << used & ((1 << window) - 1)  # what is left, at the top
                    entry, size = singles[rest >> (window - bits)]
                    if used + size > window:
                        break
                    words += entry
                    used += size
                self._windows.append((words, used, len(words)))
        return self._windows, window


class _Segment(NamedTuple):
    kind: int
    length: int
    tables: Sequence[_Table]
    payload: memoryview


def unpack(container: bytes, write: Callable[[bytes], object], most: int) -> None:
    """Write the file that a container holds, piece by piece.

    Args:
        container: all of its bytes.
        write: is given the file's bytes in their order; what was written before an error is void.
        most: bytes that the file may have.

    Raises:
        ContainerError: see the module.
    """
    length, wanted, segments, rest = _read(memoryview(container), most)
    digest = hashlib.sha256()
    written = 0

    def take(piece: bytes) -> None:
        nonlocal written
        written += len(piece)
        if written > length:
            raise ContainerError("the container holds more than it says")
        digest.update(piece)
        write(piece)

    for segment in segments:
        start = written
        if segment.kind == REST:
            rest.give(segment.length, take)
        elif segment.kind == WORDS:
            _words(segment, take)
        else:
            _sparse(segment, take)
        if written - start != segment.length:
            raise ContainerError("a segment has another length than the directory says")
    rest.end()
    if digest.digest() != wanted:
        raise ContainerError("what was unpacked has another sha256: the container is damaged")


def _read(container: memoryview, most: int) -> tuple[int, bytes, list[_Segment], _Rest]:
    """The file's length, its sha256, the segments, and what is not coded."""
    if len(container) < _PREFIX.size:
        raise ContainerError("the container is cut off")
    magic, length, digest, size = _PREFIX.unpack_from(container)
    if magic != MAGIC:
        raise ContainerError(f"not a container that we know: it begins with {bytes(magic)!r}")
    if length > most:
        raise ContainerError(f"the container says {length} bytes, where {most} were announced")
    payloads = _PREFIX.size + size
    if payloads > len(container):
        raise ContainerError("the container is cut off")
    reading = zlib.decompressobj()
    try:
        directory = reading.decompress(container[_PREFIX.size : payloads], _MOST_DIRECTORY)
    except zlib.error as error:
        raise ContainerError(f"the directory is damaged: {error}") from error
    if not reading.eof or reading.unused_data:
        raise ContainerError("the directory is cut off, or too large")
    return (length, digest, *_directory(directory, container[payloads:], length))


def _directory(text: bytes, payloads: memoryview, length: int) -> tuple[list[_Segment], _Rest]:
    reader = _Reader(text)
    tables = [_table(reader) for _ in range(reader.count())]
    segments = []
    start = total = 0
    for _ in range(reader.count()):
        kind, size = reader.byte(), reader.number()
        if kind > SPARSE:
            raise ContainerError(f"a segment of the unknown kind {kind}")
        named = [reader.number() for _ in range(kind)]
        if any(index >= len(tables) for index in named):
            raise ContainerError("a segment names a table that there is not")
        of_it = [tables[index] for index in named]
        if any((table.width > 0) != (place == 0) for place, table in enumerate(of_it)):
            raise ContainerError("a segment's table is of the wrong kind")
        packed = 0 if kind == REST else reader.number()
        segments.append(_Segment(kind, size, of_it, payloads[start : start + packed]))
        start += packed
        total += size
    rest = payloads[start:]
    if total != length or reader.number() != len(rest) or not reader.at_end:
        raise ContainerError("the container is cut off, or its segments do not make up the file")
    return segments, _Rest(rest)


class _Rest:
    """What is not coded, inflated as it is asked for."""

    def __init__(self, deflated: memoryview) -> None:
        self._reading = zlib.decompressobj()
        self._left = bytes(deflated)

    def give(self, length: int, take: Callable[[bytes], None]) -> None:
        """The next bytes, as many of them as there are."""
        while length:
            piece = self._inflate(min(length, _PIECE))
            if not piece:
                return
            length -= len(piece)
            take(piece)

    def end(self) -> None:
        """Nothing may be left."""
        more = b"" if self._reading.eof else self._inflate(1)
        if more or not self._reading.eof or self._reading.unused_data:
            raise ContainerError("what is not coded is cut off, or longer than its segments")

    def _inflate(self, most: int) -> bytes:
        try:
            piece = self._reading.decompress(self._left, most)
        except zlib.error as error:
            raise ContainerError(f"what is not coded is damaged: {error}") from error
        self._left = self._reading.unconsumed_tail
        return piece


class _Reader:
    """Takes numbers out of the directory."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._text)

    def take(self, size: int) -> bytes:
        taken = self._text[self._at : self._at + size]
        if len(taken) < size:
            raise ContainerError("the directory is cut off")
        self._at += size
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        """A varint below 2**63."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ContainerError("a number in the directory is too large")

    def count(self) -> int:
        """How many things follow, each of at least a byte."""
        value = self.number()
        if value > len(self._text) - self._at:
            raise ContainerError("the directory is cut off")
        return value


def _table(reader: _Reader) -> _Table:
    width, form, count = reader.byte(), reader.byte(), reader.count()
    if not 0 < count <= _MOST_ENTRIES:
        raise ContainerError(f"a table of {count} entries")
    entries: list[Any]
    if (width, form) == (0, 0):
        runs = [reader.number() for _ in range(count)]
        if max(runs) > LONGEST_RUN:
            raise ContainerError("a run is too long")
        entries = list(runs)
    elif 0 < width <= WIDEST and form == 0:
        words = reader.take(count * width)
        entries = [words[at : at + width] for at in range(0, len(words), width)]
    elif width in _FLOATS and form == 1:
        entries = list(_multiples(reader, width, count))
    else:
        raise ContainerError(f"a table of width {width} in the unknown form {form}")
    lengths = reader.take(count)
    return _Table(width, entries, lengths)


def _multiples(reader: _Reader, width: int, count: int) -> list[bytes]:
    """Words of floats that are multiples of a step, rising."""
    (step,) = struct.unpack("<f", reader.take(4))
    first = reader.number()
    multiples = [(first >> 1) ^ -(first & 1)]
    for _ in range(count - 1):
        multiples.append(multiples[-1] + 1 + reader.number())
    try:
        return [struct.pack(_FLOATS[width], multiple * step) for multiple in multiples]
    except OverflowError as error:
        raise ContainerError("a multiple of a step is no float") from error


def _bits(payload: memoryview) -> Callable[[], int]:
    """Gives the next 32 bits; zeros behind the end, and StopIteration behind those."""
    numbers = array.array("I")
    numbers.frombytes(bytes(payload) + bytes(-len(payload) % 4 + 8))
    if sys.byteorder == "little":
        numbers.byteswap()
    return iter(numbers).__next__


def _words(segment: _Segment, take: Callable[[bytes], None]) -> None:
    table, length = segment.tables[0], segment.length
    if length % table.width:
        raise ContainerError("a segment of words has a part of a word")
    (singles, bits), (windows, window) = table.singles(), table.windows()
    most = max(size for _, _, size in windows)
    mask, single_mask = (1 << window) - 1, (1 << bits) - 1
    next_bits = _bits(segment.payload)
    stored = have = taken = done = 0
    pieces: list[bytes] = []
    append = pieces.append
    try:
        while done < length:
            stop = min(length - most, done + _PIECE)
            while done <= stop:
                if have < window:
                    stored = (stored << 32 | next_bits()) & 0xFFFFFFFFFFFF
                    have += 32
                    taken += 32
                piece, used, size = windows[stored >> (have - window) & mask]
                append(piece)
                have -= used
                done += size
            while length - most < done < length:
                if have < bits:
                    stored = (stored << 32 | next_bits()) & 0xFFFFFFFFFFFF
                    have += 32
                    taken += 32
                entry, used = singles[stored >> (have - bits) & single_mask]
                append(entry)
                have -= used
                done += table.width
            take(b"".join(pieces))
            pieces.clear()
    except StopIteration:
        raise ContainerError("a segment is cut off") from None
    _check_used(taken - have, segment)


def _sparse(segment: _Segment, take: Callable[[bytes], None]) -> None:
    table, runs = segment.tables
    length, width = segment.length, table.width
    if length % width:
        raise ContainerError("a segment of words has a part of a word")
    (words, word_bits), (counts, run_bits) = table.singles(), runs.singles()
    word_mask, run_mask = (1 << word_bits) - 1, (1 << run_bits) - 1
    next_bits = _bits(segment.payload)
    stored = have = taken = done = given = 0
    pieces: list[bytes] = []
    try:
        while done < length:
            if have < 2 * LONGEST_CODE:
                stored = (stored << 32 | next_bits()) & 0x3FFFFFFFFFFFFFFF
                have += 32
                taken += 32
            count, used = counts[stored >> (have - run_bits) & run_mask]
            have -= used
            done += count * width
            if done > length:
                raise ContainerError("a run leads out of its segment")
            pieces.append(bytes(count * width))
            if done < length:
                entry, used = words[stored >> (have - word_bits) & word_mask]
                have -= used
                pieces.append(entry)
                done += width
            if done - given >= _PIECE:
                take(b"".join(pieces))
                pieces.clear()
                given = done
    except StopIteration:
        raise ContainerError("a segment is cut off") from None
    take(b"".join(pieces))
    _check_used(taken - have, segment)


def _check_used(bits: int, segment: _Segment) -> None:
    """A payload ends in the byte of its last code."""
    if (bits + 7) // 8 != len(segment.payload):
        raise ContainerError("a segment is cut off, or longer than its words")
