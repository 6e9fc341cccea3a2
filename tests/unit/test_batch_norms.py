"""bn.restore and bn.reestimate: nothing changes, and what is measured is what there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from loading import load
from onnx import numpy_helper

from wherry.model import Model
from wherry.normalise import normalise
from wherry.reference import open_session, run_session
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.train import batch_norms

NETWORKS = load(Path(__file__).parents[1] / "conformance" / "networks.py")
ALL = {"exclude": (), "samples": None}
SAMPLES = 6


def job(tmp_path, proto, samples, parameters=ALL):
    folder = tmp_path / f"job{len(list(tmp_path.iterdir()))}"
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    onnx.save(proto, folder / "model.onnx")
    files = {}
    for index, name in enumerate(samples[0]):
        files[name] = folder / f"{index}.npy"
        np.save(files[name], np.stack([sample[name] for sample in samples]))
    return Job(folder / "model.onnx", parameters, scratch, {"calibration": Data(files)})


def prepared(proto, tmp_path):
    onnx.save(proto, tmp_path / "given.onnx")
    model = Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path)
    (tmp_path / "normal").mkdir()
    return normalise(model, tmp_path / "normal", {"keep batch norm"}).model.proto()


def tensors(proto, names, samples):
    """Inner tensors on all samples, [samples, ...]."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(tapped.SerializeToString(), threads=1, where="", as_written=True)
    made = [run_session(session, sample, where="") for sample in samples]
    return {name: np.stack([each[name] for each in made]) for name in names}


def norms(proto):
    return [node for node in proto.graph.node if node.op_type == "BatchNormalization"]


def stored(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


NOTHING = {"class_index", "segment_index", "many_outputs"}


@pytest.mark.parametrize("name", sorted(NETWORKS.NETWORKS))
def test_every_network_stays_what_it_was(name, tmp_path):
    proto = prepared(NETWORKS.NETWORKS[name](), tmp_path)
    samples = [NETWORKS.sample(proto, seed) for seed in range(SAMPLES)]
    try:
        done = batch_norms.restore(job(tmp_path, proto, samples))
    except Refusal as refusal:
        assert "no convolution" in refusal.message
        convolutions = [n for n in proto.graph.node if n.op_type in {"Conv", "ConvTranspose"}]
        assert len(convolutions) <= 1 or name in {"batch_axis_used", "many_outputs"}
        return
    onnx.checker.check_model(done.model, full_check=True)
    assert done.figures["batch_norms_added"] > 0
    before = [node.name for node in proto.graph.node]
    assert [n.name for n in done.model.graph.node if n.name in before] == before
    outputs = [value.name for value in proto.graph.output]
    kept = [name for node in proto.graph.node for name in node.output if name]
    ours, theirs = tensors(done.model, kept, samples), tensors(proto, kept, samples)
    for each in {*outputs, *kept}:  # inner tensors have the same values under the same names
        scale = np.sqrt(np.mean(theirs[each].astype(np.float64) ** 2))
        np.testing.assert_allclose(ours[each], theirs[each], rtol=1e-4, atol=1e-4 * scale)
    again = batch_norms.restore(job(tmp_path, proto, samples))
    assert again.model.SerializeToString(deterministic=True) == done.model.SerializeToString(
        deterministic=True
    )
    moved = batch_norms.reestimate(job(tmp_path, done.model, samples, {"samples": None}))
    first = done.figures["batch_norms_before"]
    if not first:  # those that were put there have been measured on the same samples
        assert max(moved.figures["moved_most"].values()) < 1e-3


def test_what_is_put_there_is_the_mean_and_the_deviation(tmp_path):
    proto = prepared(NETWORKS.NETWORKS["inception"](), tmp_path)
    samples = [NETWORKS.sample(proto, seed) for seed in range(SAMPLES)]
    done = batch_norms.restore(job(tmp_path, proto, samples))
    values = stored(done.model)
    for node in norms(done.model):
        x = tensors(done.model, [node.input[0]], samples)[node.input[0]].astype(np.float64)
        scale, shift, mean, variance = (values[name] for name in node.input[1:])
        np.testing.assert_allclose(mean, x.mean((0, 1, 3, 4)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance, x.var((0, 1, 3, 4)), rtol=1e-4)
        np.testing.assert_array_equal(shift, mean)
        np.testing.assert_allclose(scale, np.sqrt(variance + 1e-5), rtol=1e-6)


def test_nodes_may_be_left_out_and_the_last_layer_always_is(tmp_path):
    proto = prepared(NETWORKS.NETWORKS["segmentation"](), tmp_path)
    samples = [NETWORKS.sample(proto, seed) for seed in range(2)]
    done = batch_norms.restore(job(tmp_path, proto, samples))
    names = [node.name for node in proto.graph.node if node.op_type in {"Conv", "ConvTranspose"}]
    behind = [node.name.removesuffix("/batch_norm") for node in norms(done.model)]
    assert behind == names[:-1]
    parameters = {"exclude": (names[0],), "samples": 1}
    fewer = batch_norms.restore(job(tmp_path, proto, samples, parameters))
    assert len(norms(fewer.model)) == len(behind) - 1
    with pytest.raises(Refusal, match="has no node like that"):
        batch_norms.restore(job(tmp_path, proto, samples, {"exclude": ("x",), "samples": None}))


def test_every_norm_is_measured_behind_those_that_were_corrected(tmp_path):
    """As by brute force: one after the other, each time with the whole network."""
    proto = prepared(NETWORKS.NETWORKS["mobilenet"](), tmp_path)
    samples = [NETWORKS.sample(proto, seed) for seed in range(SAMPLES)]
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 4:  # as if something had been pruned
            value = numpy_helper.to_array(tensor).copy()
            value[:, ::2] *= 0.3
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    work = job(tmp_path, proto, samples, {"samples": None})
    done = batch_norms.reestimate(work)
    assert not list(work.scratch.iterdir()) or len(list(work.scratch.iterdir())) <= 2
    slow = onnx.ModelProto()
    slow.CopyFrom(proto)
    for node in norms(slow):
        x = tensors(slow, [node.input[0]], samples)[node.input[0]].astype(np.float64)
        axes = tuple(axis for axis in range(x.ndim) if axis != 2)
        for name, value in ((node.input[3], x.mean(axes)), (node.input[4], x.var(axes))):
            tensor = next(t for t in slow.graph.initializer if t.name == name)
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    ours, theirs = stored(done.model), stored(slow)
    for node, other in zip(norms(done.model), norms(slow), strict=True):
        for index in (3, 4):
            np.testing.assert_allclose(
                ours[node.input[index]], theirs[other.input[index]], rtol=1e-4, atol=1e-5
            )
    assert max(done.figures["moved_most"].values()) > 0.01
    assert done.figures["batch_norms"] == len(norms(proto))


def test_statistics_that_are_stored_once_become_each_nodes_own(tmp_path):
    graph = onnx.parser.parse_graph(
        "g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y) {"
        " a = BatchNormalization (x, s, b, b, s) y = BatchNormalization (a, s, b, b, s) }"
    )
    for node in graph.node:
        node.name = f"/{node.output[0]}"
    graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "s"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "b"))
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    random = np.random.default_rng(0)
    samples = [{"x": random.normal(5, 3, (1, 2, 3, 3)).astype(np.float32)} for _ in range(9)]
    done = batch_norms.reestimate(job(tmp_path, proto, samples, {"samples": None}))
    values = stored(done.model)
    np.testing.assert_array_equal(values["s"], 1)  # the scales stay
    y = tensors(done.model, ["y"], samples)["y"]
    assert abs(y.mean()) < 1e-5 and abs(y.std() - 1) < 1e-3


def test_a_network_without_batch_norms_is_refused(tmp_path):
    proto = prepared(NETWORKS.NETWORKS["shufflenet"](), tmp_path)
    samples = [NETWORKS.sample(proto, 0)]
    with pytest.raises(Refusal, match=r"no BatchNormalization") as caught:
        batch_norms.reestimate(job(tmp_path, proto, samples, {"samples": None}))
    assert "bn.restore" in caught.value.remedy


def test_values_that_are_not_finite_are_said(tmp_path):
    proto = prepared(NETWORKS.NETWORKS["shufflenet"](), tmp_path)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 4:
            value = np.full(tensor.dims, 3e38, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    with pytest.raises(Refusal, match="infinite or NaN"):
        batch_norms.restore(job(tmp_path, proto, [NETWORKS.sample(proto, 0)]))
