"""What a plan foretells of a variant: near to what the passes make, and open where they decide."""

from __future__ import annotations

import importlib
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from wherry.cli.plan import _outlooks
from wherry.model import Model
from wherry.normalise import normalise
from wherry.outlook import UNKNOWN, Contents, Outlook, unchanged
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


ZEROS, CUT = (
    "prune.weights",
    ("prune.filters", {"params": 0.5, "compensate": False, "criterion": "l1"}),
)


@pytest.mark.parametrize(
    "steps",
    [
        [("share.kmeans", {"bits": 1})],
        [("share.kmeans", {"bits": 4})],
        [("share.kmeans", {"bits": 6})],
        [("share.kmeans", {"bits": 4, "biases": 0})],
        [("share.kmeans", {"bits": 4}), ("share.kmeans", {"bits": 8})],
        [("share.ecsq", {"bits": 0.5})],
        [("share.ecsq", {"bits": 3.5})],
        [(ZEROS, {"sparsity": 0.5})],
        [(ZEROS, {"sparsity": 0.8})],
        [(ZEROS, {"sparsity": 0.99})],
        [(ZEROS, {"sparsity": 0.7}), ("share.kmeans", {"bits": 5})],
        [(ZEROS, {"sparsity": 0.95, "allocation": "uniform"}), ("share.kmeans", {"bits": 4})],
        [("share.kmeans", {"bits": 4}), CUT],
        [CUT, ("share.ecsq", {"bits": 4})],
    ],
    ids=lambda steps: " ".join(str(word) for step in steps for word in step),
)
def test_what_is_sent_is_near_to_what_is_foretold(steps, digits, tmp_path):
    sent = foretold(*steps, PACKED).sent_bytes(Contents.of(digits.proto()))
    packed = len(pack(made(digits, tmp_path, *steps).read_bytes()))
    assert packed == pytest.approx(sent, rel=0.2)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_multiplications_are_near_to_what_is_asked_for(share, digits, tmp_path):
    step = ("prune.filters", {"macs": share, "criterion": "l1", "compensate": False})
    before = costs.measure(digits.proto())
    left = costs.measure(onnx.load(made(digits, tmp_path, step))).macs / before.macs
    assert foretold(step).macs == share == pytest.approx(left, abs=0.06)
    contents = Contents.of(digits.proto())
    assert before.parameters == contents.kernels + contents.vectors
    assert contents.rest < 0.02 * digits.path.stat().st_size


def test_passes_follow_each_other():
    half, third = ("prune.filters", {"macs": 0.5}), ("lowrank.spatial-svd", {"macs": 0.3})
    assert foretold(half, third).macs == pytest.approx(0.15)
    of_original = ("prune.filters", {"macs": 0.3, "relative_to": "original"})
    assert foretold(half, of_original).macs == 0.3
    zeros = (ZEROS, {"sparsity": 0.5})
    assert foretold(zeros, ("fit", {})).zeros == 0.5
    assert foretold(zeros, ("fit", {"keep_zeros": False})).zeros == 0
    assert foretold(("share.kmeans", {}), ("fit", {})).bits == 32
    assert foretold(zeros, (ZEROS, {"sparsity": 0.2})).zeros == 0.5
    assert foretold(("equalize", {}), ("simplify", {}), ("bn.restore", {})) == Outlook()


OPEN = ("share.kmeans", {})


@pytest.mark.parametrize(
    ("steps", "attributes"),
    [
        ([("prune.filters", {"macs": 0.5})], {"weights"}),
        ([("prune.filters", {"params": 0.5})], {"macs"}),
        ([("prune.filters", {"ratios": {"/c*": 0.5}})], {"macs", "weights"}),
        ([("prune.channels-lasso", {"latency": {"backend": "ncnn", "fraction": 0.5}})],
         {"macs", "weights"}),
        ([(ZEROS, {"sparsity": 0.5, "only": "1x1"})], {"zeros"}),
        ([(ZEROS, {"pattern": "2:4"})], {"zeros"}),
        ([(ZEROS, {"sparsity": 0.5, "exclude": ("/c",)})], {"zeros"}),
        ([("lowrank.cp", {})], {"macs", "weights"}),
        ([("share.kmeans", {"layers": {"/c": 2}})], {"bits"}),
        ([("share.ecsq", {"step": 0.5})], {"bits"}),
        ([("share.pq", {})], {"bits"}),
        ([("int8.adaround", {})], {"bits"}),
        ([OPEN, ("equalize", {})], {"bits", "vector_bits"}),
        ([OPEN, ("simplify", {})], {"bits", "vector_bits"}),
        ([OPEN, ("bn.reestimate", {})], {"bits", "vector_bits"}),
    ],
)  # fmt: skip
def test_what_only_a_run_tells_stays_open(steps, attributes):
    found = foretold(*steps, PACKED)
    assert {field.name for field in fields(found) if getattr(found, field.name) is None} == (
        attributes
    )
    assert "told by the run" in found.words(Contents(1000, 0, 0))


@pytest.mark.parametrize(
    ("outlook", "words"),
    [
        (Outlook(), ""),
        (Outlook(packed=True), ""),
        (Outlook(macs=0.5), "50% of the multiplications are asked for"),
        (Outlook(zeros=0.5), "zeros and shared values are sent in fewer bytes with `pack.huffman`"),
        (Outlook(macs=0.5, bits=4), "asked for; zeros and shared values are sent in fewer bytes"),
        (Outlook(bits=4, packed=True), "about 50.5 kB sent to boards in fp32, instead of 400.0 kB"),
        (Outlook(weights=0.25), "about 100.0 kB sent to boards"),
        (Outlook(macs=None, weights=None), "multiplications are left is told by the run; how much"),
        (UNKNOWN, "multiplications are left is told by the run; how much"),
    ],
)
def test_words(outlook, words):
    found = outlook.words(Contents(100_000, 0, 500))
    assert words in found and bool(words) == bool(found)


def test_other_precisions_are_not_foretold_and_no_weights_are_not_sent():
    shared = Outlook(macs=0.5, bits=4, packed=True)
    assert "kB" not in shared.words(Contents(100_000, 0, 500), fp32=False)
    assert shared.words(Contents(0, 0, 500)) == "50% of the multiplications are asked for"


def test_packing_is_spoken_of_where_it_brings_something():
    contents = Contents(100_000, 0, 500)
    assert "`pack.huffman`" in Outlook(bits=None).words(contents)
    assert Outlook(bits=None).words(contents, fp32=False) == ""  # 8 bits share values anyway
    assert "`pack.huffman`" in Outlook(zeros=0.5).words(contents, fp32=False)


@pytest.mark.parametrize(
    "figures", [{"macs": -1}, {"macs": float("nan")}, {"zeros": 1.5}, {"bits": 64}]
)
def test_what_cannot_be_is_refused(figures):
    with pytest.raises(ValueError, match=" is "):
        Outlook(**figures)


def bad(_parameters, _before):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("outlook", "told"),
    [
        (bad, "a bug of the plugin of other.pass, report it: KeyError: 'x'; how many"),
        (lambda _parameters, _before: None, "gave NoneType, and not an Outlook; how many"),
        (lambda _parameters, before: replace(before, macs=-1), "ValueError: macs is -1; how many"),
        (None, "how many multiplications are left is told by the run"),
        (unchanged, ""),
    ],
)
def test_passes_of_others(outlook, told):
    step = SimpleNamespace(name="other.pass", parameters=None)
    manifest = SimpleNamespace(variants={"v": [step]}, targets=[SimpleNamespace(precision="fp32")])
    host = SimpleNamespace(passes={"other.pass": SimpleNamespace(outlook=outlook)})
    words = _outlooks(manifest, Model.load(DIGITS), host)["v"]["words"]
    assert told in words and bool(told) == bool(words)
