"""The passes of the family ``share`` on every generated network, and what travels of it."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import pytest

from wherry.host import Host
from wherry.model import Model
from wherry.normalise import normalise
from wherry.packing import pack
from wherry.passes import PassStep
from wherry.reference import Reference
from wherry.testing.workshop import Workshop
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.plugin import MEMBERS
from wherry_devices.agent.unpack import unpack

PASSES = (
    ("share.kmeans", {"bits": 4}),
    ("share.kmeans", {"bits": 4, "start": "density", "fisher": True}),
    ("share.ecsq", {"bits": 3.0}),
    ("share.ecsq", {"step": 0.2, "method": "iterative", "fisher": True}),
    ("share.vq", {"bits": 4, "length": 2}),
    ("share.pq", {"bits": 2, "length": 2, "correct": True, "most_error": 1}),
    ("share.rq", {"bits": 3, "length": 2, "stages": 2, "correct": True}),
    ("pack.huffman", {}),
)
PACKED = {"share.ecsq", "share.vq", "pack.huffman"}
"""Passes after which a file is packed and unpacked."""


def test_network(networks, network_name, tmp_path):
    """Valid ONNX with the same inputs and outputs, which runs, and is unpacked as it was packed."""
    onnx.save(networks.NETWORKS[network_name](), tmp_path / "given.onnx")
    given = Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path)
    (tmp_path / "normal").mkdir()
    model = normalise(given, tmp_path / "normal").model
    samples = [networks.sample(model.proto(), seed) for seed in range(3)]
    files = {}
    for place, name in enumerate(samples[0]):
        files[name] = tmp_path / f"{place}.npy"
        np.save(files[name], np.stack([sample[name] for sample in samples]))
    for name, given_parameters in PASSES:
        member = MEMBERS[name]
        parameters = member.descriptor.parameters(**given_parameters)
        needs = member.descriptor.needed(parameters)
        job = Job(
            model.path,
            parameters.model_dump(mode="json"),
            tmp_path,
            {"calibration": Data(files)} if "calibration" in needs else {},
        )
        module, function = member.function.split(":")
        try:
            done = getattr(importlib.import_module(module), function)(job)
        except Refusal as refusal:
            assert refusal.remedy, name
            continue
        onnx.checker.check_model(done.model, full_check=True)
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data := done.model.SerializeToString(deterministic=True))
        made = Model.load(path)
        assert (made.inputs, made.outputs) == (model.inputs, model.outputs)
        before, after = ([node.name for node in each.proto().graph.node] for each in (model, made))
        assert before == after
        outputs = [Reference(made).run(sample) for sample in samples]
        if name == "pack.huffman":
            wanted = [Reference(model).run(sample) for sample in samples]
            for one, other in zip(outputs, wanted, strict=True):
                assert all(np.array_equal(one[key], other[key], equal_nan=True) for key in one)
        if name in PACKED:
            whole = bytearray()
            unpack(pack(data), whole.extend, len(data))
            assert bytes(whole) == data


@pytest.mark.parametrize("index", [2, 3, len(PASSES) - 1])
def test_in_a_process_of_its_own(networks, tmp_path, index):
    name, parameters = PASSES[index]
    host = Host.load()
    onnx.save(networks.NETWORKS["mobilenet"](), tmp_path / "given.onnx")
    model = Model.load(tmp_path / "given.onnx").with_static_shapes({}, tmp_path)
    step = PassStep(name, host.passes[name].parameters(**parameters))
    samples = [networks.sample(model.proto(), seed) for seed in range(3)]
    made, figures = Workshop(host, tmp_path).optimize(model, step, samples)
    assert made.outputs == model.outputs
    assert figures["packed_bytes" if name == "pack.huffman" else "bits_per_weight"] > 0
