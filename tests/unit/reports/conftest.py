"""The makers of records, and the report's JSON Schema."""

from __future__ import annotations

import copy
import json
from importlib import resources

import jsonschema
import pytest
from record_makers import Makers


@pytest.fixture(scope="session")
def make():
    """``make.result``, ``make.record``, ``make.gate``, ``make.rich``."""
    return Makers


@pytest.fixture(scope="session")
def schema() -> dict:
    """The report's JSON Schema, as it is shipped."""
    file = resources.files("wherry.reports") / "schema.json"
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def undeclared(schema):
    """What a report has that the schema does not allow or does not know."""
    strict = copy.deepcopy(schema)

    def close(node: object) -> None:
        if isinstance(node, dict):
            if "properties" in node:
                node.setdefault("additionalProperties", False)
            for inner in node.values():
                close(inner)

    close(strict)
    validator = jsonschema.Draft202012Validator(strict)

    def find(values: object) -> list[str]:
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)]

    return find


@pytest.fixture(autouse=True)
def still_pages(monkeypatch):
    """Pages without the charts' library, whose scripts the tests of the browser run."""
    monkeypatch.setattr("wherry.reports.page.charts.library", lambda: None)
