"""Manifests: what they stand for once they are read, and how they go together."""

from __future__ import annotations

import math
import pickle
import time
from pathlib import Path

import pytest

from wherry.calibration import CalibrationSettings
from wherry.errors import ManifestError, UsageError
from wherry.keep import Operator
from wherry.manifest import Drop

BASE = "wherry: 1\nmodel: {path: net.onnx}\n"
SHORT = BASE + "targets: [{backend: onnxruntime}]\n"
DATA = "data: {evaluation: {source: digits}, calibration: {source: digits}}\n"


def rows(manifest):
    return [(variant, target.id) for variant, target in manifest.rows]


def refusal(load_text, text, **arguments):
    with pytest.raises(ManifestError) as caught:
        load_text(text, **arguments)
    return str(caught.value)


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


# Targets


def test_lists_multiply(load_text):
    manifest = load_text(
        BASE
        + "targets: [{backend: [onnxruntime, ncnn], precision: [fp32, fp16], threads: [1, 2],"
        + " ncnn: {winograd: [true, false], cores: [[0], [1, 2]], mode: small}}]"
    )
    found = [
        (
            target.backend,
            target.precision,
            target.options.threads,
            getattr(target.options, "winograd", None),
            getattr(target.options, "cores", None),
        )
        for target in manifest.targets
    ]
    plain = [
        ("onnxruntime", precision, threads, None, None)
        for precision in ("fp32", "fp16")
        for threads in (1, 2)
    ]
    many = [
        ("ncnn", precision, threads, winograd, cores)
        for precision in ("fp32", "fp16")
        for threads in (1, 2)
        for winograd in (True, False)
        for cores in ([0], [1, 2])
    ]
    assert found == plain + many
    assert len({target.id for target in manifest.targets}) == len(found)


def test_an_option_that_takes_a_list_takes_one(load_text):
    manifest = load_text(BASE + "targets: [{backend: ncnn, ncnn: {cores: [0, 1]}}]")
    assert [target.options.cores for target in manifest.targets] == [[0, 1]]


def test_a_backends_block_has_the_last_word_on_threads(load_text):
    manifest = load_text(
        BASE + "targets: [{backend: [onnxruntime, ncnn], threads: 4, ncnn: {threads: [1, 2]}}]"
    )
    assert [target.options.threads for target in manifest.targets] == [4, 1, 2]


def test_exclude_takes_out_before_precisions_are_judged(load_text):
    manifest = load_text(
        BASE
        + "targets: [{backend: [onnxruntime, ncnn], precision: [fp32, bf16, fp16]}]\n"
        + "exclude: [{precision: bf16}, {backend: ncnn, threads: 1, precision: [fp16, bf16]}]\n"
    )
    assert [target.id for target in manifest.targets] == [
        "onnxruntime-fp32-local",
        "onnxruntime-fp16-local",
        "ncnn-fp32-local",
    ]


def test_variants_are_outermost_and_can_be_chosen(load_text):
    manifest = load_text(
        BASE
        + "variants: {original: [], a: [simplify], b: [simplify]}\n"
        + "targets: [{backend: ncnn, variants: [b, original]}, {backend: onnxruntime}]\n"
        + "exclude: [{variant: a, backend: onnxruntime}]\n"
    )
    assert rows(manifest) == [
        ("original", "ncnn-fp32-local"),
        ("original", "onnxruntime-fp32-local"),
        ("b", "ncnn-fp32-local"),
        ("b", "onnxruntime-fp32-local"),
    ]
    assert len(manifest.targets) == 2


def test_one_target_may_serve_variants_of_two_entries(load_text):
    manifest = load_text(
        BASE
        + "variants: {a: [], b: []}\n"
        + "targets: [{backend: ncnn, variants: a}, {backend: ncnn, variants: b}]\n"
    )
    assert rows(manifest) == [("a", "ncnn-fp32-local"), ("b", "ncnn-fp32-local")]
    assert len(manifest.targets) == 1


def test_a_double_names_both_lines(load_text):
    text = refusal(
        load_text,
        BASE + "targets:\n- backend: [ncnn, onnxruntime]\n- {backend: ncnn, threads: 1}\n",
    )
    assert text.startswith("m.yaml:5:3: variant original with ncnn fp32 on local")
    assert "here and at m.yaml:4:3" in text


def test_a_refused_precision_says_why(load_text):
    text = refusal(load_text, BASE + "targets: [{backend: [ncnn, onnxruntime], precision: bf16}]")
    assert "onnxruntime does not offer bf16: it has no bfloat16 kernels on a CPU" in text
    assert "ncnn does not offer bf16. It offers fp32, fp16, int8." in text


def test_lists_that_multiply_beyond_reason_are_refused(load_text):
    numbers = list(range(1, 1001))
    cores = [[number] for number in numbers]
    text = refusal(
        load_text,
        BASE + f"targets: [{{backend: ncnn, threads: {numbers}, ncnn: {{cores: {cores}}}}}]",
    )
    assert "multiply to 1000000 rows" in text
    one = f"{{backend: onnxruntime, threads: {numbers}}}"
    assert "multiply to 1000 rows. A manifest may have 20000 in all" in refusal(
        load_text, BASE + f"targets: [{', '.join([one] * 21)}]"
    )


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


# Gates


def test_gates_know_their_rows(load_text):
    manifest = load_text(
        BASE
        + "targets: [{backend: [ncnn, onnxruntime], threads: [1, 2]}]\n"
        + "gates: [{metric: latency.median_ms, max: 5, where: {backend: ncnn, threads: [2]}}]\n"
    )
    (gate,) = manifest.gates
    assert gate.text == "latency.median_ms max 5 where backend ncnn and threads 2"
    matched = [row for row in manifest.rows if gate.where.matches(*row)]
    assert [target.id for _, target in matched] == ["ncnn-fp32-local-t2"]


@pytest.mark.parametrize("name", ["nan", ".nan", ".inf", "-1"])
def test_no_gate_without_a_bound_that_means_something(load_text, name):
    assert "gates[0].max_drop must be" in refusal(
        load_text, SHORT + f"gates: [{{metric: load_ms, max_drop: {name}}}]"
    )


def test_gates_contradict_only_where_they_overlap(load_text):
    two = "targets: [{backend: [ncnn, onnxruntime]}]\n"
    gates = "gates: [{metric: load_ms, min: 5, where: {backend: ncnn}}, "
    load_text(BASE + two + gates + "{metric: load_ms, max: 4, where: {backend: onnxruntime}}]")
    text = refusal(load_text, BASE + two + gates + "{metric: load_ms, max: 4}]")
    assert "at least 5 (m.yaml:4:9) and at most 4 (m.yaml:4:60)" in text


RIGHT_GATES = {
    "{metric: latency.median_ms, max_increase: 5%, against: b.json}": "increase 5% against b.json",
    "{metric: latency.median_ms, max_increase: 0.2 ms, against: 'tag:v1'}": "0.2 ms against tag:v1",
    "{metric: size_bytes, max_increase: 1.5 kB, against: last}": "max_increase 1.5 kB against last",
    "{metric: energy_mj, max_increase: 0.5, against: best}": "max_increase 0.5 against best",
    "{metric: latency.median_ms, min_speedup: 1.5}": "min_speedup 1.5",
    "{metric: latency.median_ms, max_increase: 0, against: fp32}": "max_increase 0 against fp32",
    "{metric: peak_memory_bytes, max_increase: 1, against: last, allow: [board, not-clean]}":
        "against last allow board|not-clean",
}  # fmt: skip


@pytest.mark.parametrize("written", RIGHT_GATES)
def test_a_gate_may_compare(load_text, written):
    (gate,) = load_text(SHORT + f"gates: [{written}]").gates
    assert RIGHT_GATES[written] in gate.text


def test_a_gate_knows_what_it_compares_with(load_text, tmp_path):
    file, percent, kilobytes, speed, drop = load_text(
        SHORT + "data: {evaluation: {source: digits}}\nmetrics: [sqnr]\ngates:\n"
        "  - {metric: latency.median_ms, max_increase: 2 ms, against: sub/b.json, allow: board}\n"
        "  - {metric: latency.median_ms, max_increase: 2.5%, against: 'tag:a.json'}\n"
        "  - {metric: size_bytes, max_increase: 1.5 kB, against: last}\n"
        "  - {metric: latency.median_ms, min_speedup: 2}\n"
        "  - {metric: sqnr, max_drop: 1, against: original}\n"
    ).gates
    assert file.against == str(tmp_path / "sub/b.json")
    assert (file.max_increase, file.allow) == (Drop(2.0), {"board"})
    assert (percent.against, percent.max_increase) == ("tag:a.json", Drop(0.025, relative=True))
    assert kilobytes.max_increase == Drop(1500.0)
    assert (speed.against, speed.min_speedup) == ("fp32", 2.0)
    assert (drop.against, drop.max_drop) == (None, Drop(1.0))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (
            "{metric: load_ms, max_increase: 5%, against: last}",
            "load_ms is not compared with other",
        ),
        ("{metric: size_bytes, max_increase: 5%}", "it is not said what is compared with"),
        (
            "{metric: size_bytes, max_increase: 5%, against: original}",
            "no variant but the original is like that",
        ),
        ("{metric: top1, max_increase: 5%, against: original}", "no metric of this manifest"),
        ("{metric: load_ms, max_increase: 5%, against: original}", "load_ms is not compared"),
        ("{metric: size_bytes, max_increase: 5 ms, against: last}", "'5 ms' is no amount of size"),
        ("{metric: size_bytes, max_increase: five, against: last}", 'such as "5%" or "0.2 ms"'),
        ("{metric: size_bytes, max_increase: -1, against: last}", "max_increase must be"),
        ("{metric: size_bytes, max_increase: 5%, against: lst}", "must be original, fp32, last"),
        ("{metric: size_bytes, max_increase: 5%, against: last, allow: weather}", "allow"),
        ("{metric: size_bytes, min_speedup: 2}", "a speed-up is of latency.median_ms"),
        ("{metric: latency.median_ms, min_speedup: 0}", "min_speedup must be"),
        (
            "{metric: latency.median_ms, min_speedup: 2, against: original, allow: board}",
            "for comparing with other runs",
        ),
        ("{metric: size_bytes, max: 2, against: last}", "no bound of this gate compares"),
        ("{metric: size_bytes, max: 2, allow: board}", "for comparing with other runs"),
        ("{metric: size_bytes, max_drop: 2, against: last}", "size_bytes cannot drop"),
    ],
)
def test_a_gate_that_cannot_compare(load_text, written, words):
    assert words in refusal(load_text, SHORT + f"gates: [{written}]")


VARIANTS = """\
wherry: 1
model: {path: net.onnx}
variants: {original: [], slim: [simplify]}
targets:
  - {backend: onnxruntime}
  - {backend: ncnn, variants: [slim]}
gates:
"""


def test_a_gate_against_the_original_needs_it_on_the_same_target(load_text):
    speed = "  - {metric: latency.median_ms, min_speedup: 1.2, against: original%s}\n"
    (gate,) = load_text(VARIANTS + speed % ", where: {backend: onnxruntime}").gates
    assert (gate.against, gate.min_speedup) == ("original", 1.2)
    assert [gate.speaks_of(variant) for variant in ("original", "slim")] == [False, True]
    text = refusal(load_text, VARIANTS + speed % "")
    assert "m.yaml:8:51: slim on ncnn fp32 on local has no original to compare with" in text
    assert "Let the variant `original` run there, too, or narrow" in text
    only = speed % ", where: {variant: original}"
    assert "no variant but the original" in refusal(load_text, VARIANTS + only)


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


# Mixed precision


MIXED = BASE + DATA + "targets: [{backend: ncnn, precision: [fp32, int8], keep_fp32: %s%s}]\n"


def kept(manifest):
    return [(target.precision, list(target.options.keep_fp32)) for _, target in manifest.rows]


def test_nodes_that_stay_in_fp32_are_of_the_precisions_that_need_it(load_text):
    manifest = load_text(MIXED % ("[conv1, '/block/*', {op: Softmax}]", ""))
    assert kept(manifest) == [("fp32", []), ("int8", ["conv1", "/block/*", Operator(op="Softmax")])]
    (_, plain), (_, mixed) = manifest.rows
    assert plain.id == "ncnn-fp32-local"
    assert mixed.id.startswith("ncnn-int8-local-")
    assert "keep_fp32=[conv1, and 2 more]" in mixed.describe()


def test_a_backend_has_the_last_word_and_lists_of_lists_multiply(load_text):
    manifest = load_text(MIXED % ("[conv1]", ", ncnn: {keep_fp32: [[], [conv2], [conv2, conv3]]}"))
    assert kept(manifest) == [
        ("fp32", []),
        ("int8", []),
        ("int8", ["conv2"]),
        ("int8", ["conv2", "conv3"]),
    ]


def test_who_cannot_mix_precisions_is_named(load_text):
    text = refusal(load_text, MIXED.replace("fp32, int8", "fp16") % ("[conv1]", ""))
    assert "m.yaml:4:" in text
    assert "ncnn fp16 cannot keep single nodes in fp32" in text
    text = refusal(load_text, MIXED % ("{op: Softmax}", ""))
    assert "keep_fp32" in text
    for wrong in ("[{op: Softmax, of: 3}]", "[{}]", "['']", "[3]"):
        assert "keep_fp32" in refusal(load_text, MIXED % (wrong, "")), wrong


def test_an_option_of_other_precisions_than_the_entry_asks_for_is_refused(load_text):
    only = MIXED.replace("fp32, int8", "fp32")
    text = refusal(load_text, only % ("[conv1]", ""))
    assert "m.yaml:4:" in text and "keep_fp32 means nothing in fp32" in text
    assert "It is for bf16, fp16, int8" in text
    text = refusal(load_text, only % ("[]", ", ncnn: {keep_fp32: [conv1]}"))
    assert "keep_fp32 means nothing in fp32" in text
    assert kept(load_text(only % ("[]", ""))) == [("fp32", [])]
