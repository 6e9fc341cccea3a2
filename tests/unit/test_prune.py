"""Pruning filters: budgets, orders, criteria, compensation; parameters and refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from prune_networks import job, network, normal, plain
from pydantic import ValidationError

from wherry.errors import ToolError
from wherry.host import Host
from wherry.model import Model
from wherry.passes import PassStep
from wherry.testing.workshop import Workshop
from wherry_compress.graph import costs
from wherry_compress.graph.channels import trace
from wherry_compress.job import Refusal
from wherry_compress.prune import filters, lasso, targets
from wherry_compress.prune.budget import Budget, cheapest, narrowed, ranked, steps, uniform
from wherry_compress.prune.compensate import compensated, with_biases, without_biases
from wherry_compress.prune.passes import PruneFilters, PruneLasso, PruneWeights
from wherry_compress.prune.runs import outputs
from wherry_compress.prune.scores import scores
from wherry_compress.prune.sensitivity import errors

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
