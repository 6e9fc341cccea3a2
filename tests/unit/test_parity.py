"""Parity: what passes, what fails and in which words, and what proves nothing."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from wherry.errors import ParityError
from wherry.parity import check, compare
from wherry.target import ParityThreshold

RNG = np.random.default_rng(5)
STRICT = ParityThreshold(60.0, 0.9999)


def samples(count=8, **shapes):
    shapes = shapes or {"y": (1, 10)}
    return [
        {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def noisy(reference, level):
    return [
        {name: array + np.float32(level) * np.float32(RNG.standard_normal(array.shape))
         for name, array in sample.items()}
        for sample in reference
    ]  # fmt: skip


def test_noise_of_a_known_level_gives_its_decibels():
    reference = samples(50, y=(1, 1000))
    parity = compare(noisy(reference, 1e-3), reference)
    assert parity.sqnr_db == pytest.approx(60, abs=0.2)
    assert parity.cosine == pytest.approx(1, abs=1e-6)
    assert parity.samples == 50
    assert parity.warnings == ()
    assert json.dumps(asdict(parity), allow_nan=False)
    check(parity, ParityThreshold(59.0, 0.9999), "here")
    with pytest.raises(ParityError, match=r"61 dB and 0\.9999 are wanted"):
        check(parity, ParityThreshold(61.0, 0.9999), "here")


def test_the_worst_output_is_named_with_its_figures():
    reference = samples(4, boxes=(1, 4), scores=(1, 3))
    ours = [{**sample, "scores": sample["scores"] * np.float32(1.01)} for sample in reference]
    parity = compare(ours, reference)
    assert parity.per_output["boxes"].sqnr_db == 300
    assert parity.sqnr_db == pytest.approx(40, abs=0.01)
    with pytest.raises(ParityError) as caught:
        check(parity, STRICT, "ncnn fp32 on local")
    error = caught.value
    assert error.where == "ncnn fp32 on local"
    assert "output 'scores' has 40.0 dB SQNR and cosine 1.00000" in error.message
    assert "over 4 samples" in error.message
    assert "60 dB and 0.9999" in error.message
    assert error.remedy


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda array: array[:, ::-1], "mixed up"),
        (lambda array: np.where(array > 0, np.nan, array), "not finite"),
        (lambda array: array * np.float32(1.1), "wider precision"),
    ],
)
def test_the_hint_fits_the_failure(change, hint):
    reference = samples(16, y=(1, 100))
    ours = [{"y": change(sample["y"])} for sample in reference]
    with pytest.raises(ParityError) as caught:
        check(compare(ours, reference), STRICT, "here")
    assert hint in caught.value.remedy


@pytest.mark.parametrize(
    ("equal", "threshold", "passes"),
    [(1000, 1.0, True), (999, 0.9999, False), (999, 0.999, True), (899, 0.9, False)],
)
def test_whole_numbers_have_to_be_equal_up_to_the_threshold(equal, threshold, passes):
    reference = [{"classes": np.arange(1000)}]
    ours = [{"classes": np.where(np.arange(1000) < equal, np.arange(1000), 0)}]
    parity = compare(ours, reference)
    assert parity.per_output["classes"].sqnr_db is None
    assert parity.sqnr_db == 300
    if passes:
        check(parity, ParityThreshold(60.0, threshold), "here")
    else:
        with pytest.raises(ParityError, match="of its elements equal"):
            check(parity, ParityThreshold(60.0, threshold), "here")


def test_what_proves_nothing_is_said():
    constant = [{"y": np.ones((1, 4), np.float32)}] * 3
    assert "same for all 3 samples" in compare(constant, constant).warnings[0]
    zero = [{"y": np.full((1, 4), 1e-9, np.float32)}] * 3
    parity = compare(zero, zero)
    assert "'y' is zero for every sample" in parity.warnings[0]
    check(parity, STRICT, "here")
    assert compare(constant[:1], constant[:1]).warnings == ()  # one sample cannot tell


def test_an_artifact_that_ignores_its_input_fails():
    reference = samples(8)
    ours = [reference[0]] * 8
    with pytest.raises(ParityError):
        check(compare(ours, reference), ParityThreshold(5.0, 0.9), "here")


def test_outputs_that_are_missing_or_of_another_shape():
    reference = samples(2)
    with pytest.raises(ParityError, match=r"no output 'y', only \['z'\]"):
        compare([{"z": reference[0]["y"]}] * 2, reference)
    with pytest.raises(ParityError, match=r"has shape \(10, 1\), and the model's has \(1, 10\)"):
        compare([{"y": sample["y"].T} for sample in reference], reference)
    with pytest.raises(ParityError, match="no sample"):
        compare([], [])
    with pytest.raises(ValueError, match="longer than argument 1"):
        compare(reference[:1], reference)


def test_several_failing_outputs_are_counted():
    reference = samples(2, a=(1, 4), b=(1, 4), c=(1, 4))
    ours = [{**noisy([sample], 1)[0], "c": sample["c"]} for sample in reference]
    with pytest.raises(ParityError, match="2 of 3 outputs fail"):
        check(compare(ours, reference), STRICT, "here")
