"""``--bisect``: the least set of nodes, what is wanted, and what comes from the store."""

from __future__ import annotations

import pytest
from rich.console import Console

from wherry.debug.report import show
from wherry.errors import UnsupportedError, UsageError


def found(values):
    return values["bisect"]["found"]


def test_the_least_set_is_found_alone(desk):
    desk.plugin.noise = {"fc1": 0.001, "fc4": 0.3, "fc5": 0.001}
    values = desk.layers(bisect=True, want="sqnr_db=35")
    assert found(values)["nodes"] == ["fc4"]
    assert found(values)["metrics"]["sqnr_db"] >= 35
    assert values["keep_fp32"] == ["fc4"]
    assert found(values) in values["bisect"]["tries"]


def test_two_layers_that_are_far_apart(desk):
    desk.plugin.noise = {f"fc{number}": 0.001 for number in range(1, 7)} | {"fc1": 0.3, "fc5": 0.2}
    values = desk.layers(bisect=True, want="sqnr_db=30")
    assert sorted(found(values)["nodes"]) == ["fc1", "fc5"]


def test_tries_come_from_the_store(desk):
    desk.plugin.noise = {"fc4": 0.3}
    first = desk.layers(bisect=True, want="sqnr_db=35")
    assert len(first["bisect"]["tries"]) > 2
    assert desk.plugin.hosted.count(1) == 3  # two tries (equal bytes run once), and the times
    desk.plugin.hosted.clear()
    second = desk.layers(bisect=True, want="sqnr_db=35")
    assert second["bisect"] == first["bisect"]
    assert desk.plugin.hosted == [6, 1]  # what shows its layers, and what times them


def test_where_it_is_reached_already_nothing_is_kept(desk):
    values = desk.layers(bisect=True, want="sqnr_db=35")
    assert found(values)["nodes"] == []
    assert len(values["bisect"]["tries"]) == 1


def test_where_fp32_does_not_reach_it_that_is_said(desk):
    desk.plugin.noise, desk.plugin.stubborn = {"fc4": 0.3}, {"fc4"}
    values = desk.layers(bisect=True, want="sqnr_db=35")
    assert found(values) is None
    assert values["keep_fp32"] == []
    console = Console(record=True, width=140)
    show(values, console)
    assert "not reached even with all of these layers in fp32" in console.export_text()


def test_what_the_manifest_keeps_stays_kept(desk):
    desk.plugin.noise = {"fc2": 0.3, "fc4": 0.3}
    desk.text = desk.text.replace("[fp32, int8]}", "int8, keep_fp32: [fc2]}")
    values = desk.layers(bisect=True, want="sqnr_db=35")
    assert found(values)["nodes"] == ["fc4"]
    assert values["keep_fp32"] == ["fc2", "fc4"]


@pytest.mark.parametrize(
    ("gate", "bound"),
    [
        ("{metric: sqnr_db, min: 33}", 33),
        ("{metric: sqnr_db, max_drop: 250}", 50),  # of the 300 dB of the original
        ("{metric: sqnr_db, min: 33, where: {precision: fp32}}", 20),  # it speaks of another row
        ("{metric: latency.median_ms, max: 1}", 20),  # no accuracy
    ],
)
def test_what_is_wanted_is_what_the_gates_want(desk, gate, bound):
    desk.text += f"gates: [{gate}]\n"
    assert desk.layers(bisect=True)["bisect"]["want"]["bound"] == pytest.approx(bound)


def test_networks_that_tell_classes_want_agreement(desk):
    desk.text = desk.text.replace("[sqnr_db]", "[agreement]")
    want = desk.layers(bisect=True)["bisect"]["want"]
    assert (want["metric"], want["bound"]) == ("agreement", 0.99)


def test_a_metric_that_the_manifest_does_not_name_can_be_wanted(desk):
    desk.plugin.noise = {"fc4": 0.3}
    values = desk.layers(bisect=True, want="mae=0.01")
    assert found(values)["nodes"] == ["fc4"]
    assert values["bisect"]["want"]["better"] == "lower"
    assert set(found(values)["metrics"]) == {"sqnr_db", "mae"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"want": "sqnr_db=35"}, "--bisect"),
        ({"bisect": True, "want": "speed=1"}, "no metric 'speed'"),
        ({"bisect": True, "want": "sqnr_db=high"}, "wants no number"),
        ({"bisect": True, "want": "sqnr_db=nan"}, "wants no number"),
    ],
)
def test_what_cannot_be_wanted_is_told_before_anything_runs(desk, asked, words, monkeypatch):
    monkeypatch.setattr("wherry.engine.local.run_steps", None)
    with pytest.raises(UsageError, match=words):
        desk.layers(**asked)


def test_a_backend_without_mixed_precision_is_refused(desk):
    desk.plugin.mixes = False
    assert desk.layers()["mixed"] is False
    with pytest.raises(UnsupportedError, match="cannot keep single nodes in fp32"):
        desk.layers(bisect=True)
