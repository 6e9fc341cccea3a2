"""Runs again: what a change makes anew, and what it does not."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from wherry.engine.environments import Environments, Lock
from wherry.host import Host
from wherry.stages import keys
from wherry.store import Store

MEASURED = {"round": 8, "measure": 4}
"""Entries that measuring every row of the manifest makes."""


def test_a_second_run_takes_everything_from_the_store(used, first) -> None:
    again = used.run()
    assert used.made == {}
    assert {step["state"] for step in again["steps"]} == {"cached"}
    assert all(result["cached"] for result in again["results"])
    for one, other in zip(first[1]["results"], again["results"], strict=True):
        assert {**one, "cached": True} == other, "the same figures, warnings and all"
    assert "the board is warm" in again["results"][0]["warnings"]


def test_a_board_is_asked_once_a_run(used) -> None:
    used.run()
    assert used.bench.sessions == 1


def edit(name: str):
    return lambda lab, _: lab.bench.code[name].write_text("# the second version")


def own(name: str):
    """Another version of a file of wherry's own."""

    def change(lab, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(keys.OWN, lab.folder / "wherry-two", ignore=shutil.ignore_patterns("__*"))
        with (lab.folder / "wherry-two" / name).open("a") as stream:
            stream.write("# another line\n")
        monkeypatch.setattr(keys, "OWN", lab.folder / "wherry-two")

    return change


def attribute(name: str, value):
    return lambda lab, _: setattr(lab.bench, name, value)


def replaced(old: str, new: str):
    def change(lab, _) -> None:
        assert old in lab.text
        lab.text = lab.text.replace(old, new)

    return change


def tool(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Environments, "lock", lambda self, requirements: Lock("", "another tool"))


def packages(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("calibrate", "convert", "parity", "optimize", "prepare", "reference"):
        monkeypatch.setattr(f"wherry.stages.{module}.own_lock", lambda: "other packages")


def plugin(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "code", lambda self, info: f"another {info.module}")


PARITY = {"parity": 4}
ANEW = PARITY | MEASURED
CONVERTED = {"convert": 4, "accepted": 4}
QUANTISED = {"convert": 2, "accepted": 2}
CHANGES = {
    "nothing": (lambda lab, _: None, {}),
    "gates, limits": (lambda lab, _: setattr(lab, "text", lab.text + "limits: {time_s: 9}\n"
                                             "gates: [{metric: first, min: -99}]\n"), {}),
    "converter": (edit("convert"), CONVERTED),
    "converter's environment": (tool, CONVERTED),
    "converter's version": (attribute("format_version", 2), CONVERTED),
    "convert option": (replaced("backend: copy,", "backend: copy, copy: {fuse: false},"),
                       CONVERTED | MEASURED),
    "runner": (edit("runner"), ANEW),
    "runtime": (attribute("runtime", "another runtime"), ANEW),
    "board": (attribute("fingerprint", "another board"), ANEW),
    "run option": (replaced("backend: copy,", "backend: copy, copy: {pin: true},"), ANEW),
    "threads": (replaced("backend: copy,", "backend: copy, threads: 2,"), MEASURED),
    "measuring": (replaced("rounds: 2", "rounds: 2, duration_s: 0.7"), MEASURED),
    "seed": (lambda lab, _: setattr(lab, "text", lab.text + "seed: 3\n"), MEASURED),
    "pass": (edit("rewrite"), {"optimize": 1}),
    "pass's version": (attribute("pass_version", 2), {"optimize": 1}),
    "metric": (attribute("metric_version", 2), {"scores": 1} | MEASURED),
    "metrics": (replaced("[first]", "[first, mae]"), {"scores": 1} | MEASURED),
    "preprocessing": (
        replaced("scale: 0.5", "scale: 0.25"),
        {"data": 2, "reference": 1, "scores": 1, "calibrate": 2} | QUANTISED | ANEW,
    ),
    "evaluation": (lambda lab, _: lab.write_data("evaluation", 3),
                   {"data": 1, "reference": 1, "scores": 1} | ANEW),
    "labels": (lambda lab, _: lab.write_data("evaluation", 1, labels=np.zeros(6, int)),
               {"data": 1, "reference": 1, "scores": 1} | ANEW),
    "calibration": (
        lambda lab, _: lab.write_data("calibration", 3),
        {"data": 1, "calibrate": 2, "parity": 2, "round": 4, "measure": 2} | QUANTISED,
    ),
    "samples of parity": (lambda lab, _: setattr(lab, "text", lab.text + "parity: {samples: 3}\n"),
                          PARITY),
    "thresholds": (lambda lab, _: setattr(
        lab, "text", lab.text + "parity: {thresholds: {fp32: {sqnr_db: 50, cosine: 0.9}}}\n"), {}),
    "how ranges are chosen": (
        lambda lab, _: setattr(lab, "text", lab.text + "calibrate: {method: mse}\n"),
        {"calibrate": 2},
    ),
    "model": (
        lambda lab, _: lab.write_model(3.0),
        {"model": 1, "optimize": 1, "reference": 1, "scores": 1, "calibrate": 2} | CONVERTED | ANEW,
    ),
    "wherry's preprocessing": (
        own("preprocess.py"), {"data": 2, "reference": 1, "calibrate": 2} | ANEW
    ),
    "wherry's reading of models": (own("model.py"), {"model": 1}),
    "wherry's parity": (own("parity.py"), PARITY),
    "wherry's other files": (own("reports/words.py"), {}),
    "the host's packages": (
        packages,
        {"model": 1, "optimize": 1, "calibrate": 2, "reference": 1} | CONVERTED | PARITY,
    ),
    "the plugin of the board and of the hooks": (plugin, {"calibrate": 2} | ANEW),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_change_does_again(used, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, expected = CHANGES[what]
    change(used, monkeypatch)
    assert used.statuses(used.run()) == ["ok"] * 4
    assert used.made == expected


@pytest.mark.parametrize("what", ["code", "host", "parameters"])
def test_a_design_is_built_again_when_its_code_changes(lab, what, monkeypatch) -> None:
    lab.text = lab.MANIFEST.replace("path: net.onnx", "zoo: {name: tiny}")
    lab.run()
    assert lab.made["zoo"] == 1
    if what == "parameters":
        lab.text = lab.text.replace("name: tiny", "name: tiny, level: 2")
    else:
        (plugin if what == "code" else packages)(lab, monkeypatch)
    lab.run()
    assert lab.made["zoo"] == 1
    assert lab.made["reference"] == (what == "host"), "the same bytes are the same model"


def test_made_up_parity_samples_follow_the_seed(lab) -> None:
    lab.text = (
        "wherry: 1\nmodel: {path: net.onnx}\ntargets: [{backend: copy}]\nmeasure: {rounds: 1}\n"
    )
    lab.run()
    assert lab.made["parity"] == 1
    lab.run("seed=7")
    assert lab.made["parity"] == 1
    lab.run("seed=7")
    assert lab.made == {}


def test_a_pass_that_sees_data_sees_its_preprocessing(lab) -> None:
    lab.text = lab.MANIFEST.replace("rewritten: [rewrite]", "rewritten: [learn]")
    lab.run()
    assert lab.made["optimize"] == 1
    lab.text = lab.text.replace("scale: 0.5", "scale: 0.25")
    lab.run()
    assert lab.made["optimize"] == 1
    lab.write_data("calibration", 5)
    lab.run()
    assert lab.made["optimize"] == 1


def test_passes_of_one_code_are_told_apart(lab) -> None:
    lab.text = lab.MANIFEST.replace(
        "[rewrite]", "[rewrite], again: [{rewrite: {level: 2}}], same: [as]"
    )
    lab.bench.pass_names = ("rewrite", "as")
    lab.run()
    assert lab.made["optimize"] == 3


def test_a_model_of_other_shapes_is_another(lab) -> None:
    lab.write_model(width="n")
    lab.text = lab.MANIFEST.replace("preprocess:", "shape: [1, 3], preprocess:")
    assert lab.statuses(lab.run()) == ["ok"] * 4
    lab.text = lab.text.replace("shape: [1, 3]", "shape: [1, 4]")
    for name in ("evaluation", "calibration"):
        lab.write_data(name, 1, width=4)
    assert lab.statuses(lab.run()) == ["ok"] * 4
    assert lab.made["model"] == 1


def test_data_is_checked_against_another_model_anew(used) -> None:
    used.write_model(width=4)
    values = used.run()
    assert used.statuses(values) == ["failed"] * 4
    assert "does not fit an input of shape 1x4" in values["results"][0]["error"]


def test_data_is_checked_for_labels_when_a_metric_wants_them(used) -> None:
    used.text = used.MANIFEST.replace("[first]", "[first, top1]")
    values = used.run()
    assert used.statuses(values) == ["failed"] * 4
    assert "it has no label" in values["results"][0]["error"]


def test_who_profiles_by_himself_is_in_his_own_keys(lab, monkeypatch) -> None:
    codes = {"Own": "one"}
    monkeypatch.setattr(Host, "code", lambda self, info: codes.get(info.name, ""))
    lab.add_own()
    lab.text = lab.MANIFEST.replace("copy, precision: [fp32, int8]", "[copy, own], precision: int8")
    assert lab.statuses(lab.run()) == ["ok"] * 4
    lab.bench.profiled.clear()
    codes["Own"] = "two"
    lab.run()
    assert lab.made["round"] == 4
    assert {target.partition("-")[0] for target, _ in lab.bench.profiled} == {"own"}


def test_a_precision_is_converted_for_itself(lab) -> None:
    lab.text = lab.MANIFEST.replace("int8]", "fp16]")
    assert lab.statuses(lab.run()) == ["ok"] * 4
    assert lab.made["convert"] == 4


def test_the_percentile_is_in_the_key_where_it_counts(lab) -> None:
    asked = []
    for text in ("entropy", "entropy", "percentile", "percentile, percentile: 99.99",
                 "percentile, percentile: 99"):  # fmt: skip
        lab.text = lab.MANIFEST + f"calibrate: {{method: {text}}}\n"
        assert lab.statuses(lab.run()) == ["ok"] * 4
        asked.append(lab.made.get("calibrate", 0))
    assert asked == [2, 0, 2, 0, 2]
    percentiles = [settings.percentile for settings in lab.bench.calibrated]
    assert percentiles == [99.99] * 4 + [99.0] * 2


def test_each_backend_is_given_the_ranges_of_its_own_calibration(lab) -> None:
    lab.add_own()
    lab.text = lab.MANIFEST.replace(
        "backend: copy, precision: [fp32, int8]", "backend: [copy, own], precision: int8"
    )
    values = lab.run()
    assert lab.statuses(values) == ["ok"] * 4
    assert lab.made["calibrate"] == 4
    ranges = {
        entry.key.parts["backend"]: (entry.directory / "files" / "ranges.txt").read_text()
        for entry in Store(lab.home / "store").entries("convert")
    }
    assert ranges["own"] == "{'x': (-100.0, 100.0)}"
    assert ranges["copy"] != ranges["own"]
