"""A codebook that is trained: weights that share a value stay together."""

from __future__ import annotations

import numpy as np
import pytest
import trained_net
from onnx import numpy_helper
from pydantic import ValidationError

from wherry_compress.job import Job, Refusal
from wherry_compress.share.passes import Kmeans

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

import torch  # noqa: E402 -- skipped where it is missing

from wherry_compress.share import codebook, kmeans  # noqa: E402 -- as above
from wherry_compress.train.loop import State  # noqa: E402 -- as above


@pytest.fixture
def job(tmp_path):
    of = trained_net.jobs(tmp_path, zeros=0.5)

    def make(train, **about) -> Job:
        if train is not None:
            train = {"epochs": 8, "batch": 16, "outputs": "values", "learning_rate": 0.01, **train}
        return of(Kmeans(**{"bits": 2, "least": 1, "biases": 0, "train": train, **about}))

    return make


def weights(done):
    return {t.name: numpy_helper.to_array(t) for t in done.model.graph.initializer}


@pytest.mark.parametrize("about", [{}, {"optimizer": "sgd", "clip": 1.0}])
def test_values_move_and_weights_stay_together(job, about):
    plain, trained = kmeans.apply(job(None)), kmeans.apply(job(about))
    before, after = weights(plain), weights(trained)
    for name in ("w", "m"):
        pairs = np.unique(np.stack([before[name].ravel(), after[name].ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(before[name])) <= 4
    assert not np.array_equal(before["w"], after["w"])
    assert ((before["w"] == 0) == (after["w"] == 0)).all()
    told = trained.figures["trained"]
    assert told["steps"] == 5 * 8 and max(told["held_out"]["epochs"]) > -1
    again = kmeans.apply(job(about))
    assert again.model.SerializeToString(deterministic=True) == trained.model.SerializeToString(
        deterministic=True
    )


def test_what_was_trained_is_nearer_to_the_original(job):
    plain, trained = kmeans.apply(job(None)), kmeans.apply(job({}))
    import onnxruntime

    given = job(None)
    x = np.load(given.data["training"].inputs["x"])
    runs = [
        np.stack([session.run(None, {"x": sample})[0] for sample in x])
        for model in (given.load(), plain.model, trained.model)
        for session in [onnxruntime.InferenceSession(model.SerializeToString())]
    ]
    errors = [float(np.mean((run - runs[0]) ** 2)) for run in runs[1:]]
    assert errors[1] < 0.6 * errors[0]


def test_the_gradient_of_a_value_is_the_sum_of_its_weights():
    class Fake:
        def __init__(self) -> None:
            self.weights = {"w": torch.nn.Parameter(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))}

    network = Fake()
    hook = codebook.Codebooks(network, ["w"])
    state = State(network, None, steps=1)
    weight = network.weights["w"]
    weight.grad = torch.tensor([[1.0, 10.0], [20.0, 3.0]])
    hook.after_backward(state)
    assert weight.grad.tolist() == [[4, 30], [30, 4]]
    with torch.no_grad():
        weight.copy_(torch.tensor([[5.0, 6.0], [6.0001, 5.0001]]))  # rounding apart
    hook.after_step(state)
    assert weight.tolist() == [[5, 6], [6, 5]]


def test_what_is_refused(job):
    with pytest.raises(ValidationError, match="trained in one process"):
        job({"processes": 2})
    with pytest.raises(Refusal, match=r"codebooks did not converge.*infinite or NaN"):
        kmeans.apply(job({"learning_rate": 1e30, "optimizer": "sgd"}))
