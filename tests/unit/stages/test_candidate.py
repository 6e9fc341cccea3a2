"""A pass that measures candidates: on a target of the manifest, once, and never beside others."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from wherry.hookspecs import hookimpl
from wherry.model import Model
from wherry.passes import Pass


class Where(BaseModel):
    backend: str = "copy"
    device: str | None = None


class Seek:
    """A plugin whose pass changes nothing and tells how fast the model is."""

    @hookimpl
    def wherry_passes(self):
        yield Pass("seek", "", Where, needs=frozenset({"device"}))

    @hookimpl
    def wherry_optimize(self, model, step, context):
        where = step.parameters
        context.record({"ms": context.latency_ms(model, where.backend, where.device)})
        path = context.output / "net.onnx"
        path.write_bytes(model.path.read_bytes())
        return Model.load(path)


@pytest.fixture
def seeking(lab):
    lab.plugins.append(Seek())
    lab.text = lab.MANIFEST.replace("{original: [], rewritten: [rewrite]}", "{found: [seek]}")
    return lab


def test_a_candidate_is_converted_checked_and_timed_once(seeking) -> None:
    values = seeking.run()
    assert seeking.statuses(values) == ["ok"] * 2
    (told,) = values["results"][0]["passes"]
    assert told["pass"] == "seek" and 0.0009 <= told["ms"] <= 0.0011
    assert seeking.made["candidate"] == 1
    seeking.run()
    assert seeking.made == {}
    seeking.bench.fingerprint = "another board"
    seeking.bench.profiled.clear()
    seeking.run()
    assert seeking.made["candidate"] == seeking.made["optimize"] == 1


def test_nothing_else_runs_while_a_candidate_is_timed(seeking) -> None:
    steps = seeking.prepare().plan.steps.values()
    assert [step.exclusive for step in steps if step.kind == "optimize"] == [True]


@pytest.mark.parametrize(
    ("said", "remedy"),
    [("{backend: tflite}", "no such target"), ("{device: pi4}", "copy fp32 on local")],
)
def test_a_target_that_the_manifest_does_not_have_is_refused(seeking, said, remedy) -> None:
    seeking.text = seeking.text.replace("[seek]", f"[{{seek: {said}}}]")
    values = seeking.run()
    assert seeking.statuses(values) == ["failed"] * 2
    assert remedy in values["results"][0]["error"]
    assert seeking.made["candidate"] == 0
