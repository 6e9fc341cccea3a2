"""Zeros while a network is trained: gradual, surgery, lottery."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from wherry.reference import open_session, run_session
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.prune.passes import PruneTrained

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

import torch  # noqa: E402 -- skipped where it is missing

from wherry_compress.prune import sparse  # noqa: E402 -- as above

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(0, 0.5, shape).astype(np.float32)


@pytest.fixture
def job(tmp_path):
    graph = onnx.parser.parse_graph(
        """net (float[1, 2, 5, 5] x) => (float[1, 4] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) g = GlobalAveragePool (r)
            f = Flatten (g) y = Gemm <transB = 1> (f, m, o)
        }"""
    )
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    weights = {"w": normal(8, 2, 3, 3), "b": normal(8), "m": normal(4, 8), "o": normal(4)}
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", RANDOM.normal(size=(96, 1, 2, 5, 5)).astype(np.float32))
    data = {"training": Data({"x": tmp_path / "x.npy"})}

    def make(**about) -> Job:
        given = {"epochs": 8, "batch": 16, "learning_rate": 0.005, "sparsity": 0.5, "every": 3,
                 "outputs": "values"}  # fmt: skip
        parameters = PruneTrained(**{**given, **about}).model_dump(mode="json")
        return Job(
            tmp_path / "in.onnx", parameters, tmp_path, data, original=tmp_path / "in.onnx", seed=3
        )

    return make


@pytest.mark.parametrize("method", ["gradual", "surgery", "lottery"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_so_many_zeros_and_the_rest_has_learnt(job, method, allocation):
    given = job(method=method, allocation=allocation, rounds=2)
    done = sparse.apply(given)
    values = {t.name: numpy_helper.to_array(t) for t in done.model.graph.initializer}
    zeros = {name: float((values[name] == 0).mean()) for name in ("w", "m")}
    whole = (values["w"] == 0).sum() + (values["m"] == 0).sum()
    assert whole == done.figures["zeros"] == 88
    if allocation == "uniform":
        assert zeros == {"w": 0.5, "m": 0.5}
    assert (values["b"] != 0).all()
    assert not any(np.signbit(values[name][values[name] == 0]).any() for name in ("w", "m"))
    bare = job(method=method, allocation=allocation, epochs=1, learning_rate=1e-12, rounds=1)
    untrained = sparse.apply(bare).figures["held_out"]["after"]
    assert done.figures["held_out"]["after"] > untrained
    again = sparse.apply(job(method=method, allocation=allocation, rounds=2))
    assert again.model.SerializeToString(deterministic=True) == done.model.SerializeToString(
        deterministic=True
    )


def test_batch_norms_fit_the_weights_of_the_last_step(job, tmp_path):
    given = job(held_out=0, learning_rate=0.05)
    proto = onnx.load(given.model)
    norm = onnx.helper.make_node(
        "BatchNormalization", ["a", "scale", "b", "mean", "var"], ["n"], name="/n"
    )
    proto.graph.node.insert(1, norm)
    proto.graph.node[2].input[0] = "n"
    for name, value in (("scale", 1), ("mean", 0), ("var", 1)):
        array = np.full(8, value, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, given.model)
    made = sparse.apply(given).model
    mean = next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "mean")
    made.graph.output.append(onnx.helper.make_tensor_value_info("a", 1, [1, 8, 5, 5]))
    session = open_session(made.SerializeToString(), threads=1, where="")
    ran = [run_session(session, {"x": x}, where="")["a"] for x in np.load(tmp_path / "x.npy")]
    assert mean == pytest.approx(np.mean(ran, axis=(0, 1, 3, 4)), abs=1e-5)


def test_the_rise():
    assert [sparse.rising(0.8, t) for t in (-1, 0, 0.5, 1, 2)] == pytest.approx(
        [0, 0, 0.7, 0.8, 0.8]
    )


def test_surgery_brings_back_what_grows():
    """A weight that is masked, and grows beside the network, is let in again."""

    class Fake:
        def __init__(self) -> None:
            self.weights = {"w": torch.nn.Parameter(torch.tensor([0.1, 1.0, 2.0, 3.0]))}

    network = Fake()
    about = {"sparsity": 0.5, "allocation": "uniform", "rise": 1.0, "every": 1}
    hook = sparse.Surgery(network, ["w"], about)
    state = sparse.State(network, None, steps=4)
    state.step = 3
    hook.before_step(state)
    assert network.weights["w"].tolist() == pytest.approx([0, 1, 2, 3])
    hook.after_backward(state)
    assert network.weights["w"].tolist() == pytest.approx([0.1, 1, 2, 3])
    with torch.no_grad():
        network.weights["w"][0] = 5.0  # what the optimizer does
    hook.after_step(state)
    assert network.weights["w"].tolist() == pytest.approx([0, 1, 2, 3])
    state.step = 4
    hook.before_step(state)
    assert network.weights["w"].tolist() == pytest.approx([5, 0, 0, 3])
    saved = hook.state_dict()
    other = sparse.Surgery(Fake(), ["w"], about)
    other.load_state_dict(saved)
    assert other.masks["w"].tolist() == [1, 0, 0, 1]


def test_what_is_refused(job):
    with pytest.raises(ValidationError, match="zeros are chosen in one process"):
        job(processes=2)
    with pytest.raises(ValidationError, match="leave `patience` out"):
        job(patience=2)
    with pytest.raises(Refusal, match="no weights to make zero"):
        sparse.apply(job(exclude=("*",)))
