"""Pruning: budgets, orders, criteria, compensation, LASSO, patterns; parameters and refusals."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from pydantic import ValidationError

from wherry.errors import ToolError
from wherry.host import Host
from wherry.model import Model
from wherry.passes import PassStep
from wherry.testing.workshop import Workshop
from wherry_compress import plugin
from wherry_compress.graph import costs
from wherry_compress.graph.channels import trace
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.prune import filters, lasso, targets, weights
from wherry_compress.prune.budget import Budget, cheapest, narrowed, ranked, steps, uniform
from wherry_compress.prune.compensate import compensated, with_biases, without_biases
from wherry_compress.prune.latency import search
from wherry_compress.prune.passes import Latency, PruneFilters, PruneLasso, PruneWeights
from wherry_compress.prune.runs import outputs
from wherry_compress.prune.scores import scores
from wherry_compress.prune.sensitivity import errors

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(0.2, 1, shape).astype(np.float32)


def network(body: str, values: dict[str, np.ndarray], output: str = "1, 4") -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(
        f"net (float[1, 3, 6, 6] x) => (float[{output}] y) {{ {body} }}"
    )
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def plain(width: int = 16, second: int = 16) -> onnx.ModelProto:
    """Conv, Relu, Conv without a bias, Relu, pool, Gemm."""
    return network(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) c = Conv (r, v) s = Relu (c)"
        " g = GlobalAveragePool (s) f = Flatten (g) y = Gemm <transB = 1> (f, m, o)",
        {
            "w": normal(width, 3, 3, 3),
            "b": normal(width),
            "v": normal(second, width, 3, 3) / 10,
            "m": normal(4, second),
            "o": normal(4),
        },
    )


def job(folder: Path, proto: onnx.ModelProto, parameters, samples: int = 20, **more) -> Job:
    onnx.save(proto, folder / "in.onnx")
    np.save(
        folder / "x.npy", np.random.default_rng(1).normal(size=(samples, 1, 3, 6, 6)).astype("f4")
    )
    data = {"calibration": Data({"x": folder / "x.npy"})}
    return Job(folder / "in.onnx", parameters.model_dump(mode="json"), folder, data, **more)


# --- budgets -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 16), min_size=2, max_size=2))
def test_a_budget_is_what_the_sliced_network_costs(counts):
    channels = trace(plain())
    budget = Budget(channels)
    removed = [
        u for g, c in zip(channels.groups, counts, strict=True) for u in g.units[c:].tolist()
    ]
    found = costs.measure(channels.slice(removed))
    assert budget.value("macs", np.array(counts)) == found.macs
    assert budget.value("params", np.array(counts)) == found.parameters


def test_widths_are_rounded_and_the_least_stays():
    channels = trace(plain(width=30))
    found = steps(channels.groups[0], channels, 0, 8, 0.25)
    assert [(step.before, step.after) for step in found] == [(30, 24), (24, 16), (16, 8)]
    assert [s.after for s in steps(channels.groups[0], channels, 0, 8, 0.5)] == [24, 16]
    assert steps(channels.groups[1], channels, 1, 32, 0.1) == []
    assert len(steps(channels.groups[1], channels, 1, 1, 0.01)) == 15


def test_grouped_convolutions_are_rounded_by_all_their_channels():
    proto = network(
        "a = Conv (x, w) c = Conv <group = 4> (a, v) y = Conv (c, u)",
        {"w": normal(32, 3, 1, 1), "v": normal(32, 8, 1, 1), "u": normal(4, 32, 1, 1)},
        "1, 4, 6, 6",
    )
    channels = trace(proto)
    assert [len(group.units) for group in channels.groups] == [8, 8]  # 4 channels each
    assert [step.after for step in steps(channels.groups[0], channels, 0, 8, 0.1)] == [6, 4, 2]


def test_orders():
    channels = trace(plain(16, 32))
    budget = Budget(channels)
    every = [s for i, g in enumerate(channels.groups) for s in steps(g, channels, i, 4, 0.1)]
    assert [s.group for s in uniform(every, budget.full)[:5]] == [1, 0, 1, 1, 0]
    scores_ = [np.linspace(0, 1, 16), np.linspace(10, 11, 32)]
    assert [s.group for s in ranked(every, scores_)][:4] == [0, 0, 0, 1]
    curves = [np.linspace(0, 100, 16), np.linspace(0, 1, 32)]
    assert [s.group for s in cheapest(every, budget, "macs", curves)][:7] == [1] * 7
    whole = budget.value("macs", budget.full)
    for share in (0.9, 0.5, 0.3):
        counts = narrowed(
            budget, uniform(every, budget.full), "macs", int(share * whole), budget.full
        )
        assert share - 0.2 < budget.value("macs", counts) / whole <= share
    with pytest.raises(Refusal, match=r"are left \(0\.") as caught:
        narrowed(budget, uniform(every, budget.full), "macs", 10, budget.full)
    assert "least" in caught.value.remedy


def test_errors_between_measured_levels_never_fall():
    (curve,) = errors([[30.0, 20.0, 10.0]], np.array([8]))
    assert curve[0] == 0 and len(curve) == 8
    assert curve[2] == pytest.approx(0.001) and curve[4] == pytest.approx(0.01)
    assert (np.diff(curve) >= 0).all()
    (wild,) = errors([[3.0, 20.0, 10.0]], np.array([8]))
    assert (np.diff(wild) >= 0).all()


# --- criteria ----------------------------------------------------------------------------------


def test_fpgm_is_the_sum_of_distances_and_norms_are_norms(tmp_path):
    proto = plain()
    channels = trace(proto)
    values = {t.name: numpy_helper.to_array(t).astype(float) for t in proto.graph.initializer}
    for side, rows in (
        ("makers", values["w"].reshape(16, -1)),
        ("readers", values["v"].transpose(1, 0, 2, 3).reshape(16, -1)),
    ):
        wanted = {
            "fpgm": np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(axis=1),
            "l1": np.abs(rows).sum(axis=1),
            "l2": np.linalg.norm(rows, axis=1),
        }
        for criterion, each in wanted.items():
            found = scores(channels, criterion, side, 0, None)[0]
            np.testing.assert_allclose(found, each / each.mean(), rtol=1e-6)
    one, other = (scores(channels, "random", "readers", seed, None)[0] for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_what_an_activation_never_shows_goes_first(tmp_path):
    proto = plain()
    bias = next(t for t in proto.graph.initializer if t.name == "b")
    values = numpy_helper.to_array(bias).copy()
    values[[3, 7]] = -1000  # dead behind Relu
    bias.CopyFrom(numpy_helper.from_array(values, "b"))
    about = PruneFilters(ratios={"/a": 2 / 16}, round_to=2)
    given_ = job(tmp_path, proto, about)
    done = filters.apply(given_)
    assert done.figures["units"] == {"/a": [16, 14]}
    data = given_.data["calibration"]
    for ours, theirs in zip(outputs(done.model, data), outputs(proto, data), strict=True):
        np.testing.assert_allclose(ours["y"], theirs["y"], rtol=1e-4, atol=1e-4)


# --- compensation ------------------------------------------------------------------------------


def test_a_channel_that_is_constant_can_be_cut_without_a_trace(tmp_path):
    """Its filter has no weights, only a bias; the reader without a bias gets one."""
    proto = plain()
    w = next(t for t in proto.graph.initializer if t.name == "w")
    values = numpy_helper.to_array(w).copy()
    values[5] = 0
    w.CopyFrom(numpy_helper.from_array(values, "w"))
    b = next(t for t in proto.graph.initializer if t.name == "b")
    biases = numpy_helper.to_array(b).copy()
    biases[5] = 2.0
    b.CopyFrom(numpy_helper.from_array(biases, "b"))
    data = job(tmp_path, proto, PruneFilters(macs=0.5)).data["calibration"]
    wide = with_biases(proto)
    channels = trace(wide)
    unit = int(channels.groups[0].units[5])
    made = without_biases(compensated(channels, [unit], data).slice([unit]), proto)
    reference = outputs(proto, data)
    for ours, theirs in zip(outputs(made, data), reference, strict=True):
        np.testing.assert_allclose(ours["y"], theirs["y"], rtol=1e-4, atol=1e-4)
    bare = channels.slice([unit])
    off = [
        np.abs(o["y"] - r["y"]).max() for o, r in zip(outputs(bare, data), reference, strict=True)
    ]
    assert max(off) > 0.1
    assert [len(node.input) for node in made.graph.node if node.op_type == "Conv"] == [3, 3]
    untouched = without_biases(channels.slice([]), proto)
    assert [len(n.input) for n in untouched.graph.node if n.op_type == "Conv"] == [3, 2]
    assert len(untouched.graph.initializer) == len(proto.graph.initializer)


@pytest.mark.parametrize("module", [filters, lasso])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 4)])
def test_a_bias_of_any_shape(tmp_path, module, shape):
    proto = plain()
    bias = next(t for t in proto.graph.initializer if t.name == "o")
    bias.CopyFrom(numpy_helper.from_array(normal(*shape).reshape(shape), "o"))
    kind = PruneLasso if module is lasso else PruneFilters
    given_ = job(tmp_path, proto, kind(ratios={"*": 0.5}), samples=40)
    done = module.apply(given_)
    onnx.checker.check_model(done.model, full_check=True)
    data = given_.data["calibration"]
    pairs = list(zip(outputs(done.model, data), outputs(proto, data), strict=True))
    means_ = [np.mean([each[side]["y"] for each in pairs], axis=0) for side in (0, 1)]
    np.testing.assert_allclose(*means_, rtol=0.2, atol=0.05 * float(np.abs(means_[1]).max()))


# --- LASSO ---------------------------------------------------------------------------------------


def test_channels_that_say_nothing_new_go_and_the_rest_takes_their_part(tmp_path):
    """Half of the channels are dead, or faint copies of others: nothing is lost after the fit."""
    proto = plain()
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name in "wb":
            values[8:12] = values[:4] / 10
        if tensor.name == "b":
            values[12:] = -1000
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    given_ = job(tmp_path, proto, PruneLasso(ratios={"/a": 0.5}, places=16), samples=60)
    done = lasso.apply(given_)
    assert done.figures["units"] == {"/a": [16, 8]}
    assert done.figures["error_left"]["/a"] < 1e-3
    data = given_.data["calibration"]
    pairs = list(zip(outputs(done.model, data), outputs(proto, data), strict=True))
    error = sum(((o["y"] - r["y"]) ** 2).sum() for o, r in pairs)
    assert error < 1e-3 * sum((r["y"] ** 2).sum() for _, r in pairs)


def test_lasso_loses_less_than_cutting_alone(tmp_path):
    proto = plain(32, 32)
    errors_ = {}
    for module, about in (
        (lasso, PruneLasso(ratios={"/a": 0.5}, places=16)),
        (filters, PruneFilters(ratios={"/a": 0.5})),
        (filters, PruneFilters(ratios={"/a": 0.5}, compensate=False, criterion="random")),
    ):
        given_ = job(tmp_path, proto, about, samples=60)
        data = given_.data["calibration"]
        pairs = list(
            zip(outputs(module.apply(given_).model, data), outputs(proto, data), strict=True)
        )
        errors_[len(errors_)] = sum(((o["y"] - r["y"]) ** 2).sum() for o, r in pairs)
    assert errors_[0] < errors_[1] < errors_[2]


# --- weights -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 11), st.integers(0, 99))
def test_patterns(keep, of, width, seed):
    if keep >= of:
        return
    array = np.random.default_rng(seed).normal(size=(3, width, 2, 2)).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    found = weights.patterned(weights.Weights(node, array), keep, of)
    whole = width // of * of
    blocks, old = (a[:, :whole].reshape(3, -1, of, 2, 2) for a in (found, array))
    assert ((blocks != 0).sum(axis=2) == keep).all()
    largest, left = (np.sort(np.abs(each), axis=2)[:, :, of - keep :] for each in (old, blocks))
    assert np.array_equal(largest, left)
    assert np.array_equal(found[:, whole:], array[:, whole:])
    assert np.array_equal(found[found != 0], array[found != 0])


@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
def test_as_many_zeros_as_were_asked_for(tmp_path, allocation):
    proto = plain()
    samples = {"samples": 4} if allocation == "sensitivity" else {}
    about = PruneWeights(sparsity=0.5, allocation=allocation, **samples)
    done = weights.apply(job(tmp_path, proto, about))
    assert done.figures["sparsity"] == pytest.approx(0.5, abs=0.02)
    values = {t.name: numpy_helper.to_array(t) for t in done.model.graph.initializer}
    zeros = sum((values[name] == 0).sum() for name in "wvm")
    assert zeros == done.figures["zeros"]
    assert (values["b"] != 0).all()
    if allocation == "uniform":
        assert all(
            share == pytest.approx(0.5, abs=0.01) for share in done.figures["nodes"].values()
        )


def test_as_many_zeros_as_were_asked_for_of_weights_that_are_alike(tmp_path):
    proto = plain()
    for tensor in proto.graph.initializer:
        if tensor.name in "wvm":
            signs = np.sign(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(signs, tensor.name))
    done = weights.apply(job(tmp_path, proto, PruneWeights(sparsity=0.3)))
    assert done.figures["sparsity"] == pytest.approx(0.3, abs=1e-3)


def test_only_1x1_lists_and_excludes(tmp_path):
    proto = network(
        "a = Conv (x, w) c = Conv (a, v) y = Conv (c, u)",
        {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 1, 1), "u": normal(4, 8, 1, 1)},
        "1, 4, 4, 4",
    )
    done = weights.apply(job(tmp_path, proto, PruneWeights(sparsity=0.5, only="1x1")))
    assert set(done.figures["nodes"]) == {"/c", "/y"}
    about = PruneWeights(ratios={"/c": 0.25, "*": 0.75}, exclude=("/y",))
    done = weights.apply(job(tmp_path, proto, about))
    assert done.figures["nodes"] == {"/a": 0.75, "/c": 0.25}
    with pytest.raises(Refusal, match=r"exclude names '/z', and .* no node with weights"):
        weights.apply(job(tmp_path, proto, PruneWeights(sparsity=0.5, exclude=("/z",))))
    with pytest.raises(Refusal, match="no constant weights to make zero in convolutions of 1x1"):
        about = PruneWeights(sparsity=0.5, only="1x1", exclude=("/c", "/y"))
        weights.apply(job(tmp_path, proto, about))


# --- parameters, refusals, the whole way ---------------------------------------------------------


def test_parameters_that_say_too_little_or_too_much():
    for parameters, words in (
        ({}, "give macs, params, latency or ratios"),
        ({"macs": 0.5, "params": 0.5}, "give one of macs, params and latency"),
        ({"macs": 1.5}, "less than 1"),
        ({"macs": 0.5, "criterion": "magic"}, "fpgm"),
        ({"macs": 0.5, "norm_of": "makers"}, "norm_of is for `criterion: l1, l2 or fpgm`"),
        ({"macs": 0.5, "samples": 7}, "samples is for `allocation: sensitivity`"),
    ):
        with pytest.raises(ValidationError, match=words):
            PruneFilters(**parameters)
    for parameters, words in (
        ({"pattern": "4:4"}, "keeps every weight"),
        ({"pattern": "2:4", "sparsity": 0.5}, "give one"),
        ({"pattern": "2:4", "ratios": {"a": 0.5}}, "leave ratios out"),
        ({"pattern": "2:4", "allocation": "uniform"}, "allocation is for `sparsity`"),
        ({"sparsity": 0.5, "samples": 7}, "samples is for `allocation: sensitivity`"),
    ):
        with pytest.raises(ValidationError, match=words):
            PruneWeights(**parameters)


def test_what_a_pass_needs_depends_on_its_parameters():
    known = Host.load().passes["prune.filters"]
    alone = PruneFilters(macs=0.5, criterion="l1", compensate=False)
    assert known.needed(alone) == {"seed"}
    assert known.needed(PruneFilters(macs=0.5)) == {"seed", "calibration"}
    assert "original" in known.needed(PruneFilters(macs=0.5, relative_to="original"))
    assert "calibration" not in Host.load().passes["prune.weights"].needed(
        PruneWeights(sparsity=0.5)
    )


def test_excluded_nodes_and_the_original_as_a_measure(tmp_path):
    proto = plain(32, 32)
    first = filters.apply(job(tmp_path, proto, PruneFilters(macs=0.7, exclude=("/a",))))
    assert list(first.figures["units"]) == ["/c"]
    onnx.save(proto, tmp_path / "original.onnx")
    about = PruneFilters(macs=0.4, relative_to="original")
    second = filters.apply(job(tmp_path, first.model, about, original=tmp_path / "original.onnx"))
    whole = costs.measure(proto).macs
    assert second.figures["reached"] == pytest.approx(second.figures["macs_after"] / whole)
    assert 0.25 < second.figures["reached"] <= 0.4
    both = PruneFilters(ratios={"*": 0.5}, exclude=("/a",))
    assert filters.apply(job(tmp_path, proto, both)).figures["units"] == {"/c": [32, 16]}
    with pytest.raises(Refusal, match="names '/nothing', and the network has no node with filters"):
        filters.apply(job(tmp_path, proto, PruneFilters(macs=0.7, exclude=("/nothing",))))
    with pytest.raises(Refusal, match="nothing to cut: '/y' stays, because output 'y'"):
        filters.apply(job(tmp_path, proto, PruneFilters(macs=0.7, exclude=("/a", "/c"))))


@pytest.mark.parametrize(
    "about", [{"ratios": {"*": 0.1}}, {"macs": 0.9, "relative_to": "original"}]
)
def test_nothing_cut_is_said(tmp_path, about):
    onnx.save(plain(64, 64), tmp_path / "original.onnx")
    for module, kind in ((filters, PruneFilters), (lasso, PruneLasso)):
        given_ = job(tmp_path, plain(), kind(**about), original=tmp_path / "original.onnx")
        done = module.apply(given_)
        assert done.figures["groups_cut"] == 0
        assert done.warnings == (targets.NOTHING,)


def test_of_a_set_of_which_one_must_stay_the_best_stays():
    proto = network(
        "a = Conv (x, w) p, q = Split <axis = 1> (a, h) r = Relu (q) s = Relu (p)"
        " c = Concat <axis = 1> (r, s) y = Conv (c, v)",
        {"w": normal(8, 3, 1, 1), "h": np.array([4, 4]), "v": normal(4, 8, 1, 1)},
        "1, 4, 6, 6",
    )
    channels = trace(proto)
    (group,) = channels.groups
    worth = np.r_[np.linspace(0, 0.3, 4), np.linspace(5, 6, 4)]
    removed = targets.lowest([worth], channels, np.array([2]))
    left = [i for i, unit in enumerate(group.units.tolist()) if unit not in removed]
    assert left == [3, 7]  # the best of each part
    onnx.checker.check_model(channels.slice(removed), full_check=True)


def test_the_whole_way(tmp_path):
    """In its own process, with figures as JSON, and a refusal that says where and what to do."""
    host = Host.load()
    onnx.save(plain(32, 32), tmp_path / "given.onnx")
    model = Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path)
    samples = [{"x": normal(1, 3, 6, 6)} for _ in range(4)]
    step = PassStep("prune.filters", PruneFilters(macs=0.5))
    made, figures = Workshop(host, tmp_path).optimize(model, step, samples)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["macs_after"] == costs.measure(made.proto()).macs <= 0.5 * figures["macs_before"]
    step = dataclasses.replace(step, parameters=PruneFilters(macs=0.01))
    with pytest.raises(ToolError, match=r"MACs of .* were asked for"):
        Workshop(host, tmp_path).optimize(model, step, samples)


# --- latency -------------------------------------------------------------------------------------


def made_up(least: float = 0.2):
    """Candidates that are their share of the MACs, and take 1 ms besides 9 times that."""

    def make(macs: float) -> tuple[float, dict[str, float]]:
        if macs < least:
            raise ToolError(f"MACs of {macs:.3f} were asked for")
        return macs, {"macs": macs}

    return make, lambda macs: 1 + 9 * macs


def test_a_latency_is_found_by_bisection():
    make, measure = made_up()
    wanted = Latency(backend="b", fraction=0.55, tries=8)
    macs, figures = search(wanted, measure(1.0), make, measure)
    assert 0.49 < macs <= 0.5
    assert figures["macs"] == macs
    assert figures["latency"]["goal_ms"] == pytest.approx(5.5)
    assert figures["latency"]["reached_ms"] == measure(macs) <= 5.5
    assert len(figures["latency"]["tried"]) == 8
    assert search(Latency(backend="b", at_most=5.5, tries=8), 10.0, make, measure)[0] == macs


def test_candidates_that_come_out_alike_are_measured_once(tmp_path, monkeypatch):
    of_width = cache(plain)  # the same weights each time

    def made(_member, _source, parameters, context):
        width = 8 * max(1, round(parameters.macs * 4))
        onnx.save(of_width(width), context.output / "model.onnx")
        return Model.load(context.output / "model.onnx"), {"width": width}

    def latency_ms(model, *_target):
        measured.append(model.digest)
        return float(model.proto().graph.initializer[0].dims[0])

    measured: list[str] = []
    monkeypatch.setattr(plugin, "_made", made)
    (tmp_path / "output").mkdir()
    context = SimpleNamespace(
        output=tmp_path / "output", latency_ms=latency_ms, progress=lambda _text: None
    )
    onnx.save(plain(40), tmp_path / "given.onnx")
    wanted = Latency(backend="b", at_most=20, tries=7)
    about = PruneFilters(latency=wanted)
    given_ = Model.load(tmp_path / "given.onnx")
    model, figures = plugin._fast(plugin.MEMBERS["prune.filters"], given_, about, wanted, context)
    assert figures["width"] == 16
    assert len(figures["latency"]["tried"]) == 7
    assert len(set(measured)) == len(measured) == 3  # as it is, and two widths
    assert model.path == tmp_path / "output" / "model.onnx"
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["model.onnx"]


def test_latencies_that_cannot_be_had():
    make, measure = made_up()
    with pytest.raises(ToolError, match=r"2 ms were asked for; with 0\.2.* takes .*, as it is 10"):
        search(Latency(backend="b", at_most=2), 10.0, make, measure)
    with pytest.raises(ToolError, match="the model takes 10 ms as it is"):
        search(Latency(backend="b", at_most=11), 10.0, make, measure)
    make, measure = made_up(least=2)
    with pytest.raises(ToolError, match=r"were asked for$"):
        search(Latency(backend="b", at_most=5), 10.0, make, measure)
    with pytest.raises(ValidationError, match="give one of at_most and fraction"):
        Latency(backend="b")
    known = Host.load().passes["prune.filters"]
    about = PruneFilters(latency=Latency(backend="b", at_most=5), compensate=False, criterion="l1")
    assert known.needed(about) == {"seed", "device"}
