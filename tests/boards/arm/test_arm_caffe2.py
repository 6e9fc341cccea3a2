"""Caffe2 on an emulated ARM board: a crossed program, and the library out of a wheel of torch."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from loading import load

from wherry import api
from wherry.cli.devices import devices_probe
from wherry.device import DeviceSpec
from wherry.host import Host
from wherry.model import Model
from wherry.native import compiler
from wherry.parity import compare
from wherry.reference import Reference
from wherry.target import Target
from wherry.testing.workshop import Workshop

pytestmark = [pytest.mark.arm, pytest.mark.backend, pytest.mark.caffe2, pytest.mark.timeout(600)]

CONFORMANCE = Path(__file__).parents[2] / "conformance"
SAMPLES = 20
MANIFEST = f"""
wherry: 1
model:
  path: digits.onnx
  inputs:
    input: {{preprocess: {{scale: 0.00392156862745098, mean: [0.1307], std: [0.3081]}}}}
data:
  calibration: {{source: mnist5k, slice: "0:100"}}
  evaluation: {{source: mnist5k, slice: "200:{200 + SAMPLES}"}}
metrics: [top1, agreement]
measure: {{rounds: 1, duration_s: 0.1, warmup_s: 0.05, warmup_runs: 2, min_runs: 5}}
targets:
  - {{backend: caffe2, precision: [fp32, int8], device: [local, board]}}
"""


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    if compiler("aarch64") is None:
        pytest.skip("no compiler for ARM here: apt install g++-aarch64-linux-gnu")


def test_the_quickstart(arm64_board, project, monkeypatch):
    folder = project(arm64_board)
    monkeypatch.chdir(folder)
    (folder / "caffe2.yaml").write_text(MANIFEST)
    record = api.run(folder / "caffe2.yaml")
    results = {
        (r["target"]["device"], r["target"]["precision"]): r for r in record.values["results"]
    }
    assert len(results) == 4
    for (device, precision), result in results.items():
        assert result["status"] == "ok", result["error"]
        assert result["latency"]["emulated"] == (device == "board")
        assert result["metrics"]["agreement"] >= (1.0 if precision == "fp32" else 0.9)
        here = results["local", precision]["metrics"]["top1"]
        assert result["metrics"]["top1"] == pytest.approx(here, abs=1 / SAMPLES)


def test_networks(arm64_board, project, monkeypatch, tmp_path):
    """All seven, and one in int8, in the library's own arithmetic of ARM."""
    monkeypatch.chdir(project(arm64_board))
    assert devices_probe(["board"])["board"]["machine"] == "aarch64"
    networks = load(CONFORMANCE / "networks.py")
    classics = load(CONFORMANCE / "classics.py").CLASSICS
    host = Host.load()
    workshop = Workshop(host, tmp_path)
    backend, transport = host.backends["caffe2"], host.transports["ssh"]
    where = {name: getattr(arm64_board, name) for name in ("host", "port", "user")}
    where["key"] = str(arm64_board.key)
    spec = DeviceSpec("board", "ssh", transport.parameters.model_validate(where))
    device = transport.connect(spec, workshop)
    for name, precision, least in (
        *((name, "fp32", 60) for name in sorted(classics)),
        ("shufflenet_v2", "int8", 20),
    ):
        path = tmp_path / f"{name}.onnx"
        onnx.save(classics[name](networks.Net(name), 32), path)
        model = Model.load(path).with_static_shapes({}, tmp_path)
        target = Target("caffe2", precision, "board", backend.options())
        sample = networks.sample(model.proto())
        artifact = workshop.convert(model, target, [sample])
        with (
            device.session(lease=False) as session,
            session.host(artifact, target, backend, {}) as hosted,
        ):
            found = list(hosted.infer([sample]))
        assert compare(found, [Reference(model).run(sample)]).sqnr_db > least, (name, precision)
