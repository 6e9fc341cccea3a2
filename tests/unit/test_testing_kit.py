"""The conformance kit finds what is wrong with a backend: each fault fails its test."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ConfigDict, Field

from wherry.errors import PluginError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.model import Model
from wherry.reference import Reference
from wherry.requirements import Requirements
from wherry.target import Backend, RuntimeOptions, Unsupported
from wherry.testing import BackendSuite
from wherry.testing.networks import NETWORKS, build, samples

RUNNER = """
from __future__ import annotations

def load(directory: str, artifact: dict[str, object], options: dict) -> Runner:
    return Runner()

class Runner: ...
"""


class Mine:
    """A plugin around one descriptor."""

    def __init__(self, descriptor: Backend):
        self.descriptor = descriptor

    @hookimpl
    def wherry_backends(self):
        return [self.descriptor]

    @hookimpl
    def wherry_convert(self): ...


@pytest.fixture
def good(tmp_path) -> Backend:
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER)
    return Backend(
        "mine",
        "for tests",
        ("fp32", "int8"),
        runner,
        "format",
        convert_files=(runner,),
        runtime=(Requirements(packages=("numpy>=1.20; python_version<'3.9'",)),),
        refusals={"fp16": "There is no fp16. Choose fp32."},
        calibrated=frozenset({"int8"}),
    )


def host(backend: Backend) -> Host:
    return Host.load(plugins=(), builtins=False, extra=[Mine(backend)])


class Suite(BackendSuite):
    name = "mine"


def check(test: str, backend: Backend, *arguments: object) -> None:
    function = getattr(Suite(), test)
    if test in {"test_owner", "test_runner"}:
        function(host(backend), backend)
    else:
        function(backend, *arguments)


TESTS = ("descriptor", "files", "requirements", "options", "owner", "runner")


@pytest.mark.parametrize("test", TESTS)
def test_a_good_backend_passes(test, good):
    check(f"test_{test}", good)


class Required(RuntimeOptions):
    mode: str = Field(description="no default")


class Undescribed(RuntimeOptions):
    mode: str = "a"


class Lax(RuntimeOptions):
    model_config = ConfigDict(extra="ignore")


class NotJson(RuntimeOptions):
    paths: frozenset[str] = Field(default=frozenset("ab"), description="not the same after JSON")
    mode: object = Field(default=object(), description="not JSON at all")


FAULTS = {
    "no description": ("descriptor", {"description": ""}),
    "two lines": ("descriptor", {"description": "a\nb"}),
    "no precision": ("descriptor", {"precisions": (), "calibrated": frozenset()}),
    "unknown precision": ("descriptor", {"precisions": ("fp32", "int8", "fp31")}),
    "precision twice": ("descriptor", {"precisions": ("fp32", "int8", "fp32")}),
    "calibrated but not offered": ("descriptor", {"precisions": ("fp32",)}),
    "refused and offered": ("descriptor", {"refusals": {"fp32": "No. Choose fp16."}}),
    "refused without a reason": ("descriptor", {"refusals": {"fp16": ""}}),
    "format version": ("descriptor", {"format_version": 0}),
    "no runner": ("files", {"runner": Path("/no/such/runner.py")}),
    "relative runner": ("files", {"runner": Path("runner.py")}),
    "no converter file": ("files", {"convert_files": ()}),
    "package": ("requirements", {"runtime": (Requirements(packages=("num py",)),)}),
    "python": ("requirements", {"converter": Requirements(python="3.8 or so")}),
    "other options": ("options", {"options": Field}),
    "required option": ("options", {"options": Required}),
    "undescribed option": ("options", {"options": Undescribed}),
    "options that ignore": ("options", {"options": Lax}),
    "options that are not JSON": ("options", {"options": NotJson}),
}


@pytest.mark.parametrize(("test", "change"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(test, change, good):
    with pytest.raises((AssertionError, TypeError, ValueError)):
        check(f"test_{test}", replace(good, **change))


RUNNERS = {
    "imports wherry": RUNNER + "import wherry.errors",
    "imports wherry late": RUNNER + "def f():\n    from wherry import errors",
    "imports its own package": RUNNER + f"import {__name__}",
    "imports beside itself": RUNNER + "from . import convert",
    "no load": RUNNER.replace("def load", "def lord"),
    "load of two": RUNNER.replace(", options: dict", ""),
    "match": RUNNER + "match 1:\n    case 1: ...",
    "generic": RUNNER.replace("from __future__ import annotations", ""),
    "union": RUNNER.replace("from __future__ import annotations", "").replace(
        "dict[str, object]", "dict | None"
    ),
    "syntax": RUNNER + "def",
}


@pytest.mark.parametrize("text", RUNNERS.values(), ids=RUNNERS)
def test_a_fault_of_the_runner_is_found(text, good):
    good.runner.write_text(text)
    with pytest.raises((AssertionError, SyntaxError)):
        check("test_runner", good)


def test_a_plugin_without_a_conversion_is_found(good):
    class Half:
        @hookimpl
        def wherry_backends(self):
            return [good]

    given = Host.load(plugins=(), builtins=False, extra=[Half()])
    with pytest.raises(PluginError, match="has no wherry_convert"):
        Suite().test_owner(given, good)


def answer(**changes):
    """A pre-flight that knows nothing but the unknown operator; ``changes`` spoil what it says."""

    def preflight(model, target):
        nodes = model.operators().get("example.test::NoSuchOperator", ())
        right = {"op_type": "example.test::NoSuchOperator", "count": len(nodes), "remedy": "Go."}
        return [Unsupported(**{**right, "node": nodes[0], **changes})] if nodes else []

    return preflight


def test_a_preflight(good, tmp_path):
    check("test_unknown_operator", good, tmp_path)  # none is fine
    check("test_unknown_operator", replace(good, preflight=answer()), tmp_path)
    for network in NETWORKS:
        Suite().test_preflight(network, replace(good, preflight=answer()), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"count": 1}, {"node": ""}, {"node": "/NoSuchOperator/y"}, {"remedy": "go"}]
)
def test_a_fault_of_the_preflight_is_found(changes, good, tmp_path):
    with pytest.raises(AssertionError):
        check("test_unknown_operator", replace(good, preflight=answer(**changes)), tmp_path)


def test_a_preflight_that_refuses_what_it_should_not(good, tmp_path):
    refusing = replace(good, preflight=lambda model, target: [Unsupported("Relu", 1, "r", "Go.")])
    with pytest.raises(AssertionError):
        Suite().test_preflight("mlp", refusing, tmp_path)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_networks_are_sound(network, tmp_path):
    """They load, run, and give the same bytes every time; outputs are neither flat nor wild."""
    build(network, tmp_path / "a.onnx")
    build(network, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    model = Model.load(tmp_path / "a.onnx")
    for values in Reference(model).run(samples(model, 1)[0]).values():
        assert 0.1 < values.std() < 10
