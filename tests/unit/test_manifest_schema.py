"""The JSON Schema: what it offers to an editor, and that it says what the loader says."""

from __future__ import annotations

import json

import jsonschema
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from wherry.cli import cli
from wherry.cli.schema import schema
from wherry.errors import ManifestError, PluginError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.manifest.json_schema import manifest_schema
from wherry.manifest.source import parse
from wherry.passes import Pass

BASE = "wherry: 1\nmodel: {path: net.onnx}\n"
SHORT = BASE + "targets: [{backend: onnxruntime}]\n"
DATA = "data: {evaluation: {source: digits}, calibration: {source: digits}}\n"

GOOD = {
    "short": SHORT,
    "options": BASE + "targets: [{backend: [ncnn, onnxruntime], precision: fp16, threads: [1, 2], "
    "ncnn: {winograd: [true, false], cores: [[1], [2, 3]], mode: small, threads: 3}}]\n",
    "a list for an option that takes one": BASE
    + "targets: [{backend: ncnn, ncnn: {cores: [1, 2]}}]\n",
    "passes": SHORT + DATA + "variants: {original: [], a: [simplify, simplify: , simplify: {}, "
    "prune.filters: {macs: 0.5, widths: [1]}]}\n",
    "data": SHORT + 'data: {evaluation: {source: npz, path: a, labels: y, slice: "1:"}}\n',
    "metrics": SHORT + DATA + "metrics: [top1, sqnr: , sqnr: {output: a}]\n"
    "gates: [{metric: sqnr.a, max_drop: 2%}, {metric: load_ms, min: 1, max: 2.5}]\n",
    "comparing gates": SHORT + "gates: [{metric: size_bytes, max_increase: 5 kB, against: b.json, "
    "allow: [board]}, {metric: latency.median_ms, min_speedup: 2, against: 'tag:a'}]\n",
    "zoo": "wherry: 1\nmodel: {zoo: {name: mini, macs: 0.5}}\ntargets: [backend: ncnn]\n",
    "inputs": SHORT.replace(
        "}\n", ", inputs: {x: {shape: [1, 3], preprocess: {scale: 1, mean: [1, 2]}}}}\n", 1
    ),
    "exclude": BASE + "targets: [{backend: [ncnn, onnxruntime]}]\n"
    "exclude: [{backend: ncnn, device: local, precision: [fp32]}]\n",
    "the rest": SHORT + "measure: {rounds: 1}\nlimits: {time_s: 1.5, memory_mb: 64}\nseed: 3\n"
    "parity: {samples: 0, thresholds: {int8: {sqnr_db: 1, cosine: 0}}}\n",
    "calibrate": SHORT + "calibrate: {method: percentile, percentile: 99}\n",
    "variables": "wherry: 1\nmodel: {path: '${X:-net.onnx}'}\nseed: ${X:-5}\n"
    "measure: {rounds: ${X:-5}}\n"
    "targets: [{backend: '${X:-ncnn}', threads: ['${X:-1}'], ncnn: {winograd: '${X:-true}'}}]\n"
    "gates: [{metric: '${X:-load_ms}', max: '${X:-5}'}]\n".replace(
        "{rounds: $", "\n  rounds: $"
    ).replace("5}}\n", "5}\n"),
}

# Each is wrong in its structure: an editor can tell without reading anything else.
BAD = {
    "no targets": BASE,
    "version": SHORT.replace("1", "2", 1),
    "unknown key": SHORT + "gate: []\n",
    "path and zoo": SHORT.replace("}", ", zoo: {name: mini, macs: 1}}", 1),
    "no model": SHORT.replace("path: net.onnx", ""),
    "unknown backend": SHORT.replace("onnxruntime", "onxruntime"),
    "unknown option": BASE + "targets: [{backend: ncnn, ncnn: {winogrd: true}}]",
    "option of the wrong type": BASE + "targets: [{backend: ncnn, ncnn: {winograd: [true, 1]}}]",
    "empty list": BASE + "targets: [{backend: []}]",
    "unknown precision": BASE + "targets: [{backend: ncnn, precision: fp61}]",
    "no threads": BASE + "targets: [{backend: ncnn, threads: 0}]",
    "text for a number": SHORT + "seed: '1'\n",
    "unknown role": SHORT + "data: {test: {source: digits}}",
    "unknown source": SHORT + "data: {evaluation: {source: digit}}",
    "another source's key": SHORT + "data: {evaluation: {source: digits, path: a}}",
    "a source's key is missing": SHORT + "data: {evaluation: {source: npz}}",
    "slice": SHORT + "data: {evaluation: {source: digits, slice: '1-2'}}",
    "unknown metric": SHORT + DATA + "metrics: [top]",
    "two metrics in one": SHORT + DATA + "metrics: [{top1: , sqnr: }]",
    "unknown pass": SHORT + "variants: {a: [simplfy]}",
    "a pass without its parameters": SHORT + DATA + "variants: {a: [prune.filters]}",
    "a parameter beyond its bounds": SHORT + DATA + "variants: {a: [prune.filters: {macs: 2}]}",
    "original with a pass": SHORT + "variants: {original: [simplify]}",
    "a variant's name": SHORT + "variants: {a/b: []}",
    "gate against what is none": SHORT
    + "gates: [{metric: size_bytes, max_increase: 5%, against: lst}]",
    "gate that allows what is no reason": SHORT
    + "gates: [{metric: size_bytes, max_increase: 5%, against: last, allow: weather}]",
    "gate without a bound": SHORT + "gates: [{metric: load_ms}]",
    "gate of nothing": SHORT + "gates: [{metric: load, max: 1}]",
    "where of nothing": SHORT + "gates: [{metric: load_ms, max: 1, where: {}}]",
    "percent": SHORT + "gates: [{metric: load_ms, max_drop: 2 %}]",
    "rounds": SHORT + "measure: {rounds: 0}",
    "method of calibration": SHORT + "calibrate: {method: kl}",
    "percentile": SHORT + "calibrate: {method: percentile, percentile: 101}",
    "threshold": SHORT + "parity: {thresholds: {fp16: {sqnr_db: 1}}}",
    "nothing": SHORT + "gates: ",
    "layout": SHORT.replace("}", ", inputs: {x: {preprocess: {layout: hwc}}}}", 1),
}  # fmt: skip


@pytest.fixture(scope="session")
def validator(manifest_host):
    made = manifest_schema(manifest_host)
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def as_an_editor_reads_it(text):
    """The values before variables are put in: an editor knows no environment."""
    marked = text.replace("${", "$${")
    return parse(marked, "m.yaml", {}).plain()


@pytest.mark.parametrize("name", GOOD)
def test_both_take_what_is_right(load_text, validator, name):
    load_text(GOOD[name])
    assert [
        error.message for error in validator.iter_errors(as_an_editor_reads_it(GOOD[name]))
    ] == []


@pytest.mark.parametrize("name", BAD)
def test_both_refuse_what_is_wrong(load_text, validator, name):
    with pytest.raises(ManifestError):
        load_text(BAD[name])
    assert not validator.is_valid(as_an_editor_reads_it(BAD[name]))


def test_a_file_that_includes_others_need_not_hold_everything(validator):
    assert validator.is_valid({"wherry": 1, "include": "base.yaml"})


def test_every_key_says_what_it_is(manifest_host):
    made = manifest_schema(manifest_host)
    silent = [
        f"{name}.{key}"
        for name, part in [("", made), *made["$defs"].items()]
        for key, below in part.get("properties", {}).items()
        if "description" not in below and name != "PruneParameters"
    ]
    assert silent == []


def test_the_plugins_descriptions_are_in_it(manifest_host):
    options = manifest_schema(manifest_host)["$defs"]["TargetForm"]["properties"]["ncnn"]
    assert options["properties"]["winograd"]["description"] == "winograd kernels"
    assert options["properties"]["threads"]["description"] == "threads of the runtime"


def test_a_host_without_plugins_has_one():
    made = manifest_schema(Host.load(builtins=False, plugins=()))
    jsonschema.Draft202012Validator.check_schema(made)
    assert not jsonschema.Draft202012Validator(made).is_valid(parse(SHORT, "m", {}).plain())


def test_a_model_that_json_cannot_describe_is_the_plugins_fault():
    class Odd(BaseModel, arbitrary_types_allowed=True):
        value: type(lambda: 0)

    class Plugin:
        @hookimpl
        def wherry_passes(self):
            yield Pass("odd", "", Odd)

    host = Host.load(builtins=False, plugins=(), extra=[Plugin()])
    with pytest.raises(PluginError, match="pass odd: Odd cannot be described by a JSON Schema"):
        manifest_schema(host)


def test_the_verb_writes_what_the_function_returns(tmp_path):
    path = tmp_path / "schema.json"
    made = schema(path)
    assert json.loads(path.read_text()) == made
    assert list(tmp_path.iterdir()) == [path]
    printed = CliRunner().invoke(cli, ["schema"])
    assert json.loads(printed.stdout) == made


def test_the_verb_says_where_it_cannot_write(tmp_path):
    with pytest.raises(Exception, match="No such file or directory"):
        schema(tmp_path / "none" / "schema.json")
