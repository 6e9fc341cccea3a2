"""Low rank: which layers, which ranks, what is written, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowrank_layers import made_layer
from onnx import numpy_helper
from pydantic import ValidationError

from wherry.host import Host
from wherry.model import Model
from wherry.normalise.graph import Graph
from wherry.passes import PassStep
from wherry.reference import Reference
from wherry.testing.workshop import Workshop
from wherry_compress.graph.costs import measure as costs
from wherry_compress.graph.patches import Window, drawn
from wherry_compress.graph.patterns import meant
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.lowrank import apply, faster, iterated
from wherry_compress.lowrank.factors import Columns, Matrix, Tucker, composed, even
from wherry_compress.lowrank.layers import Factor, Shape, chain_macs, find_layers
from wherry_compress.lowrank.passes import LowRank, Spatial

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def thin(outputs: int, inputs: int, kernel: int, rank: int) -> np.ndarray:
    """Weights of a spatial rank, and a little noise."""
    columns, rows = normal(inputs * kernel, rank), normal(rank, outputs * kernel)
    made = (columns @ rows).reshape(inputs, kernel, outputs, kernel).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(made + 0.01 * normal(*made.shape)).astype(np.float32)


def network(body: str, weights: dict[str, np.ndarray], given="1, 8, 9, 7") -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(f"net (float[{given}] x) => (float[?] y) {{ {body} }}")
    graph.output[0].CopyFrom(onnx.helper.make_empty_tensor_value_info("y"))
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


PADS = "pads = [1, 1, 1, 1], kernel_shape = [3, 3]"
TWO = f"a = Conv <{PADS}> (x, w, b) r = Relu(a) y = Conv <{PADS}, strides = [2, 1]> (r, v)"
WEIGHTS = {"w": thin(16, 8, 3, 4), "b": normal(16), "v": thin(12, 16, 3, 6)}


@pytest.fixture
def run(tmp_path):
    """Apply a pass's function in this process."""

    def give(proto, function=apply.spatial_svd, samples=None, kind=Spatial, **parameters):
        onnx.save(proto, tmp_path / "in.onnx")
        data = {}
        if samples is not None:
            np.save(tmp_path / "x.npy", samples)
            data = {"calibration": Data({"x": tmp_path / "x.npy"})}
        said = kind(**{"round_to": 1, "only_where_faster": False, **parameters})
        job = Job(tmp_path / "in.onnx", said.model_dump(mode="json"), tmp_path, data)
        done = function(job)
        onnx.checker.check_model(done.model, full_check=True)
        return done

    return give


def outputs(proto: onnx.ModelProto, samples: np.ndarray) -> np.ndarray:
    session = apply.faster.open_session(proto.SerializeToString(), threads=1, where="")
    return np.stack([session.run(None, {"x": x})[0] for x in samples]).astype(np.float64)


def lost(proto: onnx.ModelProto, changed: onnx.ModelProto, samples: np.ndarray) -> float:
    wanted = outputs(proto, samples)
    return float(((outputs(changed, samples) - wanted) ** 2).sum() / (wanted**2).sum())


def test_names_strides_pads_and_biases_are_kept(run):
    proto = network(TWO, WEIGHTS)
    done = run(proto, energy=0.99)
    nodes = {node.name: node for node in done.model.graph.node}
    assert list(nodes) == ["/a/rank1", "/a", "/r", "/y/rank1", "/y"]
    assert nodes["/a"].output[0] == "a" and nodes["/a"].input[2] == "b"
    about = {
        name: {a.name: list(a.ints) for a in nodes[name].attribute if a.ints}
        for name in ("/y/rank1", "/y")
    }
    assert about["/y/rank1"]["strides"] == [2, 1] and about["/y"]["strides"] == [1, 1]
    assert about["/y/rank1"]["pads"] == [1, 0, 1, 0] and about["/y"]["pads"] == [0, 1, 0, 1]
    assert [row["rank"] for row in done.figures["layers"]] == [[4], [6]]
    assert lost(proto, done.model, normal(3, 1, 8, 9, 7)) < 0.02


def test_figures_are_what_the_network_has(run):
    proto = network(TWO, WEIGHTS)
    figures = run(proto, energy=0.95).figures
    before, rows = costs(proto), figures["layers"]
    assert (figures["macs_before"], figures["params_before"]) == (before.macs, before.parameters)
    for word in ("macs", "params"):
        less = sum(row[f"{word}_before"] - row[f"{word}_after"] for row in rows)
        assert figures[f"{word}_before"] - figures[f"{word}_after"] == less > 0


@pytest.mark.parametrize(
    ("function", "kind", "more"),
    [
        (apply.spatial_svd, Spatial, {"scheme": 1}),
        (apply.spatial_svd, Spatial, {"scheme": 2}),
        (apply.channel_svd, LowRank, {}),
        (apply.tucker2, LowRank, {}),
        (apply.cp, LowRank, {}),
    ],
)
def test_data_brings_the_results_nearer_than_filters(run, function, kind, more):
    """Inputs whose channels hang together, a mean that is not 0: only some of W counts."""
    proto = network(TWO, {**WEIGHTS, "w": normal(16, 8, 3, 3), "v": normal(12, 16, 3, 3)})
    mixing = normal(8, 8) * np.float32([3, 2, 1, 0.3, 0.1, 0.1, 0.1, 0.1])
    samples = np.einsum("ij,njhw->nihw", mixing, normal(70, 8, 9, 7))[:, None] + np.float32(1)
    seen, others = samples[:60], samples[60:]
    first = run(proto, function, kind=kind, ranks={"*": 2}, **more)
    again = run(proto, function, seen, kind=kind, ranks={"*": 2}, reconstruction="data", **more)
    assert first.figures["macs_after"] == again.figures["macs_after"] < first.figures["macs_before"]
    assert lost(proto, again.model, others) < 0.9 * lost(proto, first.model, others)


def test_a_budget_is_met_and_the_level_said(run):
    proto = network(TWO, {**WEIGHTS, "w": normal(16, 8, 3, 3), "v": normal(12, 16, 3, 3)})
    last = 1.0
    for budget in (0.9, 0.6, 0.3):
        figures = run(proto, macs=budget).figures
        reached = figures["macs_after"] / figures["macs_before"]
        assert budget - 0.1 < reached <= budget and not figures["left"]
        assert figures["energy"] < last
        last = figures["energy"]


def test_a_budget_out_of_reach_is_said_and_the_least_is_taken(run):
    done = run(network(TWO, WEIGHTS), macs=0.01)
    assert [row["rank"] for row in done.figures["layers"]] == [[1], [1]]
    assert done.warnings and "macs: 0.01 was asked" in done.warnings[0]


def test_only_what_is_faster_is_replaced(run, monkeypatch):
    times = {"/a": faster.Times(1.0, 0.99), "/y": faster.Times(1.0, 0.5)}
    monkeypatch.setattr(faster, "compare", lambda proto, layer, chain: times[layer.name])
    done = run(network(TWO, WEIGHTS), energy=0.9, only_where_faster=True)
    (row,) = done.figures["layers"]
    assert (row["node"], row["ms_before"], row["ms_after"]) == ("/y", 1.0, 0.5)
    assert done.figures["left"] == [{"node": "/a", "why": "it is not faster"}]
    assert "ONNX Runtime on the host" in done.figures["timed"]
    monkeypatch.setattr(faster, "compare", lambda *_: faster.Times(1.0, 1.0))
    none = run(network(TWO, WEIGHTS), macs=0.5, only_where_faster=True)
    assert not none.figures["layers"] and len(none.warnings) == 2


def test_listed_ranks_that_are_not_faster_are_said(run, monkeypatch):
    monkeypatch.setattr(faster, "compare", lambda *_: faster.Times(1.0, 1.0))
    done = run(network(TWO, WEIGHTS), ranks={"/a": 2, "/y": 2}, only_where_faster=True)
    (warning,) = done.warnings
    assert warning == "no layer was replaced: 2 stay, as at rank 2 it is not faster"


def test_a_layer_that_is_slow_gets_a_lower_rank_under_a_budget(run, monkeypatch):
    def timed(proto, layer, chain):
        return faster.Times(1.0, 2.0 * chain_macs(layer, chain) / layer.macs)

    monkeypatch.setattr(faster, "compare", timed)
    done = run(network(TWO, WEIGHTS), macs=0.9, only_where_faster=True)
    assert done.figures["layers"] and all(row["ms_after"] < 0.97 for row in done.figures["layers"])
    assert done.figures["macs_after"] <= 0.9 * done.figures["macs_before"] and not done.warnings


def test_a_layer_is_really_timed():
    proto = network(f"y = Conv <{PADS}> (x, w)", {"w": normal(128, 96, 3, 3)}, "1, 96, 24, 24")
    (layer,), _ = find_layers(Graph(proto, {}))
    times = faster.compare(proto, layer, Columns().chain(layer, (4,)))
    assert 0 < times.after < times.before and times.faster


def test_what_is_left_alone_is_named(run):
    body = (
        f"a = Conv <{PADS}, group = 2> (x, g) c = Conv <{PADS}> (a, s) d = Conv <{PADS}> (c, s)"
        f" e = Conv <kernel_shape = [1, 1]> (d, p) y = Conv <{PADS}> (e, w)"
    )
    weights = {
        "g": normal(8, 4, 3, 3),
        "s": normal(8, 8, 3, 3),
        "p": normal(8, 8, 1, 1),
        "w": thin(8, 8, 3, 2),
    }
    figures = run(network(body, weights), energy=0.9).figures
    assert [row["node"] for row in figures["layers"]] == ["/y"]
    why = {entry["node"]: entry["why"] for entry in figures["left"]}
    assert why["/a"] == "it has groups" and "'s' are shared" in why["/c"] and "/d" in why
    assert "rows and columns" in why["/e"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"ranks": {"/a": 500}}, "the rank 500 is listed, and the layer's full one is 24"),
        ({"ranks": {"/conv*": 2}}, "ranks names '/conv\\*'"),
        ({"nodes": ["/b"]}, "nodes names '/b'"),
        ({"keep": ["*"]}, "there is no layer to decompose among 0 Conv nodes"),
    ],
)
def test_refusals(run, parameters, message):
    with pytest.raises(Refusal, match=message) as refused:
        run(network(TWO, WEIGHTS), **parameters)
    assert refused.value.remedy


def test_nothing_to_do_is_refused(run):
    with pytest.raises(Refusal, match="'/y': its kernel is not one of rows and columns"):
        run(network("y = Conv (x, p)", {"p": normal(4, 8, 1, 1)}))
    with pytest.raises(Refusal, match="among 0 Gemm and MatMul nodes"):
        run(network(TWO, WEIGHTS), apply.fc_svd, kind=LowRank)


def test_parameters():
    assert LowRank().energy is None and LowRank(macs=0.5).only_where_faster
    for wrong in ({"energy": 0.9, "macs": 0.5}, {"ranks": {}}, {"macs": 0}, {"energy": 1.1}):
        with pytest.raises(ValidationError):
            LowRank(**wrong)


def test_listed_ranks_by_pattern_and_pair(run):
    done = run(network(TWO, WEIGHTS), apply.tucker2, kind=LowRank, ranks={"/y": (3, 5), "/*": 2})
    ranks = {row["node"]: row["rank"] for row in done.figures["layers"]}
    assert ranks == {"/a": [2, 2], "/y": [3, 5]}


@pytest.mark.parametrize("form", ["Gemm", "Gemm turned", "Gemm scaled", "MatMul"])
@pytest.mark.parametrize("data", [False, True])
def test_matrices_in_all_forms(run, form, data):
    matrix = (normal(24, 3) @ normal(3, 30) + 0.001 * normal(24, 30)).astype(np.float32)
    body, weights = {
        "Gemm": ("y = Gemm (x, w, b)", {"w": matrix, "b": normal(30)}),
        "Gemm turned": ("y = Gemm <transB = 1> (x, w)", {"w": matrix.T.copy()}),
        "Gemm scaled": (
            "y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)",
            {"w": matrix, "b": normal(1, 30)},
        ),
        "MatMul": ("y = MatMul (x, w)", {"w": matrix}),
    }[form]
    proto = network(body, weights, "1, 24" if "Gemm" in form else "2, 5, 24")
    shape = (40, 1, 24) if "Gemm" in form else (40, 2, 5, 24)
    samples = normal(*shape) + 1
    said = {"reconstruction": "data"} if data else {}
    done = run(proto, apply.fc_svd, samples if data else None, kind=LowRank, energy=0.99, **said)
    assert [node.name for node in done.model.graph.node] == ["/y/rank1", "/y"]
    assert done.figures["layers"][0]["rank"][0] <= 3
    assert lost(proto, done.model, samples[:5]) < 0.02


def diverging() -> np.ndarray:
    """Of rank 3, and as near to rank 2 as one likes (de Silva and Lim 2008): none is nearest."""
    random = np.random.default_rng(3)
    pairs = [random.normal(size=(2, size)) for size in (6, 5, 3, 3)]
    tensor = np.zeros((6, 5, 3, 3))
    for other in range(3):  # on one of three axes the second vector stands for the first
        chosen = [pair[int(axis == other)] for axis, pair in enumerate(pairs)]
        tensor += np.einsum("i,j,k,l->ijkl", *chosen)
    return tensor.astype(np.float32)


def test_cp_that_diverges_is_refused(run, monkeypatch):
    proto = network(f"y = Conv <{PADS}> (x, w)", {"w": diverging()}, given="1, 5, 6, 6")
    monkeypatch.setattr(iterated.Canonical, "_TURNS", 3000)
    monkeypatch.setattr(iterated, "_FLAT", 0.0)
    monkeypatch.setattr(iterated.Canonical, "_GREATEST", 2.0)
    with pytest.raises(Refusal, match="of rank 2 diverges") as refused:
        run(proto, apply.cp, kind=LowRank, ranks={"/y": 2})
    assert refused.value.where == "/y" and "lowrank.tucker2" in refused.value.remedy


def test_cp_finds_a_rank_that_is_there(run):
    parts = [normal(3, size) for size in (16, 12, 3, 3)]
    weights = np.einsum("ra,rb,rc,rd->abcd", *parts).astype(np.float32)
    proto = network(f"y = Conv <{PADS}> (x, w)", {"w": weights}, "1, 12, 9, 7")
    done = run(proto, apply.cp, kind=LowRank, ranks={"/y": 3})
    assert done.figures["layers"][0]["energy"] > 0.999
    assert lost(proto, done.model, normal(2, 1, 12, 9, 7)) < 1e-3


@settings(deadline=None, max_examples=25)
@given(*[st.integers(2, 6)] * 2, *[st.integers(2, 4)] * 2)
def test_full_ranks_lose_nothing_and_even_changes_nothing(outputs, inputs, height, width):
    layer = made_layer(outputs, inputs, height, width)
    for scheme in (Columns(), Matrix(), Tucker(), iterated.Basis(), iterated.Canonical()):
        full = scheme.full(layer)
        factors = scheme.factors(layer, None, full)
        assert [f.shape for f in factors] == list(scheme.chain(layer, full))
        np.testing.assert_allclose(composed(factors), layer.weights, atol=1e-5)
        np.testing.assert_allclose(composed(list(even(factors))), layer.weights, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(2, 3), st.integers(1, 4))
def test_energy_is_what_is_kept(outputs, inputs, kernel, rank):
    layer = made_layer(outputs, inputs, kernel, kernel)
    for scheme in (Columns(), Matrix()):
        choices = scheme.choices(layer, None, 1)
        kept = [choice.energy for choice in choices]
        assert kept == sorted(kept) and kept[-1] == pytest.approx(1)
        choice = choices[min(rank, len(choices)) - 1]
        off = composed(scheme.factors(layer, None, choice.ranks)) - layer.weights
        assert 1 - (off**2).sum() / (layer.weights**2).sum() == pytest.approx(choice.energy)


def test_a_name_is_not_taken_for_a_pattern():
    names = ["/a[0]", "/a0", "/b"]
    assert meant(["/a[0]"], names, "nodes") == {"/a[0]"}
    assert meant(["/a*"], names, "nodes") == {"/a[0]", "/a0"}


@settings(deadline=None, max_examples=40)
@given(
    *[st.integers(1, 3)] * 4,
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(*[st.integers(1, 2)] * 2),
)
def test_patches_are_what_a_convolution_sums_over(height, width, down, across, pads, dilations):
    random = np.random.default_rng(height)
    values = random.standard_normal((2, 3, 8, 9)).astype(np.float32)
    weights = random.standard_normal((4, 3, height, width)).astype(np.float32)
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], pads=pads, strides=[down, across], dilations=dilations
    )
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, values.shape)],
        [onnx.helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(weights, "w")],
    )
    proto = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
        )
    )
    (wanted,) = faster.open_session(proto.SerializeToString(), threads=1, where="").run(
        None, {"x": values}
    )
    window = Window.of(node, (height, width))
    found = drawn(values, window, 10**6, random) @ weights.reshape(4, -1).T
    np.testing.assert_allclose(found, wanted.transpose(0, 2, 3, 1).reshape(-1, 4), atol=1e-4)
    assert len(drawn(values, window, 5, random)) == min(5, len(found))


def test_data_are_needed_for_what_is_made_by_them():
    known = Host.load().passes["lowrank.cp"]
    assert "calibration" in known.needed(LowRank(reconstruction="data"))
    assert "calibration" not in known.needed(LowRank())


def test_by_its_hook(tmp_path):
    onnx.save(network(TWO, WEIGHTS), tmp_path / "given.onnx")
    model = Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path)
    host = Host.load()
    step = PassStep(
        "lowrank.spatial-svd", Spatial(energy=0.9, only_where_faster=False, reconstruction="data")
    )
    samples = [{"x": normal(1, 8, 9, 7)} for _ in range(4)]
    made, figures = Workshop(host, tmp_path).optimize(model, step, samples)
    assert figures["macs_after"] < figures["macs_before"]
    assert Reference(made).run(samples[0])["y"].shape == (1, 12, 5, 7)


def test_a_factor_composes_as_convolutions_do():
    first = Factor(normal(4, 2, 3, 1), Shape(4, 2, takes=(0,)))
    depthwise = Factor(normal(4, 1, 1, 3), Shape(4, 4, 4, (1,)))
    made = composed([first, depthwise])
    wanted = np.einsum("aih,aw->aihw", first.weights[..., 0], depthwise.weights[:, 0, 0])
    np.testing.assert_allclose(made, wanted, rtol=1e-6)
