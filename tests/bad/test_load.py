"""Bad manifests that come to light when they are read."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from wherry import errors
from wherry.host import Host
from wherry.manifest import load_manifest
from wherry.manifest.json_schema import manifest_schema
from wherry.manifest.source import parse

STAGES = {"load"}


@pytest.fixture(scope="session")
def host():
    return Host.load(plugins=())


@pytest.fixture(scope="session")
def schema(host):
    return jsonschema.Draft202012Validator(manifest_schema(host))


def test_it_is_refused_in_words_and_with_its_place(case, host):
    with pytest.raises(errors.WherryError) as caught:
        load_manifest(Path("manifest.yaml"), host, overrides=case.set)
    error = caught.value
    assert type(error).__name__ == case.error
    text = str(error)
    assert [words for words in case.says if words not in text] == [], text
    assert (error.where or "").endswith(case.where), text
    assert not Path("owned").exists()


def test_an_editor_sees_what_it_can_see(case, schema):
    try:
        values = parse(case.manifest.replace("${", "$${"), "manifest.yaml", {}).plain()
    except errors.ManifestError:
        return  # no YAML that a schema could be held against
    assert schema.is_valid(values) is not case.schema
