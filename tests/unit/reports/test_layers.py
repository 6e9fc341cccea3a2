"""Times of layers in the forms of a report: a line, tables, and nodes over backends."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from wherry.artifact import Artifact, Layer
from wherry.measurement import Measurement
from wherry.records.layers import NO_LAYERS, layer_fields
from wherry.reports import html, layers, terminal


def printed(record) -> str:
    console = Console(file=io.StringIO(), width=140, no_color=True)
    terminal.print_record(record, console)
    return console.file.getvalue()


def measured(**times: float) -> Measurement:
    zeros = np.zeros(1, np.uint64)
    rounds = ((1,), (1.0,), (1.0,), (0,), (False,))
    return Measurement(zeros, zeros, *rounds, layers=times, layer_runs=20)


def test_rows_have_the_nodes_and_nothing_is_left_out(tmp_path) -> None:
    known = (
        Layer("c", "CONV_2D", ("conv", "relu"), precision="int8"),
        Layer("gone", "RESHAPE", ("flatten",)),
    )
    artifact = Artifact(tmp_path, "tflite", "int8", "tflite", {}, (), (), layers=known)
    found = layer_fields(artifact, measured(copy=0.1, c=0.3))
    assert (found["layers_sum_ms"], found["layers_runs"]) == (pytest.approx(0.4), 20)
    conv, gone, strange = found["layers"]
    assert conv == {
        "name": "c",
        "type": "CONV_2D",
        "nodes": ["conv", "relu"],
        "precision": "int8",
        "median_ms": 0.3,
        "share": pytest.approx(0.75),
    }
    assert (gone["nodes"], gone["median_ms"], gone["share"]) == (["flatten"], None, None)
    assert (strange["name"], strange["nodes"], strange["precision"]) == ("copy", [], None)
    assert strange["share"] == pytest.approx(0.25)


def test_layers_too_fast_for_the_clock_have_no_share(tmp_path) -> None:
    artifact = Artifact(tmp_path, "ort", "fp32", "onnx", {}, (), (), layers=(Layer("a", "A", ()),))
    assert layer_fields(artifact, measured(a=0.0))["layers"][0]["share"] is None
    assert layer_fields(artifact, measured()) == NO_LAYERS


def test_the_slowest_are_named_and_the_sum_is_held_against_the_whole(make) -> None:
    found = make.layered(
        make.layer("a b", 0.2), make.layer("c", 1.0), make.layer("d", 0.3), make.layer("e", 0.1)
    )
    result = make.result(ms=2.0, **found)
    assert layers.slowest_text(result) == (
        "slowest layers c 62 %, d 19 %, a and 1 more 12 %; the layers add up to 1.600 ms, x0.80 of "
        "the whole inference's 2.000 ms."
    )
    text = printed(make.record(result, make.result("plain")))
    assert f"{result['name']}: slowest layers c 62 %" in text
    assert text.count("slowest layers") == 1
    assert layers.slowest_text(make.result("plain")) == layers.sum_text(make.result("plain")) == ""


def test_an_emulated_board_is_said(make) -> None:
    found = make.layered(make.layer("a", 1.0))
    result = make.result(latency={"emulated": True}, **found)
    assert "on an emulated board, where times mean nothing" in layers.slowest_text(result)
    text = html.render(make.record(result))
    assert "emulated: times mean nothing" in text
    assert "on an emulated board, where times mean nothing" in text


def test_nodes_over_backends_in_pieces_that_all_share(make) -> None:
    """One fuses a with b, another b with c: the three are one piece; d is one of its own."""
    one = make.layered(make.layer("a b", 1.0), make.layer("c", 0.5), make.layer("d", 0.25))
    two = make.layered(
        make.layer("a", 0.75), make.layer("b c", 0.5), make.layer("d", None), make.layer("", 0.125)
    )
    results = [
        make.result("net", "tflite", "int8", **one),
        make.result("net", "ncnn", "fp32", **two),
        make.result("net", "onnxruntime", "fp32"),
        make.result("net", "ncnn", "fp32", "orin", **two),
        make.result("slim", "ncnn", "fp32", **two),
    ]
    (found,) = layers.comparisons(results)
    assert (found.title, found.heads) == ("net on pi4", ("tflite int8", "ncnn fp32"))
    assert [(piece.nodes, piece.times_ms) for piece in found.pieces] == [
        (("a", "b", "c"), (1.5, 1.25)),
        (("d",), (0.25, None)),
        ((), (None, 0.125)),
    ]


def test_options_tell_columns_apart(make) -> None:
    found = make.layered(make.layer("a", 1.0))
    results = [make.result("net", "ncnn", options={"threads": n}, **found) for n in (1, 4)]
    (compared,) = layers.comparisons(results)
    assert compared.heads == ("ncnn fp32 threads=1", "ncnn fp32 threads=4")


def test_the_page_has_a_table_for_each_sorted_by_time(make) -> None:
    found = make.layered(
        make.layer("quick", 0.5), make.layer("conv relu", 1.5), make.layer("gone", None)
    )
    text = html.render(make.record(make.result(**found), make.result("other")))
    assert text.count("Layers, the slowest first") == 1
    text = text[text.index("Layers, the slowest first") :]
    assert text.index(">conv, relu") < text.index(">quick<") < text.index(">gone<")
    assert "(2 fused)" in text and "75.0 %" in text
    assert 'width="75.0" height="10"' in text
    assert "slowest first" not in html.render(make.record(make.result()))


def test_names_from_a_model_do_no_harm(make) -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    layer = {**make.layer("", 1.0, evil, type=evil), "nodes": [evil, '"x"']}
    results = [make.result("v", backend, **make.layered(layer)) for backend in ("ncnn", "tflite")]
    for text in (html.render(make.record(*results)), printed(make.record(*results))):
        assert "\x1b" not in text
    assert "<script>alert" not in html.render(make.record(*results))


def test_a_record_of_before_has_no_layers(make) -> None:
    result = make.result()
    for name in ("layers", "layers_sum_ms", "layers_runs"):
        del result[name]
    record = make.record(result)
    assert 'id="layers"' not in html.render(record) and "layers" not in printed(record)
