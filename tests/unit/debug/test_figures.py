"""What is counted of a tensor, and the pieces that a model falls into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from wherry.artifact import Binding
from wherry.dataset import Dataset, Sample
from wherry.debug.case import Spread
from wherry.debug.figures import Tally, count, decibels, noise
from wherry.debug.graphs import Graphs
from wherry.model import Model
from wherry.parity import Difference


def tally(zero_point: int = -128, precision: str = "int8", scale: float | None = 0.1) -> Tally:
    return Tally(
        "t", Binding("t", "t", "int8", (4,), scale=scale, zero_point=zero_point), precision
    )


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_zeros_of_a_relu_are_not_saturated():
    one = tally()
    one.update(array(0, 0, 3, 9), array(0, 0, 3, 9), array(0, 0, 3.02, 9))
    assert one.saturation == 0


def test_values_beyond_the_range_are():
    one = tally()
    one.update(array(0, 1, 30, -2), array(0, 1, 25.5, 0), array(0, 1, 30, -2))
    assert one.saturation == 0.5
    assert one.reference_range == (-2, 30)
    assert one.deployed_range == (0, 25.5)


def test_a_symmetric_type_leaves_the_least_number_out():
    one = tally(zero_point=0)
    one.update(array(-12.8, 1, 2, 3), array(-12.7, 1, 2, 3), array(-12.8, 1, 2, 3))
    assert one.saturation == 0.25


def test_fp16_has_an_end_and_fp32_has_none():
    one, two = tally(precision="fp16", scale=None), tally(precision="fp32", scale=None)
    for each in (one, two):
        each.update(array(7e4, 1, 2, 3), array(65504, 1, 2, 3), array(7e4, 1, 2, 3))
    assert (one.saturation, two.saturation) == (0.25, None)


def test_an_error_of_storing_is_told_from_one_of_computing():
    stored, computed = tally(), tally()
    own = array(0.04, 0.04, 0.04, 12)
    stored.update(own, array(0, 0, 0, 12), own)
    computed.update(own, array(3, 0, 3, 9), own)
    assert stored.by_range
    assert not computed.by_range


def test_nan_is_no_warning_and_the_worst():
    one = tally(scale=None, precision="fp32")
    one.update(array(1, 2, 3, 4), array(np.nan, 2, 3, 4), array(1, 2, 3, 4))
    assert one.own.sqnr_db == -300
    assert one.deployed_range == (2, 4)
    assert noise(one.own) > 1e20


def test_noise_of_whole_numbers_is_the_share_that_differs():
    difference = Difference("classes")
    difference.update(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert noise(difference) == 0.25
    assert decibels(0) == 300
    assert decibels(0.01) == pytest.approx(20)


class Counting(Dataset):
    name = "counting"
    digest = "counting"

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return Sample({"": np.array([index])})


def test_samples_are_spread_evenly():
    some = Spread(Counting(100), 4)
    assert [int(sample.inputs[""][0]) for sample in some] == [0, 25, 50, 75]
    assert some.digest != Counting(100).digest
    assert Spread(Counting(3), 10).digest == "counting"
    with pytest.raises(IndexError):
        some[4]


@pytest.fixture
def graphs(tmp_path: Path) -> Graphs:
    """``a`` and ``c`` are exposed, ``b`` is not; ``y`` adds ``c`` and ``a``."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="one"),
        helper.make_node("Neg", ["a"], ["b"], name="two"),
        helper.make_node("Exp", ["b"], ["c"], name="three"),
        helper.make_node("Add", ["c", "a"], ["y"], name="four"),
        helper.make_node("Shape", ["x"], ["s"], name="five"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", *([end] for end in ends))
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return Graphs(Model.load(path), ["y", "c", "a", "s", "unknown"])


def test_a_piece_holds_all_nodes_back_to_exposed_tensors(graphs):
    assert graphs.tensors == ("a", "c", "y", "s")
    assert graphs.pieces == {"a": ("one",), "c": ("two", "three"), "y": ("four",), "s": ("five",)}
    assert graphs.readers == {"a": ("two", "four"), "c": ("four",), "y": (), "s": ()}


def test_pieces_are_computed_from_what_the_device_gave(graphs):
    inputs = {"x": np.array([[-1, 1]], np.float32)}
    deployed = {
        "a": np.array([[5, 0]], np.float32),
        "c": np.array([[1, 1]], np.float32),
        "y": np.zeros((1, 2), np.float32),
        "s": np.array([1, 2]),
    }
    own = graphs.own(inputs, deployed)
    np.testing.assert_allclose(own["a"], [[0, 1]])
    np.testing.assert_allclose(own["c"], np.exp([[-5, 0]]), rtol=1e-6)
    np.testing.assert_allclose(own["y"], [[6, 1]])


def test_an_error_is_put_into_one_tensor(graphs):
    inputs = {"x": np.array([[-1, 1]], np.float32)}
    plain = graphs.reference(inputs)
    np.testing.assert_allclose(plain["y"], [[1, 1 + np.exp(-1)]], rtol=1e-6)
    error = np.array([[0.5, 0]], np.float32)
    disturbed = graphs.disturbed(inputs, "c", error)
    np.testing.assert_allclose(disturbed["y"] - plain["y"], error, rtol=1e-6)
    assert not graphs.takes_error("s")


def test_scalars_are_tensors_too(tmp_path):
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], name="sum", keepdims=0),
        helper.make_node("Neg", ["s"], ["y"], name="neg"),
    ]
    ends = [("x", [1, 2]), ("y", [])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in ends]
    graph = helper.make_graph(nodes, "net", infos[:1], infos[1:])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    graphs = Graphs(Model.load(path), ["s", "y"])
    tallies = {name: tally(scale=None, precision="fp32") for name in graphs.tensors}
    given = {"s": np.array(3.5, np.float32), "y": np.array(-3.5, np.float32)}
    inputs = [{"x": np.array([[1, 2]], np.float32)}]
    assert list(count(graphs, tallies, inputs, iter([given]), frozenset({0}))) == [1]
    assert tallies["s"].effects["y"].sqnr_db == pytest.approx(20 * np.log10(6), abs=1e-3)
