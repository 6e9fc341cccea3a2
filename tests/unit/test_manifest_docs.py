"""Every example of docs/manifest.md is read by the plugins that come with wherry."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jsonschema
import pytest

from wherry.host import Host
from wherry.inventory import load_inventory
from wherry.manifest import load_manifest
from wherry.manifest.json_schema import manifest_schema
from wherry.manifest.schema import ManifestForm
from wherry.manifest.sections import MEASURED
from wherry.manifest.source import parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/manifest.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
BASE = "wherry: 1\nmodel: {path: digits.onnx}\ntargets: [backend: onnxruntime]\n"


@pytest.fixture(scope="module")
def host():
    return Host.load(plugins=())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path / "none"))
    shutil.copy(ROOT / "manifests/digits.onnx", tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split(":")[0])
def test_an_example_is_read(example, host, folder):
    """Those that are not whole go on top of the least manifest."""
    if example.startswith("devices:"):
        (folder / "devices.yaml").write_text(example)
        assert load_inventory(folder, host).devices["bench"].tags == ("desk",)
        return
    if not example.startswith("wherry:"):
        (folder / "base.yaml").write_text(BASE)
        example = "wherry: 1\ninclude: base.yaml\n" + example
    (folder / "m.yaml").write_text(example)
    assert load_manifest(folder / "m.yaml", host, env={}).rows
    validator = jsonschema.Draft202012Validator(manifest_schema(host))
    values = parse(example.replace("${", "$${"), "m.yaml", {}).plain()
    assert [error.message for error in validator.iter_errors(values)] == []


def test_the_numbers_in_the_text_are_right(host, folder):
    example = next(text for text in EXAMPLES if "graph_optimization" in text)
    least = "".join(BASE.splitlines(keepends=True)[:2])
    (folder / "m.yaml").write_text(least + example)
    backends = [target.backend for _, target in load_manifest(folder / "m.yaml", host).rows]
    assert (backends.count("onnxruntime"), backends.count("ncnn")) == (2 * 2 + 1, 2)


def test_every_section_and_metric_is_in_the_text():
    missing = [word for word in (*ManifestForm.model_fields, *MEASURED) if f"`{word}" not in TEXT]
    headings = " ".join(re.findall(r"^## (.*)$", TEXT, re.MULTILINE))
    assert [word for word in missing if word not in headings] == []
