"""Raw samples: what is encoded is decoded, compactly, and damage is found."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.records.samples import decode, encode

NANOSECONDS = st.lists(st.integers(0, 2**64 - 1) | st.integers(10**6, 10**6 + 500), max_size=80)


@given(NANOSECONDS)
def test_what_is_encoded_is_decoded(values):
    again = decode(encode(np.array(values, np.uint64)))
    assert again.dtype == np.uint64
    assert again.tolist() == values


@given(st.binary(max_size=60))
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match="samples"):
        decode(data)


@given(NANOSECONDS, st.integers(0, 10_000), st.integers(1, 255))
def test_a_turned_bit_is_refused_or_harmless_to_the_length(values, place, turn):
    data = bytearray(encode(np.array(values, np.uint64)))
    data[place % len(data)] ^= turn
    with contextlib.suppress(ValueError):
        assert len(decode(bytes(data))) == len(values)
    with pytest.raises(ValueError, match="samples"):
        decode(bytes(data[:-1]))


def test_a_count_beyond_all_bounds_takes_no_memory():
    data = bytearray(encode(np.array([1, 2, 3], np.uint64)))
    data[2:10] = (1 << 60).to_bytes(8, "little")
    with pytest.raises(ValueError, match="form that is not known"):
        decode(bytes(data))


@pytest.mark.parametrize(
    "values", [np.array([1.5]), np.array([[1]]), np.array([-1]), np.array(["a"])]
)
def test_what_are_no_nanoseconds_is_refused(values):
    with pytest.raises(TypeError, match="nanoseconds"):
        encode(values)


def test_samples_of_a_millisecond_take_less_than_three_bytes_each():
    values = np.random.default_rng(0).lognormal(np.log(1e6), 0.02, 3000).astype(np.uint64)
    assert len(encode(values)) < 3 * 3000
