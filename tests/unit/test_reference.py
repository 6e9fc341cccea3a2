"""The reference: outputs of the model itself, kept on the disk, and failures that name the node."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from wherry.data.arrays import ArrayDataset
from wherry.errors import DataError, ModelError, StoreError
from wherry.model import Model, TensorSpec
from wherry.reference import Reference, load_reference, random_inputs, record_reference

node = helper.make_node


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


@pytest.fixture
def make(tmp_path):
    def build(nodes, inputs, outputs, weights=(), domains=()):
        imports = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in domains)]
        graph = helper.make_graph(nodes, "net", inputs, outputs, list(weights))
        path = tmp_path / "net.onnx"
        made = helper.make_model(graph, opset_imports=imports, ir_version=8)
        path.write_bytes(made.SerializeToString())
        return Model.load(path)

    return build


@pytest.fixture
def double(make):
    """Two outputs: twice the input, and where it is greatest."""
    return make(
        [
            node("Add", ["x", "x"], ["twice"]),
            node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
        ],
        [value("x", [1, 3])],
        [value("twice", [1, 3]), value("best", [1], TensorProto.INT64)],
    )


def samples(count=5):
    rows = np.random.default_rng(0).standard_normal((count, 1, 3)).astype(np.float32)
    return ArrayDataset("rows", {"x": rows}), rows


def test_outputs_come_by_name_in_the_model_s_order(double):
    outputs = Reference(double).run({"x": np.array([[1, 3, 2]], np.float32)})
    assert list(outputs) == ["twice", "best"]
    assert outputs["twice"].tolist() == [[2, 6, 4]]
    assert outputs["best"].tolist() == [1]


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"y": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((1, 3), np.float64)},
    ],
)
def test_other_inputs_than_the_model_s(double, inputs):
    with pytest.raises(DataError, match="the model wants the inputs"):
        Reference(double).run(inputs)


def test_what_is_recorded_is_what_was_run(double, tmp_path):
    folder = tmp_path / "reference"
    folder.mkdir()
    dataset, rows = samples()
    done = []
    record_reference(Reference(double), dataset, folder, progress=lambda *pair: done.append(pair))
    assert done == [(index, 5) for index in range(1, 6)]
    outputs = load_reference(folder)
    for index, row in enumerate(rows):
        assert list(outputs(index)) == ["twice", "best"]
        np.testing.assert_array_equal(outputs(index)["twice"], row * 2)
        np.testing.assert_array_equal(outputs(index)["best"], row.argmax(1))
        assert outputs(index)["best"].dtype == np.int64
    with pytest.raises(IndexError):
        outputs(5)


def test_the_same_bits_every_time(make):
    rng = np.random.default_rng(1)
    weight = numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "w")
    model = make(
        [node("Conv", ["x", "w"], ["y"])],
        [value("x", [1, 3, 20, 20])],
        [value("y", [1, 8, 18, 18])],
        [weight],
    )
    (inputs,) = random_inputs(model.inputs, 1)
    first, again = (Reference(model).run(inputs)["y"] for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_nan_of_the_model_itself_names_output_and_sample(make, tmp_path):
    model = make([node("Log", ["x"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])])
    dataset = ArrayDataset("rows", {"x": np.array([[[1, 1, 1]], [[1, -1, 1]]], np.float32)})
    with pytest.raises(ModelError, match=r"output 'y' of the model itself.* is NaN for sample 1"):
        record_reference(Reference(model), dataset, tmp_path)


def test_outputs_of_changing_shape(make, tmp_path):
    found = value("y", [1, "n"], TensorProto.INT64)
    model = make([node("NonZero", ["x"], ["y"])], [value("x", [4])], [found])
    dataset = ArrayDataset("rows", {"x": np.array([[1, 1, 1, 1], [0, 1, 0, 0]], np.float32)})
    with pytest.raises(ModelError, match=r"shape \(1, 1\) for sample 1 and \(1, 4\) for sample 0"):
        record_reference(Reference(model), dataset, tmp_path)


def test_a_full_disk(double, tmp_path):
    (tmp_path / "0.npy").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="cannot be written: No space left") as caught:
        record_reference(Reference(double), samples()[0], tmp_path)
    assert "Free some space" in caught.value.remedy
    assert not (tmp_path / "reference.json").exists()


def test_a_folder_that_is_no_reference(double, tmp_path):
    with pytest.raises(StoreError, match="not a folder of reference outputs"):
        load_reference(tmp_path)
    record_reference(Reference(double), samples()[0], tmp_path)
    whole = (tmp_path / "0.npy").read_bytes()
    (tmp_path / "0.npy").write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="not a folder of reference outputs"):
        load_reference(tmp_path)


def test_an_operator_that_nobody_knows_is_named(make):
    model = make(
        [node("Relu", ["x"], ["h"]), node("Fancy", ["h"], ["y"], name="odd", domain="my.own")],
        [value("x", [3])], [value("y", [3])], domains=["my.own"],
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"node 'odd' is a Fancy of the domain my\.own"):
        Reference(model)


def test_an_inference_that_fails_names_the_node(make):
    model = make(
        [node("Gather", ["table", "x"], ["y"], name="lookup")],
        [value("x", [1], TensorProto.INT64)],
        [value("y", [1, 2])],
        [numpy_helper.from_array(np.zeros((3, 2), np.float32), "table")],
    )
    with pytest.raises(ModelError, match=r"inference failed .*\(node 'lookup'\)") as caught:
        Reference(model).run({"x": np.array([7])})
    assert caught.value.where.endswith("net.onnx")


def test_random_inputs_suit_their_types():
    specs = [
        TensorSpec(dtype, dtype, (1, 1000))
        for dtype in ("float32", "float16", "uint8", "int64", "bool")
    ]
    first, second = random_inputs(specs, 2, seed=3)
    again = next(iter(random_inputs(specs, 1, seed=3)))
    for spec in specs:
        array = first[spec.name]
        assert (array.dtype.name, array.shape) == (spec.dtype, (1, 1000))
        assert array.tobytes() == again[spec.name].tobytes()
        assert array.tobytes() != second[spec.name].tobytes()
    assert abs(first["float32"].std() - 1) < 0.1
    assert first["uint8"].max() > 250
    assert set(first["int64"].ravel()) == {0, 1}
