"""JSON, Markdown, CSV and JUnit XML; and that no name does harm in any form."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from wherry.errors import EnvironmentError_
from wherry.reports.builtin import reports
from wherry.reports.terminal import print_record

pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
FORMS = {form.name: form.render for form in reports()}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></svg></pre><b onmouseover=alert(1)>",
    "&lt;script&gt; &amp;",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "+1",
    "-2",
    "\uff1d1",
    "a|b `c` *d* _e_ ~f~ [g](h) #i",
    "one\ntwo\r\nthree\rfour",
    "\n=1+1",
    "\t=1",
    "quote ' and \" and , and ;",
    "nul \x00 bell \x07 back \x08",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u202eesrever\u2066",
    "\u2028\u2029\x85\x0b\x0c",
    "\udcff half",
    "\uffff\ufffe",
    "[red]not red[/red] [/] \\[",
    "file.yaml:100:1 :smile:",
    "{{ 7*7 }} {% raw %}",
    "%(s)s {0} $HOME",
]


def hostile_record(make, text: str):
    bad = make.result(
        text, text, text, text, pareto=True, options={"note": text}, latency={"timed_by": text}
    )
    bad["metrics"][text] = 0.5
    bad["warnings"] = [text]
    bad["latency"]["disturbances"] = [text]
    failed = make.result(text, ms=None, error=text)
    plain = make.result("plain", options={"note": "n"})
    metrics = [{"name": "top1", "better": "higher", "unit": text}]
    metrics.append({"name": text, "better": "higher", "unit": ""})
    return make.record(
        bad,
        failed,
        plain,
        metrics=metrics,
        manifest=text,
        tag=text,
        reference={"metrics": {text: 1.0}, "data": "evaluation"},
        data={text: {"source": text, "samples": 1, "digest": text}},
        gates=[make.gate(passed=False, gate=text, reason=text, result=text, location=text)],
        steps=[{"id": text, "kind": "model", "title": text, "state": "done", "seconds": 0.0,
                "error": text}],
        plugins=[{"name": text, "distribution": text, "version": text, "module": text}],
        manifest_text=text,
    )  # fmt: skip


class Page(HTMLParser):
    """What a browser would see."""

    VOID = frozenset({"meta", "img", "link", "br", "hr", "input"})
    KNOWN = re.compile(
        "html|head|meta|title|style|script|body|header|footer|main|nav|section|h[1-4]|p|a|ul|li|strong|"
        "em|small|code|span|div|br|pre|dl|dt|dd|details|summary|figure|figcaption|form|fieldset|legend|"
        "label|input|select|option|button|output|caption|"
        "svg|line|text|polyline|g|circle|rect|path|table|thead|tbody|tr|th|td"
    )

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def harmless(page: Page) -> None:
    assert all(Page.KNOWN.fullmatch(tag) for tag in page.tags)
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "action", "formaction", "style", "xlink:href", "srcdoc"}
    links = {value for name, value in page.attributes if name == "href"}
    assert all(re.fullmatch(r"#[a-z]+\d*", link) for link in links), (
        "within the page, by our own names"
    )
    assert page.tags.count("script") == 2, "the data, and our own"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_html_executes_nothing_and_shows_the_text(make, text):
    page = FORMS["html"](hostile_record(make, text))
    page.encode("utf-8")
    seen = Page(page)
    harmless(seen)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", page)
    visible = text.replace("\r\n", "\n").replace("\r", "\ufffd")
    if not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200f-\u206f\ud800-\udfff\ufffe\uffff]", text):
        assert "".join(seen.texts).count(visible.rstrip("\n")) > 8


def test_html_asks_for_nothing_from_elsewhere(make):
    page = FORMS["html"](make.rich())
    assert "default-src &#39;none&#39;; script-src &#39;sha256-" in page and "unsafe" not in page
    assert not re.search(r"url\(|@import|<link|<img", page)
    addresses = set(re.findall(r"https?://[^\s\"']+", page))
    assert all(found.startswith("https://vega.github.io/schema/") for found in addresses)  # names


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_csv_starts_no_formula_and_keeps_its_columns(make, text):
    written = FORMS["csv"](hostile_record(make, text))
    written.encode("utf-8")
    assert "\x00" not in written
    rows = list(csv.reader(io.StringIO(written, newline="")))
    assert len(rows) == 4
    assert {len(row) for row in rows} == {len(rows[0])}
    for row in rows:
        for cell in row:
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_junit_is_xml_with_all_cases(make, text):
    written = FORMS["junit"](hostile_record(make, text))
    root = ET.fromstring(written.encode("utf-8"))
    assert {e.tag for e in root.iter()} == {"testsuites", "testsuite", "testcase", "failure"}
    assert len(root.findall("testsuite/testcase")) == 4
    (gate,) = root.findall("testsuite[@name='gates']/testcase")
    if text.isprintable():
        assert gate.get("name") == text
        assert gate.find("failure").text == f"{text} ({text})"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_markdown_has_a_line_per_row_and_no_markup_of_others(make, text):
    written = FORMS["markdown"](hostile_record(make, text))
    written.encode("utf-8")
    lines = written.split("\n")
    assert written.splitlines() == lines[:-1], "no other character ends a line"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {9}
    assert all(line == "" or line[0] in "#|-R" or line.startswith("\\* ") for line in lines)
    unescaped = re.sub(r"\\[\\`*_\[\]<>#|~&]", "", "\n".join(lines[1:]))
    assert not re.search(r"[`<>&\[\]~]", unescaped)
    assert set(re.findall(r"\*\*(.*?)\*\*", unescaped)) == {"failed", "gate failed"}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_terminal_shows_the_text_itself(make, text):
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, color_system="truecolor")
    print_record(hostile_record(make, text), console)
    written = stream.getvalue()
    written.encode("utf-8")
    ours = re.sub(r"\x1b\[[0-9;]*m", "", written)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", ours)
    if text.isprintable():
        assert f"failed: {text}, onnxruntime fp32 on pi4: {text}" in ours
        assert f"gate FAILED: {text}: {text}" in ours
        assert f"of {text}\n" in ours


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(), max_size=12))
def test_no_name_breaks_a_form(make, text):
    record = hostile_record(make, text)
    assert json.loads(FORMS["json"](record)) == json.loads(json.dumps(record.values))
    harmless(Page(FORMS["html"](record)))
    ET.fromstring(FORMS["junit"](record).encode("utf-8"))
    rows = list(csv.reader(io.StringIO(FORMS["csv"](record), newline="")))
    assert (len(rows), len({len(row) for row in rows})) == (4, 1)
    markdown = FORMS["markdown"](record)
    assert len([line for line in markdown.splitlines() if line.startswith("|")]) == 4
    stream = io.StringIO()
    print_record(record, Console(file=stream, width=80))
    stream.getvalue().encode("utf-8")


def test_json_is_the_record_and_refuses_what_json_has_not(make):
    record = make.rich()
    assert json.loads(FORMS["json"](record)) == record.values
    with pytest.raises(ValueError, match="JSON"):
        FORMS["json"](make.record(make.result(speedup_vs_fp32=float("nan"))))


def test_csv_has_each_figure_under_its_head(make):
    record = make.record(
        make.result(
            "a",
            ms=2.0,
            options={"threads": 4, "cores": [0, 1]},
            cached=True,
            energy_mj=21.5,
            sustained=make.sustained(),
        ),
        make.result("b", "ncnn", ms=None, error='no such thing, "here"'),
    )
    first, second = csv.DictReader(io.StringIO(FORMS["csv"](record), newline=""))
    assert first["run_id"] == record.values["run_id"]
    assert (first["option.threads"], first["option.cores"]) == ("4", "[0, 1]")
    assert float(first["latency.median_ms"]) == 2.0
    assert float(first["latency.ci95_low_ms"]) == pytest.approx(1.96)
    assert float(first["latency.ci95_high_ms"]) == pytest.approx(2.06)
    assert (first["metric.top1"], first["size_bytes"]) == ("0.985", "388190")
    assert (first["latency.p99_ms"], first["latency.clean"], first["cached"]) == (
        "",
        "True",
        "True",
    )
    assert (first["energy_mj"], first["sustained.ratio"]) == ("21.5", "1.25")
    assert (first["sustained.throttled_s"], second["sustained.ratio"]) == ("60.0", "")
    assert (second["status"], second["error"]) == ("failed", 'no such thing, "here"')
    assert {second[key] for key in ("latency.median_ms", "metric.top1", "option.cores")} == {""}


def test_junit_counts_failures_and_skips(make):
    root = ET.fromstring(FORMS["junit"](make.rich()).encode())
    targets, gates = root.findall("testsuite")
    assert [targets.get(key) for key in ("tests", "failures", "skipped")] == ["10", "1", "1"]
    assert [gates.get(key) for key in ("tests", "failures", "skipped")] == ["2", "1", "0"]
    names = [case.get("name") for case in targets]
    assert len(set(names)) == 10
    case = targets.find("testcase[@name='original, onnxruntime fp32 on pi4']")
    assert (case.get("classname"), float(case.get("time"))) == ("pi4", 0.0042)
    assert targets.find("testcase/skipped").text == "no int8 GRU"
    assert targets.find("testcase/failure").get("message") == "the tool ended:\nexit code 9"
    assert gates.find("testcase/failure").text == "slow (m.yaml:9:5)"


def test_markdown_says_all_that_a_reviewer_needs(make):
    written = FORMS["markdown"](make.rich())
    assert (
        "| slim, tflite fp32 on pi4 | 2.200 | 2.156 to 2.266 | x1.00 | x1.42 | 0.981 | 0.999 |"
        in written
    )
    assert (
        "| 4.200 | 4.116 to 4.326 | x1.00 | - | 0.985 | 0.999 | 388.2 kB | 21.5 | \\* |" in written
    )
    assert "- original, onnxruntime fp32 on pi4: 120 s without pause: at the end x1.25" in written
    assert "- **skipped**: slim, tflite int8 on pi4: no int8 GRU\n" in written
    assert "- **failed**: slim, tflite fp16 on pi4: the tool ended: exit code 9\n" in written
    assert "Other processes kept 1.0-1.4 of 4 cores busy." in written
    assert "- gate holds: top1 max\\_drop 0.01: top1 0.985 against" in written
    assert "- **gate failed**: latency.median\\_ms max 2: slow\n" in written
    assert "\n\n\\* Pareto front, \\~ not clean" in written


@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"baseline"}))
def test_a_run_in_which_nothing_was_measured_has_every_form(make, name):
    record = make.record(
        make.result(ms=None, error="the model cannot be read"),
        make.result("slim", ms=None, error="the model cannot be read"),
        devices={}, model=None, reference=None, data={}, metrics=[],
    )  # fmt: skip
    written = FORMS[name](record)
    if isinstance(written, bytes):
        assert (
            pq.read_table(io.BytesIO(written))["error"].to_pylist()
            == ["the model cannot be read"] * 2
        )
        return
    assert "the model cannot be read" in written
    assert "slim, onnxruntime fp32 on pi4" in written or name == "csv"


def test_csv_escapes_texts_and_no_numbers(make):
    result = make.result("a", options={"bias": -2, "note": "-2"}, energy_mj=-1.5)
    (row,) = csv.DictReader(io.StringIO(FORMS["csv"](make.record(result)), newline=""))
    assert (row["option.bias"], row["option.note"], row["energy_mj"]) == ("-2", "'-2", "-1.5")


def test_parquet_has_typed_columns_and_on_request_the_raw_samples(make):
    record = make.record(
        make.result("a", ms=2.0, options={"threads": 4, "cores": [0, 1], "fast": True}),
        make.result("b", "ncnn", ms=None, options={"threads": 1}, error="-no"),
    )
    table = pq.read_table(io.BytesIO(FORMS["parquet"](record)))
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert kinds["latency.median_ms"] == kinds["metric.top1"] == kinds["energy_mj"] == "double"
    assert kinds["size_bytes"] == kinds["latency.samples"] == kinds["option.threads"] == "int64"
    assert kinds["latency.clean"] == kinds["pareto"] == kinds["option.fast"] == "bool"
    assert kinds["variant"] == kinds["latency.timed_by"] == kinds["option.cores"] == "string"
    first, second = table.to_pylist()
    assert (first["latency.median_ms"], first["option.threads"]) == (2.0, 4)
    assert first["option.cores"] == "[0, 1]"
    assert (second["latency.median_ms"], second["option.fast"], second["error"]) == (
        None,
        None,
        "-no",
    )
    assert "samples.infer_ns" not in kinds
    table = pq.read_table(io.BytesIO(FORMS["parquet-samples"](record)))
    assert str(table.schema.field("samples.infer_ns").type) == "list<element: uint64>"
    raw = [list(each.get("infer_ns", ())) or None for each in record.samples]
    assert table["samples.infer_ns"].to_pylist() == raw


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_parquet_holds_any_name(make, text):
    table = pq.read_table(io.BytesIO(FORMS["parquet"](hostile_record(make, text))))
    assert table.num_rows == 3
    if text.isprintable():
        assert table["variant"].to_pylist()[0] == text, "nothing runs a formula here"


def test_parquet_without_pyarrow_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentError_, match=r"pip install .wherry\[parquet\]"):
        FORMS["parquet"](make.rich())
