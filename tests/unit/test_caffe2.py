"""Caffe2's converter without its runtime: what is refused, what becomes of nodes, int8 plans."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from loading import load

from wherry.calibration import Calibration
from wherry.host import Host
from wherry.model import Model
from wherry.target import Target
from wherry_caffe2 import operators
from wherry_caffe2.build import build
from wherry_caffe2.int8 import plan
from wherry_caffe2.lowering import TABLE, View
from wherry_caffe2.nets import messages
from wherry_caffe2.shuffle import KIND, fuse

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def networks():
    return load(HERE.parent / "conformance" / "networks.py")


@pytest.fixture
def model(tmp_path):
    """Saves and loads: ``model(proto)``."""

    def make(proto):
        onnx.save(proto, tmp_path / "given.onnx")
        (tmp_path / "static").mkdir(exist_ok=True)
        return Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path / "static")

    return make


def view_of(proto) -> View:
    return View(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def sources(proto):
    return {node.name: (node.name,) for node in proto.graph.node}


def ranges_of(proto, low=-4.0, high=4.0):
    names = [value.name for value in proto.graph.input]
    names += [name for node in proto.graph.node for name in node.output]
    return Calibration("minmax", 1, dict.fromkeys(names, (low, high)))


# --- pre-flight -------------------------------------------------------------------------------


def preflight(model, precision="fp32"):
    backend = Host.load().backends["caffe2"]
    return list(backend.preflight(model, Target("caffe2", precision, "local", backend.options())))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_refusals_are_counted_and_named_by_the_models_nodes(networks, model, precision):
    n = networks.Net("refused")
    x = n.conv(n.input("image", 1, 3, 9, 8), 3, 4)
    x = n.op("Round", n.op("Round", n.op("LpPool", x, kernel_shape=[2, 2])))
    found = preflight(model(n.model(y=x)), precision)
    assert [(each.op_type, each.count, each.node) for each in found] == [
        ("LpPool", 1, "/lppool_1"),
        ("Round", 2, "/round_2"),
    ]
    assert all(each.remedy.endswith(".") for each in found)


def test_a_refused_form_is_told_apart_from_the_operator(networks, model):
    n = networks.Net("dilated")
    x = n.input("image", 1, 3, 9, 8)
    y = n.op("MaxPool", x, kernel_shape=[2, 2])
    z = n.op("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2])
    (found,) = preflight(model(n.model(y=y, z=z)))
    assert (found.op_type, found.count) == ("MaxPool", 1)
    assert "dilation" in found.remedy


def test_types_that_caffe2_lacks_are_refused(networks, model):
    n = networks.Net("double", opset=17)
    x = n.input("x", 1, 4, dtype=onnx.TensorProto.DOUBLE)
    found = preflight(model(n.model(y=n.op("Relu", x))))
    assert any("float64" in each.op_type for each in found)
    assert all("float32" in each.remedy for each in found)


def test_what_nobody_reads_is_not_refused(networks, model):
    n = networks.Net("idle")
    x = n.input("x", 1, 4)
    n.op("Round", x)
    assert preflight(model(n.model(y=n.op("Relu", x)))) == []


def test_the_answers_for_operators_are_whole():
    told = operators.operators()
    for name, support in told.items():
        assert bool(support.reason) == (support.level != "yes"), name
        assert not support.reason or support.reason.endswith("."), name
    assert {n for n in TABLE if n not in {"Shape", "Size", KIND}} <= {
        name for name, support in told.items() if support.level != "no"
    }
    assert KIND not in told, "it is ours, and no operator of ONNX"
    assert set(operators.PARTLY) <= set(TABLE)


# --- float ------------------------------------------------------------------------------------


def test_the_main_operator_has_the_nodes_name_and_all_know_their_node(networks):
    n = networks.Net("swish")
    x = n.op("HardSwish", n.conv(n.input("image", 1, 3, 6, 5), 3, 4))
    proto = n.model(y=x)
    made = build(view_of(proto), sources(proto), frozenset({"y", "conv_0"}))
    assert [(layer.name, layer.type, layer.nodes) for layer in made.layers] == [
        ("/conv_0", "Conv", ("/conv_0",)),
        ("/hardswish_1/HardSigmoid", "HardSigmoid", ("/hardswish_1",)),
        ("/hardswish_1", "Mul", ("/hardswish_1",)),
    ]
    assert made.layers[0].outputs == {"conv_0": "conv_0"}
    assert made.layers[2].outputs == {"y": "y"}


def test_names_that_the_network_has_already_are_left_alone(networks):
    n = networks.Net("names")
    x = n.input("y/HardSigmoid", 1, 4)
    n.nodes.append(onnx.helper.make_node("HardSwish", [x], ["y"], name="n"))
    n.nodes.append(onnx.helper.make_node("Relu", ["y"], ["z"], name="n/HardSigmoid"))
    proto = n.model(z="z")
    layers = build(view_of(proto), sources(proto), frozenset()).layers
    assert len({layer.name for layer in layers}) == len(layers) == 3
    assert layers[2].name == "n/HardSigmoid"


def test_every_input_exists_before_the_network_is_made(networks):
    n = networks.Net("inputs")
    x = n.input("ids", 1, 7, dtype=onnx.TensorProto.INT64)
    proto = n.model(y=n.op("Gather", n.weight(10, 6), x, axis=0))
    made = build(view_of(proto), sources(proto), frozenset())
    init, predict = (messages()["NetDef"]() for _ in range(2))
    init.ParseFromString(made.init)
    predict.ParseFromString(made.predict)
    assert {name for op in init.op for name in op.output} == set(predict.external_input)
    start = next(op for op in init.op if op.output[0] == "ids")
    told = {a.name: a for a in start.arg}
    assert (start.type, list(told["shape"].ints), told["dtype"].i) == ("ConstantFill", [1, 7], 10)


# --- shuffles ---------------------------------------------------------------------------------


def shuffle_net(networks, perm=(0, 2, 1, 3, 4), also=""):
    n = networks.Net("shuffle")
    x = n.op("Relu", n.input("image", 1, 6, 4, 5))
    a = n.op("Reshape", x, n.ints(1, 3, 2, 4, 5))
    b = n.op("Transpose", a, perm=list(perm))
    c = n.op("Reshape", b, n.ints(1, 6, 4, 5))
    outputs = {"y": n.op("Relu", c)}
    if also:
        outputs["z"] = n.op("Relu", {"a": a, "b": b}[also])
    return n.model(**outputs)


def test_a_shuffle_becomes_one_operator(networks):
    proto = shuffle_net(networks)
    made, names = fuse(view_of(proto).proto, sources(proto))
    (found,) = [node for node in made.graph.node if node.op_type == KIND]
    assert onnx.helper.get_attribute_value(found.attribute[0]) == 3
    assert list(found.input) == ["relu_0"]
    assert names[found.name] == ("/reshape_1", "/transpose_2", "/reshape_3")
    assert len(made.graph.node) == 3


@pytest.mark.parametrize("how", [{"perm": (0, 1, 2, 4, 3)}, {"also": "a"}, {"also": "b"}])
def test_what_is_no_shuffle_or_is_read_within_stays(networks, how):
    proto = shuffle_net(networks, **how)
    made, _ = fuse(view_of(proto).proto, sources(proto))
    assert KIND not in {node.op_type for node in made.graph.node}


# --- int8 -------------------------------------------------------------------------------------


def test_a_relu_is_done_by_saturation(networks):
    n = networks.Net("relu")
    x = n.op("Relu", n.conv(n.input("image", 1, 3, 6, 5), 3, 4))
    proto = n.model(y=n.conv(x, 4, 4))
    ranges = dict(ranges_of(proto).ranges, relu_1=(0.0, 3.0))
    made = plan(view_of(proto), Calibration("minmax", 1, ranges), frozenset())
    assert made.absorbed == {"/relu_1": "/conv_0"}
    assert made.results == {"/conv_0": "relu_1"}
    assert made.scales["relu_1"].zero_point == 0
    layers = build(view_of(proto), sources(proto), frozenset({"relu_1", "y"}), made).layers
    by_nodes = {layer.nodes: layer for layer in layers}
    assert by_nodes["/conv_0", "/relu_1"].outputs == {"relu_1": "relu_1/int8"}
    assert by_nodes["/conv_0", "/relu_1"].precision == "int8"
    assert [layer.type for layer in layers if not layer.nodes] == [
        "NCHW2NHWC",
        "Int8Quantize",
        "Int8Dequantize",
        "NHWC2NCHW",
    ]


def test_what_a_concat_joins_has_one_scale(networks):
    n = networks.Net("concat")
    x = n.input("image", 1, 3, 6, 5)
    a, b = n.conv(x, 3, 4), n.conv(x, 3, 4)
    pooled = n.op("MaxPool", a, kernel_shape=[3, 3], pads=[1] * 4)
    proto = n.model(y=n.conv(n.op("Concat", pooled, b, axis=1), 8, 2))
    ranges = dict(ranges_of(proto).ranges, conv_0=(-1.0, 9.0), conv_1=(-2.0, 1.0))
    made = plan(view_of(proto), Calibration("minmax", 1, ranges), frozenset())
    assert made.nodes >= {"/conv_0", "/conv_1", "/maxpool_2", "/concat_3", "/conv_4"}
    joined = {made.scales[name] for name in ("conv_0", "conv_1", "maxpool_2", "concat_3")}
    assert len(joined) == 1
    assert joined.pop().scale == pytest.approx(13 / 255)


def test_scales_that_qnnpack_refuses_stay_float_and_are_told(networks):
    """What is given would have a finer step than a product of one step of both."""
    n = networks.Net("beyond")
    x = n.input("image", 1, 3, 6, 5)
    proto = n.model(y=n.conv(n.conv(x, 3, 4), 4, 4))
    ranges = dict(ranges_of(proto).ranges, image=(-1e6, 1e6), conv_0=(-1e-3, 1e-3))
    made = plan(view_of(proto), Calibration("minmax", 1, ranges), frozenset())
    assert made.beyond == ("/conv_0",)
    assert made.nodes == {"/conv_1"}


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ("Reshape", {}),
    ],
)
def test_forms_without_an_8_bit_operator_stay_float(networks, kind, about):
    n = networks.Net("unfit")
    x = n.conv(n.input("image", 1, 3, 6, 5), 3, 4)
    shape = [n.ints(1, 4, 30)] if kind == "Reshape" else []
    proto = n.model(y=n.op(kind, x, *shape, **about))
    made = plan(view_of(proto), ranges_of(proto), frozenset())
    assert made.nodes == {"/conv_0"}


def test_weights_are_around_128_in_the_order_of_nhwc(networks):
    n = networks.Net("weights")
    proto = n.model(y=n.conv(n.input("image", 1, 3, 6, 5), 3, 4))
    view = view_of(proto)
    made = build(view, sources(proto), frozenset(), plan(view, ranges_of(proto), frozenset()))
    init = messages()["NetDef"]()
    init.ParseFromString(made.init)
    filled = next(op for op in init.op if op.type == "Int8GivenTensorFill")
    told = {a.name: a for a in filled.arg}
    whole = np.frombuffer(told["values"].s, np.uint8).reshape(tuple(told["shape"].ints))
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    assert whole.shape == (4, 3, 3, 3)
    real = (whole.astype(float) - told["Y_zero_point"].i) * told["Y_scale"].f
    assert np.abs(real - weights.transpose(0, 2, 3, 1)).max() <= told["Y_scale"].f
    assert np.abs(whole.astype(int) - 128).max() == 127


# --- docs -------------------------------------------------------------------------------------


def test_the_docs_list_the_operators():
    text = (HERE.parents[1] / "docs" / "backends" / "caffe2.md").read_text(encoding="utf-8")
    listed = re.search(r"<!-- operators -->(.*)<!-- end -->", text, re.DOTALL)
    assert listed is not None
    told = operators.operators()
    assert listed[1].split() == sorted(name for name in told if told[name].level != "no")
