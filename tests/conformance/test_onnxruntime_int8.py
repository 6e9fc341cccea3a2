"""The quickstart's network in int8 on ONNX Runtime: accuracy, and what saturation would cost."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from loading import load

from wherry.artifact import Artifact
from wherry.calibration import Calibration, CalibrationSettings, Method
from wherry.host import Host
from wherry.model import Model
from wherry.target import Target
from wherry.testing import workshop as workshops
from wherry_onnxruntime import runner

HERE = Path(__file__).parent
QEMU = "qemu-x86_64-static"
EMULATED = 150  # samples, 20 ms each

pytestmark = pytest.mark.backend  # the digits come from packages of the index


@pytest.fixture(scope="module")
def digits():
    return load(HERE / "digits.py")


@pytest.fixture(scope="module")
def data(digits, home_of_trials):
    return digits.load(home_of_trials)


class Quickstart:
    """The network as artifacts of this backend, and what they give."""

    def __init__(self, model: Path, pictures: np.ndarray, folder: Path) -> None:
        self.folder = folder
        self.model = Model.load(model).with_static_shapes({}, folder)
        self.host = Host.load()
        self.options = self.host.backends["onnxruntime"].options
        self.samples = [{"input": picture} for picture in pictures]
        self._made: dict[tuple[str, str], Artifact] = {}

    def artifact(self, precision: str, method: Method = "minmax"):
        """Calibrated and converted, once."""
        key = precision, method
        if key not in self._made:
            self._made[key] = self._make(precision, method)
        return self._made[key]

    def _make(self, precision: str, method: Method):
        workshop = workshops.Workshop(self.host, self.folder)
        target = Target("onnxruntime", precision, "local", self.options())
        calibration: Calibration | None = None
        if precision == "int8":
            context = replace(workshop._context(), settings=CalibrationSettings(method))
            dataset = workshops._Samples(self.samples)
            calibration = self.host.calibrate(self.model, dataset, target, context)
        return self.host.convert(self.model, target, calibration, workshop._context())

    def run(self, artifact, inputs: np.ndarray, **options) -> np.ndarray:
        """The logits of all samples, by the runner, in this process."""
        values = self.options(**options).model_dump(mode="json")
        loaded = runner.load(str(artifact.directory), artifact.to_json(), values)
        outputs = []
        for sample in inputs:
            loaded.set_inputs({"input": sample})
            loaded.run()
            outputs.append(loaded.get_outputs()["logits"])
        return np.concatenate(outputs)


@pytest.fixture(scope="module")
def quickstart(digits, data, tmp_path_factory):
    pictures = data["mnist"][0][: digits.CALIBRATION]
    return Quickstart(digits.MODEL, pictures, tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def fp32(digits, data, quickstart):
    """Logits in fp32 of every set, without the calibration's samples."""
    artifact = quickstart.artifact("fp32")
    return {
        name: quickstart.run(artifact, inputs[digits.CALIBRATION * (name == "mnist") :])
        for name, (inputs, _) in data.items()
    }


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels[-len(logits) :]).mean())


def agreement(logits: np.ndarray, reference: np.ndarray) -> float:
    return float((logits.argmax(1) == reference.argmax(1)).mean())


def sqnr_db(logits: np.ndarray, reference: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / ((reference - logits) ** 2).sum()))


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_accuracy(method, digits, data, quickstart, fp32):
    artifact = quickstart.artifact("int8", method)
    for name, most_lost in (("mnist", 0.005), ("other", 0.02), ("bold", 0.02)):
        inputs, labels = data[name]
        logits = quickstart.run(artifact, inputs[-len(fp32[name]) :])
        assert accuracy(logits, labels) >= accuracy(fp32[name], labels) - most_lost, name
        assert agreement(logits, fp32[name]) >= 1 - most_lost, name


def test_less_than_half_of_the_size(quickstart):
    sizes = [quickstart.artifact(precision).size_bytes for precision in ("fp32", "int8")]
    assert sizes[1] < sizes[0] / 2


@pytest.fixture(scope="module")
def without_vnni(quickstart, data, tmp_path_factory):
    """Runs on an emulated processor with AVX2 and without VNNI; gives the logits of bold digits."""
    if shutil.which(QEMU) is None or platform.machine() != "x86_64":
        pytest.skip(f"needs an x86-64 host and {QEMU}: apt install qemu-user-static")
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "cpuinfo").write_text("flags\t\t: fpu sse4_2 avx avx2 fma\n")
    np.save(folder / "inputs.npy", data["bold"][0][:EMULATED])
    artifact = quickstart.artifact("int8")

    def run(**options) -> np.ndarray:
        case = {
            "runner": runner.__file__,
            "cpuinfo": str(folder / "cpuinfo"),
            "directory": str(artifact.directory),
            "artifact": artifact.to_json(),
            "options": quickstart.options(**options).model_dump(mode="json"),
            "inputs": str(folder / "inputs.npy"),
            "outputs": str(folder / "outputs.npy"),
        }
        (folder / "case.json").write_text(json.dumps(case))
        command = [QEMU, "-cpu", "Haswell", sys.executable, HERE / "infer.py", folder / "case.json"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return np.load(folder / "outputs.npy")

    return SimpleNamespace(run=run, native=quickstart.run(artifact, data["bold"][0][:EMULATED]))


def test_without_vnni_nothing_is_lost(without_vnni, data, fp32):
    """The guard: it fails where the runner does not ask for the exact kernels."""
    logits, reference, labels = without_vnni.run(), fp32["bold"][:EMULATED], data["bold"][1]
    np.testing.assert_array_equal(logits, without_vnni.native)
    assert sqnr_db(logits, reference) > 28
    assert agreement(logits, reference) >= 0.96
    right = (logits.argmax(1) == labels[:EMULATED]).mean()
    assert right >= (reference.argmax(1) == labels[:EMULATED]).mean() - 0.02


def test_the_naive_setting_loses_there(without_vnni, fp32):
    """The trap is real: without the guard the same file computes something else."""
    logits, reference = without_vnni.run(exact_int8=False), fp32["bold"][:EMULATED]
    assert sqnr_db(logits, reference) < 18
    assert agreement(logits, reference) < 0.93
