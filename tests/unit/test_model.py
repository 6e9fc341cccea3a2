"""Models: what is read, what is refused and in which words, and the copy with static shapes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import zipfile

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from wherry.errors import ModelError
from wherry.model import Model, TensorSpec
from wherry.reference import Reference

node = helper.make_node


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name, *shape, dtype=np.float32):
    array = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    return numpy_helper.from_array(array, name)


def network(nodes, inputs, outputs, weights=(), *, opset=17, ir=8, domains=(), **graph):
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    made = helper.make_graph(nodes, "net", inputs, outputs, list(weights), **graph)
    return helper.make_model(made, opset_imports=imports, ir_version=ir)


def linear(batch="N", classes=2):
    return network(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])],
        [value("x", [batch, 3])],
        [value("y", [batch, classes])],
        [weight("w", 3, classes)],
    )


@pytest.fixture
def save(tmp_path):
    def write(content, name="net.onnx"):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.SerializeToString()
        path.write_bytes(data)
        return path

    return write


def refusal(path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        Model.load(path)
    error = caught.value
    assert error.where == str(path)
    assert error.remedy
    assert len(str(error)) < 600 + 2 * len(str(path))
    assert "\n" not in str(error)
    return error


def test_what_is_read(save):
    path = save(linear())
    model = Model.load(path)
    assert model.inputs == (TensorSpec("x", "float32", ("N", 3)),)
    assert model.outputs == (TensorSpec("y", "float32", ("N", 2)),)
    assert (model.opset, model.ir_version) == (17, 8)
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.proto() == onnx.load(path)


def test_dynamic_axes_without_a_name_and_inputs_that_are_weights(save):
    proto = network(
        [node("Add", ["x", "w"], ["y"])],
        [value("x", [None, 0, -1]), value("w", [1])],
        [value("y", None)],
        [weight("w", 1)],
        ir=3,
    )
    model = Model.load(save(proto))
    assert [spec.shape for spec in model.inputs] == [("?", "?", "?")]
    assert len(model.outputs[0].shape) == 3


def bad_files():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("model/data.pkl", b"")
    arrays = io.BytesIO()
    np.savez(arrays, a=np.zeros(1))
    good = linear().SerializeToString()
    return {
        "empty": (b"", "empty", "again"),
        "text": (b"hello, this is not a network at all", "not an ONNX file", "Export"),
        "garbage": (bytes(range(255, 0, -1)) * 4, "not an ONNX file", "Export"),
        "varint": (b"\x08" + b"\xff" * 1000, "not an ONNX file", "Export"),
        "pickle": (pickle.dumps({"weight": [1.0]}), "pickle", "Export"),
        "torch": (archive.getvalue(), "PyTorch", "Export"),
        "npz": (arrays.getvalue(), ".npz", "Export"),
        "zip": (b"PK\x03\x04rest", "broken zip", "Export"),
        "tflite": (b"\x20\0\0\0TFL3" + b"\0" * 64, "TensorFlow Lite", "converted from"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "HDF5", "Export"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS", "git lfs pull"),
        "html": (b"<!DOCTYPE html><html></html>", "web page", "Download"),
        "safetensors": (b'\x40\0\0\0\0\0\0\0{"a": 1}', "safetensors", "Export"),
        "gzip": (gzip.compress(good), "gzip", "Unpack"),
        "ncnn": (b"7767517\n2 2\n", "ncnn", "converted from"),
        "half": (good[: len(good) // 2], "cut", "again"),
        "no opset": (good[: good.rindex(b"\x42")], "cut", "again"),
        "tensor": (weight("w", 3).SerializeToString(), "not an ONNX file", "Export"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_what_is_not_onnx_is_said(save, name):
    content, words, remedy = bad_files()[name]
    error = refusal(save(content))
    assert words in error.message
    assert remedy in error.remedy


@pytest.mark.parametrize("cut", range(1, len(linear().SerializeToString())))
def test_a_file_cut_anywhere_is_said_to_be_cut(save, cut):
    assert "the file is cut" in refusal(save(linear().SerializeToString()[:cut])).message


@given(position=st.integers(0, 160), byte=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_flipped_byte_is_an_error_of_the_model_or_harmless(save, position, byte):
    data = bytearray(linear().SerializeToString())
    data[position % len(data)] = byte
    path = save(bytes(data))
    try:
        Model.load(path)
    except ModelError as error:
        assert error.where == str(path)


def test_missing_folder_and_unreadable(tmp_path, save):
    assert "no such file" in refusal(tmp_path / "absent.onnx").message
    assert "folder" in refusal(tmp_path).message
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refusal(tmp_path / "pipe").message
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in refusal(tmp_path / "loop").message


def test_more_than_2_gib_in_one_file(tmp_path):
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse: takes no space
    assert "2.0 GiB" in refusal(path).message


RELU = [node("Relu", ["x"], ["y"])]
INVALID = {
    "ir version": (network(RELU, [value("x", [1])], [value("y", [1])], ir=99),
                   ["IR version 99", "up to"]),
    "opset": (network(RELU, [value("x", [1])], [value("y", [1])], opset=99),
              ["opset 99", f"up to {onnx.defs.onnx_opset_version()}"]),
    "operator": (network([node("Rolu", ["x"], ["y"], name="act")], [value("x", [1])],
                         [value("y", [1])]), ["Rolu", "act"]),
    "attribute": (network([node("Relu", ["x"], ["y"], name="act", alpha=1.0)], [value("x", [1])],
                          [value("y", [1])]), ["alpha", "act"]),
    "dangling": (network([node("Relu", ["z"], ["y"])], [value("x", [1])], [value("y", [1])]),
                 ["'z'"]),
    "output": (network(RELU, [value("x", [1])], [value("q", [1])]), ["'q'"]),
    "shapes": (network([node("MatMul", ["x", "w"], ["y"], name="fc")], [value("x", [1, 3])],
                       [value("y", [1, 2])], [weight("w", 4, 2)]), ["fc", "Incompatible"]),
    "types": (network([node("Add", ["x", "w"], ["y"], name="sum")], [value("x", [3])],
                      [value("y", [3])], [weight("w", 3, dtype=np.int32)]), ["sum", "int32"]),
    "declared": (network([node("Relu", ["x"], ["y"], name="act")], [value("x", [3])],
                         [value("y", [2])]), ["act", "(3) vs (2)"]),
    "no inputs": (network([node("Relu", ["w"], ["y"])], [], [value("y", [3])], [weight("w", 3)]),
                  ["no inputs"]),
    "no outputs": (network(RELU, [value("x", [3])], []), ["no outputs"]),
    "strings": (network([node("Identity", ["x"], ["y"])], [value("x", [3], TensorProto.STRING)],
                        [value("y", [3], TensorProto.STRING)]), ["input 'x'", "string"]),
    "bfloat16": (network([node("Identity", ["x"], ["y"])], [value("x", [3], TensorProto.BFLOAT16)],
                         [value("y", [3], TensorProto.BFLOAT16)]), ["input 'x'", "bfloat16"]),
    "sequence": (network([node("SequenceConstruct", ["x"], ["y"])], [value("x", [3])],
                         [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [3])]),
                 ["output 'y'", "sequence"]),
    "no rank": (network(RELU, [value("x", None)], [value("y", None)]),
                ["input 'x'", "axes"]),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_what_is_invalid_is_said(save, name):
    proto, words = INVALID[name]
    error = refusal(save(proto))
    assert all(word in error.message for word in words), error.message


def test_weights_shorter_than_they_say(save):
    proto = linear()
    proto.graph.initializer[0].raw_data = b"abcd"
    assert "too small" in refusal(save(proto)).message


def external(tmp_path, location="net.bin", size=24, **entries):
    """`linear`, with its weights in another file of `size` bytes."""
    proto = linear()
    tensor = proto.graph.initializer[0]
    data, tensor.data_location = tensor.raw_data, TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    for key, said in {"location": location, "offset": 0, "length": 24, **entries}.items():
        tensor.external_data.add(key=key, value=str(said))
    if size:
        (tmp_path / "net.bin").write_bytes(data[:size])
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    return tmp_path / "net.onnx"


def test_names_that_are_no_text(save):
    data = linear().SerializeToString().replace(b"MatMul", b"Mat\x80ul")
    assert "damaged" in refusal(save(data)).message


def test_external_data_is_read_hashed_and_brought_inside(tmp_path):
    path = external(tmp_path)
    model = Model.load(path)
    assert model.proto().graph.initializer[0].raw_data == linear().graph.initializer[0].raw_data
    static = model.with_static_shapes({}, tmp_path)
    (tmp_path / "net.bin").write_bytes(bytes(24))
    assert Model.load(path).digest != model.digest
    with pytest.raises(ModelError, match="has changed"):
        model.proto()
    Reference(static).run({"x": np.ones((1, 3), np.float32)})  # needs the other file no more


@pytest.mark.parametrize(
    "location", ["../net.bin", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", ""]
)
def test_external_data_outside_the_folder_is_never_read(tmp_path, location):
    error = refusal(external(tmp_path, location))
    assert "not a file in the model's folder" in error.message
    assert "'w'" in error.message


def test_a_link_out_of_the_folder_is_never_followed_unless_the_model_itself_lies_there(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    path = external(home)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / "net.bin").rename(elsewhere / "blob1")
    (home / "net.bin").symlink_to(elsewhere / "blob1")
    assert "not a file in the model's folder" in refusal(path).message
    path.rename(elsewhere / "blob2")
    path.symlink_to(elsewhere / "blob2")
    assert Model.load(path).inputs[0].name == "x"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"size": 0}, "missing"),
        ({"size": 20}, "is cut: tensor 'w' lies at bytes 0 to 24, and the file has 20"),
        ({"offset": 8}, "is cut"),
        ({"offset": -8}, "is cut"),
        ({"offset": "x"}, "described wrongly"),
        ({"length": 16}, "too small"),
    ],
)
def test_external_data_that_is_not_all_there(tmp_path, entries, words):
    assert words in refusal(external(tmp_path, **entries)).message


def test_static_shapes_are_inferred_and_the_bytes_are_the_same_every_time(save, tmp_path):
    model = Model.load(save(linear()))
    static = model.with_static_shapes({}, tmp_path)
    assert static.inputs[0].static_shape == (1, 3)
    assert static.outputs[0].static_shape == (1, 2)
    first = static.path.read_bytes()
    again = model.with_static_shapes({"x": (1, 3)}, tmp_path)
    assert again.path.read_bytes() == first
    assert static.with_static_shapes({}, tmp_path).digest == static.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "net.onnx"]


def test_a_batch_that_was_asked_for(save, tmp_path):
    static = Model.load(save(linear())).with_static_shapes({"x": (4, 3)}, tmp_path)
    assert static.outputs[0].static_shape == (4, 2)


def two_inputs():
    return network(
        [node("Add", ["a", "b"], ["y"])],
        [value("a", ["N", "length"]), value("b", ["N", "length"])],
        [value("y", ["N", "length"])],
    )


def test_a_symbol_is_one_number_everywhere(save, tmp_path):
    static = Model.load(save(two_inputs())).with_static_shapes({"b": (2, 7)}, tmp_path)
    assert [spec.static_shape for spec in (*static.inputs, *static.outputs)] == [(2, 7)] * 3


@pytest.mark.parametrize(
    ("shapes", "words", "remedy"),
    [
        ({}, ["'a'", "axis 1 (length)"], "model.inputs.a.shape"),
        ({"a": (1, 7), "b": (1, 8)}, ["'b'", "[1, 8]", "'length': 7"], "model.inputs.b.shape"),
        ({"a": (7,)}, ["'a'", "[7]", "[N, length]"], "model.inputs.a.shape"),
        ({"a": (1, 0)}, ["'a'", "[1, 0]"], "model.inputs.a.shape"),
        ({"aa": (1, 7)}, ["no input 'aa'", "'a', 'b'"], "Did you mean 'a'?"),
        ({"zebra": (1, 7)}, ["no input 'zebra'"], "Correct the name"),
    ],
)
def test_shapes_that_cannot_be(save, tmp_path, shapes, words, remedy):
    model = Model.load(save(two_inputs()))
    with pytest.raises(ModelError) as caught:
        model.with_static_shapes(shapes, tmp_path)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert remedy in caught.value.remedy
    assert not (tmp_path / "model.onnx").exists()


def test_a_shape_against_a_number_of_the_model(save, tmp_path):
    with pytest.raises(
        ModelError, match=r"cannot have the shape \[1, 4\]: the model says \[N, 3\]"
    ):
        Model.load(save(linear())).with_static_shapes({"x": (1, 4)}, tmp_path)


def test_a_shape_that_the_network_cannot_take_names_the_node(save, tmp_path):
    proto = network(
        [node("MatMul", ["x", "w"], ["y"], name="fc")],
        [value("x", ["N", "length"])],
        [value("y", ["N", 2])],
        [weight("w", 3, 2)],
    )
    with pytest.raises(ModelError, match="fc"):
        Model.load(save(proto)).with_static_shapes({"x": (1, 4)}, tmp_path)


def reshape(shape_node, inputs):
    """A network whose output's shape is no constant of the file."""
    return network(
        [shape_node, node("Reshape", ["x", "shape"], ["y"])], inputs, [value("y", ["a", "b"])]
    )


def test_an_output_that_cannot_be_inferred_is_run(save, tmp_path):
    proto = network(
        [
            node("RandomNormal", [], ["r"], shape=[4, 3]),
            node("NonZero", ["r"], ["found"]),
            node("Shape", ["found"], ["dims"]),
            node("ConstantOfShape", ["dims"], ["zeros"]),
            node("ReduceSum", ["x"], ["sum"], keepdims=0),
            node("Add", ["zeros", "sum"], ["y"]),
        ],
        [value("x", ["N", 3])],
        [value("y", ["a", "b"])],
    )
    static = Model.load(save(proto)).with_static_shapes({}, tmp_path)
    assert static.outputs[0].static_shape == (2, 12)


def test_an_output_whose_shape_depends_on_the_data(save, tmp_path):
    proto = network(
        [node("Relu", ["x"], ["h"]), node("NonZero", ["h"], ["y"])],
        [value("x", ["N", 64])],
        [value("y", [2, "found"], TensorProto.INT64)],
    )
    with pytest.raises(ModelError, match="output 'y' depends on the data"):
        Model.load(save(proto)).with_static_shapes({}, tmp_path)


def test_every_node_has_a_name_of_its_own(save, tmp_path):
    branch = helper.make_graph(
        [node("Relu", ["x"], ["b1"], name="act"), node("Neg", ["b1"], ["b2"])], "b", [],
        [value("b2", None)],
    )  # fmt: skip
    proto = network(
        [
            node("Relu", ["x"], ["h1"], name="act"),
            node("Relu", ["h1"], ["h2"], name="act"),
            node("Relu", ["h2"], ["h3"], name="act_1"),
            node("Neg", ["h3"], ["h4"]),
            node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
            node("Add", ["h4", "h4"], ["z"], name="Neg_b2"),
        ],
        [value("x", [3]), value("flag", [1], TensorProto.BOOL)],
        [value("y", [3]), value("z", [3])],
    )
    model = Model.load(save(proto))
    static = model.with_static_shapes({}, tmp_path)
    assert static.operators() == model.operators()
    assert model.operators() == {
        "Relu": ("act", "act_2", "act_1", "act_3", "act_4"),
        "Neg": ("Neg_h4", "Neg_b2_1", "Neg_b2_2"),
        "If": ("If_y",),
        "Add": ("Neg_b2",),
    }
    Reference(static)  # ONNX Runtime refuses two nodes of one name


def test_functions_are_inlined_and_domains_are_told(save, tmp_path):
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    proto = network(
        [
            node("Twice", ["x"], ["h"], domain="mine"),
            node("Gelu", ["h"], ["y"], domain="com.microsoft"),
        ],
        [value("x", [3])],
        [value("y", [3])],
        domains=["mine", "com.microsoft"],
    )
    proto.functions.append(function)
    model = Model.load(save(proto))
    assert set(model.operators()) == {"Add", "com.microsoft::Gelu"}
    static = model.with_static_shapes({}, tmp_path)
    assert not static.proto().functions
    got = Reference(static).run({"x": np.full(3, 5.0, np.float32)})
    np.testing.assert_allclose(got["y"], 10.0, rtol=1e-5)


def test_weights_that_were_inputs_are_constants(save, tmp_path):
    proto = network(
        [node("Add", ["x", "w"], ["y"])],
        [value("x", [1]), value("w", [1])],
        [value("y", [1])],
        [weight("w", 1)],
        ir=3,
    )
    static = Model.load(save(proto)).with_static_shapes({}, tmp_path)
    assert [entry.name for entry in static.proto().graph.input] == ["x"]
    assert static.ir_version == 4


def test_a_graph_without_a_name_is_taken(save):
    proto = linear()
    proto.graph.name = ""
    assert Model.load(save(proto)).inputs[0].name == "x"
