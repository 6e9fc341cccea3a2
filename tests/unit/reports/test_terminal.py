"""The report on a terminal: nothing is cut off, and nothing is shown that says nothing."""

from __future__ import annotations

import io
import re
from itertools import takewhile

import pytest
from rich.console import Console

from wherry.reports.terminal import NAME_WIDTH, print_record


def printed(record, width: int = 80) -> str:
    stream = io.StringIO()
    print_record(record, Console(file=stream, width=width))
    text = stream.getvalue()
    assert "…" not in text, "something was cut off"
    return text


def table(text: str) -> list[str]:
    """The table's lines: the head's last, then the rows."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("───"))
    return [lines[rule - 1], *takewhile(lambda line: " fp" in line, lines[rule + 1 :])]


@pytest.fixture
def usual(make):
    """The quickstart's table with its longest words."""
    return make.record(
        make.result("original", "onnxruntime", "fp32", ms=12.345, pareto=True),
        make.result("simplified", "onnxruntime", "fp16", ms=10.1, latency={"clean": False}),
        make.result("simplified", "ncnn", "fp16", ms=11.0, cached=True),
    )


def test_at_120_columns_all_is_there(usual):
    head, *rows = table(printed(usual, 120))
    heads = "variant backend precision median ms 95 % vs fp32 top1 agreement size memory"
    assert " ".join(head.split()) == heads
    assert len(rows) == 3
    first = "original onnxruntime fp32 12.345 12.098-12.715 x1.00 0.985 0.999 388.2 kB 13.5 MB *"
    assert " ".join(rows[0].split()) == first
    assert [row.split()[-1] for row in rows] == ["*", "~", "c"]


def test_other_variants_show_what_they_are_against_the_original(make):
    results = [
        make.result("original", ms=2.0, speedup_vs_original=1.0),
        make.result("slim", ms=1.0, speedup_vs_original=2.0),
        make.result("slim", "ncnn", "fp16", ms=1.0),
    ]
    assert "vs original" not in printed(make.record(*results)), "there is no room for it"
    head, *rows = table(printed(make.record(*results[:2])))
    assert ["x1.00" in rows[0], "x2.00" in rows[1]] == [True, True]
    assert "original" in head and "fp32" not in head, "which all are"
    head, *rows = table(printed(make.record(*results), 120))
    assert "95 % vs fp32 vs original top1" in " ".join(head.split())
    assert [row.split()[5:7] for row in rows] == [
        ["x1.00", "x1.00"], ["x1.00", "x2.00"], ["x1.00", "-"],
    ]  # fmt: skip
    del results[1]["speedup_vs_original"]  # as of an earlier wherry
    alone = make.record(*results[:2])
    assert "vs original" not in printed(alone, 120)


def test_at_80_columns_a_result_is_one_line_that_fits(usual):
    text = printed(usual)
    head, *rows = table(text)
    assert len(rows) == 3
    assert max(map(len, [head, *rows])) <= 80
    for row in rows:
        assert re.search(r"(original|simplified) +(onnxruntime|ncnn) +fp(32|16) +1\d\.\d{3} ", row)
        assert re.search(r" x1\.00 +0\.985 +0\.999 ", row)
    assert "12.098-12.715" in rows[0], "what the median is worth stays as long as it can"
    assert "memory" not in head


def test_heads_fold_before_a_row_is_longer_than_the_terminal(make):
    metrics = {"top1": 0.9, "agreement": 0.9, "cosine.logits": 0.9}
    record = make.record(
        *(make.result(metrics=metrics, options={"threads": i}, pareto=True) for i in (1, 2)),
        metrics=[{"name": name, "better": "higher", "unit": ""} for name in metrics],
    )
    text = printed(record)
    assert max(map(len, table(text))) <= 80
    rule = text.splitlines().index(next(li for li in text.splitlines() if li.startswith("───")))
    head = "".join("".join(text.splitlines()[2:rule]).split())
    assert all(part in head for part in ("precision", "threads", "agreement"))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
def test_every_figure_that_counts_is_whole_at_every_width(make, width):
    names = [f"slim-{i:02}-with-a-long-name" for i in range(3)]
    metrics = ["top1", "sqnr_db.detection_boxes", "mae", "cosine"]
    found = {name: 0.12345 + i for i, name in enumerate(metrics)}
    record = make.record(
        *(
            make.result(name, ms=1234.5678, metrics=found, options={"threads": 1 + i % 2})
            for i, name in enumerate(names)
        ),
        metrics=[{"name": name, "better": "higher", "unit": ""} for name in metrics],
    )
    text = printed(record, width)
    for figure in ("1234.568", "0.1235", "1.123", "2.123", "3.123", "onnxruntime", "fp32"):
        assert text.count(figure) >= 3, figure
    for name in names:
        folds = range(NAME_WIDTH, len(name) + 1)
        assert any(name[:fold] in text and name[fold:] in text for fold in folds), name


def test_forty_rows_are_forty_lines(make):
    results = [
        make.result(f"v{i}", backend, ms=1.0 + i, pareto=i == 0, latency={"clean": False,
                    "disturbances": [f"Other processes kept {i}.5 of 4 cores busy."]})
        for i in range(20)
        for backend in ("onnxruntime", "ncnn")
    ]  # fmt: skip
    text = printed(make.record(*results))
    assert len(table(text)) == 41
    assert "note: Other processes kept 0.5-19.5 of 4 cores busy. [all 40 targets]\n" in text
    assert len(text.splitlines()) < 55


def test_each_device_has_its_table_and_its_front(make):
    record = make.record(
        make.result(device="pi4", ms=5.0, pareto=True),
        make.result("slim", device="orin", ms=1.0, pareto=True),
        make.result("slim", device="pi4", ms=3.0),
    )
    text = printed(record)
    pi4, orin = text.index("pi4: Raspberry Pi 4"), text.index("orin: Raspberry Pi 4")
    assert pi4 < orin
    assert text.count("Pareto front (latency, top1):\n") == 2
    assert "  5.000 ms  top1 0.985  original, onnxruntime fp32 on pi4\n" in text[pi4:orin]
    assert "  1.000 ms  top1 0.985  slim, onnxruntime fp32 on orin\n" in text[orin:]


def test_an_options_column_only_where_it_differs(make):
    four = {"threads": 4}
    same = make.record(make.result(options=four), make.result("slim", options=four))
    assert "threads" not in table(printed(same))[0]
    differ = make.record(
        make.result(options={"threads": 1}),
        make.result(options=four),
        make.result(backend="ncnn", options={"winograd": True}),
        make.result(backend="ncnn", options={"winograd": False}),
    )
    head, *rows = table(printed(differ))
    assert "threads" in head
    assert "winograd" in head
    assert [row.split()[3:5] for row in rows] == [
        ["1", "-"], ["4", "-"], ["1", "true"], ["1", "false"],
    ]  # fmt: skip


def test_without_metrics_the_front_is_of_the_size(make):
    record = make.record(make.result(metrics={}, pareto=True), metrics=[], reference=None)
    text = printed(record)
    assert "Pareto front (latency, size):\n  1.000 ms  388.2 kB  original," in text
    assert "top1" not in text


def test_the_legend_has_only_the_marks_that_are_there(make):
    text = printed(make.record(make.result(pareto=True), make.result("slim")))
    assert "* Pareto front" in text
    assert "not clean" not in text
    text = printed(make.record(make.result(cached=True)))
    assert "c from the store" in text
    assert "Pareto" not in text


def test_failures_notes_and_gates_are_whole_paragraphs(make):
    long = "word " * 60 + "end"
    record = make.record(
        make.result(warnings=[long]),
        make.result("slim", ms=None, error=f"{long}\nline two"),
        gates=[make.gate(), make.gate(passed=False, gate="load_ms max 1", reason=long)],
    )
    lines = printed(record).splitlines()
    assert f"failed: slim, onnxruntime fp32 on pi4: {long}" in lines
    assert "  line two" in lines
    assert f"note: {long} [original, onnxruntime fp32 on pi4]" in lines
    assert f"gate FAILED: load_ms max 1: {long}" in lines
    assert any(line.startswith("gate holds: top1 max_drop 0.01: ") for line in lines)


def test_a_board_that_failed_has_no_empty_table(make):
    text = printed(make.record(make.result(), make.result(device="orin", ms=None)))
    assert "orin: Rasp" not in text
    assert "failed: original, onnxruntime fp32 on orin: it broke" in text


def test_energy_and_a_run_without_pause_are_shown_where_they_are_known(make):
    record = make.record(
        make.result("a", energy_mj=0.5, sustained=make.sustained()), make.result("b")
    )
    text = printed(record, 140)
    assert "mJ" in text and "0.500" in text
    assert (
        "a, onnxruntime fp32 on pi4: 120 s without pause: at the end x1.25 of the time at the "
        "start, 50 to 80 °C; slower from 60 s on: the board was throttled." in text
    )
    plain = printed(make.record(make.result("b")), 140)
    assert "mJ" not in plain and "pause" not in plain
