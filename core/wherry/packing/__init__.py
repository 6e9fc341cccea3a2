"""Packs a file whose weights are shared or pruned, bit by bit the same: codebooks, Huffman codes.

A container holds any file: where it has runs of few distinct 16 or 32 bit words (`regions`), each
word is a Huffman code, with the lengths of runs of zeros where there are many; all the rest is
deflated together. The board's agent unpacks it; its ``unpack.py`` defines the format.

After Han et al., "Deep Compression", ICLR 2016, sections 2 and 4.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence

from wherry.packing.region import Region
from wherry.packing.regions import find
from wherry.packing.tables import Coded, Table, shared, table_lengths, varint

__all__ = ["MARK", "pack"]

MARK = ("wherry.pack", "huffman")
"""Of a model's ``metadata_props``, key and value: artifacts that are made of it travel packed."""

MAGIC = b"WPK\x01"
_PREFIX = struct.Struct("<4sQ32sI")
_SURELY = 0.8  # of the whole file deflated quickly: doing it slowly will not bring as much
_REST = 0  # the kind of a segment that is not coded; else how many tables it has


def pack(data: bytes) -> bytes:
    """The container of a file; the same bytes for the same file."""
    regions = find(data)
    coded = _container(data, regions)
    if not regions or len(coded) < _SURELY * len(zlib.compress(data)):
        return coded
    return min(coded, _container(data, []), key=len)


def _container(data: bytes, regions: Sequence[Region]) -> bytes:
    """With some regions coded, and the rest deflated."""
    codings = shared([Coded.of(data[each.start : each.stop], each.width) for each in regions])
    tables = list({id(table): table for coding in codings for table in coding.tables}.values())
    places = {id(table): place for place, table in enumerate(tables)}
    segments, payloads, rest = [], [], []
    at = 0
    for region, coding in zip(regions, codings, strict=True):
        if region.start > at:
            segments.append(bytes([_REST]) + varint(region.start - at))
        rest.append(data[at : region.start])
        payload = coding.payload()
        named = b"".join(varint(places[id(table)]) for table in coding.tables[::-1])
        segments.append(
            bytes([len(coding.tables)]) + varint(coding.length) + named + varint(len(payload))
        )
        payloads.append(payload)
        at = region.stop
    if at < len(data):
        segments.append(bytes([_REST]) + varint(len(data) - at))
    rest.append(data[at:])
    deflated = zlib.compress(b"".join(rest), 9)
    directory = b"".join(
        [
            varint(len(tables)),
            *map(_described, tables),
            varint(len(segments)),
            *segments,
            varint(len(deflated)),
        ]
    )
    packed = zlib.compress(directory, 9)
    prefix = _PREFIX.pack(MAGIC, len(data), hashlib.sha256(data).digest(), len(packed))
    return b"".join([prefix, packed, *payloads, deflated])


def _described(table: Table) -> bytes:
    lengths: bytes = table_lengths(table)[table.order()].tobytes()
    return table.described() + lengths
