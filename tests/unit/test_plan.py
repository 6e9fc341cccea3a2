"""From a manifest to steps: what is shared, what is not, what waits for what."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import BaseModel

from wherry.dataset import DatasetSource
from wherry.device import Transport
from wherry.errors import ManifestError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.manifest import load_manifest
from wherry.passes import Need, Pass
from wherry.plan import Plan, make_plan
from wherry.target import Backend, RuntimeOptions, convert_option

CALIBRATION = "data: {calibration: {source: none}}\n"


class Options(RuntimeOptions):
    fuse: bool = convert_option(default=True, description="changes the artifact")
    pin: bool = False
    words: str = ""


class Nothing(BaseModel):
    level: int = 1


class Fakes:
    """A plugin with two backends, two passes and a device that is this host."""

    @hookimpl
    def wherry_backends(self) -> Iterable[Backend]:
        for name in ("one", "two"):
            yield Backend(
                name=name,
                description="fake",
                precisions=("fp32", "fp16", "int8"),
                runner=Path(__file__),
                artifact_format="fake",
                options=Options,
                calibrated=frozenset({"int8"}),
            )

    @hookimpl
    def wherry_passes(self) -> Iterable[Pass]:
        yield Pass("a", "first", Nothing)
        yield Pass("b", "second", Nothing, needs=frozenset({"calibration"}))
        yield Pass("c", "third", Nothing, needs_with=_needs)

    @hookimpl(trylast=True)
    def wherry_calibrate(self, target):
        raise AssertionError("a plan calls no stage")

    @hookimpl
    def wherry_datasets(self) -> Iterable[DatasetSource]:
        yield DatasetSource("none", "fake", Nothing, load=lambda parameters, context: None)

    @hookimpl
    def wherry_transports(self) -> Iterable[Transport]:
        yield Transport("here", "fake", Nothing, connect=lambda spec, services: None, host=True)


def _needs(parameters: Nothing) -> frozenset[Need]:
    return frozenset({"calibration"} if parameters.level > 1 else ())


class Other:
    """A plugin whose backend finds its ranges in its own way."""

    @hookimpl
    def wherry_backends(self) -> Iterable[Backend]:
        yield Backend(
            name="other",
            description="fake",
            precisions=("int8",),
            runner=Path(__file__),
            artifact_format="fake",
            calibrated=frozenset({"int8"}),
        )

    @hookimpl
    def wherry_calibrate(self, target):
        raise AssertionError("a plan calls no stage")


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load(plugins=(), extra=[Fakes(), Other()], builtins=False)


@pytest.fixture
def plan(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path / "none"))
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [shape], [out])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")

    def make(text: str) -> Plan:
        path = tmp_path / "wherry.yaml"
        path.write_text(f"wherry: 1\nmodel: {{path: m.onnx}}\n{text}")
        manifest = load_manifest(path, host)
        return make_plan(manifest, host, manifest.inventory)

    return make


def kinds(plan: Plan) -> dict[str, int]:
    found = [step.kind for step in plan.steps.values()]
    return {kind: found.count(kind) for kind in sorted(set(found))}


def test_threads_and_run_options_do_not_multiply_conversions_of_one_kind(plan) -> None:
    made = plan("targets: [{backend: [one, two], precision: [fp32, fp16], threads: [1, 2, 4]}]")
    assert len(made.rows) == 12
    assert kinds(made) == {"convert": 4, "model": 1, "profile": 1}


def test_convert_options_do_multiply_conversions(plan) -> None:
    made = plan("targets: [{backend: one, one: {fuse: [true, false]}}]")
    assert kinds(made)["convert"] == 2


def test_options_that_look_alike_are_told_apart(plan) -> None:
    made = plan(
        "targets: [{backend: one, one: {pin: false, words: 'a,words=b'}}, "
        "{backend: one, one: {words: ['a', '']}}]"
    )
    assert kinds(made)["convert"] == 3


def test_variants_share_the_beginning_of_their_passes(plan) -> None:
    made = plan(
        "variants: {original: [], x: [a], y: [a, {a: {level: 2}}], z: [a, {a: {level: 3}}]}\n"
        "targets: [{backend: one}]"
    )
    assert kinds(made) == {"convert": 4, "model": 1, "optimize": 3, "profile": 1}
    by_variant = {row.variant: row.steps for row in made.rows}
    assert by_variant["x"][1] == by_variant["y"][1] == by_variant["z"][1]
    assert by_variant["y"][2] != by_variant["z"][2]
    assert by_variant["original"][0] == "model"


def test_what_a_pass_needs_may_depend_on_its_parameters(plan) -> None:
    alone = plan("variants: {x: [{c: {level: 1}}]}\ntargets: [{backend: one}]")
    assert "data" not in kinds(alone)
    made = plan(f"{CALIBRATION}variants: {{x: [{{c: {{level: 2}}}}]}}\ntargets: [{{backend: one}}]")
    assert kinds(made)["data"] == 1
    (step,) = (step for step in made.steps.values() if step.kind == "optimize")
    assert "data:calibration" in step.needs
    with pytest.raises(
        ManifestError, match=r"the pass c needs data\.calibration, which is missing"
    ):
        plan("variants: {x: [{c: {level: 2}}]}\ntargets: [{backend: one}]")


def test_two_variants_with_the_same_passes_share_everything_but_the_row(plan) -> None:
    made = plan("variants: {x: [a], y: [a]}\ntargets: [{backend: one}]")
    assert len(made.rows) == 2
    assert kinds(made) == {"convert": 1, "model": 1, "optimize": 1, "profile": 1}


def test_one_calibration_serves_all_backends(plan) -> None:
    made = plan(f"{CALIBRATION}targets: [{{backend: [one, two], precision: [fp32, int8]}}]")
    assert kinds(made) == {"calibrate": 1, "convert": 4, "data": 1, "model": 1, "profile": 1}


def test_a_plugin_that_calibrates_by_itself_shares_with_no_other(plan) -> None:
    made = plan(f"{CALIBRATION}targets: [{{backend: [one, two, other], precision: int8}}]")
    by_backend = {row.target.backend: row.steps[-3] for row in made.rows}
    assert by_backend["one"] == by_backend["two"] != by_backend["other"]
    for row in made.rows:
        assert row.steps[-3] in made.steps[row.steps[-2]].needs


def test_what_times_this_host_runs_alone_and_tolerates_failures(plan) -> None:
    made = plan("targets: [{backend: one, precision: [fp32, fp16]}]")
    (profile,) = (step for step in made.steps.values() if step.kind == "profile")
    assert profile.exclusive
    assert profile.tolerates == tuple(row.steps[-2] for row in made.rows)
    assert profile.rows == (0, 1)


def test_every_need_stands_before_its_user(plan) -> None:
    made = plan(
        f"{CALIBRATION}variants: {{original: [], x: [a, b]}}\n"
        "targets: [{backend: [one, two], precision: [int8]}]"
    )
    seen: set[str] = set()
    for step in made.steps.values():
        assert set(step.needs) <= seen, step.id
        seen.add(step.id)
    for row in made.rows:
        assert set(row.steps) <= seen
