"""What a plan foretells of a variant: near to what the passes make, and open where they decide."""

from __future__ import annotations

import importlib
from pathlib import Path

import onnx
import pytest

from wherry.model import Model
from wherry.normalise import normalise
from wherry.outlook import Outlook
from wherry.packing import pack
from wherry_compress.graph import costs
from wherry_compress.job import Job
from wherry_compress.plugin import MEMBERS

DIGITS = Path(__file__).parents[2] / "manifests" / "digits.onnx"
PACKED = ("pack.huffman", {})


def foretold(*steps):
    """What is known after some passes, each a name and its parameters."""
    outlook = Outlook()
    for name, parameters in steps:
        descriptor = MEMBERS[name].descriptor
        if descriptor.outlook:
            outlook = descriptor.outlook(descriptor.parameters(**parameters), outlook)
    return outlook


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The quickstart's network in its normal form."""
    folder = tmp_path_factory.mktemp("digits")
    static = Model.load(DIGITS).with_static_shapes({"input": (1, 1, 28, 28)}, folder)
    (folder / "normal").mkdir()
    return normalise(static, folder / "normal").model


def made(given, folder, *steps):
    """What the passes make of it."""
    path = given.path
    for number, (name, parameters) in enumerate(steps):
        member = MEMBERS[name]
        values = member.descriptor.parameters(**parameters).model_dump(mode="json")
        module, function = member.function.split(":")
        done = getattr(importlib.import_module(module), function)(Job(path, values, folder))
        path = folder / f"{number}.onnx"
        onnx.save(done.model, path)
    return path


@pytest.mark.parametrize(
    "steps",
    [
        [("share.kmeans", {"bits": 4})],
        [("share.kmeans", {"bits": 6})],
        [("share.ecsq", {"bits": 3.5})],
        [("prune.weights", {"sparsity": 0.8})],
        [("prune.weights", {"pattern": "2:4"})],
        [("prune.weights", {"sparsity": 0.7}), ("share.kmeans", {"bits": 5})],
    ],
    ids=lambda steps: " ".join(str(word) for step in steps for word in step),
)
def test_what_is_sent_is_near_to_what_is_foretold(steps, digits, tmp_path):
    sent = foretold(*steps, PACKED).sent_bytes(digits.weights)
    packed = len(pack(made(digits, tmp_path, *steps).read_bytes()))
    assert packed == pytest.approx(sent, rel=0.2)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_multiplications_are_near_to_what_is_foretold(share, digits, tmp_path):
    step = ("prune.filters", {"macs": share, "criterion": "l1", "compensate": False})
    before = costs.measure(digits.proto())
    left = costs.measure(onnx.load(made(digits, tmp_path, step))).macs / before.macs
    assert foretold(step).macs == share == pytest.approx(left, abs=0.06)
    assert before.parameters == digits.weights


def test_passes_follow_each_other():
    half, third = ("prune.filters", {"macs": 0.5}), ("lowrank.spatial-svd", {"macs": 0.3})
    assert foretold(half, third).macs == pytest.approx(0.15)
    of_original = ("prune.filters", {"macs": 0.3, "relative_to": "original"})
    assert foretold(half, of_original).macs == 0.3
    zeros = ("prune.weights", {"sparsity": 0.5})
    assert foretold(zeros, ("fit", {})).zeros == 0.5
    assert foretold(zeros, ("fit", {"keep_zeros": False})).zeros == 0
    assert foretold(("share.kmeans", {}), ("fit", {})).bits == 32
    assert foretold(("prune.filters", {"params": 0.5}), ("share.kmeans", {}), PACKED).sent_bytes(
        1000
    ) == pytest.approx(250, rel=0.01)
    assert foretold(zeros, ("prune.weights", {"sparsity": 0.2})).zeros == 0.5


@pytest.mark.parametrize(
    ("step", "attributes"),
    [
        (("prune.filters", {"macs": 0.5}), {"weights"}),
        (("prune.filters", {"params": 0.5}), {"macs"}),
        (("prune.filters", {"ratios": {"/c*": 0.5}}), {"macs", "weights"}),
        (("prune.channels-lasso", {"latency": {"backend": "ncnn", "fraction": 0.5}}),
         {"macs", "weights"}),
        (("prune.weights", {"sparsity": 0.5, "only": "1x1"}), {"zeros"}),
        (("prune.weights", {"sparsity": 0.5, "exclude": ("/c",)}), {"zeros"}),
        (("lowrank.cp", {}), {"macs", "weights"}),
        (("share.kmeans", {"layers": {"/c": 2}}), {"bits"}),
        (("share.ecsq", {"step": 0.5}), {"bits"}),
        (("share.pq", {}), {"bits"}),
    ],
)  # fmt: skip
def test_what_only_a_run_tells_stays_open(step, attributes):
    found = foretold(step, PACKED)
    names = ("macs", "weights", "zeros", "bits")
    assert {name for name in names if getattr(found, name) is None} == attributes
    assert "told by the run" in found.words(1000)


@pytest.mark.parametrize(
    ("outlook", "words"),
    [
        (Outlook(), ""),
        (Outlook(packed=True), ""),
        (Outlook(macs=0.5), "about 50% of the multiplications"),
        (Outlook(zeros=0.5), "no smaller without `pack.huffman`"),
        (Outlook(bits=4), "no smaller without `pack.huffman`"),
        (Outlook(bits=4, packed=True), "50 kB of weights sent to boards in fp32, instead of 400"),
        (Outlook(weights=0.25), "about 100 kB of weights"),
        (Outlook(macs=None, weights=None), "multiplications are left is told by the run; how much"),
    ],
)  # fmt: skip
def test_words(outlook, words):
    found = outlook.words(100_000)
    assert words in found and bool(words) == bool(found)


def test_megabytes():
    assert "instead of 11.4 MB" in Outlook(weights=0.5).words(2_850_000)
