"""Low rank on every generated network: valid ONNX, the names kept, and at full rank the function.

The passes run here in this process: it is their functions that are tried, on the normal form.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from loading import load

from wherry.model import Model
from wherry.normalise import normalise
from wherry.normalise.graph import Graph
from wherry.parity import compare
from wherry.reference import Reference
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.lowrank import apply
from wherry_compress.lowrank.apply import _Work, replace
from wherry_compress.lowrank.factors import Choice, Columns, Matrix, Tucker
from wherry_compress.lowrank.iterated import Basis, Canonical
from wherry_compress.lowrank.layers import find_layers
from wherry_compress.lowrank.moments import measure
from wherry_compress.lowrank.passes import LowRank, Spatial

SCHEMES = {
    "scheme 1": (Basis(), {"Conv"}),
    "scheme 2": (Columns(), {"Conv"}),
    "channel-svd": (Matrix(), {"Conv"}),
    "tucker2": (Tucker(), {"Conv"}),
    "cp": (Canonical(), {"Conv"}),
    "fc-svd": (Matrix(), {"Gemm", "MatMul"}),
}
PASSES = {
    "scheme 1": (apply.spatial_svd, Spatial, {"scheme": 1}),
    "scheme 2": (apply.spatial_svd, Spatial, {"scheme": 2}),
    "channel-svd": (apply.channel_svd, LowRank, {}),
    "tucker2": (apply.tucker2, LowRank, {}),
    "cp": (apply.cp, LowRank, {}),
    "fc-svd": (apply.fc_svd, LowRank, {}),
}
TWICE = {"mobilenet", "inception", "segmentation"}
"""Networks that are decomposed again, to the same bytes."""


@pytest.fixture(scope="module")
def normal(networks, tmp_path_factory):
    """Network name to its normal form and samples of it."""
    folder = tmp_path_factory.mktemp("lowrank")

    def give(name):
        directory = folder / name
        if not directory.exists():
            directory.mkdir()
            onnx.save(built(networks, name), directory / "source.onnx")
            model = Model.load(directory / "source.onnx").with_static_shapes({}, directory)
            (directory / "normal").mkdir()
            normalise(model, directory / "normal")
            for value in model.inputs:
                samples = [networks.sample(model.proto(), seed)[value.name] for seed in range(6)]
                np.save(directory / f"{value.name}.npy", np.stack(samples))
        model = Model.load(directory / "normal" / "model.onnx")
        return model, Data({v.name: directory / f"{v.name}.npy" for v in model.inputs})

    return give


def built(networks, name) -> onnx.ModelProto:
    """Of `networks`, or ResNet18 at a quarter of its width."""
    if name in networks.NETWORKS:
        return networks.NETWORKS[name]()
    classics = load(Path(__file__).with_name("classics.py"))
    return classics.resnet18(networks.Net(name), 32, (16, 32, 64, 128))


def same(before: Model, proto: onnx.ModelProto, data: Data, tmp_path) -> float:
    """SQNR of a changed network against its model, decibels; and that it is valid at all."""
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "after.onnx")
    after = Model.load(tmp_path / "after.onnx")
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    names = {node.name for node in before.proto().graph.node}
    assert names <= {node.name for node in proto.graph.node}
    samples = list(data.samples(3))
    return compare(map(Reference(after).run, samples), map(Reference(before).run, samples)).sqnr_db


@pytest.mark.parametrize("data", [False, True], ids=["filters", "data"])
def test_full_rank_is_the_same_function(normal, network_name, tmp_path, data):
    model, samples = normal(network_name)
    at_full_rank(model, samples, tmp_path, data, SCHEMES)


def test_spatial_svd_of_resnet18_at_full_rank(normal, tmp_path):
    model, samples = normal("resnet18")
    at_full_rank(model, samples, tmp_path, False, ("scheme 1", "scheme 2"))


def at_full_rank(model, samples, tmp_path, data, schemes) -> None:
    for scheme, kinds in (SCHEMES[name] for name in schemes):
        graph = Graph(model.proto(), {})
        operators = {node.name: node.op_type for node in graph.proto.graph.node}
        layers, _ = find_layers(graph)
        layers = [
            layer for layer in layers if operators[layer.name] in kinds and not scheme.suits(layer)
        ]
        work = _Work(graph, scheme, {layer.name: layer for layer in layers}, {})
        if data:
            found = measure(graph.proto, layers, samples, 0)
            work.moments = {layer.name: moments for layer, moments in found}
        for layer in layers:
            full = scheme.full(layer)
            row = replace(work, layer, Choice(full, scheme.chain(layer, full), 1.0))
            assert row["energy"] > 1 - 1e-6
        work.graph.drop_unused()
        assert same(model, graph.proto, samples, tmp_path) > 80


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_gives_a_network_or_a_reason(normal, network_name, name, tmp_path):
    model, samples = normal(network_name)
    function, parameters, more = PASSES[name]
    said = parameters(
        energy=0.7, round_to=1, only_where_faster=False, reconstruction="data", **more
    )
    job = Job(model.path, said.model_dump(mode="json"), tmp_path, {"calibration": samples})
    try:
        done = function(job)
    except Refusal as refusal:
        assert "there is no layer to decompose" in refusal.message
        return
    same(model, done.model, samples, tmp_path)
    figures = done.figures
    fewer = figures["macs_after"] < figures["macs_before"]
    assert fewer == bool(figures["layers"]) == (not done.warnings)
    if name not in {"scheme 2", "cp"} or network_name not in TWICE:  # what draws by chance
        return
    again = function(job)
    assert again.model.SerializeToString(deterministic=True) == done.model.SerializeToString(
        deterministic=True
    )
