"""Zeros while a network is trained: gradual, surgery, lottery."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import trained_net
from onnx import numpy_helper
from pydantic import ValidationError

from wherry.reference import open_session, run_session
from wherry_compress.job import Job, Refusal
from wherry_compress.prune.passes import PruneTrained

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

import torch  # noqa: E402 -- skipped where it is missing

from wherry_compress.prune import sparse  # noqa: E402 -- as above


@pytest.fixture
def job(tmp_path):
    of = trained_net.jobs(tmp_path)

    def make(unfinished=None, **about) -> Job:
        given = {"batch": 16, "learning_rate": 0.005, "sparsity": 0.5, "outputs": "values"}
        given |= {} if about.get("method") == "lottery" else {"every": 3}
        given |= {} if "steps" in about else {"epochs": 8}
        return of(PruneTrained(**{**given, **about}), unfinished=unfinished)

    return make


@pytest.mark.parametrize("method", ["gradual", "surgery", "lottery"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_so_many_zeros_and_the_rest_has_learnt(job, method, allocation):
    rounds = {"rounds": 2} if method == "lottery" else {}
    about = {"method": method, "allocation": allocation, **rounds}
    done = sparse.apply(job(**about))
    values = {t.name: numpy_helper.to_array(t) for t in done.model.graph.initializer}
    zeros = {name: float((values[name] == 0).mean()) for name in ("w", "m")}
    whole = (values["w"] == 0).sum() + (values["m"] == 0).sum()
    assert whole == done.figures["zeros"] == 88
    if allocation == "uniform":
        assert zeros == {"w": 0.5, "m": 0.5}
    assert (values["b"] != 0).all()
    assert not any(np.signbit(values[name][values[name] == 0]).any() for name in ("w", "m"))
    bare = job(**{**about, **dict.fromkeys(rounds, 1)}, epochs=1, learning_rate=1e-12)
    untrained = sparse.apply(bare).figures["held_out"]["after"]
    assert done.figures["held_out"]["after"] > untrained
    again = sparse.apply(job(**about))
    assert again.model.SerializeToString(deterministic=True) == done.model.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("method", ["gradual", "surgery"])
@pytest.mark.parametrize("about", [{"rise": 1.0, "epochs": 2}, {"steps": 1}, {"every": 1000}])
def test_the_last_choice_is_made_however_the_rise_is(job, method, about):
    assert sparse.apply(job(method=method, **about)).figures["zeros"] == 88


class StoppedError(Exception):
    """As Ctrl-C does, which ends the process."""


@pytest.mark.parametrize("stop", [2, 9, 14])
def test_an_interrupted_lottery_goes_on_in_its_round(job, tmp_path, monkeypatch, stop):
    about = {"method": "lottery", "rounds": 2, "epochs": 1}

    def content(done):
        return done.model.SerializeToString(deterministic=True)

    whole = content(sparse.apply(job(**about)))
    offer, counted = sparse.Checkpoints.offer, iter(range(1, 100))

    def stopping(self, *given, **words):
        self._every_s = 0.0
        offer(self, *given, **words)
        if next(counted) == stop:
            raise StoppedError

    work = job(tmp_path / "unfinished", **about)
    with monkeypatch.context() as patch:
        patch.setattr(sparse.Checkpoints, "offer", stopping)
        with pytest.raises(StoppedError):
            sparse.apply(work)
    steps = []
    monkeypatch.setattr(sparse.Checkpoints, "offer", lambda *_given, **_: steps.append(1))
    assert content(sparse.apply(work)) == whole
    assert len(steps) == 3 * 5 - stop  # what was done is not done again


def test_a_round_begins_with_the_given_weights_and_fewer_of_them(job):
    network = sparse.student(job())
    begun, left = [], []

    def run(hook, _place=""):
        begun.append({name: w.detach().clone() for name, w in network.weights.items()})
        left.append(int(sum(mask.sum() for mask in hook.masks.values())))
        with torch.no_grad():
            for weight in network.weights.values():
                weight.add_(0.01)

    about = {"rounds": 2, "sparsity": 0.75, "allocation": "global"}
    sparse._lottery(network, ["w", "m"], about, run)
    assert left == [176, 88, 44]
    for each in begun[1:]:
        assert all(torch.equal(each[name], begun[0][name]) for name in each)


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
    state = sparse.State(network, None, steps=5)
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
