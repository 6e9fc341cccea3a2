"""The built-in metrics: by hand on small cases, by plain loops on drawn ones."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wherry.errors import DataError, ParityError
from wherry.scoring import class_axis, metrics
from wherry.target import DEFAULT_PARITY

KINDS = {kind.name: kind for kind in metrics()}


def score(name, samples, output=None):
    """`samples`: (outputs, reference, label); arrays stand for an only output."""
    metric = KINDS[name].create(output)
    for outputs, reference, label in samples:
        pair = [
            {"y": np.asarray(side)} if not isinstance(side, dict) else side
            for side in (outputs, reference)
        ]
        metric.update(*pair, label)
    return metric.result()


def test_the_kinds():
    assert list(KINDS) == ["top1", "top5", "agreement", "sqnr_db", "cosine", "mae"]
    assert [kind.name for kind in KINDS.values() if kind.needs_labels] == ["top1", "top5"]
    assert [kind.name for kind in KINDS.values() if kind.better == "lower"] == ["mae"]


def test_the_documentation_names_every_metric_and_threshold():
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    for kind in KINDS.values():
        assert re.search(rf"^\| `{kind.name}` \|.*\| {kind.better} \|$", text, re.MULTILINE)
    for precision, threshold in DEFAULT_PARITY.items():
        assert f"| {precision} | {threshold.sqnr_db:g} | {threshold.cosine:g} |" in text


@given(
    scores=hnp.arrays(np.float32, (7, 9), elements=st.integers(-4, 4).map(float)),
    labels=st.lists(st.integers(0, 8), min_size=7, max_size=7),
)
def test_top_k_against_sorting(scores, labels):
    order = np.argsort(-scores, axis=1, kind="stable")  # of equal ones the first, as argmax
    samples = [
        (row[np.newaxis], row[np.newaxis], label) for row, label in zip(scores, labels, strict=True)
    ]
    for name, k in (("top1", 1), ("top5", 5)):
        expected = np.mean([label in row[:k] for label, row in zip(labels, order, strict=True)])
        assert score(name, samples) == pytest.approx(expected)
    assert score("top1", samples) == np.mean(scores.argmax(1) == labels)


def test_classes_of_pictures_and_of_tokens():
    rng = np.random.default_rng(0)
    channels_first = rng.standard_normal((1, 6, 4, 5)).astype(np.float32)
    best = channels_first.argmax(1)[0]
    channels_last = np.ascontiguousarray(channels_first.transpose(0, 2, 3, 1))
    tokens = channels_last.reshape(1, 20, 6)
    for output, label in ((channels_first, best), (channels_last, best), (tokens, best.ravel())):
        wrong = label.copy()
        wrong.flat[0] = (wrong.flat[0] + 1) % 6
        assert score("top1", [(output, output, label)]) == 1
        assert score("top1", [(output, output, wrong)]) == 19 / 20
        other = output.copy()
        other.flat[:] = -output.ravel()
        assert score("agreement", [(output, output, None)]) == 1
        assert score("agreement", [(other, output, None)]) < 0.5


def test_the_axis_of_the_classes():
    assert class_axis((1, 10), None) == 1
    assert class_axis((1, 10, 1, 1), None) == 1
    assert class_axis((1, 7, 10), None) == 2
    assert class_axis((1, 21, 8, 8), np.zeros((8, 8))) == 1
    assert class_axis((1, 8, 8, 21), np.zeros((8, 8))) == 3
    assert class_axis((1, 8, 8, 8), np.zeros((8, 8))) == 1


def test_places_that_do_not_count():
    output = np.zeros((1, 6, 1, 3), np.float32)
    output[0, 2] = 1
    void = np.array([[2, 255, 1]], np.uint8)
    assert score("top1", [(output, output, void)]) == 0.5
    assert score("top1", [(output, output, np.array([[2, -1, -7]]))]) == 1
    with pytest.raises(DataError, match="no sample"):
        score("top1", [(output, output, np.full((1, 3), 255, np.uint8))])


def test_an_output_that_holds_classes():
    assert score("top1", [([3], [3], 3), ([2], [3], 3)]) == 0.5
    assert score("agreement", [([3], [3], None), ([2], [3], None)]) == 0.5
    mask = np.array([[[1, 2], [3, 4]]])
    assert score("top1", [(mask, mask, np.array([[1, 2], [3, 0]]))]) == 0.75


def test_scores_that_are_not_numbers_are_wrong():
    scores = np.array([[0, np.nan, 1, 0, 0, 0, 0]], np.float32)
    for label in range(7):
        assert score("top1", [(scores, scores, label)]) == 0
        assert score("top5", [(scores, scores, label)]) == 0
    assert score("agreement", [(scores, scores, None)]) == 0


LOGITS = np.zeros((1, 10), np.float32)


@pytest.mark.parametrize(
    ("name", "output", "label", "words"),
    [
        ("top1", LOGITS, None, "needs labels"),
        ("top1", LOGITS, 10, "a label is 10, and the output has the classes 0 to 9"),
        ("top1", LOGITS, -1, "a label is -1"),
        ("top1", LOGITS, np.zeros(3, int), "does not fit a label of shape"),
        ("top1", LOGITS, 1.5, "does not fit a label"),
        ("top1", np.zeros((1, 10), int), 3, "does not fit a label"),
        ("top5", np.zeros((1,), int), 3, "does not fit a label"),
        ("top5", np.zeros((1, 5), np.float32), 3, "5 classes"),
        ("top1", np.zeros((1, 1), np.float32), 0, "1 classes"),
        ("mae", np.zeros((1,), int), None, "whole numbers"),
    ],
)
def test_what_does_not_fit(name, output, label, words):
    with pytest.raises(DataError, match=words) as caught:
        score(name, [(output, output, label)])
    assert caught.value.where == f"metric {name}"
    assert caught.value.remedy


@pytest.mark.parametrize("name", KINDS)
def test_an_output_that_is_not_there_and_no_samples(name):
    with pytest.raises(DataError, match="no output 'logit'; there are 'logits'") as caught:
        score(name, [({"logits": LOGITS}, {"logits": LOGITS}, 1)], output="logit")
    assert "Did you mean 'logits'" in caught.value.remedy
    with pytest.raises(DataError, match="no sample"):
        score(name, [])


@pytest.mark.parametrize("name", ["agreement", "sqnr_db"])
def test_outputs_of_other_shapes(name):
    with pytest.raises((DataError, ParityError), match="has shape"):
        score(name, [(LOGITS[:, :5], LOGITS, None)])


far_from_zero = st.floats(0.015625, 100, width=32)  # the least is a float32 itself
pairs = hnp.arrays(np.float32, (3, 2, 5), elements=far_from_zero | far_from_zero.map(lambda x: -x))


@given(pairs, pairs)
def test_distances_against_their_formulas(ours, theirs):
    samples = [(a, b, None) for a, b in zip(ours, theirs, strict=True)]
    a, b = ours.astype(float).ravel(), theirs.astype(float).ravel()
    noise = np.sum((a - b) ** 2)
    ratio = 10 * math.log10(np.sum(b**2) / noise) if noise else 300
    assert score("sqnr_db", samples) == pytest.approx(ratio, abs=1e-6)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert score("cosine", samples) == pytest.approx(cosine, abs=1e-9)
    assert score("mae", samples) == pytest.approx(np.abs(a - b).mean())


def test_several_outputs_count_by_the_worst():
    good, bad = np.ones((1, 4), np.float32), np.array([[1, 1, 1, 3]], np.float32)
    classes = np.array([[1, 2]])
    outputs = {"a": good, "b": bad, "c": classes + 1}
    reference = {"a": good, "b": good, "c": classes}
    samples = [(outputs, reference, None)]
    assert score("mae", samples) == 0.5
    assert score("mae", samples, "a") == 0
    assert score("sqnr_db", samples) == pytest.approx(10 * math.log10(4 / 4))
    assert score("sqnr_db", samples, "a") == 300
    assert score("cosine", samples) == pytest.approx(6 / (2 * math.sqrt(12)))
    assert score("agreement", samples) == 1
    assert score("agreement", samples, "b") == 0
    assert score("agreement", samples, "c") == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "sqnr", "cosine", "mae"),
    [
        ([1.0, 2.0], [1.0, 2.0], 300, 1, 0),
        ([0.0, 0.0], [0.0, 0.0], 300, 1, 0),
        ([1e-9, 0.0], [0.0, 0.0], 300, 1, 5e-10),
        ([1.0, 0.0], [0.0, 0.0], -300, 0, 0.5),
        ([0.0, 0.0], [3.0, 4.0], 0, 0, 3.5),
        ([-3.0, -4.0], [3.0, 4.0], -6.0206, -1, 7),
        ([math.nan, 1.0], [1.0, 1.0], -300, -1, 3.4028234663852886e38),
        ([math.inf, 1.0], [1.0, 1.0], -300, -1, 3.4028234663852886e38),
        ([-math.inf, 1.0], [-math.inf, 1.0], 300, 1, 0),
        ([math.inf, 1.0], [-math.inf, 1.0], -300, -1, 3.4028234663852886e38),
        ([1e-30, 1.0], [1e-30, 1.0], 300, 1, 0),
        ([3e38, -3e38], [-3e38, 3e38], -6.0206, -1, 6e38),
    ],
)
def test_the_edges_are_defined_and_finite(ours, theirs, sqnr, cosine, mae):
    samples = [(np.float32([ours]), np.float32([theirs]), None)]
    found = [score(name, samples) for name in ("sqnr_db", "cosine", "mae")]
    assert found == pytest.approx([sqnr, cosine, mae], rel=1e-6)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
