"""Caffe2's networks as files: golden bytes, and what the runner reads of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry_caffe2 import runner
from wherry_caffe2.nets import Operator, fill, fill_int8, messages, write_net

CONV = Operator(
    "Conv",
    ("x", "w"),
    ("y",),
    {"kernels": [3, 3], "order": "NCHW", "group": 1, "alpha": 0.5, "absent": None},
    "conv",
)


def field(number: int, wire: int, body: bytes) -> bytes:
    """A field by hand, as protobuf's encoding is defined."""
    return bytes([number << 3 | wire]) + body


def part(number: int, body: bytes) -> bytes:
    return field(number, 2, bytes([len(body)]) + body)


def test_a_network_is_these_bytes():
    """Written by hand from caffe2.proto's field numbers: lists of numbers are not packed."""
    arguments = (
        part(5, part(1, b"kernels") + field(6, 0, b"\x03") + field(6, 0, b"\x03")),
        part(5, part(1, b"order") + part(4, b"NCHW")),
        part(5, part(1, b"group") + field(3, 0, b"\x01")),
        part(5, part(1, b"alpha") + field(2, 5, b"\x00\x00\x00\x3f")),
    )
    operator = part(1, b"x") + part(1, b"w") + part(2, b"y") + part(3, b"conv") + part(4, b"Conv")
    wanted = (
        part(1, b"predict")
        + part(2, operator + b"".join(arguments))
        + part(3, b"simple")
        + part(7, b"x")
        + part(7, b"w")
        + part(8, b"y")
    )
    assert write_net("predict", [CONV], ["x", "w"], ["y"]) == wanted


def test_weights_are_floats_that_are_not_packed():
    net = write_net("init", [fill("w", np.array([[1.0, -2.5]], np.float32))])
    values = (
        part(1, b"values") + field(5, 5, b"\x00\x00\x80\x3f") + field(5, 5, b"\x00\x00\x20\xc0")
    )
    assert part(5, values) in net
    assert part(5, part(1, b"shape") + field(6, 0, b"\x01") + field(6, 0, b"\x02")) in net
    assert b"GivenTensorFill" in net


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("int64", "GivenTensorInt64Fill"),
        ("int32", "GivenTensorIntFill"),
        ("bool", "GivenTensorBoolFill"),
    ],
)
def test_whole_numbers_have_fills_of_their_own(dtype, kind):
    made = parsed(write_net("init", [fill("w", np.array([1, 0, 1], dtype))])).op[0]
    assert made.type == kind
    assert list(made.arg[1].ints) == [1, 0, 1]


def test_quantised_weights_are_raw_bytes_and_biases_numbers():
    weights = fill_int8("w", np.array([[0, 255]], np.uint8), 0.5, 128)
    bias = fill_int8("b", np.array([-70000], np.int32), 0.25, 0)
    first, second = parsed(write_net("init", [weights, bias])).op
    told = {a.name: a for a in first.arg}
    assert (first.type, told["values"].s, told["Y_zero_point"].i) == (
        "Int8GivenTensorFill",
        b"\x00\xff",
        128,
    )
    told = {a.name: a for a in second.arg}
    assert (second.type, list(told["values"].ints)) == ("Int8GivenIntTensorFill", [-70000])


def parsed(data: bytes):
    net = messages()["NetDef"]()
    net.ParseFromString(data)
    return net


words = st.text(min_size=1, max_size=200)
values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False),
    words,
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
)
made_operators = st.lists(
    st.builds(
        Operator,
        words,
        st.lists(words, max_size=3).map(tuple),
        st.lists(words, min_size=1, max_size=3).map(tuple),
        st.dictionaries(words, values, max_size=3),
        words,
    ),
    max_size=5,
    unique_by=lambda operator: operator.name,
)


@settings(deadline=None)  # a busy machine is no fault
@given(words, made_operators)
def test_the_runner_takes_operators_out_as_they_are(name, operators):
    """Its own reading of a NetDef gives what protobuf's does, and what it writes is a NetDef."""
    net = write_net(name, operators, ["in"], ["out"])
    whole = parsed(net)
    assert [(op.name, op.SerializeToString(deterministic=True)) for op in whole.op] == list(
        runner._operators(net)
    )
    for label, operator in runner._operators(net):
        single = parsed(runner._net(f"layer {label}", operator))
        assert (single.name, single.type) == (f"layer {label}", "simple")
        (only,) = single.op
        assert only.SerializeToString(deterministic=True) == operator


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=100))
def test_floats_survive(numbers):
    array = np.array(numbers, np.float32)
    made = parsed(write_net("init", [fill("w", array)])).op[0]
    assert np.array_equal(np.array(made.arg[1].floats, np.float32), array)


@settings(deadline=None)  # a busy machine is no fault
@given(
    st.sampled_from(["float32", "int64", "int32", "bool", "uint8"]),
    st.lists(st.integers(0, 4), max_size=4),
    words,
)
def test_tensors_on_the_pipe_survive(dtype, shape, name):
    """What the runner sends is in the form that it reads."""
    array = (np.arange(int(np.prod(shape, dtype=int))) % 2).astype(dtype).reshape(shape)
    sent = b"".join(bytes(piece) for piece in runner._tensors({name: array}))
    ((label, back),) = runner._arrays(memoryview(sent))
    assert label == name
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
