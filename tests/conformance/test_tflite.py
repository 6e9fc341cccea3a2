"""tflite on every generated network and form of an operator: right, or refused with words."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from wherry.testing import BackendSuite
from wherry_tflite import operators as known
from wherry_tflite.plugin import CONVERTER, RUNTIMES

REFUSED = {"unused_and_shared": "nothing computes the output 'first'"}


@pytest.mark.backend
@pytest.mark.usefixtures("wherry_home")
class TestTflite(BackendSuite):
    name = "tflite"


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def trials(request, try_all, networks):
    return try_all("tflite", networks.NETWORKS, request.param)


@pytest.mark.backend
def test_network(trials, network_name):
    trial = trials[network_name]
    if network_name in REFUSED:
        assert trial.status == "refused", trial.words
        assert REFUSED[network_name] in trial.words
    else:
        assert trial.status == "right", trial.words
        assert set(trial.artifact.files) == {"model.tflite"}


@pytest.mark.backend
def test_a_tool_started_anew_makes_the_same(trials, made_anew):
    """As of the last network that tools made which went on running."""
    last = [trial for trial in trials.values() if trial.artifact][-1]
    assert made_anew(last).digest == last.artifact.digest


# --- operators -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forms(try_all, operators):
    """Every form of every operator, tried in fp32: (operator, name) to its trial."""
    names = {f"{kind}-{i}": b for kind, bs in operators.FORMS.items() for i, b in enumerate(bs)}
    trials = try_all("tflite", names)
    return {(name.partition("-")[0], name): trial for name, trial in trials.items()}


@pytest.mark.backend
def test_every_form_is_right_or_refused_before(forms):
    """Without a pre-flight's refusal it is right; with one it is not right anyway."""
    failing = {}
    for (kind, name), trial in forms.items():
        found = known.preflight(trial.model, None)
        if kind in {"Shape", "Size"}:  # of static shapes: they are constants
            assert trial.status == "right", trial.words
        elif bool(found) == (trial.status == "right") or {f.op_type for f in found} - {kind}:
            failing[name] = f"{trial.status} {trial.words} {found}"
    assert not failing


@pytest.mark.backend
def test_the_known_operators_are_those_of_the_tool(home_of_trials):
    from wherry.engine.environments import Environments

    code = (
        "from onnx2tf.tflite_builder.op_registry import get_supported_onnx_ops as listed\n"
        "print(*listed())"
    )
    python = Environments(home_of_trials).ensure(CONVERTER)
    listed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == known.OPERATORS


# --- what `prepare.py` repairs -------------------------------------------------------------------


def chain(networks, first, act, second):
    """Two products or sums with scalars, an activation between; convolutions around them."""
    n = networks.Net("chain")
    x = n.conv(n.input("image", 1, 3, 8, 10), 3, 4)
    x = n.op(first, x, n.const(2.5))
    x = n.op("Relu", x) if act == "Relu" else n.op("Clip", x, n.const(-1.0), n.const(act))
    return n.model(y=n.conv(n.op(second, x, n.const(0.4)), 4, 5))


def states(networks, kind, direction, output):
    """A recurrent network of which one output is used: all states, or the last."""
    n = networks.Net(kind)
    ways, gates = (2 if direction == "bidirectional" else 1), {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    x = n.op("Transpose", n.input("x", 1, 12, 6), perm=[1, 0, 2])
    weights = [n.weight(ways, 8 * gates, size, fan_in=16) for size in (6, 8)]
    about = {"linear_before_reset": 1} if kind == "GRU" else {}
    made = n.ops(kind, x, *weights, outputs=2, hidden_size=8, direction=direction, **about)[output]
    return n.model(y=n.op("Reshape", made, n.ints(1, -1)))


def resized(networks, way, rounding, size):
    n = networks.Net("resized")
    x = n.conv(n.input("image", 1, 3, 6, 10), 3, 4)
    about = {"coordinate_transformation_mode": way, "nearest_mode": rounding}
    by = (
        ("", n.const([1, 1, *size]))
        if isinstance(size[0], float)
        else ("", "", n.ints(1, 4, *size))
    )
    return n.model(y=n.op("Resize", x, *by, mode="nearest", **about))


def flattened_softmax(networks, kind, axis, opset):
    n = networks.Net(kind, opset=opset)
    return n.model(y=n.op(kind, n.conv(n.input("image", 1, 3, 5, 7), 3, 4), axis=axis))


@pytest.fixture(scope="module")
def repaired(try_all, networks):
    sums = ("Mul", "Div", "Add", "Sub")
    cases = {
        **{
            f"chain-{first}-{act}-{second}": partial(chain, networks, first, act, second)
            for first, act, second in itertools.product(sums, ("Relu", 1.0), sums)
        },
        **{
            f"states-{kind}-{direction}-{output}": partial(
                states, networks, kind, direction, output
            )
            for kind, direction, output in itertools.product(
                ("RNN", "GRU", "LSTM"), ("forward", "reverse", "bidirectional"), (0, 1)
            )
        },
        **{
            f"resize-{way}-{rounding}-{size}": partial(resized, networks, way, rounding, size)
            for way, rounding, size in itertools.product(
                ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"),
                ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
                ((3.0, 2.0), (0.6, 1.25), (9, 7)),
            )
        },
        **{
            f"{kind}-{axis}-{opset}": partial(flattened_softmax, networks, kind, axis, opset)
            for kind, axis, opset in itertools.product(
                ("Softmax", "LogSoftmax", "Hardmax"), (1, 2, 3), (11, 13)
            )
        },
    }
    return try_all("tflite", cases)


@pytest.mark.backend
def test_repairs(repaired):
    failing = {name: t.words for name, t in repaired.items() if t.status != "right"}
    assert not failing
    assert len(repaired) > 100


@pytest.mark.backend
def test_scales_that_miss_a_whole_size_are_right_or_not_converted(try_all, networks):
    """10 * 1.3 is 12.99.. in float32: ONNX makes 12 columns of it, onnx2tf may make 13."""
    ways = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
    roundings = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    trials = try_all(
        "tflite",
        {
            f"{way}-{rounding}": partial(resized, networks, way, rounding, (0.6, 1.3))
            for way, rounding in itertools.product(ways, roundings)
        },
    )
    states = {name: trial.status for name, trial in trials.items()}
    assert set(states.values()) <= {"right", "refused"}, states
    assert all("Resize" in t.words for t in trials.values() if t.status != "right")


# --- layouts -------------------------------------------------------------------------------------


def cube(networks, turn):
    """A picture with as many channels as rows and columns; only the values tell its layout."""
    n = networks.Net("cube")
    x = n.op("Relu", n.conv(n.input("image", 1, 6, 6, 6), 6, 6))
    return n.model(y=n.op("Transpose", x, perm=turn) if turn else x)


def line(networks):
    n = networks.Net("line")
    x = n.input("audio", 1, 8, 8)
    y = n.op("Conv", x, n.weight(8, 8, 3, fan_in=24), kernel_shape=[3], pads=[1, 1])
    return n.model(y=y, mixed=n.op("MatMul", y, n.weight(8, 8, fan_in=8)))


def clip(networks):
    n = networks.Net("clip")
    w = n.weight(4, 4, 3, 3, 3, fan_in=108)
    x = n.op("Conv", n.input("clip", 1, 4, 4, 4, 4), w, kernel_shape=[3, 3, 3], pads=[1] * 6)
    return n.model(y=x)


def two_cubes(networks):
    n = networks.Net("two_cubes")
    left, right = n.input("left", 1, 4, 4, 4), n.input("right", 1, 4, 4, 4)
    product = n.op("MatMul", n.conv(left, 4, 4), n.op("Transpose", right, perm=[0, 2, 3, 1]))
    return n.model(y=product, z=n.op("Flatten", product))


def channels_last(networks, flat):
    """As TensorFlow's exporter writes: NHWC in and out, with a Transpose on both sides."""
    n = networks.Net("channels_last")
    x = n.op("Transpose", n.input("image", 1, 8, 11, 3), perm=[0, 3, 1, 2])
    x = n.op("Transpose", n.op("Relu", n.conv(x, 3, 5)), perm=[0, 2, 3, 1])
    return n.model(y=n.op("Reshape", x, n.ints(1, -1)) if flat else x)


def turned(networks, perm):
    n = networks.Net("turned")
    x = n.conv(n.input("image", 1, 3, 5, 7), 3, 4)
    return n.model(y=n.op("Transpose", x, perm=[0, *perm]))


@pytest.fixture(scope="module")
def layouts(try_all, networks):
    turns = [None, *([0, *perm] for perm in itertools.permutations((1, 2, 3)))]
    cases = {
        **{f"cube-{turn}": partial(cube, networks, turn) for turn in turns},
        **{f"turned-{turn}": partial(turned, networks, turn) for turn in
           itertools.permutations((1, 2, 3))},
        **{f"channels_last-{flat}": partial(channels_last, networks, flat) for flat in (0, 1)},
        **{build.__name__: partial(build, networks) for build in (line, clip, two_cubes)},
    }  # fmt: skip
    return try_all("tflite", cases)


@pytest.mark.backend
def test_layouts(layouts):
    failing = {name: f"{t.status}: {t.words}" for name, t in layouts.items() if t.status != "right"}
    assert not failing


@pytest.mark.backend
def test_pictures_are_given_with_the_channels_last(layouts):
    bound = {
        name: [binding.permutation for binding in layouts[name].artifact.inputs]
        for name in ("cube-None", "clip", "turned-(1, 2, 3)")
    }
    last = (0, 2, 3, 1)
    assert bound == {
        "cube-None": [last],
        "clip": [(0, 2, 3, 4, 1)],
        "turned-(1, 2, 3)": [last],
    }


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.backend
def test_fp16_halves_the_weights_and_the_bytes_are_reproducible(try_all, networks):
    def wide():
        n = networks.Net("wide")
        return n.model(y=n.gemm(n.input("x", 1, 256), 256, 256))

    single, half, again = (
        try_all("tflite", {"wide": wide}, precision)["wide"].artifact
        for precision in ("fp32", "fp16", "fp16")
    )
    assert half.size_bytes / single.size_bytes == pytest.approx(0.5, abs=0.02)
    assert half.digest == again.digest


@pytest.mark.backend
def test_a_constant_beyond_float16_stays_in_float32(try_all, networks):
    def scaled():
        n = networks.Net("scaled")
        x = n.op("Relu", n.op("Add", n.input("x", 1, 512), n.const(np.linspace(0, 1e5, 512))))
        return n.model(y=n.op("Mul", x, n.const(1e-5)))

    trial = try_all("tflite", {"scaled": scaled}, "fp16")["scaled"]
    assert trial.status == "right", trial.words
    assert len(trial.artifact.provenance["float32_constants"]) == 1


@pytest.mark.backend
def test_the_tensors_of_the_model_are_found_again(trials):
    provenance = trials["mobilenet"].artifact.provenance
    assert provenance["versions"]["onnx2tf"] == "2.6.9"
    assert "logits" in provenance["tensors"]


# --- runtimes ------------------------------------------------------------------------------------


def recurrent(operators):
    """Networks that keep a state, from zero or another start: drive.py runs them twice."""
    forms = {"LSTM": (2, 5), "RNN": (2, 5)}
    return {f"{kind}-{i}": operators.FORMS[kind][i] for kind, which in forms.items() for i in which}


@pytest.mark.backend
@pytest.mark.parametrize("options", [{"threads": 2}, {"xnnpack": False}])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_options_change_no_result(try_all, networks, operators, precision, options):
    chosen = {name: networks.NETWORKS[name] for name in ("mobilenet", "softmax_classifier", "gru")}
    chosen |= recurrent(operators)
    for trial in try_all("tflite", chosen, precision, **options).values():
        assert trial.status == "right", trial.words


@pytest.mark.backend
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime ends at Python 3.11")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_older_runtime_runs_the_same_files(
    try_all, networks, operators, home_of_trials, tmp_path, monkeypatch, precision
):
    try_all("tflite", {"mlp": networks.NETWORKS["mlp"]})  # loads the machinery
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    trials = sys.modules["wherry_conformance_trials"].Trials("tflite", tmp_path)
    older = next(each for each in RUNTIMES if "tflite-runtime==2.14.0" in each.no_deps)
    trials.backend = dataclasses.replace(trials.backend, runtime=(older,))
    models = {name: networks.NETWORKS[name]() for name in OLD_RUNTIME}
    models |= {name: build() for name, build in recurrent(operators).items()}
    samples = {name: [networks.sample(model)] for name, model in models.items()}
    for trial in trials.run(models, samples, precision).values():
        assert trial.status == "right", trial.words


OLD_RUNTIME = (
    "mobilenet",
    "inception",
    "segmentation",
    "softmax_classifier",
    "transformer",
    "two_inputs",
)
