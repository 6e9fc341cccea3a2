"""Devices by tags in a manifest, and ``run --continue`` on the command line: what is read."""

from __future__ import annotations

import jsonschema
import pytest
from click.testing import CliRunner

from wherry.choose import with_devices
from wherry.cli import cli
from wherry.errors import ManifestError, UsageError
from wherry.manifest.json_schema import manifest_schema
from wherry.manifest.source import parse
from wherry.plan import make_plan

DEVICES = (
    "devices:\n"
    "  orin: {local: {}, tags: [jetson, fast]}\n"
    "  nano: {local: {}, tags: [jetson]}\n"
    "  pi4: {local: {}, tags: [raspberry-pi]}\n"
)
BASE = "wherry: 1\nmodel: {path: net.onnx}\n"


@pytest.fixture
def load(load_text):
    def read(device: str, more: str = ""):
        text = f"{BASE}targets: [{{backend: ncnn, device: {device}}}]\n{more}"
        return load_text(text, devices=DEVICES)

    return read


def devices(manifest) -> list[str]:
    return [target.device for target in manifest.targets]


def test_tags_stand_beside_names_and_in_any_order(load):
    found = load("[pi4, {tags: [jetson, fast]}, {tags: jetson}]")
    assert devices(found) == ["pi4", "tags:fast+jetson", "tags:jetson"]
    assert devices(load("{tags: [fast, jetson, fast]}")) == ["tags:fast+jetson"]


def test_the_same_tags_twice_are_a_target_twice(load):
    with pytest.raises(ManifestError, match="stands twice in this entry"):
        load("[{tags: [jetson, fast]}, {tags: [fast, jetson]}]")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("{tags: [jetson, fats]}", "no device has the tag 'fats'. Did you mean 'fast'?"),
        ("{tags: [fast, raspberry-pi]}", "all of the tags fast, raspberry-pi. Of them, orin has"),
        ("[pi4, {tags: []}]", "device[1] must be a name, or tags as `{tags: [...]}`"),
        ("{tag: jetson}", "must be a name, or tags"),
        ("{tags: jetson, name: orin}", "must be a name, or tags"),
        ("'tags:jetson'", "must be a name, or tags"),
        ("{tags: 3}", "must be a name, or tags"),
    ],
)
def test_what_is_wrong_with_tags(load, device: str, words: str):
    with pytest.raises(ManifestError) as caught:
        load(device)
    assert words in str(caught.value)
    assert "m.yaml:3:" in str(caught.value)


def test_exclude_and_where_speak_of_tags_as_they_are_written(load):
    found = load(
        "[orin, {tags: [jetson, fast]}]",
        "exclude: [{device: {tags: [jetson, fast]}}]\n"
        "gates: [{metric: load_ms, max: 1, where: {device: orin}}]\n",
    )
    assert devices(found) == ["orin"]
    with pytest.raises(ManifestError, match="the gate would never be looked at"):
        load("{tags: jetson}", "gates: [{metric: load_ms, max: 1, where: {device: orin}}]\n")
    with pytest.raises(ManifestError, match="no device has the tag 'slow'"):
        load("orin", "gates: [{metric: load_ms, max: 1, where: {device: [{tags: slow}]}}]\n")


def test_an_editor_takes_what_the_loader_takes(manifest_host):
    validator = jsonschema.Draft202012Validator(manifest_schema(manifest_host))

    def takes(device: str) -> bool:
        text = f"{BASE}targets: [{{backend: ncnn, device: {device}}}]\n"
        return validator.is_valid(parse(text, "m.yaml", {}).plain())

    assert takes("[pi4, {tags: [jetson, fast]}, {tags: jetson}]")
    assert takes("{tags: jetson}")
    for wrong in ("{tags: []}", "{tag: jetson}", "{tags: [3]}", "[]", "3"):
        assert not takes(wrong), wrong


def test_a_plan_holds_tags_until_a_device_is_chosen(load, manifest_host):
    read = load(
        "[orin, {tags: jetson}]",
        "gates: [{metric: load_ms, max: 1, where: {device: {tags: jetson}}}]\n",
    )
    plan = make_plan(read, manifest_host, read.inventory)
    assert [step.device for step in plan.steps.values() if step.device] == ["orin", "tags:jetson"]
    other = with_devices(read, {"tags:jetson": "nano"})
    assert devices(other) == ["orin", "nano"]
    assert other.gates[0].where.device == {"nano"}
    same = with_devices(read, {"tags:jetson": "orin"})
    assert devices(same) == ["orin"]
    assert len(same.rows) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--continue"], "there is no run yet"),
        (["--continue", "nightly"], "there is no run yet"),
        (["--continue", "last", "m.yaml"], "with its own manifest"),
        (["m.yaml", "--continue"], "with its own manifest"),
        (["--continue", "last", "--set", "seed=1"], "--set is given too"),
        (["--continue", "last", "--remeasure"], "--remeasure is given too"),
        ([], "nothing to run"),
    ],
)
def test_wrong_use_of_continue(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path))
    error = CliRunner().invoke(cli, ["run", *arguments]).exception
    assert isinstance(error, UsageError)
    assert words in str(error)
