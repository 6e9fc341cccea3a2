"""Containers: what is packed on the host is unpacked by the board's agent, bit by bit the same."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.packing import pack
from wherry.packing.codes import LONGEST, canonical, code_lengths, written
from wherry.packing.regions import find
from wherry_devices.agent import unpack as agent
from wherry_devices.agent.unpack import ContainerError

RANDOM = np.random.default_rng(0)


def unpacked(container, most=1 << 30):
    pieces = []
    agent.unpack(container, pieces.append, most)
    return b"".join(pieces)


def shared(count, entries, width=4, step=None):
    """Weights of a layer, as bytes: few distinct floats, more often near zero."""
    dtype = {2: np.float16, 4: np.float32}[width]
    indices = np.rint(RANDOM.normal(0, entries / 6, count)).astype(int).clip(-entries, entries)
    if step is not None:
        return (indices * np.float64(np.float32(step))).astype(dtype).tobytes()
    book = np.sort(RANDOM.normal(size=2 * entries + 1)).astype(dtype)
    return book[indices + entries].tobytes()


def vectors(count, words, length, dtype=np.float32):
    """Weights of a layer that are codewords of some length, as bytes."""
    book = RANDOM.normal(size=(words, length)).astype(dtype)
    return book[RANDOM.integers(words, size=count)].tobytes()


def noise(count):
    return RANDOM.normal(size=count).astype(np.float32).tobytes()


def pruned(count, share, entries=40):
    values = np.frombuffer(shared(count, entries), np.float32).copy()
    values[RANDOM.random(count) < share] = 0
    return values.tobytes()


# of each the share of its own bytes, at the most, and what the entropy alone would leave about
FILES = {
    "nothing": (b"", None),
    "a byte": (b"x", None),
    "text": (b"the same words, and then the same words " * 400, 0.05),
    "floats": (noise(20_000), 0.96),
    "zeros": (bytes(300_000), 0.01),
    "a layer": (shared(20_000, 8), 0.13),
    "float16": (shared(20_000, 8, width=2), 0.26),
    "multiples of a step": (shared(20_000, 60, step=0.013), 0.19),
    "multiples in float16": (shared(20_000, 60, 2, step=0.013), 0.38),
    "layers between others": (
        b"head" + shared(5_000, 8) + noise(100) + b"odd" + shared(9_000, 8) + b"tail!",
        0.17,
    ),
    "a codebook of 8 bits": (shared(30_000, 128), 0.26),
    "few are left": (pruned(60_000, 0.9), 0.04),
    "runs that are very long": (noise(20) + bytes(4 * 9000) + pruned(60_000, 0.999), 0.01),
    "vectors of four": (vectors(20_000, 64, 4), 0.06),
    "vectors of two, of several layers": (
        b"head" + b"".join(vectors(9_000, 100, 2) + b"odd" for _ in range(3)),
        0.15,
    ),
    "vectors of eight": (b"x" + vectors(9_000, 60, 8) + noise(100), 0.04),
    "alone": (np.float32([0, 1.5] * 5000).tobytes(), 0.06),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_bytes_in_less(name):
    data, share = FILES[name]
    container = pack(data)
    assert unpacked(container, len(data)) == data
    assert pack(data) == container
    if share is not None:
        assert len(container) <= share * len(data) + 400


@pytest.mark.parametrize("shift", range(4))
def test_layers_are_found_at_any_alignment(shift):
    layers = [shared(4_000, 8) for _ in range(3)]
    gaps = [bytes(RANDOM.integers(1, 256, size, np.uint8)) for size in (40 + shift, 61, 30, 22)]
    data = gaps[0] + b"".join(layer + gap for layer, gap in zip(layers, gaps[1:], strict=True))
    found = find(data)
    start = 0
    for layer, gap, region in zip(layers, gaps[:3], found, strict=True):
        start += len(gap)
        assert abs(region.start - start) <= 16
        assert abs(region.stop - start - len(layer)) <= 16
        assert (region.start - start) % 4 == 0
        start += len(layer)


def test_a_layer_too_small_for_a_codebook_of_its_own_takes_part_in_another():
    data = shared(20_000, 20, step=0.5) + b"between" + shared(64, 20, step=0.5) + b"behind"
    assert len(find(data)) == 2


def test_much_in_pieces(monkeypatch):
    from wherry.packing import regions

    monkeypatch.setattr(regions, "_PIECE", 10_000)
    data = noise(100) + shared(30_000, 8) + noise(100)
    container = pack(data)
    assert unpacked(container) == data
    assert len(container) < 0.2 * len(data)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300))
def test_codes_are_whole_and_short(counts):
    lengths = code_lengths(np.array(counts))
    assert lengths.min() >= 1 and lengths.max() <= LONGEST
    if len(counts) > 1:
        assert sum(2.0 ** -int(length) for length in lengths) == 1
    codes = [f"{code:0{length}b}" for code, length in zip(canonical(lengths), lengths, strict=True)]
    assert not any(a != b and b.startswith(a) for a in codes for b in codes)


def test_counts_that_would_make_codes_too_long():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() == LONGEST
    assert sum(2.0 ** -int(length) for length in lengths) == 1


@given(st.lists(st.tuples(st.integers(1, LONGEST), st.integers(0, 2**LONGEST - 1)), max_size=50))
def test_bits_are_written_one_after_another(pairs):
    codes = [(length, code % (1 << length)) for length, code in pairs]
    text = "".join(f"{code:0{length}b}" for length, code in codes)
    wanted = bytes(int(text[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(text), 8))
    lengths = np.array([length for length, _ in codes], np.uint8)
    assert written(np.array([code for _, code in codes], np.uint16), lengths) == wanted


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.tuples(st.integers(1, 3000), st.integers(1, 30), st.sampled_from([2, 4])),
        ),
        max_size=5,
    )
)
def test_any_file(parts):
    data = b"".join(part if isinstance(part, bytes) else shared(*part) for part in parts)
    assert unpacked(pack(data), len(data)) == data


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from([2, 4]), min_size=1, max_size=1),
    st.lists(
        st.one_of(
            st.sampled_from([0x8000, 0x80000000, 0, 0x7FC00000, 0x7C00, 0xFFFFFFFF, 1, 0x8001]),
            st.integers(-40, 40).map(lambda k: int(np.float32(k * 0.25).view(np.uint32))),
            st.integers(-40, 40).map(lambda k: int(np.float16(k * 0.25 - 0.0).view(np.uint16))),
            st.integers(0, 2**32 - 1),
        ),
        min_size=3,
        max_size=12,
    ),
    st.integers(0, 3),
)
def test_words_of_any_bits(width, alphabet, shift):
    """Zeros with a sign, NaN, infinities: floats that are alike and words that are not."""
    words = np.array(alphabet, np.uint32).astype(f"<u{width[0]}")
    data = b"x" * shift + words[np.random.default_rng(0).integers(0, len(words), 1500)].tobytes()
    assert unpacked(pack(data), len(data)) == data


def test_a_zero_with_a_sign_among_multiples_of_a_step():
    words = np.float16(np.arange(-17, 18) * 0.5)
    words[17] = -0.0
    data = words[np.random.default_rng(0).integers(0, 35, 1500)].tobytes()
    assert unpacked(pack(data), len(data)) == data


WHOLE = pack(b"head" + shared(3_000, 8) + pruned(9_000, 0.9) + b"tail" + shared(900, 30, step=0.1))
LENGTH = 4 + 4 * 3000 + 4 * 9000 + 4 + 4 * 900


def refused(container, most=LENGTH):
    """Whether it is refused, with no more written than was announced; else it was harmless."""
    pieces = []
    try:
        agent.unpack(container, pieces.append, most)
    except ContainerError:
        assert sum(map(len, pieces)) <= most
        return True
    return False


@given(st.integers(0, len(WHOLE) - 1))
def test_what_is_cut_is_refused(size):
    assert refused(WHOLE[:size])


def test_what_is_too_long_is_refused():
    assert refused(WHOLE + b"x")
    assert refused(WHOLE, LENGTH - 1)
    assert not refused(WHOLE)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_a_bit_that_turned_is_refused(bit):
    damaged = bytearray(WHOLE)
    damaged[bit // 8] ^= 1 << bit % 8
    assert refused(bytes(damaged))


def rebuilt(directory, payload=b"", length=LENGTH):
    """A container whose directory is hostile and whole."""
    packed = zlib.compress(directory)
    prefix = agent._PREFIX.pack(agent.MAGIC, length, bytes(32), len(packed))
    return prefix + packed + payload


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_hostile_directory_is_refused(chance: random.Random):
    start = agent._PREFIX.size
    size = agent._PREFIX.unpack_from(WHOLE)[3]
    directory = bytearray(zlib.decompress(WHOLE[start : start + size]))
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(directory))
        directory[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
    assert refused(rebuilt(bytes(directory), WHOLE[start + size :]))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    assert refused(data)
    assert refused(rebuilt(data))


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        (b"\1" + bytes([4, 0, 0]), "0 entries"),
        (b"\1" + bytes([4, 0, 1, 1, 2, 3, 4, 2]), "whole code"),
        (b"\1" + bytes([4, 0, 1, 1, 2, 3, 4, 0]), "whole code"),
        (b"\1" + bytes([65, 0, 1, *range(65), 1]), "width 65"),
        (b"\1" + bytes([8, 1, 1, *range(8), 1]), "width 8"),
        (b"\1" + bytes([0, 0, 1, 0xFF, 0xFF, 0x7F, 1]), "run is too long"),
        (b"\1" + bytes([4, 1, 1, 0, 0, 0x80, 0x7F, 2, 1]), None),  # infinity: a float all the same
        (b"\1" + bytes([2, 1, 1, 0, 0, 0x80, 0x7E, 2, 1]), "no float"),
        (b"\0\1\7\1", "unknown kind 7"),
        (b"\0\1\1\4\0\0", "there is not"),
        (b"\0\1\0" + b"\xff" * 9 + b"\1", "too large"),
    ],
)
def test_what_is_wrong_is_said(directory, words):
    rest = zlib.compress(b"")
    body = directory
    if words in {"whole code", None}:
        body = directory + b"\1\1" + bytes([8, 0, 1]) + bytes([len(rest)])
        container = rebuilt(body, b"\0" + rest, 8)
    else:
        container = rebuilt(body, b"", 8)
    with pytest.raises(ContainerError, match=words or "sha256"):
        agent.unpack(container, bytearray().extend, 1 << 20)


def test_a_bomb_is_refused_before_it_is_written():
    zeros = pack(bytes(4_000_000))
    assert len(zeros) < 6_000
    assert refused(zeros, 1000)
    lying = zeros[:4] + (1000).to_bytes(8, "little") + zeros[12:]
    assert refused(lying, 1000)
