"""Layers: a round more that times them, on what the backend made for that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wherry.artifact import Artifact, Layer
from wherry.errors import DeviceLostError, ToolError
from wherry.hookspecs import hookimpl

TIMES = {"mul": 0.5, "copy": 0.25}


@pytest.fixture
def layered(lab):
    """The bench times layers, in the round after the two; ``lab.made_of`` is what it was given."""
    lab.made_of = []
    convert, profile = lab.bench.wherry_convert, lab.bench.wherry_profile

    @hookimpl
    def wherry_convert(model, target, calibration, context):
        found = convert(model, target, calibration, context)
        return replace(found, layers=(Layer("mul", "MUL", ("times", "two"), {"y": "y"}),))

    @hookimpl(trylast=True)
    def wherry_profile(artifact, target, dataset, session, context):
        assert context.layers == (context.round == 3)
        measured = profile(artifact, target, dataset, session, context)
        if not context.layers:
            return measured
        lab.made_of.append(artifact)
        return replace(measured, layers=TIMES, layer_runs=20)

    lab.bench.wherry_convert, lab.bench.wherry_profile = wherry_convert, wherry_profile
    return lab


def test_layers_are_timed_once_after_the_rounds_and_told_with_their_nodes(layered) -> None:
    values = layered.run("measure.layers=true", jobs=1)
    numbers = [number for _, number in layered.bench.profiled]
    assert sorted(numbers) == [0] * 4 + [1] * 4 + [3] * 4 and numbers[-4:] == [3] * 4
    for result in values["results"]:
        mul, copy = result["layers"]
        assert (mul["nodes"], mul["median_ms"], copy["nodes"]) == (["times", "two"], 0.5, [])
        assert (result["layers_sum_ms"], result["layers_runs"]) == (0.75, 20)
        assert (result["latency"]["rounds"], result["latency"]["samples"]) == (2, 40)
    again = layered.run("measure.layers=true", jobs=1)
    assert layered.made == {} and again["results"][0]["layers"] == values["results"][0]["layers"]


def test_who_does_not_ask_has_none_and_a_key_of_its_own(layered) -> None:
    values = layered.run(jobs=1)
    assert values["results"][0]["layers"] is values["results"][0]["layers_sum_ms"] is None
    layered.run("measure.layers=true", jobs=1)
    assert layered.made["measure"] == 4
    layered.run(jobs=1)
    assert layered.made == {}


def test_a_run_without_pause_comes_after_layers(layered) -> None:
    layered.run("measure.layers=true", "measure.sustained=5", jobs=1)
    numbers = [number for _, number in layered.bench.profiled]
    assert numbers[-8:] == [3] * 4 + [2] * 4


@pytest.mark.parametrize(
    "breaks", [ToolError("the runner crashed"), DeviceLostError("the link is down")], ids=str
)
def test_a_target_whose_layers_cannot_be_timed_is_measured_all_the_same(
    layered, breaks, monkeypatch
) -> None:
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (0.0,) * 9)
    profile = layered.bench.wherry_profile

    @hookimpl(trylast=True)
    def wherry_profile(artifact, target, dataset, session, context):
        if context.layers and target.precision == "int8":
            raise breaks
        return profile(artifact, target, dataset, session, context)

    layered.bench.wherry_profile = wherry_profile
    values = layered.run("measure.layers=true", jobs=1)
    assert layered.statuses(values) == ["ok"] * 4
    for result in values["results"]:
        told = [text for text in result["warnings"] if "Its layers could not be timed" in text]
        if result["target"]["precision"] == "int8":
            assert result["layers"] is None and len(told) == 1 and breaks.message in told[0]
        else:
            assert result["layers"] and told == []


def test_a_runner_that_does_not_time_layers_is_told(lab) -> None:
    for result in lab.run("measure.layers=true")["results"]:
        assert result["status"] == "ok" and result["layers"] is None
        assert "What runs it does not time layers." in result["warnings"]


def dissects(lab, monkeypatch, dissect) -> None:
    backends = lab.bench.wherry_backends

    @hookimpl
    def wherry_backends():
        return [replace(backend, dissect=dissect) for backend in backends()]

    lab.bench.wherry_backends = wherry_backends


def test_what_a_backend_makes_for_layers_is_made_once(layered, monkeypatch) -> None:
    def dissect(artifact, context) -> Artifact:
        (context.output / "net.onnx").write_bytes((artifact.directory / "net.onnx").read_bytes())
        (context.output / "single.txt").write_text("one operation")
        context.warn("one operation has no file")
        fields = artifact.to_json()
        names = ("backend", "precision", "format")
        return Artifact.from_directory(
            context.output,
            **{name: fields[name] for name in names},
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            layers=artifact.layers,
        )

    dissects(layered, monkeypatch, dissect)
    values = layered.run("measure.layers=true", jobs=1)
    assert all("single.txt" in artifact.files for artifact in layered.made_of)
    made = layered.made["dissect"]
    assert made and values["results"][0]["layers"]
    assert all("one operation has no file" in result["warnings"] for result in values["results"])
    layered.run("measure.layers=true", "measure.rounds=2", "measure.min_runs=11", jobs=1)
    assert layered.made["measure"] == 4 and layered.made["dissect"] == 0


def test_a_dissection_with_other_outputs_is_refused_by_name(layered, monkeypatch) -> None:
    def dissect(artifact, context):
        return replace(artifact, directory=context.output, outputs=())

    dissects(layered, monkeypatch, dissect)
    for result in layered.run("measure.layers=true", jobs=1)["results"]:
        assert result["status"] == "ok"
        assert any(
            "the backend copy dissected an artifact into one" in t for t in result["warnings"]
        )
