"""Manifests: what they stand for once they are read, and how they go together."""

from __future__ import annotations

import math
import pickle
import time
from pathlib import Path

import pytest
from manifest_texts import BASE, DATA, SHORT, refusal, rows

from wherry.calibration import CalibrationSettings
from wherry.errors import ManifestError, UsageError
from wherry.manifest import Drop

# What a whole manifest becomes


def test_the_least_manifest_has_defaults(load_text, tmp_path):
    manifest = load_text(SHORT)
    assert manifest.path == tmp_path / "m.yaml"
    assert manifest.base == tmp_path
    assert manifest.text == SHORT
    assert manifest.model.path == tmp_path / "net.onnx"
    assert rows(manifest) == [("original", "onnxruntime-fp32-local")]
    assert manifest.variants == {"original": ()}
    assert manifest.calibrate == CalibrationSettings("minmax")
    assert manifest.measure.rounds == 5
    assert manifest.parity.samples == 8
    assert manifest.limits.memory_bytes == 8 << 30
    assert (manifest.gates, manifest.metrics, manifest.data) == ((), (), {})


def test_every_section(load_text):
    manifest = load_text(
        BASE.replace("}", ", inputs: {x: {shape: [1, 3, 8, 8], preprocess: {scale: 2, std: [3]}}}}")
        + """
data:
  evaluation: {source: npz, path: a/b.npz, labels: y, slice: "200:"}
  calibration: {source: digits, slice: ":200"}
metrics: [top1, sqnr: {output: boxes}, sqnr: {}]
variants:
  original: []
  slim:
    - prune.filters: {macs: 0.5, widths: [8, 16]}
    - simplify
    - simplify:
targets: [{backend: onnxruntime, variants: slim}]
gates: [{metric: sqnr.boxes, max_drop: "2.5%"}, {metric: load_ms, min: 1, max: 2}]
calibrate: {method: percentile, percentile: 99.9}
measure: {rounds: 5, duration_s: 2}
parity: {samples: 0, thresholds: {fp16: {sqnr_db: 25, cosine: 0.5}}}
limits: {time_s: 60, memory_mb: 1024}
seed: 7
"""
    )
    assert manifest.model.shapes == {"x": (1, 3, 8, 8)}
    assert manifest.model.preprocess == {"x": {"scale": 2.0, "std": [3.0]}}
    evaluation = manifest.data["evaluation"]
    assert evaluation.parameters.model_dump() == {"path": Path("a/b.npz"), "labels": "y"}
    assert (evaluation.source, evaluation.slice) == ("npz", (200, None))
    assert evaluation.location == "m.yaml:5:3"
    assert manifest.data["calibration"].slice == (None, 200)
    assert [metric.key for metric in manifest.metrics] == ["top1", "sqnr.boxes", "sqnr"]
    assert [step.name for step in manifest.variants["slim"]] == [
        "prune.filters",
        "simplify",
        "simplify",
    ]
    pruned = manifest.variants["slim"][0].parameters
    assert pruned.model_dump() == {"macs": 0.5, "widths": [8, 16]}
    assert rows(manifest) == [("slim", "onnxruntime-fp32-local")]
    percent, band = manifest.gates
    assert percent.max_drop == Drop(0.025, relative=True)
    assert (band.min, band.max, band.location) == (1.0, 2.0, "m.yaml:15:49")
    assert percent.text == "sqnr.boxes max_drop 2.5%"
    assert manifest.calibrate == CalibrationSettings("percentile", 99.9)
    assert (manifest.measure.rounds, manifest.measure.seed, manifest.seed) == (5, 7, 7)
    assert manifest.parity.thresholds["fp16"].sqnr_db == 25
    assert (manifest.limits.time_s, manifest.limits.memory_bytes) == (60, 1 << 30)


def test_a_network_design_instead_of_a_file(load_text):
    manifest = load_text(
        "wherry: 1\nmodel: {zoo: {name: mini, macs: 1}}\ntargets: [backend: ncnn]\n"
    )
    assert manifest.model.path is None
    assert manifest.model.zoo == "mini"
    assert manifest.model.zoo_parameters.model_dump() == {"macs": 1.0, "widths": [8]}


def test_locations(load_text):
    manifest = load_text(SHORT + DATA)
    assert manifest.location("data", "evaluation", "source") == "m.yaml:4:21"
    assert manifest.location("targets", 0) == "m.yaml:3:11"
    assert manifest.location("model", "inputs", "x") == "m.yaml:2:1"
    assert manifest.location("gates") == "m.yaml:1:1"


def test_a_manifest_travels_to_another_process(load_text):
    manifest = load_text(SHORT + DATA)
    again = pickle.loads(pickle.dumps(manifest))
    assert again == manifest
    assert again.location("data") == manifest.location("data")


# Files that include files


def test_the_includer_wins_and_mappings_merge(load_text):
    manifest = load_text(
        "wherry: 1\ninclude: [common/a, b.yaml]\nmeasure: {rounds: 9}\n".replace("a,", "a.yaml,"),
        **{
            "common/a": "include: more.yaml\nmodel: {path: net.onnx}\n"
            "measure: {rounds: 1, min_runs: 2}\n",
            "common/more": "targets: [{backend: ncnn}]\nseed: 1\n",
            "b": "seed: 2\ntargets: [{backend: onnxruntime}]\n",
        },
    )
    assert (manifest.measure.rounds, manifest.measure.min_runs, manifest.seed) == (9, 2, 2)
    assert [target.backend for target in manifest.targets] == ["onnxruntime"]
    assert [file.name for file in manifest.files] == ["m.yaml", "a.yaml", "more.yaml", "b.yaml"]
    assert manifest.location("model", "path") == "common/a.yaml:2:9"
    assert "include" not in manifest.merged


def test_a_file_may_be_included_twice(load_text):
    load_text(
        "wherry: 1\ninclude: [a.yaml, b.yaml]\n",
        a="include: c.yaml\n",
        b="include: c.yaml\n",
        c="model: {path: net.onnx}\ntargets: [backend: ncnn]\n",
    )


def test_a_circle_shows_the_chain(load_text):
    text = refusal(
        load_text, SHORT + "include: a.yaml\n", a="include: b.yaml", b="\ninclude: ./m.yaml"
    )
    assert text.startswith("b.yaml:2:1: ")
    assert "m.yaml -> a.yaml -> b.yaml -> m.yaml" in text


def test_an_include_that_is_not_there(load_text):
    text = refusal(load_text, SHORT + "include:\n  - a.yaml\n")
    assert text.startswith("m.yaml:5:5: there is no file a.yaml")


# The environment


def test_variables_take_the_type_that_they_look_like(load_text):
    manifest = load_text(
        "wherry: 1\nmodel: {path: '${NET}.onnx'}\nseed: ${SEED}\n"
        "targets: [{backend: '${BACKEND:-ncnn}', threads: '${THREADS}'}]\n",
        env={"NET": "net", "SEED": "5", "THREADS": "3", "BACKEND": ""},
    )
    assert manifest.seed == 5
    assert manifest.targets[0].backend == "ncnn"
    assert manifest.targets[0].options.threads == 3


def test_a_tag_keeps_text_and_two_dollars_make_one(load_text):
    manifest = load_text(
        SHORT + "data: {evaluation: {source: npz, path: '$$HOME/$x', labels: !!str '${N}'}}\n",
        env={"N": "5"},
    )
    parameters = manifest.data["evaluation"].parameters
    assert (parameters.path, parameters.labels) == (Path("$HOME/$x"), "5")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${GONE}", "the environment variable GONE is not set"),
        ("a${GONE}b", "${GONE:-value}"),
        ("${}", "'${}' is not ${NAME} nor ${NAME:-default}"),
        ("${A-b}", "is not ${NAME}"),
        ("x${A", "Write $$ for a dollar sign"),
    ],
)
def test_variables_that_cannot_be_put_in(load_text, value, says):
    text = refusal(load_text, f"wherry: 1\nmodel:\n  path: '{value}'\n")
    assert text.startswith("m.yaml:3:9: ")
    assert says in text


# The command line's overrides


def test_overrides_reach_lists_and_make_mappings(load_text):
    manifest = load_text(
        SHORT + "variants: {a: [prune.filters: {macs: 1}]}\n" + DATA,
        overrides=[
            "targets.0.threads=[1, 2]",
            "measure.rounds=7",
            r"variants.a.0.prune\.filters.macs=0.25",
            "model={path: net.onnx}",
        ],
    )
    assert [target.options.threads for target in manifest.targets] == [1, 2]
    assert manifest.measure.rounds == 7
    assert manifest.variants["a"][0].parameters.macs == 0.25
    assert manifest.location("measure", "rounds") == "--set measure.rounds=7"
    assert manifest.text == SHORT + "variants: {a: [prune.filters: {macs: 1}]}\n" + DATA


def test_an_override_that_is_wrong_is_named(load_text):
    with pytest.raises(ManifestError, match=r"^--set measure\.round=7: unknown key 'round'"):
        load_text(SHORT, overrides=["measure.round=7"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "is not KEY.PATH=VALUE"),
        ("a..b=1", "is not KEY.PATH=VALUE"),
        ("targets.1.threads=1", "Its items are 0 to 0"),
        ("targets.x=1", "names no item"),
        ("seed.x=1", "there is no 'x' below the value at m.yaml:4:1"),
        ("include=a", "already done"),
    ],
)
def test_an_override_that_reaches_nothing(load_text, override, says):
    with pytest.raises(UsageError) as caught:
        load_text(SHORT + "seed: 1\n", overrides=[override])
    assert says in str(caught.value)


# Everything that is wrong at once


def test_all_problems_are_told_in_the_order_of_the_file(load_text):
    text = refusal(
        load_text,
        """wherry: 1
model: {path: gone.onnx}
metrics: [top1]
targets:
  - {backend: onxruntime}
  - {backend: ncnn, threads: 0, ncnn: {winograd: 3}}
  - {backend: ncnn, ncnn: {winograd: 3, modus: fast}}
gates:
  - {metric: top5, min: 1}
""",
    )
    assert [line.split(": ")[0] for line in text.splitlines()] == [
        "m.yaml:2:9",
        "m.yaml:3:1",
        "m.yaml:5:6",
        "m.yaml:6:21",
        "m.yaml:7:28",
        "m.yaml:7:41",
        "m.yaml:9:6",
    ]
    assert "unknown backend 'onxruntime'. Did you mean 'onnxruntime'?" in text
    assert "ncnn.winograd must be true or false; found 3" in text


def test_a_hundred_problems_are_not_all_told(load_text):
    text = refusal(load_text, SHORT + "".join(f"x{number}: 1\n" for number in range(100)))
    assert len(text.splitlines()) == 41
    assert text.endswith("and 60 more")


def test_what_a_plugin_forgot_to_forbid_is_an_error_all_the_same(load_text):
    text = refusal(load_text, SHORT + "data: {evaluation: {source: npz, path: a, label: y}}")
    assert "unknown key 'label'. Did you mean 'labels'?" in text


def test_text_is_no_number(load_text):
    assert "seed must be a whole number; found '1'" in refusal(load_text, SHORT + "seed: '1'")
    assert math.isclose(load_text(SHORT + "limits: {time_s: 60}").limits.time_s, 60.0)


def test_a_thousand_targets_load_quickly(load_text):
    entries = "".join(
        f"  - {{backend: ncnn, threads: {n}, ncnn: {{winograd: true}}}}\n" for n in range(1, 501)
    )
    text = BASE + "targets:\n" + entries
    text += f"  - {{backend: onnxruntime, threads: {list(range(1, 501))}}}\n"
    begin = time.process_time()
    manifest = load_text(text)
    assert time.process_time() - begin < 1.0
    assert len(manifest.rows) == 1000
