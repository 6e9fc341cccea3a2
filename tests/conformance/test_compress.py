"""The pass ``simplify`` on every generated network: the same network, under the same names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx
import pytest
from loading import load

from wherry.host import Host
from wherry.model import Model
from wherry.parity import compare
from wherry.passes import PassStep
from wherry.reference import Reference
from wherry.testing.workshop import Workshop


@pytest.fixture(scope="module")
def host():
    return Host.load()


@pytest.fixture(scope="module")
def simplified(host, networks, home_of_trials, tmp_path_factory):
    """Network name to the model before and after."""
    folder = tmp_path_factory.mktemp("simplify")
    step = PassStep("simplify", host.passes["simplify"].parameters())
    sweep = load(Path(__file__).with_name("sweep.py"))
    with pytest.MonkeyPatch.context() as patch, sweep.warm():
        patch.setenv("WHERRY_HOME", str(home_of_trials))
        workshop = Workshop(host, folder)

        @cache
        def one(name):
            directory = folder / name
            directory.mkdir()
            onnx.save(networks.NETWORKS[name](), directory / "source.onnx")
            model = Model.load(directory / "source.onnx").with_static_shapes({}, directory)
            return model, workshop.optimize(model, step, ())[0]

        yield one


def test_network(simplified, networks, network_name):
    before, after = simplified(network_name)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    samples = [networks.sample(before.proto(), seed) for seed in range(3)]
    ours, theirs = (
        [Reference(model).run(sample) for sample in samples] for model in (after, before)
    )
    parity = compare(ours, theirs)
    assert parity.sqnr_db > 100
    assert parity.cosine > 1 - 1e-9
    assert len(after.proto().graph.node) <= len(before.proto().graph.node)


def test_less_is_left_and_most_names_stay(simplified):
    folded, slim = (
        [{node.name for node in model.proto().graph.node} for model in simplified(name)]
        for name in ("constant_shapes", "mobilenet")
    )
    assert list(map(len, folded)) == [8, 4]
    assert slim[1] < slim[0]
