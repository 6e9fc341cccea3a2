"""Manifests: gates, what they may say and which rows they speak of."""

from __future__ import annotations

import pytest
from manifest_texts import BASE, SHORT, refusal

from wherry.manifest import Drop


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
