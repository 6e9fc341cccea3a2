"""``wherry debug layers`` on three backends: a layer that int8 ruins is named, and found alone."""

from __future__ import annotations

from pathlib import Path

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
