"""MACE's runner: what it reads of mace_run's words, and how it gets rid of one that misbehaves."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading import load

RUNNER = Path(__file__).parents[2] / "plugins" / "wherry_mace" / "runner.py"
runner = load(RUNNER)

times = st.floats(0.001, 5e5, allow_nan=False)
words = st.text(st.characters(codec="ascii", exclude_characters="\n\r"), max_size=40)


def told(average, init, warmup, *, capability=950.583):
    """What the real one prints at the end of a restart round."""
    return [
        f"I mace_run.cc:716] Average latency: {average:.6g} ms",
        "========================================================",
        "     capability(CPU)        init      warmup     run_avg",
        "========================================================",
        f"time {capability:15.3f} {init:11.3f} {warmup:11.3f} {average:11.3f}",
    ]


def noise(text):
    """Words that are none of what is looked for."""
    return not re.search(r"latency|capability|time|Sort|\|", text)


@given(st.lists(st.tuples(times, times, times), min_size=1, max_size=5), st.lists(words), st.data())
def test_every_round_is_read_whatever_stands_between(rounds, others, data):
    lines = []
    for average, init, warmup in rounds:
        lines += told(average, init, warmup)
        lines += data.draw(st.lists(st.sampled_from([w for w in others if noise(w)] or [""])))
    found = runner.blocks(lines, len(rounds))
    for block, (average, init, warmup) in zip(found, rounds, strict=True):
        assert block["average_ms"] == pytest.approx(average, rel=1e-5)
        assert block["init_ms"] == pytest.approx(init, abs=6e-4)
        assert block["warmup_ms"] == pytest.approx(warmup, abs=6e-4)
    with pytest.raises(ValueError, match=f"{len(rounds)} times of {len(rounds) + 1}"):
        runner.blocks(lines, len(rounds) + 1)


@given(times, times)
def test_two_averages_that_differ_are_an_error(average, other):
    lines = told(average, 1.0, 1.0)
    lines[0] = f"I mace_run.cc:716] Average latency: {other:.6g} ms"
    if abs(average - other) > 2e-3 + 2e-5 * max(average, other):
        with pytest.raises(ValueError, match="two averages"):
            runner.blocks(lines, 1)


@pytest.mark.parametrize("missing", range(5))
def test_a_round_that_lacks_a_line_is_none(missing):
    lines = told(0.62045, 0.699, 0.257)
    del lines[missing]
    if missing in {1, 3}:  # rulers
        assert runner.blocks(lines, 1)
        return
    with pytest.raises(ValueError, match=r"0 times of 1|two averages"):
        runner.blocks(lines, 1)


@pytest.mark.parametrize(
    ("warm", "measured", "steady"),
    [
        ([], [1.0, 2.0], True),
        ([9.0, 1.0], [1.0, 1.0], True),
        ([9.0, 5.0], [1.0, 1.0], False),
        ([9.0, 9.0, 1.0, 1.01], [1.0, 1.0, 7.0], True),
    ],
)
def test_steadiness(warm, measured, steady):
    assert runner._is_steady(warm, measured) == steady


HEADER = [
    "Op Type", "Start", "First", "Avg(ms)", "%", "cdf%", "GMACPS", "Stride", "Pad",
    "Filter Shape", "Output Shape", "Dilation", "name",
]  # fmt: skip
names = st.text("abcXYZ019_./:-,[]", min_size=1, max_size=30)


def table(title, rows):
    data = [
        [
            "Conv2D",
            "0.000",
            "1.0",
            f"{ms:.3f}",
            "5.0",
            "5.0",
            "0.1",
            "[1,1]",
            "[2,2]",
            "",
            "",
            "",
            n,
        ]
        for n, ms in rows
    ]
    widths = [max(len(row[i]) for row in [HEADER, *data]) for i in range(len(HEADER))]
    length = sum(widths) + 3 * len(HEADER) + 1
    rule = "-" * length
    lines = [rule, title.rjust(length // 2 + len(title) // 2), rule]
    for index, row in enumerate([HEADER, *data]):
        cells = [f" {cell.rjust(width)} |" for cell, width in zip(row, widths, strict=True)]
        lines += ["|" + "".join(cells), *([rule] if index == 0 else [])]
    return [f"I statistics.cc:342] {line}" for line in [*lines, rule, ""]]


@given(
    st.lists(names, min_size=1, max_size=6, unique=True),
    st.integers(1, 3),
    st.lists(st.integers(0, 10**7), min_size=18, max_size=18),
)
def test_the_table_of_operations(order, runs, microseconds):
    lines, wanted = [], {name: [] for name in order}
    for run in range(runs):
        rows = [(n, microseconds[run * 6 + i] / 1e3) for i, n in enumerate(order)]
        for name, ms in rows:
            wanted[name].append(round(ms * 1e6))
        lines += table("Sort by Run Order", rows)
        lines += table("Sort by Computation Time", [(n, 77.0) for n, _ in rows])
    found = runner.operations(lines, runs)
    assert list(found) == order
    assert found == wanted
    with pytest.raises(ValueError, match="tables"):
        runner.operations(lines, runs + 1)


def test_tables_of_other_operations_are_an_error():
    lines = table("Sort by Run Order", [("a", 1.0)]) + table("Sort by Run Order", [("b", 1.0)])
    with pytest.raises(ValueError, match="other operations"):
        runner.operations(lines, 2)


@given(st.text(max_size=20))
def test_names_of_files_are_those_of_isalnum_in_c(text):
    name = runner.file_name(text)
    assert len(name) == len(text)
    assert re.fullmatch(r"[A-Za-z0-9_]*", name)


@pytest.fixture
def program(tmp_path):
    """A program of a few lines of Python."""

    def make(code: str) -> str:
        path = tmp_path / "mace_run"
        path.write_text(f"#!{sys.executable}\n{code}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return str(path)

    return make


def board(tool, tmp_path):
    tools = {} if tool is None else {"mace_run": tool}
    return {"tools": tools, "cache": str(tmp_path / "cache"), "machine": os.uname().machine}


def test_a_board_without_mace_run(tmp_path):
    found = runner.prepare("", {}, {}, board(None, tmp_path))["unavailable"]
    assert "no mace_run" in found["message"]
    assert "MACE_RUN" in found["remedy"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "not a program"),
        ("print('hello')", "does not say its version"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("print('F mace_run.cc:1] Check failed: no luck')", "Check failed: no luck"),
        ("import os; os.abort()", "SIGABRT"),
    ],
)
def test_a_tool_that_is_no_mace_run(program, tmp_path, code, words):
    tool = str(tmp_path / "nothing") if code is None else program(code)
    found = runner.prepare("", {}, {}, board(tool, tmp_path))["unavailable"]
    assert words in found["message"]


def test_a_tool_for_another_machine(tmp_path):
    tool = tmp_path / "mace_run"
    tool.write_bytes(b"\x7fELF" + bytes(60))
    tool.chmod(0o755)
    found = runner.prepare("", {}, {}, board(str(tool), tmp_path))["unavailable"]
    assert "exit code 1" in found["message"]


def test_endless_retries_end_at_once(program):
    tool = program(
        "import time\n"
        "for i in range(600):\n"
        "    print('E mace_run.cc:465] Create engine runtime error, retry ... errcode: none')\n"
        "    time.sleep(0.1)"
    )
    begun = time.monotonic()
    process = runner.Process([tool], 60)
    with pytest.raises(ValueError, match="errcode: none"):
        process.finish()
    process.end()
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("E mace/port/linux_base/env.cc:87] failed to open cpuinfo_max_freq", None),
        ("E /home/a b/mace/utils/thread_pool.cc:154] Fail to get cpu max frequencies", None),
        ("I mace/core/net/serial_net.cc:140] op->Forward(&c) failed with error: no", "error: no"),
        ("E /home/a b/opencl_executor.cc:488] Failed to create OpenCL Context: 5", "Context: 5"),
        ("F mace/port/linux_base/env.cc:1] Check failed", "Check failed"),
        ("I mace/runtimes/cpu/cpu_runtime.cc:76] GetCPUMaxFreq(&f) failed with error: no", None),
        ("W mace_run.cc:1] Set cpu affinity failed.", None),
    ],
)
def test_errors_that_count(program, line, words):
    process = runner.Process([program(f"print({line!r})")], 60)
    try:
        if words is None:
            process.finish()
        else:
            with pytest.raises(ValueError, match=words):
                process.finish()
    finally:
        process.end()


def test_a_hang_ends_at_its_limit_and_nothing_is_left(program):
    tool = program("import time; print('I x.cc:1] here'); time.sleep(600)")
    process = runner.Process([tool], 1.5)
    with pytest.raises(ValueError, match=r"too long; its last line: I x\.cc:1\] here"):
        process.finish()
    pid = process._process.pid
    process.end()
    assert not Path(f"/proc/{pid}").exists()


def test_what_it_inherits_changes_nothing(program, monkeypatch):
    monkeypatch.setenv("MACE_LOG_TENSOR_RANGE", "1")
    tool = program("import os; print(sorted(k for k in os.environ if k.startswith('MACE')))")
    process = runner.Process([tool], 60)
    process.finish()
    process.end()
    assert process.lines == ["['MACE_CPP_MIN_LOG_LEVEL', 'MACE_CPP_MIN_VLOG_LEVEL']"]


def test_folders_of_runners_that_crashed_are_removed(tmp_path, program):
    runs = tmp_path / "cache" / "runs"
    (runs / f"{2**22 + 1}-5").mkdir(parents=True)
    mine = runs / f"{os.getpid()}-5"
    mine.mkdir()
    tool = program("print('I mace_run.cc:3] mace version: v1')")
    told_ = runner.prepare("model", {}, {}, board(tool, tmp_path))
    assert told_["record"] == {"mace_run": tool, "mace": "v1"}
    left = {path.name for path in runs.iterdir()}
    assert left == {mine.name, Path(told_["directory"]).name}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names, min_size=1, max_size=4, unique_by=runner.file_name))
def test_the_first_input_is_no_beginning_of_another(inputs):
    """Else mace_run would take another input's file for one of the first."""
    bindings = [{"runtime": name, "shape": [1, 2]} for name in inputs]
    order = sorted(bindings, key=lambda b: len(runner.file_name(b["runtime"])), reverse=True)
    first, *others = [runner.file_name(b["runtime"]) for b in order]
    assert not any(other.startswith(first) for other in others)
    about = runner._about("input", order)
    assert about["input_node"].split(",") == [b["runtime"] for b in order] or "," in "".join(inputs)
    assert np.prod([int(n) for n in about["input_shape"].split(":")[0].split(",")]) == 2
