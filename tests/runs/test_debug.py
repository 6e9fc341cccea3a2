"""``wherry debug layers`` on three backends: a layer that int8 ruins is named, and found alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import poisoned
import pytest

from wherry import api
from wherry.host import Host

pytestmark = pytest.mark.backend


@pytest.mark.parametrize("backend", ["onnxruntime", "tflite", "ncnn"])
@pytest.mark.usefixtures("wherry_home")
def test_the_poisoned_layer_is_named_first_and_found_alone(backend: str, tmp_path: Path):
    if Host.load().backends[backend].expose is None:
        pytest.skip(f"{backend} does not show what its layers give")
    manifest = poisoned.write(tmp_path, backend)
    values = api.debug_layers(manifest, bisect=True)
    first = values["layers"][0]
    assert poisoned.POISONED in first["nodes"], [row["nodes"] for row in values["layers"]]
    assert first["share"] > 0.9
    assert first["own"]["sqnr_db"] < 3
    search = values["bisect"]
    assert search["tries"][0]["metrics"]["agreement"] < 0.9  # as it is
    assert search["found"]["nodes"] == [poisoned.POISONED]
    assert search["found"]["metrics"]["agreement"] >= 0.99
    assert values["keep_fp32"] == [poisoned.POISONED]


@pytest.mark.parametrize("backend", ["onnxruntime", "tflite", "ncnn"])
def test_the_layers_of_a_model_that_comes_quantised(
    backend: str, tmp_path: Path, wherry_home: Path
):
    manifest = poisoned.write(tmp_path, "onnxruntime", poisoned=False)
    quick = "measure: {rounds: 1, duration_s: 0.1, warmup_s: 0}\n"
    manifest.write_text(manifest.read_text() + quick)
    (result,) = api.run(manifest).values["results"]
    assert result["status"] == "ok", result["error"]
    quantised = next(
        path
        for path in wherry_home.glob("store/**/*.onnx")
        if any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
    )
    shutil.copy(quantised, tmp_path / "net.onnx")
    manifest.write_text(manifest.read_text().replace("[onnxruntime]", f"[{backend}]"))
    rows = api.debug_layers(manifest)["layers"]
    seen = {node for row in rows for node in row["nodes"]}
    assert {"conv1", "conv2", "conv3", "conv4", "conv5", "fc"} <= seen, rows
    assert all(row["own"]["sqnr_db"] > 20 for row in rows if "conv3" in row["nodes"]), rows


@pytest.mark.usefixtures("wherry_home")
def test_what_is_printed_can_be_pasted_and_the_run_is_then_as_good(tmp_path: Path):
    manifest = poisoned.write(tmp_path, "onnxruntime")
    (spoilt,) = api.run(manifest).values["results"]
    assert spoilt["status"] == "failed"  # parity
    keep = api.debug_layers(manifest)["keep_fp32"]
    text = manifest.read_text().replace("precision: int8", f"precision: int8, keep_fp32: {keep}")
    manifest.write_text(text + "measure: {rounds: 1, duration_s: 0.1, warmup_s: 0}\n")
    (mended,) = api.run(manifest).values["results"]
    assert mended["status"] == "ok", mended["error"]
    assert mended["metrics"]["agreement"] >= 0.99
