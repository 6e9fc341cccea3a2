"""Some of ONNX's own tests through tflite and ncnn: none wrong, none crashed, refusals with words.

`tests/benchmarks/bench_conformance.py` runs them all; here are those that once went wrong, and
those that show a repair.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from loading import load

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_conformance.py"

RIGHT = {  # by the normal form, by repairs, or as constants
    "add_uint8": "tflite",
    "argmax_default_axis_example_select_last_index": "tflite",
    "attention_23_boolmask_fullymasked_row_nan_robustness": "tflite",
    "averagepool_2d_same_upper": "tflite",
    "clip": "tflite ncnn",
    "conv_with_autopad_same": "tflite ncnn",
    "convtranspose_output_shape": "tflite",
    "equal_uint16": "tflite",
    "gather_elements_negative_indices": "tflite",
    "layer_normalization_2d_axis1": "tflite",
    "logsoftmax_large_number": "tflite",
    "max_example": "tflite ncnn",
    "maxpool_2d_ceil": "tflite ncnn",
    "reshape_negative_dim": "tflite",
    "split_1d_uneven_split_opset18": "tflite ncnn",
}
REFUSED = {
    "add_uint64": "tflite ncnn",
    "bitshift_left_uint8": "tflite ncnn",
    "cumsum_1d": "tflite ncnn",
    "gridsample_nearest": "ncnn",
    "pow": "ncnn",
    "shrink_hard": "ncnn",
    "sum_one_input": "ncnn",
}


@pytest.fixture(scope="module")
def results(home_of_trials, tmp_path_factory):
    """Backend to test's name to its result."""
    bench = load(BENCHMARK)
    names = "|".join({**RIGHT, **REFUSED})
    folder = tmp_path_factory.mktemp("onnx-suite")
    asked = argparse.Namespace(results=folder / "results", keep=None, deadline=float("inf"))
    tests = bench.suite.load_tests(f"^test_({names})$", ["node"])
    cases = list(bench.suite.cases(tests, folder / "models"))
    assert not [case for case in cases if isinstance(case, tuple)], "all of them can be judged"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHERRY_HOME", str(home_of_trials))
        warm = bench.trials.Warm()
        found = {name: bench.Bench(name, asked, warm).run(cases) for name in ("tflite", "ncnn")}
        warm.close()
    return found


@pytest.mark.backend
@pytest.mark.parametrize("backend", ["tflite", "ncnn"])
def test_nothing_is_wrong_or_crashes_and_refusals_say_what_to_do(results, backend):
    for name, result in results[backend].items():
        assert result.status in {"right", "refused"}, f"{name}: {result.words}"
        assert not result.missing, f"{name} does not name its {result.missing}: {result.words}"


@pytest.mark.backend
@pytest.mark.parametrize("name", RIGHT)
def test_right(results, name):
    for backend in RIGHT[name].split():
        result = results[backend][f"test_{name}"]
        assert result.status == "right", result.words


@pytest.mark.backend
@pytest.mark.parametrize("name", REFUSED)
def test_refused(results, name):
    for backend in REFUSED[name].split():
        assert results[backend][f"test_{name}"].status == "refused"


@pytest.mark.backend
def test_the_tools_are_asked_for_their_operators(home_of_trials, monkeypatch):
    from wherry.cli.plugins import plugins_operators

    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    found = plugins_operators()
    for backend in ("onnxruntime", "tflite", "ncnn"):
        assert found[backend]["Relu"] == {"level": "yes", "reason": ""}
        for row in found[backend].values():
            assert bool(row["reason"]) == (row["level"] != "yes")
            assert not row["reason"] or re.search(r"[.]$", row["reason"])
