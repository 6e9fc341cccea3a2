"""Preprocessing: the same bits as a plain float32 loop, and nothing fitted by guessing."""

from __future__ import annotations

import ast
import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wherry import preprocess
from wherry.data.spec import PreprocessSpec
from wherry.preprocess import apply

RNG = np.random.default_rng(7)


def picture(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def naive(value, spec, channel):
    """One value by one float32 operation after the other."""
    result = np.float32(np.float32(value) * np.float32(spec.get("scale", 1)))
    for key, operation in (("mean", np.subtract), ("std", np.divide)):
        if key in spec:
            values = spec[key]
            result = operation(result, np.float32(values[channel if len(values) > 1 else 0]))
    return result


numbers = st.floats(0.0009765625, 300, width=32)


@st.composite
def specs(draw, channels):
    spec = {}
    if draw(st.booleans()):
        spec["scale"] = draw(st.sampled_from([0.00392156862745098, 1.0, -2.5, 1 / 127.5]))
    for key in ("mean", "std"):
        if draw(st.booleans()):
            size = draw(st.sampled_from(sorted({1, channels})))
            spec[key] = draw(st.lists(numbers, min_size=size, max_size=size))
    if draw(st.booleans()):
        spec["layout"] = draw(st.sampled_from(["nchw", "nhwc"]))
    if channels == 3 and draw(st.booleans()):
        spec["channels"] = draw(st.sampled_from(["rgb", "bgr"]))
    return spec


@given(
    st.data(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1)
)
def test_pictures_have_the_bits_of_a_plain_loop(data, height, width, channels, seed):
    spec = data.draw(specs(channels))
    raw = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    last = spec.get("layout") == "nhwc" or not spec
    shape = (1, height, width, channels) if last else (1, channels, height, width)
    got = apply(raw, spec, shape, "float32")
    assert got.shape == shape
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    for y, x, c in itertools.product(range(height), range(width), range(channels)):
        source = channels - 1 - c if spec.get("channels") == "bgr" else c
        expected = naive(raw[y, x, source], spec, c)
        found = got[0, y, x, c] if last else got[0, c, y, x]
        assert found.tobytes() == expected.tobytes()


@given(
    st.data(), st.sampled_from(["float16", "float32", "float64", "int64", "bool"]), st.booleans()
)
def test_other_arrays_keep_the_order_of_the_model(data, dtype, batch):
    spec = data.draw(specs(3).filter(lambda spec: spec.get("layout") != "nhwc"))
    raw = np.random.default_rng(3).integers(0, 2, (3, 4, 2)).astype(dtype)
    got = apply(raw[np.newaxis] if batch else raw, spec, (1, 3, 4, 2), "float32")
    flipped = raw[::-1] if spec.get("channels") == "bgr" else raw
    for c, y, x in itertools.product(range(3), range(4), range(2)):
        assert got[0, c, y, x].tobytes() == naive(flipped[c, y, x], spec, c).tobytes()


@pytest.mark.parametrize(
    ("raw_shape", "spec", "shape"),
    [
        ((28, 28), {"scale": 0.5}, (1, 1, 28, 28)),
        ((28, 28), {}, (1, 1, 28, 28)),
        ((28, 28, 1), {"scale": 0.5}, (1, 1, 28, 28)),
        ((1, 28, 28), {"scale": 0.5}, (1, 1, 28, 28)),
        ((1, 28, 28, 1), {}, (1, 28, 28, 1)),
        ((3, 8, 8), {"scale": 0.5}, (1, 3, 8, 8)),  # CHW: fits as the model takes it, alone
        ((1, 6, 8, 3), {"scale": 0.5}, (1, 3, 6, 8)),
        ((6, 8, 3), {"layout": "nhwc"}, (1, 6, 8, 3)),
        ((6, 8, 3), {"scale": 0.5}, (1, 6, 8, 3)),
        ((10,), {"scale": 0.5}, (1, 10)),
        ((), {}, (1,)),
        ((1,), {}, ()),
    ],
)
def test_shapes_that_fit(raw_shape, spec, shape):
    got = apply(picture(*raw_shape), spec, shape, "float32")
    assert got.shape == shape
    assert got.flags.c_contiguous


def test_a_cube_is_taken_as_a_picture_only_where_a_spec_says_it_is_one():
    raw = picture(3, 3, 3)
    np.testing.assert_array_equal(apply(raw, {}, (1, 3, 3, 3), "uint8")[0], raw)
    np.testing.assert_array_equal(
        apply(raw, {"layout": "nchw"}, (1, 3, 3, 3), "uint8")[0], raw.transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("raw", "spec", "shape", "dtype", "words"),
    [
        (picture(28, 27), {"scale": 1.0}, (1, 1, 28, 28), "float32", ["28x27", "1x1x28x28"]),
        (picture(6, 8, 3), {}, (1, 3, 6, 8), "float32", ["6x8x3", "1x3x6x8"]),
        (picture(6, 8), {"scale": 1.0}, (1, 3, 6, 8), "float32", ["6x8", "1x3x6x8"]),
        (np.zeros((6, 8, 3)), {"scale": 1.0}, (1, 3, 6, 8), "float32", ["6x8x3", "1x3x6x8"]),
        (picture(6, 8, 3), {"mean": [1, 2]}, (1, 3, 6, 8), "float32", ["mean", "2 values", "3 ch"]),
        (picture(6, 8, 3), {"std": [1] * 3}, (1, 6, 8, 3), "float32", ["std", "layout: nchw"]),
        (picture(4, 4), {"channels": "bgr"}, (1, 1, 4, 4), "float32", ["bgr", "has 1"]),
        (picture(4, 4), {"scale": 0.5}, (1, 1, 4, 4), "uint8", ["scale", "uint8"]),
        (np.full((4,), 1.5), {}, (4,), "int64", ["float64", "int64"]),
        (np.full((4,), 2**40), {}, (4,), "int32", ["int64", "int32"]),
        (np.full((4,), -1), {}, (4,), "uint8", ["int64", "uint8"]),
        (np.array(["a"]), {}, (1,), "float32", ["<U1", "float32"]),
        (np.array(["a"]), {"scale": 2.0}, (1,), "float32", ["<U1"]),
    ],
)
def test_what_does_not_fit_says_how(raw, spec, shape, dtype, words):
    with pytest.raises(ValueError) as caught:
        apply(raw, spec, shape, dtype)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_whole_numbers_survive_a_change_of_type():
    values = np.array([0, 7, 255], np.int64)
    got = apply(values, {}, (1, 3), "uint8")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[0], values)


def test_too_great_for_the_type_is_infinite_for_the_check_to_find():
    assert np.isinf(apply(np.array([1e300]), {}, (1,), "float32")).all()
    assert np.isinf(apply(np.array([1e300]), {"scale": 1.0}, (1,), "float32")).all()
    assert np.isinf(apply(np.array([1e30]), {"scale": 1.0}, (1,), "float16")).all()


def test_a_float16_model_gets_rounded_float32_results():
    raw = picture(4, 4)
    spec = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}
    exact = apply(raw, spec, (1, 1, 4, 4), "float32")
    np.testing.assert_array_equal(
        apply(raw, spec, (1, 1, 4, 4), "float16"), exact.astype(np.float16)
    )


def test_the_file_stands_alone_and_is_python_3_8():
    path = Path(preprocess.__file__)
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert imported == {"__future__", "typing", "numpy"}
    spec = importlib.util.spec_from_file_location("shipped", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.apply(picture(2, 2), {}, (1, 1, 2, 2), "uint8").shape == (1, 1, 2, 2)


def test_a_spec_holds_what_was_said_and_no_more():
    assert PreprocessSpec().values() == {}
    said = PreprocessSpec.model_validate({"scale": 2, "mean": 0.5, "std": [1, 2, 3]})
    assert said.values() == {"scale": 2.0, "mean": [0.5], "std": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    "bad",
    [
        {"sclae": 1},
        {"scale": 0},
        {"scale": float("nan")},
        {"scale": "big"},
        {"mean": []},
        {"mean": [float("inf")]},
        {"std": [0.0]},
        {"std": [-1.0]},
        {"std": True},
        {"layout": "chwn"},
        {"channels": "gray"},
    ],
)
def test_a_bad_spec_is_refused(bad):
    with pytest.raises(ValidationError):
        PreprocessSpec.model_validate(bad)
