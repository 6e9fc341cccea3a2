"""Mixed precision: which nodes a manifest's ``keep_fp32:`` means."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from wherry.errors import ModelError
from wherry.keep import Operator, kept_nodes
from wherry.model import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two blocks of two nodes, one of which has a name that is a pattern as well."""
    names = (("/block1/relu", "Relu"), ("/block1/exp", "Exp"), ("a[1]", "Relu"), ("a1", "Abs"))
    nodes = [
        helper.make_node(kind, [f"t{index}"], [f"t{index + 1}"], name=name)
        for index, (name, kind) in enumerate(names)
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "t4")]
    proto = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:]))
    path = tmp_path_factory.mktemp("keep") / "net.onnx"
    onnx.save(proto, path)
    return Model.load(path)


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ((), set()),
        (("/block1/relu",), {"/block1/relu"}),
        (("/block1/*",), {"/block1/relu", "/block1/exp"}),
        (("/block1/???",), {"/block1/exp"}),
        (("a[1]",), {"a[1]"}),
        (("a[2-9]*", "a?"), None),
        (("a?",), {"a1"}),
        ((Operator(op="Relu"),), {"/block1/relu", "a[1]"}),
        ((Operator(op="Abs"), "/block1/exp", "/block1/*p"), {"a1", "/block1/exp"}),
    ],
)
def test_names_patterns_and_operators(model, entries, kept):
    if kept is None:
        with pytest.raises(ModelError):
            kept_nodes(model, entries)
    else:
        assert kept_nodes(model, entries) == kept


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("/block1/rleu", ["node '/block1/rleu'", "'/block1/relu'"]),
        ("zzz", ["node 'zzz'", "It has ", "'/block1/exp'"]),
        ("relu", ["node 'relu'"]),
        (Operator(op="Relus"), ["operator Relus", "'Relu'"]),
        (Operator(op="Conv"), ["operator Conv", "Abs, Exp, Relu"]),
    ],
)
def test_an_entry_without_a_node_is_an_error_that_helps(model, entry, said):
    with pytest.raises(ModelError) as caught:
        kept_nodes(model, ["/block1/exp", entry])
    text = f"{caught.value} {caught.value.remedy}"
    assert all(word in text for word in said), text
