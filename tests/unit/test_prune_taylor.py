"""The criterion taylor: the derivative of the loss by a gate, against differences."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

import torch  # noqa: E402 -- skipped where it is missing

from wherry_compress.graph.channels import trace  # noqa: E402 -- as above
from wherry_compress.job import Data, Job  # noqa: E402 -- as above
from wherry_compress.prune import filters  # noqa: E402 -- as above
from wherry_compress.prune.passes import PruneFilters  # noqa: E402 -- as above
from wherry_compress.prune.runs import outputs  # noqa: E402 -- as above
from wherry_compress.prune.taylor import loss, taylor  # noqa: E402 -- as above

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(0.1, 0.6, shape).astype(np.float32)


@pytest.fixture
def network():
    """A residual, so that a unit has two makers and two readers; a depthwise convolution."""
    graph = onnx.parser.parse_graph(
        """net (float[1, 3, 6, 6] x) => (float[1, 5] y) {
            a = Conv (x, w, b) d = Conv <group = 6> (a, k) c = Conv (d, v) s = Add (a, c)
            r = Sigmoid (s) g = GlobalAveragePool (r) f = Flatten (g)
            y = Gemm <transB = 1> (f, m, o)
        }"""
    )
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    weights = {
        "w": normal(6, 3, 3, 3), "b": normal(6), "k": normal(6, 1, 1, 1), "v": normal(6, 6, 1, 1),
        "m": normal(5, 6), "o": normal(5),
    }  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def gated(channels, unit, factor):
    """The network with all weights that read a unit's channels multiplied by a factor."""
    values = {t.name: numpy_helper.to_array(t).copy() for t in channels.proto.graph.initializer}
    for cut in channels.cuts:
        if cut.role == "reads":
            np.moveaxis(values[cut.tensor], cut.axis, 0)[channels.roots[cut.ids] == unit] *= factor
    return channels.changed(values).proto


@pytest.mark.parametrize("labelled", [True, False])
def test_it_is_the_derivative_by_a_gate(network, tmp_path, labelled):
    np.save(tmp_path / "x.npy", RANDOM.normal(size=(4, 1, 3, 6, 6)).astype(np.float32))
    labels = np.array([1, 4, 0, 2]) if labelled else None
    data = Data({"x": tmp_path / "x.npy"}, labels)
    channels = trace(network)
    (group,) = channels.groups
    (found,) = taylor(channels, data)
    base = outputs(network, data)
    if labels is None:
        labels = np.array([each["y"].argmax() for each in base])

    def losses(proto):
        return np.array(
            [float(loss({"y": torch.tensor(each["y"][None]).double()}, int(label)))
             for each, label in zip(outputs(proto, data), labels, strict=True)]
        )  # fmt: skip

    step = 0.02
    for unit, score in zip(group.units.tolist(), found, strict=True):
        up, down = (losses(gated(channels, unit, 1 + s)) for s in (step, -step))
        assert score == pytest.approx((((up - down) / (2 * step)) ** 2).mean(), rel=0.02, abs=1e-6)


def test_the_pass_with_it(network, tmp_path):
    onnx.save(network, tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", RANDOM.normal(size=(4, 1, 3, 6, 6)).astype(np.float32))
    about = PruneFilters(ratios={"/a": 0.5}, round_to=1, criterion="taylor")
    data = {"calibration": Data({"x": tmp_path / "x.npy"})}
    done = filters.apply(Job(tmp_path / "in.onnx", about.model_dump(mode="json"), tmp_path, data))
    assert done.figures["units"] == {"/a": [6, 3]}
    onnx.checker.check_model(done.model, full_check=True)
