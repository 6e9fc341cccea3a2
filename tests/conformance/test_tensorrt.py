"""TensorRT, held to what every backend has to hold; its trtexec is a program of ours that computes
with ONNX Runtime, so that all but TensorRT itself is tried."""

from __future__ import annotations

from pathlib import Path

import fake_trtexec
import numpy as np
import pytest
from loading import load

from wherry.host import Host
from wherry.model import Model
from wherry.reference import Reference, open_session, run_session
from wherry.target import Target
from wherry.testing import BackendSuite
from wherry.testing.networks import build, samples
from wherry.testing.workshop import Workshop


class Simulated:
    """This machine with a trtexec."""

    version = "10.3"

    @pytest.fixture(autouse=True)
    def trtexec(self, tmp_path: Path, wherry_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "tensorrt"
        folder.mkdir()
        path = fake_trtexec.install(folder / "trtexec", self.version)
        monkeypatch.setenv("TRTEXEC", str(path))
        return path


class TestTensorrt(Simulated, BackendSuite):
    name = "tensorrt"


class TestOthers(Simulated):
    """What a version does otherwise than 10.3."""

    @pytest.mark.parametrize("version", ["8.5", "11.1"])
    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_precisions(self, version, precision, tmp_path, trtexec):
        fake_trtexec.install(trtexec, version)
        figures = self.run(tmp_path, Target("tensorrt", precision, "local", options()), "residual")
        assert min(figures) > (50 if precision == "fp16" else 20)

    @pytest.mark.parametrize("version", ["8.6", "10.16"])
    def test_implicit_int8_is_given_a_cache_of_its_version(self, version, tmp_path, trtexec):
        fake_trtexec.install(trtexec, version)
        target = Target("tensorrt", "int8", "local", options(int8="implicit"))
        self.run(tmp_path, target, "convnet")
        (cache,) = (tmp_path / "wherry-home/board/cache/tensorrt/ranges").iterdir()
        head, *lines = cache.read_text().splitlines()
        assert head == f"TRT-{fake_trtexec.versions()[version]['version']}-EntropyCalibration2"
        assert {line.rpartition(": ")[0] for line in lines} >= {"image", "c0", "r0"}

    def test_nodes_kept_in_fp32(self, tmp_path, trtexec):
        fake_trtexec.install(trtexec, "8.5")
        kept = options(keep_fp32=("/Conv/c0",))
        found = self.run(tmp_path, Target("tensorrt", "int8", "local", kept), "convnet")
        (engine,) = (tmp_path / "wherry-home/board/cache/tensorrt/engines").iterdir()
        assert "--layerPrecisions=/Conv/c0:fp32" in (engine / "about.json").read_text()
        assert min(found) > 20

    def test_an_engine_of_several_shapes(self, tmp_path, trtexec):
        shapes = ({"input": "image", "min": (1, 4, 10, 13), "max": (8, 4, 20, 13)},)
        target = Target("tensorrt", "fp32", "local", options(shapes=shapes))
        assert min(self.run(tmp_path, target, "residual")) > 80

    def test_six_digits_where_trtexec_cannot_dump(self, tmp_path, trtexec):
        fake_trtexec.install(trtexec, "8.5")
        found = self.run(tmp_path, Target("tensorrt", "fp32", "local", options()), "two_by_two")
        assert 90 < min(found) < 140

    def run(self, folder: Path, target: Target, network: str) -> list[float]:
        """The signal to noise of each output, dB."""
        host = Host.load()
        build(network, folder / "model.onnx")
        model = Model.load(folder / "model.onnx")
        given = samples(model, 4)
        workshop = Workshop(host, folder)
        artifact = workshop.convert(model, target, given)
        (outputs,) = workshop.run(artifact, target, given[:1])
        wanted = Reference(model).run(given[0])
        return [sqnr(outputs[name], values) for name, values in wanted.items()]


@pytest.mark.backend
def test_accuracy_of_the_quickstart(home_of_trials, tmp_path, monkeypatch):
    """Both files of int8, in ONNX Runtime, node by node: what a board starts from."""
    monkeypatch.setenv("WHERRY_HOME", str(home_of_trials))
    digits = load(Path(__file__).with_name("digits.py"))
    inputs, labels = digits.load(home_of_trials)["mnist"]
    (tmp_path / "static").mkdir()
    model = Model.load(digits.MODEL).with_static_shapes({}, tmp_path / "static")
    given = [{"input": each} for each in inputs[: digits.CALIBRATION]]
    target = Target("tensorrt", "int8", "local", options())
    made = Workshop(Host.load(), tmp_path).convert(model, target, given)
    right = {}
    for path in (digits.MODEL, made.directory / "model.onnx", made.directory / "typed.onnx"):
        session = open_session(str(path), threads=1, where=str(path), as_written=True)
        chosen = [
            run_session(session, {"input": each}, where=str(path))["logits"].argmax()
            for each in inputs[digits.CALIBRATION :]
        ]
        right[path.name] = float((np.array(chosen) == labels[digits.CALIBRATION :]).mean())
    assert right["model.onnx"] >= right["digits.onnx"] - 0.002, right
    assert right["typed.onnx"] >= right["digits.onnx"] - 0.002, right


def options(**values):
    return Host.load().backends["tensorrt"].options(**values)


def sqnr(values: np.ndarray, wanted: np.ndarray) -> float:
    noise = np.sum((values - wanted) ** 2, dtype=np.float64)
    return float(10 * np.log10(np.sum(wanted**2, dtype=np.float64) / max(noise, 1e-30)))
