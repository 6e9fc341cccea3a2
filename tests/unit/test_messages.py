"""Messages from tables: the bytes are protobuf's, and what is no field is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.messages import message_classes

TABLES = {
    "Net": {"name": "1 string", "op": "2 repeated Op", "inner": "9 Net"},
    "Op": {"type": "4 string", "dims": "5 repeated int64", "data": "6 repeated float packed"},
}


@pytest.fixture(scope="module")
def messages():
    return message_classes("ours", TABLES)


def test_the_bytes_are_those_of_the_format(messages):
    net = messages["Net"](name="n")
    net.op.add(type="Conv", dims=[1, 300], data=[1.0])
    # field 1 "n"; field 2, of 17 bytes: field 4 "Conv", field 5 twice, field 6 packed
    assert net.SerializeToString() == bytes.fromhex("0a016e12112204436f6e76280128ac0232040000803f")


@given(st.text(), st.lists(st.lists(st.integers(-(2**63), 2**63 - 1))))
def test_what_was_written_is_read(name, dims):
    messages = message_classes("ours", TABLES)
    net = messages["Net"](name=name, op=[messages["Op"](dims=each) for each in dims])
    read = messages["Net"].FromString(net.SerializeToString())
    assert read.name == name
    assert [list(op.dims) for op in read.op] == dims


def test_two_packages_of_one_name_do_not_meet(messages):
    others = message_classes("ours", {"Net": {"name": "1 int32"}})
    assert others["Net"](name=3).name == 3
    assert messages["Net"](name="3").name == "3"


@pytest.mark.parametrize("words", ["string", "0 string", "1 text", "1 packed repeated float"])
def test_what_is_no_field_is_refused(words):
    with pytest.raises(ValueError, match="name: no"):
        message_classes("ours", {"Net": {"name": words}})
