"""ncnn's .bin files: what is written is read back, and the bytes are those that ncnn reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_ncnn.param import Layer
from wherry_ncnn.weights import FLOAT16, FLOAT32, INT8, RAW_FLOAT32, Weight, pieces, read, write

small, switch = st.integers(1, 5), st.sampled_from([0, 1])
KINDS = {
    "Convolution": {
        0: small,
        5: switch,
        6: small,
        8: st.sampled_from([0, 2, 102]),
    },
    "ConvolutionDepthWise": {
        0: small,
        5: switch,
        6: small,
        7: small,
        8: st.sampled_from([0, 1, 2, 101]),
    },
    "Deconvolution": {0: small, 5: switch, 6: small, 28: switch},
    "InnerProduct": {0: small, 1: switch, 2: small, 8: st.sampled_from([0, 2])},
    "Embed": {0: small, 2: switch, 3: small},
    "Gemm": {
        4: switch, 5: switch, 6: switch,
        7: small, 8: small, 9: small, 10: st.integers(-1, 4),
    },
    "LSTM": {0: small, 1: small, 2: st.integers(0, 2), 3: small},
    "GRU": {0: small, 1: small, 2: st.integers(0, 2)},
    "RNN": {0: small, 1: small, 2: st.integers(0, 2)},
    "MultiHeadAttention": {0: st.just(2), 2: st.sampled_from([4, 8]), 3: small, 4: small},
    "MemoryData": {
        0: small,
        1: st.integers(0, 3),
        2: st.integers(0, 3),
        21: switch,
    },
    "BatchNorm": {0: small},
    "Scale": {0: st.sampled_from([-233, 3]), 1: switch},
    "PReLU": {0: small},
    "LayerNorm": {0: small, 2: switch},
    "GroupNorm": {1: small, 3: switch},
    "ReLU": {},
}  # fmt: skip


@st.composite
def networks(draw: st.DrawFn):
    """Layers and arrays that fit them."""
    layers, weights = [], {}
    for index, kind in enumerate(draw(st.lists(st.sampled_from(sorted(KINDS)), max_size=6))):
        parameters = {key: draw(values) for key, values in KINDS[kind].items()}
        layer = Layer(kind, f"l{index}", (), (), parameters)
        arrays = [_weight(draw, count, tagged) for count, tagged in pieces(layer)]
        layers.append(layer)
        if arrays:
            weights[layer.name] = tuple(arrays)
    return layers, weights


def _weight(draw: st.DrawFn, count: int, tagged: bool) -> Weight:
    tag = draw(st.sampled_from([FLOAT32, RAW_FLOAT32, FLOAT16, INT8])) if tagged else None
    kind = {FLOAT16: "<f2", INT8: "i1"}.get(tag, "<f4")
    values = draw(st.lists(st.integers(-127, 127), min_size=count, max_size=count))
    return Weight(np.array(values, kind), tag)


@given(networks())
def test_what_is_written_is_read_back(network):
    layers, weights = network
    data = write(layers, weights)
    assert len(data) % 4 == 0
    assert read(layers, data) == weights


@given(networks(), st.data())
def test_other_bytes_are_noticed(network, data):
    layers, weights = network
    written = write(layers, weights)
    shorter = data.draw(st.integers(0, max(len(written) - 1, 0)))
    for changed in (written[:shorter], written + b"1234"):
        if changed != written:
            with pytest.raises(ValueError, match=r"wanted|tag|left"):
                read(layers, changed)


def test_golden_bytes():
    """An int8 convolution of two channels with a bias, as ncnn's own tool writes it."""
    layer = Layer("Convolution", "c", ("a",), ("b",), {0: 2, 1: 1, 5: 1, 6: 6, 8: 102})
    weights = [
        Weight(np.array([1, -1, 127, -127, 0, 2], np.int8), INT8),
        Weight(np.array([0.5, -2], np.float32)),
        Weight(np.array([127, 63.5], np.float32)),
        Weight(np.array([1], np.float32)),
        Weight(np.array([2], np.float32)),
    ]
    expected = bytes.fromhex(
        "384b0d00 01ff7f81 00020000 0000003f 000000c0 0000fe42 00007e42 0000803f 00000040"
    )
    assert write([layer], {"c": weights}) == expected
    assert read([layer], expected) == {"c": tuple(weights)}


def test_arrays_that_do_not_fit_the_layer():
    layer = Layer("PReLU", "p", ("a",), ("b",), {0: 3})
    with pytest.raises(ValueError, match="PReLU p wants"):
        write([layer], {"p": [Weight(np.zeros(2, np.float32))]})
    with pytest.raises(ValueError, match="PReLU p: 3 values"):
        read([layer], bytes(8))
