"""The HTML page: its picture, its table, what it says of the run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.reports import html
from wherry.reports import pictures as stills

FRAME = stills.SIZE["frame"]


class Tables(HTMLParser):
    """The cells of each table, and all that is text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.cell = False
        self.feed(page)
        self.text = " ".join(
            re.sub(r"<(style|title|script)\b.*?</\1>|<[^>]*>", " ", page, flags=re.S).split()
        )

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in {"td", "th"}

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data


def page(record) -> Tables:
    return Tables(html.render(record))


def pictures(record) -> list[stills.Picture]:
    measured = [result for result in record.values["results"] if result["status"] == "ok"]
    return stills.pictures(measured, record.values)


def test_the_table_has_every_figure_under_its_head(make):
    record = make.record(
        make.result("a", ms=2.0, options={"threads": 4}, pareto=True),
        make.result("b", "ncnn", device="orin", ms=0.0071, parity=None, peak_memory_bytes=None),
    )
    head, first, second = page(record).tables[0]
    assert len(head) == len(first) == len(second)
    row = dict(zip(head, first, strict=True))
    assert row == {
        "variant": "a", "backend": "onnxruntime", "precision": "fp32", "device": "pi4",
        "threads": "4", "marks": "front", "median ms": "2.000", "95 %": "1.960 to 2.060",
        "vs fp32": "x1.00", "top1": "0.985", "agreement": "0.999", "size": "388.2 kB",
        "memory": "13.5 MB", "p90 ms": "2.200", "samples": "600", "outliers": "7",
        "with copies ms": "2.100", "load ms": "12.500", "parity dB": "120",
    }  # fmt: skip
    row = dict(zip(head, second, strict=True))
    assert (row["median ms"], row["parity dB"], row["memory"]) == ("0.00710", "-", "-")


def test_other_variants_show_what_they_are_against_the_original(make):
    originals = {"speedup_vs_original": 1.0}, {"speedup_vs_original": 1.5}
    both = [
        make.result(name, **up) for name, up in zip(("original", "slim"), originals, strict=True)
    ]
    head, _, slim = page(make.record(*both)).tables[0]
    assert dict(zip(head, slim, strict=True))["vs original"] == "x1.50"
    assert "vs original" not in page(make.record(both[0])).tables[0][0]


def test_what_is_the_same_everywhere_has_no_column(make):
    head = page(make.record(make.result(), make.result("slim"))).tables[0][0]
    assert "device" not in head
    options = {"winograd": True}, {"winograd": False}
    head = page(make.record(*(make.result(options=o) for o in options))).tables[0][0]
    assert "winograd" in head


def test_the_page_says_what_was_run_and_how(make):
    text = page(make.rich()).text
    for said in (
        "8 measured, 1 failed, 1 skipped.",
        "FAILED latency.median_ms max 2: slow",
        "holds top1 max_drop 0.01:",
        "skipped slim, tflite int8 on pi4: no int8 GRU",
        "timed by agent",
        "Raspberry Pi 4 Model B Rev 1.5; Cortex-A72, 4 cores, 8.0 GB of memory",
        "input float32 1 x 1 x 28 x 28 to logits float32 1 x 10",
        "4800 samples of mnist5k, sha256 efef",
        "on ONNX Runtime on the host top1 0.985, agreement 1",
        "3 rounds, each in a process of its own: 0.3 s and at least 5 runs of warm-up",
        "model: {path: net.onnx}",
        "Other processes kept 1.0-1.4 of 4 cores busy.",
    ):
        assert said in text, said


def test_an_emulated_board_is_said_and_has_no_picture(make):
    record = make.record(make.result(latency={"emulated": True}))
    record.values["devices"]["pi4"] = {**record.values["devices"]["pi4"], "emulated": True}
    assert pictures(record) == []
    assert "emulated: latency on it means nothing" in page(record).text


def test_one_picture_a_device_and_clock(make):
    record = make.record(
        make.result(device="pi4"),
        make.result(device="orin"),
        make.result(device="orin", backend="tensorrt", latency={"timed_by": "trtexec"}),
    )
    assert [picture.title for picture in pictures(record)] == [
        "Latency and top1 on pi4, timed by agent",
        "Latency and top1 on orin, timed by agent",
        "Latency and top1 on orin, timed by trtexec",
    ]
    assert pictures(make.record(make.result()))[0].title == "Latency and top1 on pi4"


def test_a_backend_looks_the_same_in_all_pictures(make):
    record = make.record(
        make.result(backend="onnxruntime", device="pi4"),
        make.result(backend="ncnn", device="pi4", ms=2.0),
        make.result(backend="ncnn", device="orin"),
        make.result(backend="ncnn", precision="fp16", device="orin", ms=3.0),
    )
    pi4, orin = pictures(record)
    assert pi4.series == ((0, "circle", "onnxruntime fp32"), (1, "circle", "ncnn fp32"))
    assert orin.series == ((1, "circle", "ncnn fp32"), (1, "square", "ncnn fp16"))
    assert [(p.colour, p.shape) for p in orin.points] == [(1, "circle"), (1, "square")]


def test_points_that_cover_each_other_name_all_and_say_how_many(make):
    record = make.record(
        make.result("a"), make.result("far", ms=9.0), make.result("b", ms=1.001), make.result("c")
    )
    (picture,) = pictures(record)
    labels = sorted((point.label.count("\n") + 1, point.count) for point in picture.points)
    assert labels == [(1, 0), (3, 0), (3, 0), (3, 3)]
    together = next(point.label for point in picture.points if point.count)
    assert [line.split(",")[0] for line in together.split("\n")] == ["a", "b", "c"]
    assert "a, onnxruntime fp32 on pi4: 1.000 ms, top1 0.985" in together
    assert "so many results at one place" in page(record).text


def test_the_front_is_drawn_from_the_fastest_on(make):
    record = make.record(
        make.result("b", ms=2.0, top1=0.98, pareto=True),
        make.result("a", ms=1.0, top1=0.97, pareto=True),
        make.result("dominated", ms=3.0, top1=0.96),
    )
    (picture,) = pictures(record)
    corners = [tuple(map(float, corner.split(","))) for corner in picture.front.split()]
    assert len(corners) == 2
    assert corners[0][0] < corners[1][0]
    assert corners[0][1] > corners[1][1], "down the page is less"
    assert "<polyline" in html.render(record)


def test_a_front_of_one_point_is_no_line(make):
    record = make.record(make.result(pareto=True), make.result(ms=2.0, top1=0.9))
    assert pictures(record)[0].front == ""
    assert "<polyline" not in html.render(record)


def test_without_metrics_the_size_goes_up(make):
    record = make.record(
        make.result(metrics={}), make.result(metrics={}, size_bytes=10_000, ms=2.0), metrics=[]
    )
    (picture,) = pictures(record)
    assert (picture.title, picture.axis) == ("Latency and size on pi4", "size, kB")
    assert "1.000 ms, size 388.2 kB" in picture.points[0].label


def test_a_result_without_the_metric_is_in_the_table_alone(make):
    record = make.record(make.result(), make.result("bare", metrics={}))
    assert len(pictures(record)[0].points) == 1
    assert "bare" in page(record).text


def inside(picture: stills.Picture) -> None:
    left, top, right, bottom = FRAME
    for point in picture.points:
        assert left - 0.1 <= point.x <= right + 0.1
        assert top - 0.1 <= point.y <= bottom + 0.1
    for ticks, start, end in ((picture.x_ticks, left, right), (picture.y_ticks, bottom, top)):
        assert 2 <= len(ticks) <= 9
        assert (ticks[0].at, ticks[-1].at) == (start, end)
        assert len({tick.text for tick in ticks}) == len(ticks), "two ticks look the same"
        assert all(len(tick.text) <= 12 for tick in ticks)


@pytest.mark.parametrize("top1", [0.0, 1.0, 0.985, -300.0, 1e-12, 3.4e38])
@pytest.mark.parametrize("count", [1, 3])
def test_one_point_and_equal_ones_have_a_picture(make, top1, count):
    results = [make.result(str(i), ms=1.0 + i, top1=top1) for i in range(count)]
    (picture,) = pictures(make.record(*results))
    inside(picture)


@given(
    places=st.lists(
        st.tuples(st.floats(1e-4, 1e5), st.floats(-300, 300, allow_subnormal=False)),
        min_size=1,
        max_size=8,
    )
)
def test_all_points_and_ticks_are_in_the_frame(make, places):
    results = [make.result(str(i), ms=ms, top1=top1) for i, (ms, top1) in enumerate(places)]
    (picture,) = pictures(make.record(*results))
    inside(picture)
    assert len(picture.points) == len(places)
    by_latency = sorted(zip(places, range(len(places)), strict=True))
    x = {point.label: point.x for point in picture.points if "\n" not in point.label}
    found = [x[label] for (_, index) in by_latency for label in x if label.startswith(f"{index}, ")]
    assert found == sorted(found), "the slower, the further right"


def test_two_hundred_rows_are_a_page(make):
    results = [make.result(f"v{i}", ms=1 + i % 7, top1=0.9 + i % 5 / 100) for i in range(200)]
    found = page(make.record(*results))
    assert len(found.tables[0]) == 201
    assert len(html.render(make.record(*results))) < 1_000_000


def series(record) -> list[stills.Series]:
    return [stills.series(r) for r in record.values["results"] if r["sustained"]]


def test_a_run_without_pause_is_drawn_with_its_heat(make):
    record = make.record(make.result("a", sustained=make.sustained()), make.result("b"))
    (one,) = series(record)
    for line in (one.latency, one.temperature):
        spots = [tuple(map(float, spot.split(","))) for spot in line.split()]
        assert len(spots) == 120
        assert all(stills.LEFT <= x <= stills.WIDTH - stills.LEFT for x, _ in spots)
        assert all(stills.TOP <= y <= stills.SERIES_HEIGHT - stills.BOTTOM for _, y in spots)
        assert [x for x, _ in spots] == sorted(x for x, _ in spots)
    assert one.throttled == spots[59][0]
    text = page(record).text
    assert "120 s without pause: at the end x1.25 of the time at the start, 50 to 80 °C" in text
    assert html.render(record).count('class="line"') == 1


def test_a_board_that_tells_no_heat_has_latency_alone(make):
    points = [{**p, "temperature_c": None} for p in make.sustained()["points"]]
    record = make.record(
        make.result(sustained=make.sustained(None, points=points, ratio=None, throttled_by=None))
    )
    (one,) = series(record)
    assert (one.temperature, one.throttled, one.c_ticks) == ("", None, ())
    assert 'class="heat"' not in html.render(record) and "°C" not in one.text


def test_energy_has_a_column_where_a_board_tells_it(make):
    told = make.record(make.result("a", energy_mj=21.53), make.result("b"))
    head, first, second = page(told).tables[0]
    column = head.index("energy mJ")
    assert (first[column], second[column]) == ("21.5", "-")
    assert "energy mJ" not in page(make.record(make.result("a"))).tables[0][0]
