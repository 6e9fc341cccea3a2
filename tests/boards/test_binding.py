"""Bindings: to the runtime's form and back, whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry import preprocess
from wherry.binding import Input, Output, cast, returned


def binding(shape, dtype="float32", permutation=None, drop_batch=False):
    return {
        "onnx": "x",
        "runtime": "r",
        "dtype": dtype,
        "shape": list(shape),
        "permutation": permutation,
        "drop_batch": drop_batch,
    }


@st.composite
def bindings(draw):
    shape = [1, *draw(st.lists(st.integers(1, 4), max_size=4))]
    order = list(range(1, len(shape)))
    permutation = draw(st.none() | st.permutations(order).map(lambda axes: [0, *axes]))
    return binding(shape, permutation=permutation, drop_batch=draw(st.booleans()))


@given(bindings(), st.integers(1, 4), st.booleans())
def test_there_and_back(described, count, squeezed):
    shape = described["shape"]
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(count, *shape)).astype(np.float32)
    given_, back = Input(described, {}, preprocess.apply), Output(described)
    for index, sample in enumerate(samples):
        runtime = given_.prepare(sample[0] if squeezed else sample)
        assert runtime.flags.c_contiguous
        axes = described["permutation"] or range(len(shape))
        form = [shape[axis] for axis in axes][1 if described["drop_batch"] else 0 :]
        assert list(runtime.shape) == form == list(given_.zeros().shape)
        back.gather(index, count, runtime.reshape(-1) if squeezed else runtime)
    assert np.array_equal(back.gathered(), samples)


def test_nchw_pictures_for_a_runtime_of_nhwc_without_batch():
    given_ = Input(
        binding((1, 3, 2, 2), permutation=[0, 2, 3, 1], drop_batch=True),
        {"scale": 0.5, "mean": [1, 2, 3]},
        preprocess.apply,
    )
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    expected = picture.astype(np.float32) * np.float32(0.5) - np.float32([1, 2, 3])
    assert np.array_equal(given_.prepare(picture), expected)


@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -3), ("uint8", 121), ("int16", 0)])
def test_whole_numbers_for_real_ones(dtype, zero_point):
    described = binding((1, 6), dtype) | {"scale": 0.5, "zero_point": zero_point}
    real = np.float32([[0, 0.25, 0.75, -1.5, 1e9, -1e9]])
    given_, back = Input(described, {}, preprocess.apply), Output(described)
    whole = given_.prepare(real)
    limits = np.iinfo(dtype)
    assert whole.dtype == dtype
    # halves go to the even number, and what is beyond the type's range is its end
    ends = [limits.max, limits.min]
    assert whole.tolist() == [[zero_point, zero_point, zero_point + 2, zero_point - 3, *ends]]
    assert (given_.zeros() == zero_point).all()
    back.gather(0, 1, whole)
    assert back.gathered().dtype == np.float32
    expected = (whole.astype(np.float32) - zero_point) * np.float32(0.5)
    assert np.array_equal(back.gathered()[0], expected)


def test_pictures_for_a_runtime_of_whole_numbers_are_preprocessed_first():
    described = binding((1, 2), "int8") | {"scale": 0.1, "zero_point": 5}
    given_ = Input(described, {"scale": 0.01, "mean": [1.0]}, preprocess.apply)
    assert given_.prepare(np.uint8([100, 150])).tolist() == [[5, 10]]


def test_outputs_keep_their_buffers_to_themselves():
    output = Output(binding((1, 2)))
    buffer = np.zeros((1, 2), np.float16)
    for index in range(3):
        buffer[:] = index
        output.gather(index, 3, buffer)
    assert output.gathered().tolist() == [[[0, 0]], [[1, 1]], [[2, 2]]]
    assert output.gathered().dtype == np.float16


def test_an_output_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"output 'x' is \[1, 2\].* the runtime gave \[3\]"):
        Output(binding((1, 2))).gather(0, 1, np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("values", "dtype", "kept"),
    [
        (np.array([1, -5], np.int64), "int32", True),
        (np.array([1 << 40], np.int64), "int32", False),
        (np.array([1.1, -3.0], np.float32), "float16", True),
        (np.array([1e6], np.float32), "float16", False),
        (np.array([np.inf, np.nan], np.float32), "float16", True),
        (np.array([1e300], np.float64), "float32", False),
        (np.array([3.0, 250.0], np.float32), "uint8", True),
        (np.array([3.5], np.float32), "uint8", False),
        (np.array([np.nan], np.float32), "int32", False),
        (np.array([255], np.uint8), "float32", True),
        (np.array([255], np.uint8), "int8", False),
        (np.array([True, False]), "float32", True),
    ],
)
def test_values_are_cast_only_where_they_stay_the_same(values, dtype, kept):
    if kept:
        assert cast(values, np.dtype(dtype), "x").dtype == dtype
    else:
        with pytest.raises(ValueError, match=f"'x': {values.dtype} values do not fit {dtype}"):
            cast(values, np.dtype(dtype), "x")


def test_outputs_that_a_runner_loses_or_gives_as_something_else_are_named():
    outputs = {"a": np.zeros(2), "b": [0.0, 0.0]}
    assert returned(outputs, "a") is outputs["a"]
    with pytest.raises(ValueError, match="gave no 'c', only"):
        returned(outputs, "c")
    with pytest.raises(ValueError, match="gave 'b' as list, not as an array"):
        returned(outputs, "b")
