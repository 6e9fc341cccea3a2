"""The forms of a comparison, and annotations: what they say, and that no name adds to them."""

from __future__ import annotations

import io
import re
import sys
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from run_makers import measured, run_of

from wherry.records.compare import FailOn, compare, failures
from wherry.records.snapshot import snapshot
from wherry.reports.comparison_words import failures_text, percent
from wherry.reports.github import command, comparison_annotations, run_annotations, unheard
from wherry.reports.junit import render_comparison as junit
from wherry.reports.markdown import render_comparison as markdown
from wherry.reports.terminal import print_comparison

NEW = "20261125-000000-0001"
hostile = st.text(st.characters() | st.sampled_from("\udc80\u202e\x00"), max_size=20)


def comparison_of(name="slim", *, allow=(), fail_on=None):
    base = run_of(
        measured(5.0, name), measured(5.0, "gone"), measured(5.0, "b"), measured(2.0, "same")
    )
    new = run_of(
        measured(5.5, name, size_bytes=300_000),
        measured(5.0, "b", latency={"clean": False}),
        measured(2.0, "same"),
        run_id=NEW,
    )
    found = compare(snapshot(base), snapshot(new), allow=allow)
    told = [] if fail_on is None else failures(found, FailOn.parse(fail_on))
    return {**found, "fail_on": fail_on, "failures": told}


def printed(comparison, width=160):
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_terminal_shows_what_has_changed_and_why_the_rest_is_not_compared():
    text = printed(comparison_of())
    (latency,) = [line for line in text.splitlines() if line.startswith("slim") and "ms" in line]
    assert re.search(r"5\.000 ms +5\.500 ms +\+10\.0 % +\+\d\.\d to \+\d+\.\d % +worse", latency)
    assert re.search(r"slim.* size_bytes +388\.2 kB +300\.0 kB +-22\.7 % +- +better", text)
    assert "same, onnxruntime fp32 on pi4" in text
    assert "peak_memory_bytes" not in text, "what has not changed is no line"
    assert "1 worse, 1 better, 12 the same, 1 not comparable" in text
    assert "note: not compared, not-clean: the new one (b, onnxruntime fp32 on pi4)" in text
    assert "note: only base: gone, onnxruntime fp32 on pi4: the new run has no such target" in text


@pytest.mark.parametrize("form", [printed, markdown])
def test_what_was_allowed_is_said(form):
    assert "that was allowed: not-clean" in form(comparison_of(allow=["not-clean"]))
    assert "that was allowed" not in form(comparison_of())


def test_markdown_is_short_and_folds_the_rest():
    text = markdown(comparison_of(fail_on="worse"))
    short, folded = text.split("<details><summary>All 15 figures</summary>\n\n")
    assert short.count("\n| ") == 2 + 4, "three latencies, and the size"
    assert folded.count("\n| ") == 1 + 15
    assert folded.index("</details>") > folded.index("peak\\_memory")
    assert "- **fails**: slim, onnxruntime fp32 on pi4: latency.median\\_ms 5.000 ms to" in short
    assert text.startswith("### wherry: run 20261124-040500-3f9a to run 20261125-000000-0001\n")


def test_markdown_says_what_can_be_allowed():
    assert "- \\`--allow not-clean\\` compares all the same" in markdown(
        comparison_of(fail_on="worse")
    )
    assert "compares all the same" not in markdown(comparison_of())


def of_sizes(base, new, fail_on=None):
    sides = [run_of(measured(size_bytes=size), run_id=f"{size}") for size in (base, new)]
    found = compare(*map(snapshot, sides))
    told = [] if fail_on is None else failures(found, FailOn.parse(fail_on))
    return {**found, "fail_on": fail_on, "failures": told}


@pytest.mark.parametrize(
    ("new", "shown"),
    [
        (100_104, "+0.104 %"),
        (99_896, "-0.104 %"),
        (100_101, "+0.101 %"),
        (100_160, "+0.2 %"),
        (105_040, "+5.0 %"),
    ],
)
def test_a_change_beyond_its_margin_is_shown_as_beyond_it(new, shown):
    """Up to 0.1 % is the same: what is worse is not shown as 0.1 %."""
    assert shown in printed(of_sizes(100_000, new))


def test_a_change_beyond_the_bound_is_shown_as_beyond_it():
    found = of_sizes(100_000, 105_040, "worse:5%")
    assert "+5.04 %: worse" in failures_text(found)
    assert percent(0.0500001, 0.05) == "+5.00001 %" and percent(0.05, 0.05) == "+5.0 %"
    assert percent(0.000001) == "+0.0 %"


def test_junit_has_a_case_for_each_figure():
    root = ET.fromstring(junit(comparison_of(fail_on="worse:5%")).encode())
    (suite,) = root.findall("testsuite")
    assert suite.get("name") == "comparison"
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert len(cases) == int(suite.get("tests")) == 15 + 1
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert failed == {
        "slim, onnxruntime fp32 on pi4: latency.median_ms",
        "b, onnxruntime fp32 on pi4: latency.median_ms",
        "gone, onnxruntime fp32 on pi4",
    }
    text = cases["slim, onnxruntime fp32 on pi4: latency.median_ms"].find("failure").text
    assert "5.000 ms to 5.500 ms, +10.0 %" in text
    root = ET.fromstring(junit(comparison_of()).encode())
    assert root.findall(".//failure") == [], "nothing was asked to fail"
    assert len(root.findall(".//skipped")) == 2


def test_an_annotation_for_each_failure_or_a_warning_for_what_is_worse():
    lines = comparison_annotations(comparison_of(fail_on="worse"))
    assert len(lines) == 3
    assert lines[0].startswith("::error title=wherry compare::slim, onnxruntime fp32 on pi4: lat")
    (line,) = comparison_annotations(comparison_of())
    assert line.startswith("::warning title=worse::slim, onnxruntime fp32 on pi4: latency.median")


def test_an_annotation_for_each_gate_and_each_target_that_failed(make, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    gates = [
        make.gate(passed=False, location=f"{tmp_path}/ci/m.yaml:9:5", reason="50% more"),
        make.gate(reason="more, but within noise"),
        make.gate(),
    ]
    record = make.record(make.result(), make.result("b", ms=None, error="a\nb"), gates=gates)
    failed, gate, noise = run_annotations(record)
    assert failed == (
        "::error file=manifests/quickstart.yaml,title=target failed::"
        "b, onnxruntime fp32 on pi4: a%0Ab"
    )
    assert gate == (
        "::error file=ci/m.yaml,line=9,col=5,title=gate%3A top1 max_drop 0.01::50%25 more"
    )
    assert noise.startswith("::notice file=m.yaml,line=9,col=5,")


@pytest.mark.parametrize(
    ("location", "properties"),
    [
        ("", ""),
        ("m.yaml", "file=m.yaml,"),
        ("m.yaml:9", "file=m.yaml,line=9,"),
        ("a:b.yaml:9:5", "file=a%3Ab.yaml,line=9,col=5,"),
        ("a:1:2:3", "file=a%3A1,line=2,col=3,"),
        ("m.yaml:\u0663", "file=m.yaml%3A\u0663,"),
        (":7", "file=%3A7,"),
    ],
)
def test_a_place_has_a_file_a_line_and_a_column(location, properties):
    assert command("error", "m", "t", location) == f"::error {properties}title=t::m"


@given(message=hostile, title=hostile, location=hostile)
@example("x\n::set-env name=PATH::/", "a::b,c=d%0A", "m\r\n::error::,line=1:2:3")
@example("a\u2028b", "c\u2029d", "\u2028")
def test_nothing_in_a_name_makes_another_command(message, title, location):
    line = command("error", message, title, location)
    assert line.splitlines() == [line], "no character ends the line"
    line.encode("utf-8")
    found = re.fullmatch(r"::error ([^:]*)::(.*)", line)
    keys = [part.partition("=")[0] for part in found[1].split(",")]
    assert keys in (["title"], ["file", "title"], ["file", "line", "title"],
                    ["file", "line", "col", "title"])  # fmt: skip
    for part in found[1].split(","):
        assert "::" not in part
    if title.isprintable() and title.isascii():
        value = found[1].rpartition("title=")[2]
        for escape, sign in (("%2C", ","), ("%3A", ":"), ("%25", "%")):
            value = value.replace(escape, sign)
        assert value == title


@given(text=hostile)
@example("a\n::error::b")
@example("</details><script>alert(1)</script>|`x`")
@settings(max_examples=25, deadline=None)
def test_no_name_breaks_a_form(text):
    comparison = comparison_of(text, fail_on="worse")
    ET.fromstring(junit(comparison).encode("utf-8"))
    written = markdown(comparison)
    written.encode("utf-8")
    assert written.splitlines() == written.split("\n")[:-1]
    ours = written.replace("<details><summary>All 15 figures</summary>", "")
    unescaped = re.sub(r"\\[\\`*_\[\]<>#|~&]", "", ours.replace("</details>", ""))
    assert not re.search(r"[`<>&\[\]~]", unescaped)
    rows = [line for line in written.split("\n") if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {8}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", printed(comparison))
    for line in comparison_annotations(comparison):
        assert line.splitlines() == [line]


def test_what_others_print_is_not_heard(capsys):
    with pytest.raises(ValueError, match="x"), unheard():
        sys.stdout.write("::error::not ours\n")
        raise ValueError("x")
    first, inner, last = capsys.readouterr().out.splitlines()
    word = first.removeprefix("::stop-commands::")
    assert re.fullmatch("[0-9a-f]{32}", word)
    assert (inner, last) == ("::error::not ours", f"::{word}::")
