"""fit: what the original gives is learnt again; chance, interruptions, zeros, refusals."""

# ruff: noqa: E402 -- torch is looked for first
from __future__ import annotations

import math
import operator
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from pydantic import ValidationError

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

from wherry.host import Host
from wherry.model import Model
from wherry.passes import PassStep
from wherry.testing.workshop import Workshop
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.prune import filters
from wherry_compress.prune.passes import PruneFilters
from wherry_compress.train import fit, loop, processes
from wherry_compress.train.distil import find_targets, shifted
from wherry_compress.train.network import Network
from wherry_compress.train.passes import Fit

RANDOM = np.random.default_rng(0)
CLASSES, SAMPLES = 4, 160
CENTRED = np.float32([1.2, 0.4, 8.9, -9.0])  # so that every class is the best of some samples


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


def network(seed=0, end="", damage=0.0):
    """Conv, BatchNormalization, Relu, depthwise Conv, Gemm; ``damage``: noise in the weights."""
    random = np.random.default_rng(seed)
    noise = np.random.default_rng(seed + 1)
    text = (
        f"net (float[1, 2, 6, 6] x) => (float[1, {CLASSES}] y) {{"
        " a = Conv <pads = [1, 1, 1, 1]> (x, w, b) n = BatchNormalization (a, s, t, m, v)"
        " r = Relu (n) d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, u) q = Relu (d)"
        f" p = GlobalAveragePool (q) f = Flatten (p) {'z' if end else 'y'} = Gemm"
        f" <transB = 1> (f, k, c) {end} }}"
    )
    graph = onnx.parser.parse_graph(text)
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    for name, shape in (("w", (8, 2, 3, 3)), ("u", (8, 1, 3, 3)), ("k", (CLASSES, 8))):
        value = random.normal(0, 1, shape) + damage * noise.normal(0, 1, shape)
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for name, value in (("b", 0.1), ("s", 1.0), ("t", 0.2), ("m", 0.0), ("v", 20.0)):
        graph.initializer.append(numpy_helper.from_array(np.full(8, value, np.float32), name))
    graph.initializer.append(numpy_helper.from_array(CENTRED, "c"))
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def parameters(**changes):
    given = {"batch": 16, "learning_rate": 0.01, "held_out": 0.2, "fold": False}
    given |= changes if "steps" in changes else {"epochs": 4, **changes}
    return Fit(**given).model_dump(mode="json")


@pytest.fixture
def job(tmp_path):
    """A job whose network is the original with noise in its weights; each call has a scratch."""
    random = np.random.default_rng(5)
    samples = random.normal(size=(SAMPLES, 1, 2, 6, 6)) + random.normal(0, 2, (SAMPLES, 1, 2, 1, 1))
    np.save(tmp_path / "x.npy", samples.astype(np.float32))
    onnx.save(network(), tmp_path / "original.onnx")
    count = iter(range(100))

    def make(model=None, original=None, labels=None, **changes):
        folder = tmp_path / f"job{next(count)}"
        (folder / "scratch").mkdir(parents=True)
        onnx.save(model or network(damage=1.0), folder / "model.onnx")
        path = tmp_path / "original.onnx"
        if original is not None:
            path = folder / "original.onnx"
            onnx.save(original, path)
        return Job(
            folder / "model.onnx",
            parameters(**changes),
            folder / "scratch",
            {"training": Data({"x": tmp_path / "x.npy"}, labels)},
            path,
            seed=7,
            unfinished=folder / "unfinished",
        )

    return make


def content(done):
    return done.model.SerializeToString(deterministic=True)


def weights(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_what_was_lost_comes_back_and_the_graph_stays(job):
    done = fit.apply(job())
    told = done.figures["held_out"]
    assert told["by"] == "agreement" and told["samples"] == SAMPLES // 5
    assert told["before"] < 0.8
    assert told["after"] > told["before"] + 0.1
    assert done.figures["loss_last"] < 0.7 * done.figures["loss_first"]
    assert done.figures["epochs"] == 4 and done.figures["steps"] == 4 * 8
    given = network(damage=1.0)
    assert done.model.graph.node == given.graph.node
    assert weights(done.model).keys() == weights(given).keys()
    changed = [
        k for k, v in weights(given).items() if not np.array_equal(v, weights(done.model)[k])
    ]
    assert set(changed) == {"w", "s", "t", "m", "v", "u", "k", "c"}  # b means nothing to a norm
    onnx.checker.check_model(done.model, full_check=True)


def test_batch_norms_are_folded_at_the_end(job):
    whole, folded = fit.apply(job(epochs=1)), fit.apply(job(epochs=1, fold=True))
    names = [node.name for node in whole.model.graph.node]
    assert [node.name for node in folded.model.graph.node] == [n for n in names if n != "/n"]
    x = torch.from_numpy(RANDOM.normal(size=(5, 2, 6, 6)).astype(np.float32))
    made = [Network(done.model).eval()({"x": x})["y"].detach() for done in (whole, folded)]
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)
    assert content(fit.apply(job(epochs=1, fold=True))) == content(folded)


def test_the_same_bytes_every_time_and_others_with_another_seed(job):
    first = fit.apply(job(epochs=2, shift=1))
    assert content(fit.apply(job(epochs=2, shift=1))) == content(first)
    assert content(fit.apply(replace(job(epochs=2, shift=1), seed=8))) != content(first)


class StoppedError(Exception):
    """As Ctrl-C does, which ends the process."""


@pytest.mark.parametrize("step", [3, 8, 11])
def test_an_interrupted_fit_goes_on_and_ends_in_the_same_bytes(job, monkeypatch, step):
    whole = content(fit.apply(job(epochs=2, shift=1)))
    work = job(epochs=2, shift=1)
    offer = fit.Checkpoints.offer

    def stopping(self, parts, state, *, now, alone):
        self._every_s = 0.0
        offer(self, parts, state, now=now, alone=alone)
        if state.step == step:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(fit.Checkpoints, "offer", stopping)
        with pytest.raises(StoppedError):
            fit.apply(work)
    said = []
    monkeypatch.setattr(fit, "tell", said.append)
    (work.scratch.parent / "fresh").mkdir()  # a scratch does not outlive its step
    assert content(fit.apply(replace(work, scratch=work.scratch.parent / "fresh"))) == whole
    assert f"goes on at step {step} of 16" in said
    assert not list(work.unfinished.glob("*.part"))


def test_zeros_stay_unless_they_may_grow(job):
    pruned = network(damage=0.5)
    for tensor in pruned.graph.initializer:
        if tensor.name in {"w", "k"}:
            value = numpy_helper.to_array(tensor).copy()
            value[np.abs(value) < 0.7] = 0
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    done = fit.apply(job(pruned, epochs=2, weight_decay=0.1))
    before, after = weights(pruned), weights(done.model)
    assert done.figures["weights_with_zeros"] == 2
    for name in ("w", "k"):
        np.testing.assert_array_equal(after[name] == 0, before[name] == 0)
    assert np.count_nonzero(after["c"]) == CLASSES  # a bias that is zero is no pruned weight
    grown = weights(fit.apply(job(pruned, epochs=2, keep_zeros=False, held_out=0)).model)
    assert np.count_nonzero(grown["w"]) > np.count_nonzero(before["w"])


def test_step_by_step_to_a_share_of_the_original(job):
    model, reached = network(), []
    for macs in (0.8, 0.5):
        about = PruneFilters(macs=macs, relative_to="original", round_to=1)
        given = job(model)
        data = {"calibration": given.data["training"]}
        given = replace(given, parameters=about.model_dump(mode="json"), data=data)
        pruned = filters.apply(given)
        reached.append(pruned.figures["reached"])
        model = fit.apply(job(pruned.model, epochs=1)).model
        assert any(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert 0.5 < reached[0] <= 0.8
    assert 0.3 < reached[1] <= 0.5


def test_labels_beside_the_original(job):
    labels = RANDOM.integers(0, CLASSES, SAMPLES)
    done = fit.apply(_with_labels(job, labels))
    assert done.figures["held_out"]["by"] == "top1"
    alone = fit.apply(job(epochs=2))
    assert done.figures["loss_first"] > alone.figures["loss_first"]
    for wrong, text in (
        (None, "the training data has none"),
        (labels + 1, r"are 1 to 4, and the output 'y' has 4 classes, 0 to 3"),
        (labels - 1, "are -1 to 2"),
    ):
        with pytest.raises(Refusal, match=text):
            fit.apply(_with_labels(job, wrong))


def test_labels_and_moves_that_do_not_fit_are_refused(job, tmp_path):
    graph = onnx.parser.parse_graph(
        "g (float[1, 6] x) => (float[1, 3, 2] y) { a = MatMul (x, w) y = Reshape (a, s) }"
    )
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    values = {"w": np.ones((6, 6), np.float32), "s": np.array([1, 3, 2])}
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    opset = [onnx.helper.make_opsetid("", 17)]
    rows = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    )
    np.save(tmp_path / "rows.npy", np.ones((40, 1, 6), np.float32))
    data = {"training": Data({"x": tmp_path / "rows.npy"}, np.zeros(40, np.int64))}
    for about, text in (
        ({"labels": 0.5, "outputs": "classes"}, r"\[1, 3, 2\]: . classes at several places"),
        ({"labels": 0.5, "outputs": "values"}, "no output holds classes"),
        ({"shift": 1}, "has no input of"),
    ):
        with pytest.raises(Refusal, match=text):
            fit.apply(replace(job(rows, rows), data=data, parameters=parameters(**about)))


def _with_labels(job, labels):
    made = job(epochs=2)
    return replace(
        made,
        parameters=parameters(epochs=2, labels=1.0),
        data={"training": replace(made.data["training"], labels=labels)},
    )


def test_inner_tensors_are_learnt_too(job):
    done = fit.apply(job(features={"r": 1.0, "q": 0.5}))
    plain = fit.apply(job())
    sample = {"x": RANDOM.normal(size=(1, 2, 6, 6)).astype(np.float32)}

    def apart(proto):
        made = []
        for each in (proto, network()):
            net = Network(each, outputs=["r"]).eval()
            with torch.no_grad():
                made.append(net({"x": torch.from_numpy(sample["x"])})["r"])
        return float((made[0] - made[1]).square().mean())

    assert apart(done.model) < apart(plain.model)
    with pytest.raises(Refusal, match="has no tensor 'nowhere'"):
        fit.apply(job(features={"nowhere": 1.0}))


def test_a_feature_of_another_width_is_refused(job):
    narrow = network()
    cut = {"w": (4, 2, 3, 3), "u": (4, 1, 3, 3), "k": (CLASSES, 4)}
    for tensor in narrow.graph.initializer:
        value = numpy_helper.to_array(tensor)
        value = value[tuple(map(slice, cut.get(tensor.name, (4,))))]
        tensor.CopyFrom(numpy_helper.from_array(value.copy(), tensor.name))
    next(n for n in narrow.graph.node if n.name == "/d").attribute[0].i = 4
    del narrow.graph.value_info[:]
    with pytest.raises(Refusal, match=r"'r' is \[1, 4, 6, 6\], and in the original \[1, 8, 6, 6\]"):
        fit.apply(job(narrow, features={"r": 1.0}))
    done = fit.apply(job(narrow, epochs=2))  # its outputs may be learnt all the same
    assert done.figures["held_out"]["after"] >= done.figures["held_out"]["before"]


@pytest.mark.parametrize("end", ["y = Softmax <axis = -1> (z)", ""])
def test_probabilities_are_learnt_as_logits(job, end):
    given, original = network(end=end, damage=1.0), network(end=end)
    (target,) = find_targets(given, "auto")
    assert (target.tensor, target.probabilities, target.axis) == (
        ("z", True, 2) if end else ("y", False, 2)
    )
    done = fit.apply(job(given, original, epochs=2))
    assert done.figures["held_out"]["after"] > done.figures["held_out"]["before"]


def test_a_softmax_teaches_what_its_logits_do(job):
    end = "y = Softmax <axis = -1> (z)"
    soft = fit.apply(job(network(end=end, damage=1.0), network(end=end), epochs=1))
    hard = fit.apply(job(epochs=1))
    assert soft.figures["loss_first"] == pytest.approx(hard.figures["loss_first"], rel=1e-3)


def test_values_are_learnt_by_their_error(job):
    done = fit.apply(job(outputs="values"))
    told = done.figures["held_out"]
    assert told["by"] == "accuracy of values"
    assert told["before"] < told["after"] <= 1


def test_a_state_that_is_worse_is_not_given(job):
    done = fit.apply(job(network(), learning_rate=3.0, optimizer="sgd", clip=1e3, epochs=1))
    assert done.figures["held_out"]["before"] == done.figures["held_out"]["after"] == 1.0
    assert content(done) == network().SerializeToString(deterministic=True)
    assert "as it was given" in done.warnings[0]


def test_what_diverges_is_said(job):
    with pytest.raises(Refusal, match="did not converge") as caught:
        fit.apply(job(learning_rate=1e30, optimizer="sgd", warm_up=0))
    assert "learning_rate" in caught.value.remedy


def test_it_ends_when_nothing_gets_better(job):
    done = fit.apply(job(network(), epochs=50, patience=2, learning_rate=1e-9))
    assert done.figures["epochs"] == 2


def test_bfloat16_and_batch_norms_that_stay(job):
    done = fit.apply(job(precision="bf16", batch_norm="fixed"))
    assert done.figures["held_out"]["after"] > done.figures["held_out"]["before"]
    before, after = weights(network(damage=1.0)), weights(done.model)
    np.testing.assert_array_equal(after["m"], before["m"])
    assert after["w"].dtype == np.float32


def test_a_gpu_for_each_process_or_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    about = parameters(processes=2)
    assert fit.set_up(about | {"processes": 1}).type == "cuda"
    assert fit.set_up(about).type == "cpu"
    assert fit.set_up(about | {"processes": 1, "device": "cpu"}).type == "cpu"
    with pytest.raises(Refusal, match="a GPU for each process, 2, and torch finds 1"):
        fit.set_up(about | {"device": "cuda"})
    with pytest.raises(Refusal, match="fp16 is trained on GPUs"):
        fit.set_up(about | {"precision": "fp16"})


def test_what_is_refused_in_several_processes_is_refused(job, monkeypatch):
    def here(_meeting, function, *arguments):
        function(fit.processes.Group(), *arguments)

    monkeypatch.setattr(fit.processes, "run", here)
    with pytest.raises(Refusal, match="128 samples to train on, and a batch has 256"):
        fit.apply(job(batch=256, processes=2))


def test_what_fails_in_one_process_fails_all(tmp_path):
    with pytest.raises(Exception, match="unsupported operand"):
        processes.run(processes.Meeting(tmp_path / "meeting", 2), operator.truediv, 2)


def test_two_processes_train_one_network(job):
    alone = fit.apply(job(epochs=1, batch_norm="fixed"))
    together = fit.apply(job(epochs=1, batch_norm="fixed", processes=2))
    for name, value in weights(alone.model).items():  # the same batches, the same gradients
        np.testing.assert_allclose(weights(together.model)[name], value, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch": 15, "processes": 2}, "cannot be shared"),
        ({"precision": "fp16", "device": "cpu"}, "bf16"),
        ({"labels": 1.5}, "less than or equal"),
        ({"patience": 2, "held_out": 0}, "patience waits for a better state"),
        ({"steps": 5, "epochs": 2}, "give one"),
        ({"momentum": 0.5}, "momentum is for `optimizer: sgd`"),
        ({"bn_momentum": 0.5, "batch_norm": "fixed"}, "bn_momentum is for `batch_norm: batch`"),
        ({"temperature": 4, "outputs": "values"}, "temperature is for `outputs: classes`"),
        ({"speed": 1}, "Extra inputs"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes, text):
    with pytest.raises(ValidationError, match=text):
        Fit(**changes)


def test_too_few_samples_and_a_network_without_weights_are_refused(job):
    with pytest.raises(Refusal, match="128 samples to train on, and a batch has 256"):
        fit.apply(job(batch=256))
    graph = onnx.parser.parse_graph(
        "g (float[1, 2, 6, 6] x) => (float[1, 2, 6, 6] y) { y = Relu (x) }"
    )
    graph.node[0].name = "/y"
    plain = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    with pytest.raises(Refusal, match="no weights"):
        fit.apply(job(plain, plain))


@given(st.sampled_from(["cosine", "step", "constant"]), st.floats(0, 0.9), st.integers(1, 300))
def test_the_learning_rate_rises_and_falls(schedule, warm_up, steps):
    settings = loop.Settings(schedule=schedule, warm_up=warm_up)
    rates = [loop.rate(settings, step, steps) for step in range(steps)]
    assert all(0 < each <= 1 for each in rates)
    top = int(np.argmax(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert math.isclose(max(rates), 1.0)


@given(st.integers(0, 3), st.integers(0, 1000))
def test_a_shifted_picture_is_the_picture_moved(most, seed):
    pictures = torch.arange(2 * 1 * 5 * 7).reshape(2, 1, 5, 7)
    made = shifted(pictures, most, torch.Generator().manual_seed(seed))
    padded = np.pad(pictures.numpy(), ((0, 0), (0, 0), (most, most), (most, most)), "edge")
    for index in range(2):
        fits = [
            np.array_equal(made[index], padded[index, :, y : y + 5, x : x + 7])
            for y in range(2 * most + 1)
            for x in range(2 * most + 1)
        ]
        assert any(fits)


def test_what_batch_norms_remember_is_of_the_weights_as_they_are(job):
    """A channel without weights has no deviation: whatever limps there would be divided by none."""
    dead = network(damage=0.5)
    for tensor in dead.graph.initializer:
        if tensor.name == "w":
            value = numpy_helper.to_array(tensor).copy()
            value[:4] = 0
            tensor.CopyFrom(numpy_helper.from_array(value, "w"))
    work = job(dead, epochs=1, held_out=0)
    done = fit.apply(work)
    net = Network(done.model, outputs=["n"])
    x = torch.from_numpy(np.load(work.data["training"].inputs["x"])[:, 0])
    with torch.no_grad():
        judged, trained = net.eval()({"x": x})["n"], net.train()({"x": x})["n"]
    scale = float(trained.square().mean().sqrt())
    assert float((judged - trained).abs().max()) < 0.5 * scale
    np.testing.assert_allclose(weights(done.model)["m"][:4], 0.1, rtol=1e-5)


class Noting(loop.Hook):
    """Trains masked weights while dense ones are updated (Guo et al. 2016), and notes the calls."""

    def __init__(self):
        self.calls = []

    def before_step(self, state):
        self.calls.append("before")
        weight = state.network.weights["w"]
        self.dense = weight.detach().clone()
        with torch.no_grad():
            weight[:4] = 0

    def after_backward(self, state):
        self.calls.append("backward")
        assert not state.network.weights["w"][:4].any()
        assert state.network.weights["w"].grad[4:].any()
        with torch.no_grad():
            state.network.weights["w"].copy_(self.dense)

    def after_step(self, state):
        self.calls.append(f"step {state.step}")

    def after_epoch(self, state):
        self.calls.append("epoch")


def test_hooks_are_called_around_every_step(job):
    work = job(steps=2, held_out=0)
    net = fit.student(work)
    lesson = fit.teach(work, net, torch.device("cpu"))
    hook = Noting()
    state = loop.train(net, lesson.samples, lesson.loss, fit.settings(work), hooks=[hook])
    assert hook.calls == ["before", "backward", "step 1", "before", "backward", "step 2", "epoch"]
    assert net.weights["w"][:4].any() and state.step == 2 and lesson.score is None


def test_by_the_host_with_the_batch_norms_put_back_and_filters_cut(tmp_path):
    """[bn.restore, prune.filters, bn.reestimate, fit], each in a process of its own."""
    host = Host.load()
    onnx.save(network(), tmp_path / "given.onnx")
    original = Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path)
    samples = [{"x": RANDOM.normal(size=(1, 2, 6, 6)).astype(np.float32)} for _ in range(64)]
    shop = Workshop(host, tmp_path)

    def apply(model, name, **changes):
        step = PassStep(name, host.passes[name].parameters(**changes))
        return shop.optimize(model, step, samples, original=original)

    restored, told = apply(original, "bn.restore")
    assert told == {"batch_norms_before": 1, "batch_norms_added": 1}
    pruned, told = apply(restored, "prune.filters", macs=0.7, round_to=1)
    assert told["macs_after"] < told["macs_before"]
    again, told = apply(pruned, "bn.reestimate")
    assert told["batch_norms"] == 2  # they are pruned as the convolutions are
    fitted, told = apply(again, "fit", epochs=1, batch=16)
    assert told["batch_norms"] == 2
    kinds = [node.op_type for node in fitted.proto().graph.node]
    assert "BatchNormalization" not in kinds
    names = {node.name for node in original.proto().graph.node} - {"/n"}  # that was folded
    assert names == {node.name for node in fitted.proto().graph.node}
    said = "".join(path.read_text() for path in tmp_path.glob("*/log"))
    assert "epoch 1 of 1, step 3 of 3" in said
