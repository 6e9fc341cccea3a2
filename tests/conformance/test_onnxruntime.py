"""ONNX Runtime on every generated network, in both precisions."""

from __future__ import annotations

import numpy as np
import pytest

from wherry.testing import BackendSuite


@pytest.mark.backend
@pytest.mark.usefixtures("wherry_home")
class TestOnnxruntime(BackendSuite):
    name = "onnxruntime"


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def trials(try_all, networks, precision):
    return try_all("onnxruntime", networks.NETWORKS, precision)


@pytest.mark.backend
def test_network(trials, network_name):
    trial = trials[network_name]
    assert trial.status == "right", trial.words
    for side in ("inputs", "outputs"):
        bound = [(b.onnx, b.dtype, b.shape) for b in getattr(trial.artifact, side)]
        specs = [(s.name, s.dtype, s.static_shape) for s in getattr(trial.model, side)]
        assert bound == specs


@pytest.mark.backend
def test_a_tool_started_anew_makes_the_same(trials, made_anew):
    """As of the last network that tools made which went on running."""
    last = [trial for trial in trials.values() if trial.artifact][-1]
    assert made_anew(last).digest == last.artifact.digest


@pytest.mark.backend
def test_a_weight_beyond_float16_keeps_its_node_in_float32(try_all, networks):
    chosen = {"wide_range": networks.NETWORKS["wide_range"]}
    trial = try_all("onnxruntime", chosen, "fp16")["wide_range"]
    assert trial.artifact.provenance["float32_nodes"] == ["/mul_1"]
    assert trial.status == "right"


@pytest.mark.backend
def test_fp16_halves_the_weights(try_all, networks):
    def wide():
        n = networks.Net("wide")
        return n.model(y=n.gemm(n.input("x", 1, 256), 256, 256))

    sizes = [
        try_all("onnxruntime", {"wide": wide}, precision)["wide"].artifact.size_bytes
        for precision in ("fp32", "fp16")
    ]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.backend
@pytest.mark.parametrize(
    "options",
    [
        {"threads": 2, "spinning": False},
        {"graph_optimization": "none"},
        {"graph_optimization": "basic", "execution": "parallel", "inter_threads": 2},
        {"graph_optimization": "extended", "provider": "CPUExecutionProvider"},
    ],
)
def test_options_change_no_result(try_all, networks, options):
    chosen = {name: networks.NETWORKS[name] for name in ("mobilenet", "inception")}
    for trial in try_all("onnxruntime", chosen, **options).values():
        assert trial.status == "right", trial.words


@pytest.mark.backend
def test_unknown_provider(try_all, networks):
    chosen = {"mlp": networks.NETWORKS["mlp"]}
    trial = try_all("onnxruntime", chosen, provider="toaster")["mlp"]
    assert trial.status == "broken"
    assert "no provider 'toaster'; it has" in trial.words
    assert "CPUExecutionProvider" in trial.words


@pytest.mark.backend
def test_same_model_same_bytes(try_all, networks):
    chosen = {"squeeze_excite": networks.NETWORKS["squeeze_excite"]}
    first, second = (try_all("onnxruntime", chosen, "fp16")["squeeze_excite"] for _ in range(2))
    assert dict(first.artifact.files) == dict(second.artifact.files)


def test_older_runtimes_are_pinned_for_older_pythons():
    from packaging.specifiers import SpecifierSet

    from wherry_onnxruntime.plugin import RUNTIMES

    for version in ("3.8.10", "3.9.2", "3.10.12", "3.11.2", "3.13.0"):
        assert any(version in SpecifierSet(entry.python) for entry in RUNTIMES)
    assert all(len(entry.packages) == len(entry.no_deps) == 1 for entry in RUNTIMES)


def test_sample_is_deterministic(networks):
    model = networks.NETWORKS["two_inputs"]()
    first, second = (networks.sample(model, 3) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
