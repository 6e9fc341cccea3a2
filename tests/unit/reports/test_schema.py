"""The report's JSON Schema is true, whole, and what docs/report-json.md says."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest

DOCS = Path(__file__).parents[3] / "docs/report-json.md"
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]*) \| (.+) \|$", re.MULTILINE)


def test_the_schema_is_one(schema):
    jsonschema.Draft202012Validator.check_schema(schema)


def test_a_record_of_everything_is_declared(make, undeclared):
    assert undeclared(make.rich().values) == []


@pytest.mark.parametrize(
    "path",
    [(), ("results", 0), ("results", 0, "latency"), ("results", 0, "target"), ("gates", 0)],
    ids=str,
)
def test_an_undeclared_field_is_found_and_a_missing_one_too(make, undeclared, schema, path):
    values = copy.deepcopy(make.rich().values)
    node = values
    for key in path:
        node = node[key]
    node["surprise"] = 1
    assert any("surprise" in text for text in undeclared(values))
    del node["surprise"]
    assert jsonschema.Draft202012Validator(schema).is_valid(values)
    for key in list(node):
        kept = node.pop(key)
        assert not jsonschema.Draft202012Validator(schema).is_valid(values), key
        node[key] = kept


def test_a_reader_of_today_takes_the_fields_of_tomorrow(make, schema):
    values = copy.deepcopy(make.rich().values)
    values["tomorrow"] = values["results"][0]["tomorrow"] = {"any": "thing"}
    jsonschema.Draft202012Validator(schema).validate(values)


def test_not_measured_is_null_and_not_a_number(make, schema):
    values = copy.deepcopy(make.rich().values)
    values["results"][0]["latency"]["p90_ms"] = None
    jsonschema.Draft202012Validator(schema).validate(values)
    values["results"][0]["latency"]["median_ms"] = None
    assert not jsonschema.Draft202012Validator(schema).is_valid(values)


def fields(node: dict, path: str = ""):
    """(path, type, unit, description) of each field below a node."""
    for name, inner in node.get("properties", {}).items():
        yield from described(inner, f"{path}.{name}" if path else name)
    extra = node.get("additionalProperties")
    if extra:
        yield from described(extra, f"{path}.*")
    if "items" in node:
        yield from described(node["items"], f"{path}[]")


def described(node: dict, path: str):
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    yield path, " or ".join(kinds), node.get("unit", ""), node["description"]
    yield from fields(node, path)


def test_the_docs_say_of_every_field_what_the_schema_says(schema):
    written = [
        tuple(cell.replace("\\|", "|").strip() for cell in row)
        for row in ROW.findall(DOCS.read_text(encoding="utf-8"))
    ]
    assert written == list(fields(schema))


def test_the_examples_of_the_docs_run(make, tmp_path, monkeypatch, capsys, schema):
    text = DOCS.read_text(encoding="utf-8")
    load, query = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(load, names)
    assert names["schema"] == schema
    monkeypatch.chdir(tmp_path)
    Path("report.json").write_text(json.dumps(make.rich().values))
    exec(query, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "slim, tflite int8 on pi4 no int8 GRU"
    assert lines[-1].startswith("original, ncnn fp32 on orin 0.0071 [")
