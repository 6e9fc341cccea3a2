"""The default calibration: the range of every activation, in bounded memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from wherry.calibration import CalibrationSettings
from wherry.data.inputs import write_inputs
from wherry.dataset import Dataset, Sample
from wherry.engine.worker import run_tool
from wherry.errors import DataError, ToolError
from wherry.model import Model
from wherry.target import Target
from wherry_onnxruntime import calibrate as tool
from wherry_onnxruntime import plugin
from wherry_onnxruntime.ranges import METHODS

TARGET = Target("tflite", "int8", "local")  # whose plugin need not have a calibration of its own


class Samples(Dataset):
    name = "samples"
    digest = "0"

    def __init__(self, samples: Sequence[dict[str, np.ndarray]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.samples[index])


class Context:
    """Runs tools as the engine does."""

    def __init__(self, folder: Path, settings: CalibrationSettings) -> None:
        self.scratch = folder
        self.settings = settings

    def run_tool(self, script, request, *, requirements):
        assert requirements is None
        scratch = self.scratch / "tool"
        scratch.mkdir(exist_ok=True)
        return run_tool(
            Path(sys.executable), script, request, scratch=scratch, log=self.scratch / "log"
        )


def network(tmp_path: Path, signature: str, body: str, **weights) -> Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net {signature} {{ {body} }}'
    )
    for name, values in weights.items():
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "model.onnx")
    return Model.load(tmp_path / "model.onnx")


def calibrate(model: Model, samples: Sequence[dict[str, np.ndarray]], folder: Path, **settings):
    context = Context(folder, CalibrationSettings(**settings))
    return plugin.wherry_calibrate(model, Samples(samples), TARGET, context)


def floats(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


SIGNATURE = "(float[1,3] x) => (float[1,3] y)"
BODY = "a = Mul(x, w) b = Relu(a) c = Neg(w) i = Cast <to = 7> (b) y = Add(b, c)"


def test_ranges_of_every_float_activation(tmp_path):
    """Also of inputs and outputs; not of weights, of what follows from them, or of integers."""
    model = network(tmp_path, SIGNATURE, BODY, w=[2.0, 3.0, 4.0])
    samples = [{"x": floats(1, -2, 3)}, {"": floats(-5, 0, 0.5)}]
    calibration = calibrate(model, samples, tmp_path)
    assert calibration.ranges == {
        "x": (-5, 3),
        "a": (-10, 12),
        "b": (0, 12),
        "y": (-3, 8),
    }
    assert calibration.thresholds == {"x": 5, "a": 12, "b": 12, "y": 8}
    assert (calibration.method, calibration.samples) == ("minmax", 2)


def test_the_ranges_are_those_of_the_model_as_it_is_written(tmp_path):
    """ONNX Runtime would fuse these nodes: the tensors between them have ranges all the same."""
    model = network(
        tmp_path,
        "(float[1,1,2,2] x) => (float[1,1,2,2] y)",
        "c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) y = Relu(n)",
        w=[[[[2.0]]]], s=[1.0], b=[0.0], m=[1.0], v=[1.0],
    )  # fmt: skip
    samples = [{"x": np.array([[[[0, 1], [2, -3]]]], np.float32)}]
    ranges = calibrate(model, samples, tmp_path).ranges
    assert ranges["c"] == (-6, 4)
    assert ranges["n"] == pytest.approx((-7, 3), abs=1e-3)


def test_two_inputs_and_a_branch_that_looks_outside(tmp_path):
    model = network(
        tmp_path,
        "(float[1,3] x, int64[1] which) => (float[1,3] y)",
        "z = Constant <value = int64[1] {0}> () positive = Greater(which, z) "
        "p = Squeeze(positive) b = Identity(x) "
        "y = If <then_branch = up () => (float[1,3] u) { u = Exp(b) }, "
        "else_branch = down () => (float[1,3] d) { d = Neg(b) }> (p)",
    )
    samples = [
        {"x": floats(0, 0, 1), "which": np.array([1])},
        {"x": floats(0, 0, 4), "which": np.array([-1])},
    ]
    ranges = calibrate(model, samples, tmp_path).ranges
    assert ranges["y"] == pytest.approx((-4, np.e))
    assert ranges["b"] == (0, 4)


def test_external_data(tmp_path):
    model = network(tmp_path, SIGNATURE, BODY, w=[2.0, 3.0, 4.0])
    proto = model.proto()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    calibration = calibrate(Model.load(path), [{"x": floats(1, 1, 1)}], tmp_path)
    assert calibration.ranges["a"] == (2, 4)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "at least one sample"),
        ([{"z": floats(1, 2, 3)}], "sample 0: the input 'x' is missing"),
        ([{"x": floats(1, 2, 3)}, {"x": floats(1, 2)}], "sample 1: the input 'x' is float32"),
        ([{"x": np.array([[1, 2, 3]])}], "int64"),
        ([{"x": floats(1, 2, 3).T}], "float32[3, 1], and the model takes float32[1, 3]"),
        ([{"x": floats(1, np.nan, 3)}], "NaN or infinity"),
    ],
)
def test_data_that_does_not_fit(tmp_path, samples, words):
    model = network(tmp_path, SIGNATURE, BODY, w=[2.0, 3.0, 4.0])
    with pytest.raises(DataError) as caught:
        calibrate(model, samples, tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_activations_that_become_infinite_are_named(tmp_path, method):
    model = network(tmp_path, SIGNATURE, "a = Exp(x) b = Exp(a) y = Sub(b, b)")
    samples = [{"x": floats(*values)} for values in ((1, 2, 3), (1, 2, 9), (1, 2, 1))]
    with pytest.raises(ToolError, match=r"2 of 4 activations became infinite or NaN.*'b'"):
        calibrate(model, samples, tmp_path, method=method)


def test_each_method_is_the_one_that_is_asked_for(tmp_path):
    """Of 300,000 ordinary values and one of 1000: what each makes of it is known."""
    model = network(tmp_path, "(float[1,30000] x) => (float[1,30000] y)", "y = Relu(x)")
    values = np.random.default_rng(3).normal(size=(10, 1, 30000)).astype(np.float32)
    values[4, 0, 7] = 1000
    samples = [{"x": sample} for sample in values]

    def found(method: str, **settings):
        made = calibrate(model, samples, tmp_path, method=method, **settings)
        assert made.method == method
        return made.ranges["y"][1], made.ranges["x"][0], made.threshold("y")

    assert found("minmax") == (1000, values.min(), 1000)
    assert found("percentile") == pytest.approx((3.8, -4, 3.8), abs=0.4)
    high, low, threshold = found("percentile", percentile=99.0)
    assert (high, low, threshold) == (2.5, -2.75, 2.5)
    for method, least, greatest in (("entropy", 60, 130), ("mse", 130, 990)):
        high, _, threshold = found(method)
        assert least < high < greatest
        assert 0 < threshold < 1000


@pytest.mark.parametrize("method", METHODS)
def test_tensors_without_values_and_those_of_other_types(tmp_path, method):
    model = network(
        tmp_path,
        SIGNATURE,
        "e = Slice(x, z, z, o) h = Cast <to = 10> (x) f = Cast <to = 1> (h) c = Mul(x, n) "
        "k = Add(c, w) j = Concat <axis = 1> (e, f) y = Sub(j, k)",
        w=[2.5, 2.5, 2.5], n=[0.0, 0.0, 0.0], z=np.array([0]), o=np.array([1]),
    )  # fmt: skip
    calibration = calibrate(model, [{"x": floats(1, -2, 3)}] * 2, tmp_path, method=method)
    assert set(calibration.ranges) == set(calibration.thresholds) == {"x", "f", "c", "k", "j", "y"}
    assert calibration.ranges["c"] == (0, 0)
    assert calibration.thresholds["c"] == 0
    assert calibration.ranges["k"] == (2.5, 2.5)
    assert calibration.thresholds["k"] == 2.5


def test_2000_samples_take_no_more_than_20(tmp_path):
    """Kept, the activations of the others would be 97 MB; what is kept is as large as after 20."""
    model = network(tmp_path, "(float[1,4096] x) => (float[1,4096] y)", "r = Relu(x) y = Neg(r)")
    values = np.random.default_rng(0).normal(size=(2000, 1, 4096)).astype(np.float32)
    values[1::2] *= 30  # bins are merged on the way
    peaks = []
    for count in (20, 2000):
        np.save(tmp_path / "x.npy", values[:count])
        tracemalloc.start()
        found = tool.run(model.path, {"x": tmp_path / "x.npy"}, counted=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found["x"].counts.sum() + found["x"].zeros == count * 4096
    assert abs(peaks[1] - peaks[0]) < 500_000


def test_memory_does_not_grow_with_the_samples(tmp_path):
    """400 samples of 1 MB: neither the host's side nor the tool's keeps them."""
    model = network(
        tmp_path, "(float[1,262144] x) => (float[1,262144] y)", "r = Relu(x) y = Neg(r)"
    )

    class Made(Samples):
        def __getitem__(self, index: int) -> Sample:
            return Sample({"x": np.full((1, 262144), index, np.float32)})

    code = (
        "import resource, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import calibrate\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "from pathlib import Path\n"
        "found = calibrate.run(Path(sys.argv[2]), {'x': Path(sys.argv[3])}, counted=True)['r']\n"
        "print((float(found.least), float(found.greatest)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    dataset = Made([{}] * 400)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = write_inputs(model, dataset, tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000
    ran = subprocess.run(
        [sys.executable, "-c", code, str(plugin.HERE), str(model.path), files["x"]],
        capture_output=True,
        text=True,
        check=True,
    )
    ranges, grown = ran.stdout.splitlines()
    assert ranges == "(0.0, 399.0)"
    assert int(grown) < 150_000


def test_a_model_without_float32_has_no_ranges(tmp_path):
    """In float16: there is nothing to fetch."""
    model = network(tmp_path, "(float16[1,4] x) => (float16[1,4] y)", "r = Relu(x) y = Neg(r)")
    np.save(tmp_path / "x.npy", np.ones((2, 1, 4), np.float16))
    assert tool.run(model.path, {"x": tmp_path / "x.npy"}, counted=True) == {}
