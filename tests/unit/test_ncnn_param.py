"""ncnn's .param files: what is written is read back, and what is broken is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_ncnn import param
from wherry_ncnn.param import Layer, parse

EXAMPLE = """7767517
4 5
Input                    in0                      0 1 in0
Split                    splitncnn_0              1 2 in0 1 2
Convolution              conv_0                   1 1 1 3 0=8 1=3 -23310=2,0.0,6.0 18=1e-5
BinaryOp                 add_0                    2 1 2 3 out0 0=0
"""

words = st.text("abcdefghijklmnopqrstuvwxyzABC019_./", min_size=1, max_size=9)
numbers = st.integers(-(2**31), 2**31 - 1) | st.floats(
    allow_nan=False, allow_infinity=False, width=32
)
texts = st.text("abcdefghjklmopqrstuvwxyz;->", min_size=2, max_size=9).filter(
    lambda text: not _is_number(text)
)
values = numbers | texts
parameters = st.dictionaries(
    st.integers(0, 32), values | st.lists(values, max_size=4).map(tuple), max_size=5
)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@st.composite
def networks(draw: st.DrawFn) -> tuple[Layer, ...]:
    """Layers that take what was made before, under names that are made once."""
    names = iter(draw(st.lists(words, unique=True, max_size=12)))
    layers, made = [], []
    for name in names:
        inputs = draw(st.lists(st.sampled_from(made), max_size=3)) if made else []
        outputs = [f"{name}/{index}" for index in range(draw(st.integers(0, 2)))]
        layers.append(Layer(draw(words), name, tuple(inputs), tuple(outputs), draw(parameters)))
        made += outputs
    return tuple(layers)


def write(layers: tuple[Layer, ...]) -> str:
    """The form, written from its description alone."""

    def pair(key, value) -> str:
        if isinstance(value, tuple):
            return f"{-23300 - key}=" + ",".join([str(len(value)), *map(str, value)])
        return f"{key}={value}"

    blobs = sum(len(layer.outputs) for layer in layers)
    lines = ["7767517", f"{len(layers)} {blobs}"]
    for layer in layers:
        fields = [layer.type.ljust(16), layer.name, len(layer.inputs), len(layer.outputs)]
        pairs = [pair(*item) for item in layer.parameters.items()]
        lines.append(" ".join(map(str, [*fields, *layer.inputs, *layer.outputs, *pairs])))
    return "\n".join(lines) + "\n"


@given(networks())
def test_what_is_written_is_read_back(layers):
    assert parse(write(layers)) == layers


@given(networks())
def test_our_writer(layers):
    """Its floats are those that ncnn keeps."""
    again = parse(param.write(layers))
    assert [_shape(layer) for layer in again] == [_shape(layer) for layer in layers]
    for ours, theirs in zip(again, layers, strict=True):
        for key, value in theirs.parameters.items():
            assert _single(ours.parameters[key]) == _single(value)
    assert parse(param.write(again)) == again


def _shape(layer):
    return layer.type, layer.name, layer.inputs, layer.outputs, list(layer.parameters)


def _single(value):
    if isinstance(value, tuple):
        return [_single(each) for each in value]
    with np.errstate(over="ignore"):
        return np.float32(value) if isinstance(value, float) else value


def test_what_pnnx_wrote_is_written_as_it_is():
    assert parse(param.write(parse(EXAMPLE))) == parse(EXAMPLE)
    words = param.write(parse(EXAMPLE)).split()
    assert "-23310=2,0.0,6.0" in words
    assert "18=1e-05" in words


def test_long_numbers_fit():
    layer = Layer("Clip", "c", (), (), {0: -3.4028234663852886e38, 1: (0.30000001192092896,)})
    assert param.write([layer]).split()[-2:] == ["0=-3.40282347e+38", "-23301=1,3.00000012e-01"]


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        parse(text)
    except ValueError as error:
        assert str(error).startswith("line ")


@given(networks().filter(len), st.data())
def test_a_lost_line_is_noticed(layers, data):
    lines = write(layers).splitlines()
    del lines[data.draw(st.integers(2, len(lines) - 1))]
    with pytest.raises(ValueError, match="line"):
        parse("\n".join(lines))


def test_example():
    convolution = parse(EXAMPLE)[2]
    assert (convolution.type, convolution.inputs, convolution.outputs) == (
        "Convolution",
        ("1",),
        ("3",),
    )
    assert convolution.parameters == {0: 8, 1: 3, 10: (0.0, 6.0), 18: 1e-5}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("7767517", "7767518", "line 1: the first line"),
        ("4 5", "4", "line 2: two numbers"),
        ("4 5", "4 6", "line 2: it says 4 layers and 6 blobs"),
        ("0 1 in0", "0 one in0", "line 3: the counts"),
        ("0 1 in0", "0 -1 in0", "line 3: 0 inputs and -1 outputs"),
        ("1 2 in0 1 2", "1 2 in0 1", "line 4: 1 inputs and 2 outputs"),
        ("1 2 in0 1 2", "1 2 in1 1 2", "line 4: no layer before makes the blob 'in1'"),
        ("1 1 1 3", "1 1 1 2", "line 5: the blob '2' is made a second time"),
        ("-23310=2,", "-23310=3,", "line 5: '-23310=3,0.0,6.0' announces 3"),
        ("1=3", "x=3", "line 5: 'x=3' is not KEY=VALUE"),
        ("1=3", "13", "line 5: '13' is not KEY=VALUE"),
    ],
)
def test_broken_text(old, new, words):
    with pytest.raises(ValueError, match="line") as caught:
        parse(EXAMPLE.replace(old, new, 1))
    assert words in str(caught.value)
