"""Every pass: backends take what it makes, and what it cannot do it refuses in words.

The whole matrix is ``tests/benchmarks/bench_passes.py``; here each pass is tried on one network,
and each of its results with one backend, in turns.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from loading import load
from onnx import TensorProto, helper, numpy_helper

from wherry.errors import ManifestError
from wherry.host import Host
from wherry.manifest import load_manifest
from wherry.model import Model
from wherry.normalise import normalise
from wherry.passes import Span
from wherry.reference import Reference
from wherry_compress.job import Data, Job, Refusal
from wherry_compress.plugin import MEMBERS

HERE = Path(__file__).parent
SWEEP = load(HERE / "sweep.py")
BACKENDS = ("onnxruntime", "tflite", "ncnn", "caffe2")
NETWORK = "shufflenet_v1 (pruned)"


# --- what it makes -----------------------------------------------------------------------------


def swept(networks, folder, home, rows) -> dict[str, str]:
    """Each row to what became of it on one backend: ok, or words."""

    def fed(model):
        return [networks.sample(model.proto(), seed) for seed in range(SWEEP.SAMPLES)]

    told = {}
    with pytest.MonkeyPatch.context() as patch, SWEEP.warm():
        patch.setenv("WHERRY_HOME", str(home))
        _, samples, made = SWEEP.make(SWEEP.generated(networks)[NETWORK](), fed, rows, folder)
        for place, backend in enumerate(BACKENDS):
            mine = {row: made[row].model for row in rows[place :: len(BACKENDS)]}
            mine = {row: model for row, model in mine.items() if model is not None}
            found = SWEEP.judge(backend, mine, samples, "fp32", SWEEP.temporary(folder, backend))
            told |= {
                row: each.status if each.status == "ok" else f"{backend}: {each.words}"
                for row, each in found.items()
            }
    return told | {
        row: each.words if each.wrong else "refused"
        for row, each in made.items()
        if each.model is None
    }


@pytest.mark.backend
@pytest.mark.caffe2
@pytest.mark.torch
def test_backends_take_what_passes_make(networks, tmp_path, home_of_trials):
    pytest.importorskip("torch", reason="torch is not installed")
    rows = list(SWEEP.PASSES)
    assert swept(networks, tmp_path, home_of_trials, rows) == dict.fromkeys(rows, "ok")


# --- what it refuses ---------------------------------------------------------------------------


def loop(n) -> onnx.ModelProto:
    """A convolution three times, in a Loop, between a Conv and a Gemm."""
    x = n.conv(n.input("image", 1, 3, 8, 10), 3, 6)
    values = {
        name: helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("i", TensorProto.INT64, []),
            ("go", TensorProto.BOOL, []),
            ("went", TensorProto.BOOL, []),
            ("v", TensorProto.FLOAT, [1, 6, 8, 10]),
            ("w", TensorProto.FLOAT, [1, 6, 8, 10]),
        )
    }
    nodes = [
        helper.make_node("Conv", ["v", "kernel"], ["c"], name="/body/conv", pads=[1] * 4),
        helper.make_node("Tanh", ["c"], ["w"], name="/body/tanh"),
        helper.make_node("Identity", ["go"], ["went"], name="/body/go"),
    ]
    kernel = n.rng.normal(0, 0.2, (6, 6, 3, 3)).astype(np.float32)
    inputs, outputs = ([values[k] for k in names] for names in (("i", "go", "v"), ("went", "w")))
    weights = [numpy_helper.from_array(kernel, "kernel")]
    body = helper.make_graph(nodes, "body", inputs, outputs, weights)
    x = n.op("Loop", n.const(3, "int64"), n.const(True, "bool"), x, body=body)
    return n.model(logits=n.head(x, 6))


NO_LAYER = "there is no layer to decompose among 0"
NO_FLOATS = "the network has no layer with float32 weights"
UNKNOWN_SHAPE = "'/loop_1', a Loop, whose results have no shape before they are there"
NO_NORMS = "there is no BatchNormalization in the network"
NARROW = "its width is to be a multiple of 8"

REFUSED: dict[str, dict[str, str]] = {  # network to rows, or families of them, and words of each
    "vector": {
        "prune.filters": "there is nothing to cut: no node has filters",
        "prune.channels-lasso": "there is nothing to cut: no node has filters",
        "prune.weights": "there are no constant weights to make zero",
        "prune.weights-trained": "no weights that could be trained",
        "lowrank": NO_LAYER,
        "share": NO_FLOATS,
        "bn.restore": "bn.restore found no convolution",
        "bn.reestimate": NO_NORMS,
        "fit": "no weights that could be trained",
        "int8.adaround": "there is no layer to round",
        "int8.bias-correction": "there is no layer with a bias to correct",
    },
    "conditional": {
        "prune.filters": NARROW,
        "prune.filters, width 1": "",
        "prune.channels-lasso": NARROW,
        "prune.weights-trained": "node '/reducesum_4'",
        "share.kmeans, trained": "node '/reducesum_4'",
        "fit": "node '/reducesum_4'",
        "bn.reestimate": NO_NORMS,
    },
    "loop": {
        "prune.filters": "'/conv_0' stays, because node '/loop_1' is a Loop",
        "prune.channels-lasso": "'/conv_0' stays, because node '/loop_1' is a Loop",
        "prune.weights-trained": "Loop (node '/loop_1') cannot be trained",
        "lowrank": UNKNOWN_SHAPE,
        "lowrank.fc-svd": "'/gemm_4': the shape of its input is not known",
        "share.kmeans, trained": "Loop (node '/loop_1') cannot be trained",
        "fit": "Loop (node '/loop_1') cannot be trained",
        "bn.reestimate": NO_NORMS,
    },
    "shared": {
        "prune.filters": NARROW,
        "prune.filters, width 1": "",
        "prune.channels-lasso": NARROW,
        "bn.reestimate": NO_NORMS,
    },
}
"""The longest name that a row begins with holds; no words: the pass does it."""


def words_of(network: str, row: str) -> str:
    known = [name for name in REFUSED[network] if row.startswith(name)]
    return REFUSED[network][max(known, key=len)] if known else ""


@pytest.fixture(scope="module")
def odd(networks, tmp_path_factory):
    """A network's name to its model, its normal forms (batch norms kept or not), and samples."""
    builders = {
        "vector": networks.NETWORKS["vector"],
        "mobilenet": networks.NETWORKS["mobilenet"],
        "conditional": networks.NETWORKS["conditional"],
        "loop": lambda: loop(networks.Net("loop")),
        "shared": lambda: load(HERE / "pruned.py").NETWORKS["shared"](networks.Net("shared")),
    }
    made = {}
    for name, build in builders.items():
        folder = tmp_path_factory.mktemp(name)
        onnx.save(build(), folder / "given.onnx")
        model, forms = Model.load(folder / "given.onnx").with_static_shapes({}, folder), {}
        for kept in (False, True):
            (folder / str(kept)).mkdir()
            also = {"keep batch norm"} if kept else set()
            forms[kept] = normalise(model, folder / str(kept), also).model
        samples = [networks.sample(model.proto(), seed) for seed in range(SWEEP.SAMPLES)]
        files = {key: folder / f"{key}.npy" for key in samples[0]}
        for key, path in files.items():
            np.save(path, np.stack([sample[key] for sample in samples]))
        made[name] = model, forms, Data(files)
    return made


def apply(odd, network: str, name: str, about: dict, folder: Path):
    """A pass in this process: what it is given, and what it made."""
    model, forms, data = odd[network]
    member = MEMBERS[name]
    parameters = member.descriptor.parameters(**about)
    if "torch" in member.descriptor.needed(parameters):
        pytest.importorskip("torch", reason="torch is not installed")
    given = forms[member.batch_norms] if member.normal else model
    parameters = parameters.model_dump(mode="json")
    both = {"calibration": data, "training": data}
    job = Job(given.path, parameters, folder, both, original=model.path, seed=1)
    module, function = member.function.split(":")
    return given, getattr(importlib.import_module(module), function)(job)


def marked(rows):
    """The rows as parameters of a test; those that train say that they need torch."""
    return [pytest.param(row, marks=pytest.mark.torch if trains(row) else ()) for row in rows]


def trains(row: str) -> bool:
    name, about = SWEEP.PASSES[row]
    descriptor = MEMBERS[name].descriptor
    return "torch" in descriptor.needed(descriptor.parameters(**about))


@pytest.mark.parametrize("row", marked(SWEEP.PASSES))
@pytest.mark.parametrize("network", REFUSED)
def test_nothing_to_do_loops_branches_and_shared_weights(odd, tmp_path, network, row):
    """Refused in words with a remedy, or a network with these inputs and outputs that runs."""
    words = words_of(network, row)
    if words:
        with pytest.raises(Refusal) as caught:
            apply(odd, network, *SWEEP.PASSES[row], tmp_path)
        refusal = caught.value
        assert words in f"{refusal.where} {refusal.message} {refusal.remedy}"
        assert refusal.remedy.endswith(".")
        return
    given, done = apply(odd, network, *SWEEP.PASSES[row], tmp_path)
    onnx.checker.check_model(done.model, full_check=True)
    onnx.save(done.model, tmp_path / "made.onnx")
    made = Model.load(tmp_path / "made.onnx")
    assert (made.inputs, made.outputs) == (given.inputs, given.outputs)
    for sample in odd[network][2].samples(2):
        assert all(np.isfinite(value).all() for value in Reference(made).run(sample).values())


NOWHERE = "/nowhere/*"
NAMES = {
    "prune.filters": ({"macs": 0.8, "exclude": [NOWHERE]}, {"ratios": {NOWHERE: 0.5}}),
    "prune.channels-lasso": ({"macs": 0.8, "exclude": [NOWHERE]}, {"ratios": {NOWHERE: 0.5}}),
    "prune.weights": ({"sparsity": 0.4, "exclude": [NOWHERE]}, {"ratios": {NOWHERE: 0.5}}),
    "prune.weights-trained": ({"sparsity": 0.4, "exclude": [NOWHERE]},),
    "lowrank.spatial-svd": ({"nodes": [NOWHERE]}, {"keep": [NOWHERE]}, {"ranks": {NOWHERE: 2}}),
    "share.kmeans": ({"layers": {NOWHERE: 3}},),
    "share.ecsq": ({"step": 0.2, "layers": {NOWHERE: 2}},),
    "share.vq": ({"layers": {NOWHERE: 3}},),
    "bn.restore": ({"exclude": [NOWHERE]},),
}


@pytest.mark.parametrize("name", marked(NAMES))
def test_a_pattern_that_means_no_node(odd, tmp_path, name):
    for about in NAMES[name]:
        with pytest.raises(Refusal) as caught:
            apply(odd, "mobilenet", name, about, tmp_path)
        assert f"names '{NOWHERE}'" in caught.value.message
        assert "'/conv_0'" in caught.value.remedy


BAD = {
    "simplify": ("{skip: [everything]}", "{fold_limit_kb: 0}"),
    "equalize": ("{by: weights}",),
    "prune.filters": ("{}", "{macs: 0}", "{macs: 1}", "{macs: 0.5, params: 0.5}",
                      "{macs: 0.5, criterion: best}", "{ratios: {'*': 1}}",
                      "{latency: {backend: ncnn}}",
                      "{latency: {backend: ncnn, at_most: 1, fraction: 0.5}}"),
    "prune.channels-lasso": ("{}", "{macs: 0.5, samples: 0}", "{macs: .nan}"),
    "prune.weights": ("{}", "{sparsity: 1}", "{sparsity: 0.5, pattern: '2:4'}", "{pattern: '4:4'}",
                      "{pattern: '2:4', allocation: sensitivity}", "{pattern: all}"),
    "prune.weights-trained": ("{}", "{sparsity: 0.5, processes: 2}", "{sparsity: 0.5, patience: 1}",
                              "{sparsity: 0.5, method: magic}"),
    "lowrank.spatial-svd": ("{energy: 0}", "{energy: 0.5, macs: 0.5}", "{ranks: {}}",
                            "{ranks: {'*': 0}}", "{scheme: 3}"),
    "lowrank.channel-svd": ("{scheme: 1}", "{round_to: 0}"),
    "lowrank.tucker2": ("{ranks: {'*': [1, 2, 3]}}",),
    "lowrank.cp": ("{macs: 2}",),
    "lowrank.fc-svd": ("{reconstruction: exact}",),
    "share.kmeans": ("{bits: 9}", "{start: lucky}", "{layers: {'*': -1}}", "{bits: 0}",
                     "{train: {processes: 2}}"),
    "share.ecsq": ("{}", "{step: 0.2, bits: 4}", "{bytes: 0}", "{step: 0}"),
    "share.vq": ("{length: 1}", "{most_error: 0}"),
    "share.pq": ("{bits: 13}",),
    "share.rq": ("{stages: 9}",),
    "pack.huffman": ("{level: 9}",),
    "bn.restore": ("{samples: 0}",),
    "bn.reestimate": ("{samples: many}",),
    "fit": ("{epochs: 0}", "{batch: 10, processes: 3}", "{learning_rate: .inf}", "{held_out: 1}",
            "{precision: fp16, device: cpu}", "{schedule: random}"),
    "int8.adaround": ("{iterations: 1}",),
    "int8.bias-correction": ("{samples: 0}",),
}  # fmt: skip
MANIFEST = """
wherry: 1
model: {{path: net.onnx}}
data: {{calibration: {{source: npz, path: a.npz}}, training: {{source: npz, path: a.npz}}}}
variants:
  some: [{{{name}: {about}}}]
targets: [{{backend: ncnn}}]
"""


LEAST = {"prune.filters": {"macs": 0.5}, "prune.weights": {"sparsity": 0.5},
         "prune.weights-trained": {"sparsity": 0.5}, "share.ecsq": {"step": 0.5}}  # fmt: skip


def test_what_a_search_may_try_is_taken():
    for name, member in MEMBERS.items():
        for word, values in member.descriptor.space.items():
            ends = (values.low, values.high) if isinstance(values, Span) else values
            for value in ends:
                about = {**LEAST.get(name, {}), word: value}
                assert getattr(member.descriptor.parameters(**about), word) == value


def test_bad_parameters_are_errors_of_the_manifest(tmp_path):
    """With the line, and the words of the parameter, before anything is read or run."""
    host = Host.load()
    (tmp_path / "net.onnx").write_bytes(b"")
    assert set(BAD) == {name for name in host.passes if name in MEMBERS} == set(MEMBERS)
    for name, wrong in BAD.items():
        for about in (*wrong, "{nonsense: 1}"):
            path = tmp_path / "m.yaml"
            path.write_text(MANIFEST.format(name=name, about=about))
            with pytest.raises(ManifestError) as caught:
                load_manifest(path, host)
            assert (caught.value.where or "").split(":")[-2] == "6", (name, about)
            assert len(caught.value.message) > 10, (name, about)
