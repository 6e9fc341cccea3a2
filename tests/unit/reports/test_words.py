"""What all forms of a report say alike."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.reports import words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (388_190, "388.2 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_400_000, "1.4 MB"),
        (25_276_502_016, "25.3 GB"),
        (3_000_000_000_000, "3000.0 GB"),
    ],
)
def test_bytes(count, text):
    assert words.bytes_text(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (12.34567, "12.346"), (0.1, "0.100"), (0.05, "0.0500"), (0.0071234, "0.00712")],
)
def test_milliseconds_keep_three_digits(value, text):
    assert words.ms_text(value) == text


def test_metrics_options_and_speed_ups():
    assert [words.metric_text(v) for v in (None, 0.98479, 1.0, 132.7629)] == [
        "-", "0.9848", "1", "132.8",
    ]  # fmt: skip
    assert [words.option_text(v) for v in (None, "all", True, 4, [0, 1], {"a": None})] == [
        "-", "all", "true", "4", "[0, 1]", '{"a": null}',
    ]  # fmt: skip
    assert (words.speedup_text(None), words.speedup_text(0.774)) == ("-", "x0.77")


def test_marks_and_the_legend_of_those_that_are_there(make):
    plain = make.result()
    marked = make.result(pareto=True, cached=True, latency={"clean": False, "emulated": True})
    assert words.marks(plain) == ""
    assert words.marks(marked) == "*~ec"
    assert words.marks(make.result(ms=None)) == ""
    assert words.legend([plain]) == {}
    assert words.legend([plain, marked]) == words.LEGEND


def test_options_that_differ(make):
    assert words.differing_options([]) == []
    one = make.result(options={"threads": 4, "winograd": True})
    assert words.differing_options([one, make.result(options={"threads": 4, "spin": 1})]) == []
    two = make.result(options={"threads": 4, "winograd": False})
    assert words.differing_options([one, two]) == ["winograd"]
    assert words.differing_options([one, make.result()]) == ["threads"]


def test_a_disturbance_is_one_note_with_the_range_of_its_figures(make):
    def busy(name, *cores):
        texts = [f"Other processes kept {n} of 2 cores busy." for n in cores]
        return make.result(name, latency={"clean": False, "disturbances": texts})

    found = words.notes([busy("a", "1.0", "1.4"), make.result("b"), busy("c", "0.9")])
    assert found == [
        words.Note(
            "Other processes kept 0.9-1.4 of 2 cores busy.",
            "a, onnxruntime fp32 on pi4; c, onnxruntime fp32 on pi4",
        )
    ]


def test_figures_are_compared_as_numbers(make):
    texts = [
        "The clock moved between 900 and 1800 MHz.",
        "The clock moved between 1200 and 1800 MHz.",
        "The temperature of cpu-2 moved from 50 to 65 °C.",
        "The temperature of cpu-2 moved from 48 to 61 °C.",
        "The temperature of cpu-3 moved from 48 to 61 °C.",
    ]
    found = words.notes([make.result(latency={"disturbances": texts})])
    assert [note.text for note in found] == [
        "The clock moved between 900-1200 and 1800 MHz.",
        "The temperature of cpu-2 moved from 48-50 to 61-65 °C.",
        "The temperature of cpu-3 moved from 48 to 61 °C.",
    ]


def test_many_results_are_counted(make):
    def noisy(i):
        return make.result(str(i), latency={"disturbances": ["The clock moved."]})

    results = [noisy(i) for i in range(5)]
    assert [note.where for note in words.notes(results)] == ["all 5 targets"]
    results.append(make.result())
    assert [note.where for note in words.notes(results)] == ["5 of 6 targets"]
    assert words.notes(results[:4])[0].where.count(";") == 3


def test_what_is_slower_than_fp32_is_one_line_worst_first(make):
    def slower(name, factor):
        return make.result(name, warnings=[f"fp16 is slower than fp32 here (x{factor})"])

    (note,) = words.notes([slower("a", "0.95"), slower("b", "0.77")])
    assert note.text == "fp16 is slower than fp32 here"
    assert note.where == "b, onnxruntime fp32 on pi4 x0.77; a, onnxruntime fp32 on pi4 x0.95"
    (note,) = words.notes([slower(str(i), f"0.{i}") for i in range(10, 20)])
    assert note.where.startswith("10, onnxruntime fp32 on pi4 x0.10; ")
    assert note.where.endswith("; and 6 more")


def test_figures_of_warnings_are_names_and_stay(make):
    texts = ("Output 0 is constant.", "Output 3 is constant.", "Output 3 is constant.")
    found = words.notes([make.result(str(i), warnings=[t]) for i, t in enumerate(texts)])
    assert [note.text for note in found] == ["Output 0 is constant.", "Output 3 is constant."]


def test_a_warm_up_that_did_not_end_is_said(make):
    (note,) = words.notes([make.result(), make.result("b", latency={"steady": False})])
    assert note == words.Note("The warm-up did not become steady.", "b, onnxruntime fp32 on pi4")


def test_a_failed_result_warns_too(make):
    (note,) = words.notes([make.result(ms=None, warnings=["The converter said something."])])
    assert note.text == "The converter said something."


def test_results_that_failed_alike_are_one_line_and_all_named(make):
    results = [
        make.result("a", ms=None, error="no model"),
        make.result("b"),
        make.result("c", ms=None, error="no model"),
        make.result("d", ms=None, error="no GRU", status="skipped"),
        make.result("e", ms=None, error="no model", status="skipped"),
    ]
    found = words.unmeasured(results)
    assert [(status, note.text) for status, note in found] == [
        ("failed", "no model"), ("skipped", "no GRU"), ("skipped", "no model"),
    ]  # fmt: skip
    assert found[0][1].where == "a, onnxruntime fp32 on pi4; c, onnxruntime fp32 on pi4"


@given(st.text(st.characters(), max_size=30))
def test_clean_text_can_be_encoded_and_commands_no_terminal(text):
    found = words.clean(text)
    found.encode("utf-8")
    assert {unicodedata.category(c) for c in found} & {"Cs"} == set()
    assert all(c in "\n\t" for c in found if unicodedata.category(c) == "Cc")
    assert words.clean(found) == found
    assert len(words.one_line(text).splitlines()) <= 1


def test_what_is_clean_stays():
    text = "Größe: 5 °C, \N{GREEK SMALL LETTER MU}s\n\t日本語 [red] <b> \N{GRINNING FACE}"
    assert words.clean(text) == text
    assert words.clean("a\r\nb\x1b[2J\x00\u202e\udcff") == "a\nb" + "\ufffd[2J" + "\ufffd" * 3
    assert words.one_line(" a\n\t b\x85c ") == "a b c"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0512, "0.0512"),
        (2.0, "2.00"),
        (21.53, "21.5"),
        (99.96, "100"),
        (1234.5, "1234"),
    ],
)
def test_energies_are_short(value, text):
    assert words.energy_text(value) == text
