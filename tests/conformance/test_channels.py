"""Channels that are cut out: the result is the network in which they are multiplied by zero."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from loading import load
from onnx import helper, numpy_helper

from wherry.model import Model
from wherry.normalise import normalise
from wherry.normalise.prove import _same
from wherry.reference import open_session, run_session
from wherry_compress.graph import costs
from wherry_compress.graph.channels import Channels, trace

HERE = Path(__file__).parent
READERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
SIZE = 32  # side of the classics' pictures


def builders(networks) -> dict:
    pruned, classics = (load(HERE / f"{stem}.py") for stem in ("pruned", "classics"))
    made = dict(networks.NETWORKS)
    for name, build in pruned.NETWORKS.items():
        made[name] = lambda build=build, name=name: build(networks.Net(name))
    narrow = partial(classics.resnet18, widths=(16, 32, 64, 128))  # 11 M weights else
    for name, build in (classics.CLASSICS | {"resnet18": narrow}).items():
        made[name] = lambda build=build, name=name: build(networks.Net(name), SIZE)
    return made


NAMES = sorted(builders(load(HERE / "networks.py")))


@pytest.fixture(scope="module")
def traced(networks, tmp_path_factory):
    """A network's name to its normal form and its channels."""

    @cache
    def one(name: str) -> tuple[onnx.ModelProto, Channels]:
        folder = tmp_path_factory.mktemp(name)
        onnx.save(builders(networks)[name](), folder / "source.onnx")
        model = Model.load(folder / "source.onnx").with_static_shapes({}, folder)
        (folder / "normal").mkdir()
        proto = normalise(model, folder / "normal").model.proto()
        return proto, trace(proto)

    return one


def masked(channels: Channels, kept: np.ndarray) -> onnx.ModelProto:
    """The network with a product by ones and zeros before every weight that reads channels."""
    proto = onnx.ModelProto()
    proto.CopyFrom(channels.proto)
    nodes = []
    for node in channels.proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        along = channels.along.get(node.input[0]) if node.input else None
        if node.op_type in READERS and along is not None:
            shape = [1] * len(channels.shapes[node.input[0]])
            shape[along.axis] = -1
            mask = kept[along.ids].astype(np.float32).reshape(shape)
            name = f"{node.name}/mask"
            proto.graph.initializer.append(numpy_helper.from_array(mask, name))
            nodes.append(helper.make_node("Mul", [node.input[0], name], [f"{name}ed"], name=name))
            copy.input[0] = f"{name}ed"
        nodes.append(copy)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def outputs(proto: onnx.ModelProto, sample: dict) -> dict:
    session = open_session(proto.SerializeToString(), threads=1, where="", as_written=True)
    return run_session(session, sample, where="")


def some(channels: Channels, share: float, seed: int) -> list[int]:
    """Units of every group, drawn by chance; one at least stays of each and of what must stay."""
    rng = np.random.default_rng(seed)
    safe = {int(channels.roots[ids[0]]) for ids in channels.needed}
    removed = []
    for group in channels.groups:
        units = [int(unit) for unit in rng.permutation(group.units) if int(unit) not in safe]
        removed += units[: int(share * (len(group.units) - 1) + 0.5)]
    return removed


@pytest.mark.parametrize("name", NAMES)
def test_the_sliced_network_is_the_masked_one(networks, traced, name):
    proto, channels = traced(name)
    sample = networks.sample(proto)
    for share, seed in ((0.4, 0), (1.0, 1)):
        removed = some(channels, share, seed)
        sliced = channels.slice(removed)
        onnx.checker.check_model(sliced, full_check=True)
        found, wanted = (
            outputs(sliced, sample),
            outputs(masked(channels, channels.kept(removed)), sample),
        )
        for key, value in wanted.items():
            assert found[key].shape == value.shape
            assert _same(found[key], value), (key, np.abs(found[key] - value).max())
        assert [node.name for node in sliced.graph.node] == [n.name for n in proto.graph.node]
        if removed:
            assert costs.measure(sliced).macs < costs.measure(proto).macs
    same = channels.slice([])  # nothing cut is the same file
    for graph in (same.graph, proto.graph):
        del graph.value_info[:]
    assert same.graph == proto.graph


GROUPS = {
    # nodes that make a group's channels, how many units; frozen nodes in words
    "mobilenet": ({("/conv_0", "/conv_9"): 8, ("/conv_3",): 16, ("/conv_12",): 16}, "outputs"),
    "squeeze_excite": ({("/conv_0", "/conv_6"): 8, ("/conv_4",): 4, ("/conv_9",): 8}, "outputs"),
    "softmax_classifier": ({("/conv_0",): 6}, "Softmax"),
    "reductions": ({}, "ReduceMean"),
    "many_outputs": ({}, "outputs"),
    "two_inputs": ({("/conv_1",): 8}, "outputs"),
    "transformer": ({("/matmul_23",): 32}, "no constant"),
    "resnext": ({("/conv_0", "/conv_6"): 8, ("/conv_2",): 4, ("/conv_4",): 4}, "outputs"),
    "conditional": ({("/conv_0",): 6}, "ReduceSum"),
    "unused_and_shared": ({("/conv_0",): 3}, "outputs"),
}


@pytest.mark.parametrize("name", GROUPS)
def test_what_hangs_together(traced, name):
    groups, word = GROUPS[name]
    _, channels = traced(name)
    found = {tuple(group.makers): len(group.units) for group in channels.groups}
    assert found == groups
    assert any(word in reason.why for reason in channels.frozen.values())


def test_every_filter_of_the_classics_but_the_last_can_be_cut(traced):
    for name in ("mobilenet_v2", "resnet18", "squeezenet"):
        _, channels = traced(name)
        assert len(channels.frozen) == 1
