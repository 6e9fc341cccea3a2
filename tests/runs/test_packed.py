"""A variant that shares its weights and travels packed, from the manifest to the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MANIFEST = Path(__file__).parents[2] / "manifests" / "quickstart.yaml"
TEXT = """\
wherry: 1
model:
  path: {folder}/digits.onnx
  inputs:
    input: {{preprocess: {{scale: 0.00392156862745098, mean: [0.1307], std: [0.3081]}}}}
data:
  calibration: {{source: mnist5k, slice: "0:200"}}
  evaluation: {{source: mnist5k, slice: "200:1200"}}
metrics: [top1]
variants:
  original: []
  shared: [share.kmeans: {{bits: 4}}, pack.huffman]
targets:
  - {{backend: [onnxruntime, tflite, ncnn], precision: [fp32, fp16], threads: 1}}
measure: {{rounds: 1, duration_s: 0.05}}
gates:
  - {{metric: packed_bytes, max: 60000, where: {{variant: shared}}}}
  - {{metric: top1, max_drop: 0.01}}
"""


@pytest.mark.backend
@pytest.mark.timeout(600)
def test_a_shared_variant_travels_packed(wherry_home: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(TEXT.format(folder=MANIFEST.parent))
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "wherry", "run", str(manifest), "--json", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    results = {r["name"]: r for r in json.loads(out.read_text())["results"]}
    for name, result in results.items():
        assert result["status"] == "ok", (name, result["error"])
        if result["variant"] == "original":
            assert result["packed_bytes"] is result["gzip_bytes"] is None
            continue
        least = 6 if result["target"]["precision"] == "fp32" else 3
        assert result["packed_bytes"] < result["size_bytes"] / least, name
        assert result["packed_bytes"] < 0.8 * result["gzip_bytes"], name
        assert [each["pass"] for each in result["passes"]] == ["share.kmeans", "pack.huffman"]
