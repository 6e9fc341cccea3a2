"""``wherry debug layers``: which layer is blamed, which row is looked at, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from ruamel.yaml import YAML

from wherry.cli import cli
from wherry.debug.report import keep_text, show
from wherry.errors import DataError, DeviceLostError, ToolError, UnsupportedError, UsageError


def rows(values):
    return {row["layer"]: row for row in values["layers"]}


def test_the_noisy_layer_is_named_first_and_can_be_pasted(desk):
    desk.plugin.noise = {"fc4": 0.3}
    values = desk.layers()
    first = values["layers"][0]
    assert first["nodes"] == ["fc4", "relu4"]
    assert first["share"] > 0.99
    assert values["keep_fp32"] == ["fc4", "relu4"]
    assert YAML(typ="safe").load(keep_text(values["keep_fp32"])) == {"keep_fp32": ["fc4", "relu4"]}


def test_what_a_layer_adds_is_told_from_what_it_was_given(desk):
    desk.plugin.noise = {"fc2": 0.3}
    found = rows(desk.layers())
    guilty, behind, before = (found[f"layer-fc{number}"] for number in (2, 4, 1))
    assert guilty["own"]["sqnr_db"] == pytest.approx(guilty["accumulated"]["sqnr_db"], abs=0.01)
    assert guilty["own"]["sqnr_db"] < 40
    assert behind["accumulated"]["sqnr_db"] < 40
    assert behind["own"]["sqnr_db"] > 100
    assert before["accumulated"]["sqnr_db"] > 100


def test_the_effect_at_the_output_ranks_not_the_error_in_place(desk):
    desk.plugin.noise = {"fc2": 1.0, "fc5": 0.02}
    plain = rows(desk.layers())
    assert plain["layer-fc2"]["share"] > plain["layer-fc5"]["share"]

    desk.write_network(deaf=True)
    deafened = rows(desk.layers())
    assert deafened["layer-fc2"]["own"]["sqnr_db"] < deafened["layer-fc5"]["own"]["sqnr_db"]
    assert deafened["layer-fc2"]["share"] == 0
    assert desk.layers()["layers"][0]["layer"] == "layer-fc5"


def test_effects_predict_the_error_at_the_output(desk):
    desk.plugin.noise = {f"fc{number}": 0.01 for number in range(1, 7)}
    values = desk.layers(samples=20)
    assert values["predicted_sqnr_db"] == pytest.approx(values["outputs"]["y"]["sqnr_db"], abs=6)
    assert sum(row["share"] for row in values["layers"] if row["tensor"]) == pytest.approx(1)


def test_layers_without_onnx_nodes_are_listed(desk):
    values = desk.layers()
    entry = rows(values)["entry"]
    assert entry["nodes"] == []
    assert entry["tensor"] is None
    console = Console(record=True, width=140)
    show(values, console)
    text = console.export_text()
    assert "entry (Reorder)" in text
    assert "none stands out" in text


def test_layers_have_their_times(desk):
    desk.plugin.times = {"layer-fc2": np.array([1e6, 3e6, 2e6]), "entry": np.array([5e5])}
    found = rows(desk.layers())
    assert (found["layer-fc2"]["median_ms"], found["entry"]["median_ms"]) == (2, 0.5)
    assert found["layer-fc1"]["median_ms"] is None


def test_layers_that_cannot_be_timed_are_compared_all_the_same(desk):
    desk.plugin.times = ToolError("the runner crashed")
    values = desk.layers()
    assert values["outputs"]["y"]["sqnr_db"] > 0
    assert values["warnings"] == ["the layers are not timed: the runner crashed"]


def test_fp32_keeps_nothing(desk):
    values = desk.layers(precision="fp32")
    assert values["keep_fp32"] == []
    assert values["outputs"]["y"]["sqnr_db"] > 100


def test_nodes_kept_already_are_not_blamed_and_stay_in_the_list(desk):
    desk.plugin.noise = {"fc4": 0.3, "fc5": 0.3}
    desk.text = desk.text.replace("[fp32, int8]}", "int8, keep_fp32: [fc4]}")
    assert desk.layers()["keep_fp32"] == ["fc4", "fc5", "relu5"]


def test_samples_are_spread_and_counted(desk):
    values = desk.layers(samples=5)
    assert (values["samples"], values["effect_samples"]) == (5, 5)
    assert desk.layers()["samples"] == 20


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"precision": None}, "2 rows of the manifest are like that"),
        ({"backend": "other"}, "no row of the manifest is like that"),
        ({"options": ("fuse=false",)}, "no row of the manifest is like that"),
    ],
)
def test_the_choices_are_named(desk, asked, words):
    with pytest.raises(UsageError, match=words) as raised:
        desk.layers(**asked)
    assert "original: noisy int8 on local" in str(raised.value)


def test_an_option_has_a_value(desk):
    with pytest.raises(UsageError, match=r"--option fuse has no value.*KEY=VALUE"):
        desk.layers(options=("fuse",))


def test_rows_that_only_run_differently_are_one(desk):
    desk.text = desk.text.replace("[fp32, int8]}", "int8, threads: [1, 2]}")
    assert desk.layers()["target"]["options"]["threads"] == 1


def test_an_option_tells_rows_apart(desk):
    desk.text = desk.text.replace("[fp32, int8]}", "int8, noisy: {fuse: [true, false]}}")
    with pytest.raises(UsageError, match="2 rows"):
        desk.layers()
    assert desk.layers(options=("fuse=false",))["target"]["options"]["fuse"] is False


def test_a_backend_that_cannot_expose_says_so(desk):
    desk.plugin.exposes = False
    with pytest.raises(UnsupportedError, match="noisy does not show what its layers give"):
        desk.layers()


def test_without_data_nothing_is_compared(desk):
    start, end = desk.text.index("data:"), desk.text.index("metrics:")
    desk.text = desk.text[:start] + desk.text[end:].replace("metrics: [sqnr_db]\n", "")
    with pytest.raises(DataError, match="the manifest names no data"):
        desk.layers()


def test_a_board_that_was_lost_is_tried_again(desk):
    desk.plugin.losses = 2
    assert desk.layers()["samples"] == 20


def test_a_board_that_this_brings_down_is_given_up(desk):
    desk.plugin.losses = 100
    with pytest.raises(DeviceLostError, match="given up after 5 tries"):
        desk.layers()


def test_the_verb_prints_json_and_the_table(desk, monkeypatch):
    desk.plugin.noise, host = {"fc4": 0.3}, desk.host
    monkeypatch.setattr("wherry.host.Host.load", lambda: host)
    arguments = ["debug", "layers", str(desk.manifest), "--precision", "int8"]
    printed = CliRunner().invoke(cli, [*arguments, "--json"])
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout)["keep_fp32"] == ["fc4", "relu4"]
    shown = CliRunner().invoke(cli, arguments)
    assert 'keep_fp32:\n  - "fc4"\n  - "relu4"\n' in shown.stdout
