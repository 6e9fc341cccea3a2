"""The layers to blame in the HTML report: whose they are, and files that are no such thing."""

from __future__ import annotations

import json

import pytest

from wherry.cli import main
from wherry.errors import UsageError
from wherry.records.database import Records
from wherry.reports import html
from wherry.reports.blame import with_blame


def found_of(result: dict, **changes: object) -> dict:
    layer = {
        "layer": "conv_7", "type": "CONV_2D", "nodes": ["/b/conv"], "tensor": "t", "share": 0.625,
        "own": {"sqnr_db": 21.5, "cosine": 0.99}, "accumulated": {"sqnr_db": 18.0, "cosine": 0.98},
    }  # fmt: skip
    silent = {"layer": "reshape", "type": "RESHAPE", "nodes": [], "tensor": None}
    return {
        "variant": result["variant"],
        "target": result["target"],
        "name": "original on int8",
        "data": "evaluation",
        "samples": 16,
        "outputs": {"logits": {"sqnr_db": 12.25, "cosine": 0.97}},
        "layers": [layer, silent],
        "keep_fp32": ["/b/conv", "</code><script>"],
        **changes,
    }


def test_the_page_shows_what_was_found_of_a_target(make, tmp_path):
    result = make.result(precision="int8")
    file = tmp_path / "blame.json"
    file.write_text(json.dumps(found_of(result)))
    text = html.render(with_blame(make.record(result), (file,)))
    assert "Where accuracy is lost" in text and "62.5 %" in text and ">21.5<" in text
    assert "16 samples of the evaluation data; outputs: logits 12.2 dB, cosine 0.97000" in text
    assert "keep_fp32: [&#34;/b/conv&#34;" in text and "</code><script>" not in text
    assert "Where accuracy is lost" not in html.render(make.record(result))


def test_another_runs_target_is_refused(make, tmp_path):
    file = tmp_path / "blame.json"
    file.write_text(json.dumps(found_of(make.result("other"))))
    with pytest.raises(UsageError, match="has no target like"):
        with_blame(make.record(make.result()), (file,))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 3}', "\x00"])
def test_what_is_no_such_file_is_named(make, tmp_path, text):
    file = tmp_path / "blame.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="not what `wherry debug layers --json` prints") as caught:
        with_blame(make.record(make.result()), (file,))
    assert str(file) in str(caught.value)


def test_report_takes_it_for_the_html_form_alone(make, wherry_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    result = make.result(precision="int8")
    with Records.open() as records:
        records.save(make.record(result))
    file, page = tmp_path / "blame.json", tmp_path / "page.html"
    file.write_text(json.dumps(found_of(result)))
    assert main(["report", "last", "--blame", str(file), "-o", str(page)]) == 0
    assert "Where accuracy is lost" in page.read_text()
    assert main(["report", "last", "--blame", str(file), "--format", "markdown"]) == 2
    assert "--blame is of the HTML report" in capsys.readouterr().err
