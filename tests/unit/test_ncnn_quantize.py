"""The int8 writer of ncnn: scales, rounding, fusion, the table."""

from __future__ import annotations

import numpy as np
import pytest

from wherry_ncnn.param import Layer
from wherry_ncnn.quantize import (
    breaks_in_int8,
    may_be_quantised,
    may_be_winograd,
    quantise,
    table_text,
)
from wherry_ncnn.weights import FLOAT32, INT8, Weight


def convolution(name: str, blob: str, made: str, *, kernel: int = 3, **more: int) -> Layer:
    parameters = {0: 2, 1: kernel, 4: 1, 5: 1, 6: 2 * 2 * kernel**2}
    return Layer("Convolution", name, (blob,), (made,), {**parameters, **_keys(more)})


def _keys(more: dict[str, int]) -> dict[int, int]:
    return {{"dilation": 2, "stride": 3, "width": 11}[word]: value for word, value in more.items()}


def arrays(layer: Layer) -> tuple[Weight, ...]:
    values = np.linspace(-1, 2, layer.parameters[6], dtype=np.float32)
    return Weight(values, FLOAT32), Weight(np.array([0.5, -0.5], np.float32))


def chain(*layers: Layer):
    full = (Layer("Input", "in0", (), ("0",), {}), *layers)
    return full, {layer.name: arrays(layer) for layer in layers if layer.type == "Convolution"}


def test_a_layer():
    layers, weights = chain(convolution("a", "0", "1", kernel=1))
    made = quantise(layers, weights, {"a": 2.0}, "off")
    assert made.layers[1].parameters == {**layers[1].parameters, 8: 2}
    whole, bias, scales, scale = made.weights["a"]
    assert whole.tag == INT8
    assert bias == weights["a"][1]
    values = weights["a"][0].values.reshape(2, -1)
    np.testing.assert_allclose(scales.values, 127 / np.abs(values).max(axis=1), rtol=1e-6)
    assert scale.values == pytest.approx([63.5])
    back = whole.values.reshape(2, -1) / scales.values[:, None]
    # no sum of errors is left behind, and so a weight may go the other way
    assert np.abs(back - values).max() <= 1 / scales.values.min() + 1e-6
    assert np.abs((back - values).sum(axis=1)).max() <= 0.5 / scales.values.min() + 1e-6
    assert not made.whole


def test_whole_numbers_between_two():
    layers, weights = chain(convolution("a", "0", "1", kernel=1), convolution("b", "1", "2"))
    made = quantise(layers, weights, {"a": 2.0, "b": 4.0}, "off")
    assert [layer.parameters.get(8) for layer in made.layers] == [None, 102, 2]
    assert made.weights["a"][-1].values == made.weights["b"][-1].values == pytest.approx([31.75])
    assert made.whole == {"1": pytest.approx(31.75)}


@pytest.mark.parametrize(
    "between",
    [
        Layer("ReLU", "r", ("1",), ("2",), {}),  # somebody else reads it
        None,  # the second stays in float
    ],
)
def test_floats_between_two(between):
    second = convolution("b", "2" if between else "1", "3")
    layers, weights = chain(
        convolution("a", "0", "1"), *([between] if between else []), second
    )  # fmt: skip
    thresholds = {"a": 2.0, "b": 4.0} if between else {"a": 2.0}
    made = quantise(layers, weights, thresholds, "off")
    assert made.layers[1].parameters[8] == 2
    assert not made.whole
    assert ("b" in made.table) == bool(between)


def test_weights_and_inputs_that_are_all_zero():
    layers, weights = chain(convolution("a", "0", "1"), convolution("b", "1", "2"))
    weights["a"] = (Weight(np.zeros(36, np.float32), FLOAT32), weights["a"][1])
    made = quantise(layers, weights, {"a": 1.0, "b": 0.0}, "off")
    assert list(made.table["a"][0]) == [1, 1]
    assert "b" not in made.table


@pytest.mark.parametrize(
    ("winograd", "most", "features"),
    [("six_bits", 31, None), ("eight_bits", 127, None), ("off", 127, 64)],
)
def test_winograd(winograd, most, features):
    layers, weights = chain(convolution("a", "0", "1"), convolution("b", "1", "2", stride=2))
    made = quantise(layers, weights, {"a": 1.0, "b": 1.0}, winograd)
    first, second = (np.abs(made.weights[name][0].values).max() for name in "ab")
    assert (first, second) == (most, 127)
    assert [layer.parameters.get(31) for layer in made.layers[1:]] == [features, None]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (convolution("a", "0", "1"), True),
        (convolution("a", "0", "1", kernel=1), False),
        (convolution("a", "0", "1", dilation=2), False),
        (convolution("a", "0", "1", width=1), False),
        (Layer("ConvolutionDepthWise", "a", ("0",), ("1",), {1: 3}), False),
    ],
)
def test_what_may_be_winograd(layer, expected):
    assert may_be_winograd(layer) == expected


def test_what_may_be_quantised():
    layer = convolution("a", "0", "1")
    assert may_be_quantised(layer, {"a": arrays(layer)})
    assert not may_be_quantised(layer, {})  # its weights are an input
    assert not may_be_quantised(Layer("PReLU", "p", ("0",), ("1",), {}), {"p": ()})


@pytest.mark.parametrize(
    ("kind", "outputs", "groups", "expected"),
    [
        ("ConvolutionDepthWise", 16, 2, True),
        ("ConvolutionDepthWise", 64, 4, True),
        ("ConvolutionDepthWise", 24, 2, False),
        ("ConvolutionDepthWise", 16, 16, False),
        ("Convolution", 16, 1, False),
    ],
)
def test_what_ncnn_computes_wrong_in_int8(kind, outputs, groups, expected):
    layer = Layer(kind, "a", ("0",), ("1",), {0: outputs, 7: groups})
    assert breaks_in_int8(layer) is expected


def test_depthwise_has_a_scale_for_each_group():
    layer = Layer("ConvolutionDepthWise", "d", ("0",), ("1",), {0: 4, 1: 1, 6: 4, 7: 2})
    values = np.array([1, 2, -4, 3], np.float32)
    made = quantise([layer], {"d": (Weight(values, FLOAT32),)}, {"d": 1.0}, "off")
    assert list(made.weights["d"][1].values) == [63.5, 31.75]
    assert list(made.weights["d"][0].values) == [64, 127, -127, 95]
    assert made.layers[0].parameters[8] == 1


def test_the_table_is_that_of_ncnns_tools():
    text = table_text({"a": (np.array([127, 63.5], np.float32), 2.0), "b": (np.ones(1), 31.75)})
    assert text == ("a_param_0 127.000000 63.500000\nb_param_0 1.000000\na 2.000000\nb 31.750000\n")
