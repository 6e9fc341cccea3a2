"""manifests/compress.yaml: it plans as it stands; Deep Compression's stages run, much reduced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chromium import look_at_report
from ruamel.yaml import YAML

MANIFEST = Path(__file__).parents[2] / "manifests" / "compress.yaml"


def wherry(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "wherry", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def shortened(value: Any) -> Any:
    """The same with one epoch wherever something is trained."""
    if isinstance(value, dict):
        return {k: 1 if k == "epochs" else shortened(each) for k, each in value.items()}
    return [shortened(each) for each in value] if isinstance(value, list) else value


def test_it_plans(wherry_home: Path) -> None:
    plan = json.loads(wherry("plan", MANIFEST, "--json"))
    assert len(plan["rows"]) == 42
    variants = {row["variant"] for row in plan["rows"]}
    assert variants == set(YAML(typ="safe").load(MANIFEST)["variants"])
    brings = plan["passes"]
    assert all(set(each) == {"onnxruntime", "tflite", "ncnn"} for each in brings.values())
    assert "no speed" in brings["share.ecsq"]["ncnn"] == brings["share.ecsq"]["tflite"]
    assert "Winograd" in brings["lowrank.channel-svd"]["ncnn"]
    foretold = {name: each["words"] for name, each in plan["variants"].items()}
    assert foretold["original"] == ""
    assert "of the multiplications are asked for; how much is sent" in foretold["pruned"]
    assert "sent to boards in fp32, instead of 365.1 kB" in foretold["deep"]


@pytest.fixture(scope="module")
def deep(kept_home: Path) -> dict[str, Any]:
    """The report of Deep Compression's stages beside the original; its HTML is beside it."""
    pytest.importorskip("torch", reason="torch is not installed")
    manifest = shortened(YAML(typ="safe").load(MANIFEST))
    manifest["model"]["path"] = str(MANIFEST.parent / "digits.onnx")
    manifest["data"]["training"] = {"source": "mnist5k", "slice": "0:200"}
    manifest["data"]["evaluation"]["slice"] = "200:1200"
    manifest["variants"] = {name: manifest["variants"][name] for name in ("original", "deep")}
    manifest["targets"] = [{"backend": "onnxruntime", "precision": "fp32", "threads": 1}]
    manifest["measure"] = {"rounds": 1, "duration_s": 0.05}
    del manifest["gates"]
    YAML().dump(manifest, kept_home / "manifest.yaml")
    files = ("--json", kept_home / "report.json", "--html", kept_home / "report.html")
    wherry("run", kept_home / "manifest.yaml", *files)
    report: dict[str, Any] = json.loads((kept_home / "report.json").read_text())
    return report


@pytest.mark.torch
@pytest.mark.backend
@pytest.mark.timeout(600)
def test_pruned_shared_and_coded_each_trained(deep: dict[str, Any]) -> None:
    original, result = deep["results"]
    assert result["status"] == "ok", result["error"]
    assert 20 * result["packed_bytes"] < original["size_bytes"]
    names = ["prune.weights-trained", "fit", "share.kmeans", "pack.huffman"]
    assert [each["pass"] for each in result["passes"]] == names
    shared = result["passes"][2]
    assert shared["trained"]["steps"] and max(r["values"] for r in shared["layers"].values()) <= 8


@pytest.mark.torch
@pytest.mark.backend
@pytest.mark.browser
@pytest.mark.timeout(600)
def test_its_report_in_chromium(deep: dict[str, Any], kept_home: Path, opened) -> None:
    look_at_report(opened, kept_home / "report.html", deep)
