"""Stage hooks: the owner, the default, the wrappers, and what they may give back."""

import types
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from wherry.artifact import Artifact
from wherry.calibration import Calibration
from wherry.errors import PluginError, ToolError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.measurement import Measurement
from wherry.model import Model
from wherry.passes import Pass, PassStep
from wherry.target import Backend, Target

A = Target("a", "fp32", "local")
B = Target("b", "fp32", "local")


class Parameters(BaseModel):
    pass


def plugin(name: str, **hooks: object) -> types.ModuleType:
    module = types.ModuleType(name)
    for hook, function in hooks.items():
        marked = function if hasattr(function, "wherry_impl") else hookimpl(function)
        setattr(module, hook, marked)
    return module


def owner(name: str, **hooks: object) -> types.ModuleType:
    """A plugin with one backend and one pass of its own name."""
    descriptor = Backend(name, "for tests", ("fp32",), Path("runner.py"), "format")
    return plugin(
        f"plugin_{name}",
        wherry_backends=lambda: [descriptor],
        wherry_passes=lambda: [Pass(name, "for tests", Parameters)],
        **hooks,
    )


def artifact(tool: str) -> Artifact:
    return Artifact(Path(), "a", "fp32", "format", {}, (), (), {"tool": tool})


def measurement(timed_by: str) -> Measurement:
    return Measurement(
        np.ones(1), np.ones(1), (1,), (0.0,), (0.0,), (0,), (True,), timed_by=timed_by
    )


def model(digest: str) -> Model:
    return Model(Path(), digest, (), (), 17, 8)


def load(*plugins: object) -> Host:
    host = Host.load(plugins=(), builtins=False, extra=plugins)
    assert not host.skipped
    return host


def default(function):
    return hookimpl(trylast=True)(function)


def wrapper(function):
    return hookimpl(wrapper=True)(function)


def test_only_the_owner_is_called():
    host = load(
        owner("a", wherry_convert=lambda: artifact("a")),
        owner("b", wherry_convert=lambda: artifact("b")),
    )
    assert host.convert(None, A, None, None).provenance == {"tool": "a"}
    assert host.convert(None, B, None, None).provenance == {"tool": "b"}


def test_a_pass_goes_to_its_owner():
    host = load(
        owner("a", wherry_optimize=lambda model, step: model),
        owner("b", wherry_optimize=lambda: model("b")),
    )
    given = model("given")
    assert host.optimize(given, PassStep("a", Parameters()), None) is given
    assert host.optimize(given, PassStep("b", Parameters()), None).digest == "b"


def test_the_default_serves_those_who_have_none():
    host = load(
        owner("a", wherry_profile=lambda: measurement("a")),
        owner("b"),
        plugin("devices", wherry_profile=default(lambda: measurement("default"))),
    )
    assert host.profile(None, A, None, None, None).timed_by == "a"
    assert host.profile(None, B, None, None, None).timed_by == "default"


def test_an_owner_may_be_the_default_of_others():
    calibration = default(lambda target: Calibration(target.backend, 1, {}))
    host = load(owner("a", wherry_calibrate=calibration), owner("b"))
    assert host.calibrate(None, None, A, None).method == "a"
    assert host.calibrate(None, None, B, None).method == "b"


def test_wrappers_of_any_plugin_are_called_around_it():
    seen = []

    def noting(name):
        def wherry_convert(target):
            seen.append(f"{name} before {target.backend}")
            result = yield
            seen.append(f"{name} after {result.provenance['tool']}")
            return result

        return wrapper(wherry_convert)

    host = load(
        owner("a", wherry_convert=lambda: artifact("a")),
        owner("b", wherry_convert=noting("b's")),
        plugin("last", wherry_convert=noting("last's")),
    )
    assert host.convert(None, A, None, None).provenance == {"tool": "a"}
    assert seen == ["last's before a", "b's before a", "b's after a", "last's after a"]
    with pytest.raises(PluginError, match=r"backend 'b' is the plugin .*which has no wherry_conv"):
        host.convert(None, B, None, None)  # to wrap is not to convert


def test_a_wrapper_may_change_the_result():
    def wherry_convert():
        yield
        return artifact("changed")

    host = load(
        owner("a", wherry_convert=lambda: artifact("a")),
        plugin("w", wherry_convert=wrapper(wherry_convert)),
    )
    assert host.convert(None, A, None, None).provenance == {"tool": "changed"}


def test_arguments_reach_the_hook_by_name():
    seen = {}

    def wherry_profile(artifact, target, dataset, session, context):
        seen.update(given=(artifact, target, dataset, session, context))
        return measurement("a")

    load(owner("a", wherry_profile=wherry_profile)).profile(1, A, 2, 3, 4)
    assert seen == {"given": (1, A, 2, 3, 4)}


@pytest.mark.parametrize(("wrong", "said"), [(None, "nothing"), ("text", "a str"), (1, "an int")])
def test_a_wrong_result_names_the_plugin(wrong, said):
    other = owner("b", wherry_convert=lambda: artifact("b"))
    noticed = []

    def wherry_convert():
        try:
            return (yield)
        except PluginError as error:
            noticed.append(str(error))
            raise

    host = load(
        owner("a", wherry_convert=lambda: wrong),
        other,
        plugin("w", wherry_convert=wrapper(wherry_convert)),
    )
    with pytest.raises(PluginError) as caught:
        host.convert(None, A, None, None)
    assert str(caught.value) == (
        f"wherry_convert of the plugin 'plugin_a' (given in process) returned {said}, "
        "not an Artifact. Report it to the plugin's authors."
    )
    assert noticed == [str(caught.value)]  # wrappers see what happened


@pytest.mark.parametrize(
    ("stage", "arguments", "expected"),
    [
        ("optimize", (None, PassStep("a", Parameters()), None), "a Model"),
        ("calibrate", (None, None, A, None), "a Calibration"),
        ("convert", (None, A, None, None), "an Artifact"),
        ("profile", (None, A, None, None, None), "a Measurement"),
    ],
)
def test_every_stage_is_guarded(stage, arguments, expected):
    host = load(owner("a", **{f"wherry_{stage}": lambda: "wrong"}))
    with pytest.raises(PluginError, match=f"'plugin_a'.*returned a str, not {expected}"):
        getattr(host, stage)(*arguments)


def test_a_wrapper_that_loses_the_result_is_named():
    def wherry_convert():
        yield

    host = load(
        owner("a", wherry_convert=lambda: artifact("a")),
        plugin("loser", wherry_convert=wrapper(wherry_convert)),
    )
    with pytest.raises(PluginError) as caught:
        host.convert(None, A, None, None)
    assert str(caught.value) == (
        "a wrapper of wherry_convert returned nothing, not an Artifact; it is wrapped by 'loser' "
        "(given in process). A wrapper has to return what its `yield` gave."
    )


def test_what_a_plugin_raises_is_reported_with_its_name_and_line():
    def wherry_convert():
        return {}["missing"]

    host = load(owner("a", wherry_convert=wherry_convert))
    with pytest.raises(PluginError, match=r"'plugin_a'.* raised KeyError: 'missing' \(.*py:\d+\)"):
        host.convert(None, A, None, None)


def test_what_a_wrapper_raises_is_reported_with_its_name():
    def wherry_convert():
        yield
        raise KeyError("missing")

    host = load(
        owner("a", wherry_convert=lambda: artifact("a")),
        plugin("w", wherry_convert=wrapper(wherry_convert)),
    )
    with pytest.raises(PluginError, match=r"a wrapper of wherry_convert raised KeyError.*'w'"):
        host.convert(None, A, None, None)


def test_errors_for_users_pass_as_they_are():
    error = ToolError("the converter crashed", where="a.log")

    def wherry_convert():
        raise error

    host = load(owner("a", wherry_convert=wherry_convert))
    with pytest.raises(ToolError) as caught:
        host.convert(None, A, None, None)
    assert caught.value is error


def test_an_interrupt_passes():
    def wherry_convert():
        raise KeyboardInterrupt

    host = load(owner("a", wherry_convert=wherry_convert))
    with pytest.raises(KeyboardInterrupt):
        host.convert(None, A, None, None)


def test_nobody_to_do_it():
    host = load(owner("a"))
    with pytest.raises(PluginError, match="and no plugin has a default for it"):
        host.profile(None, A, None, None, None)
    with pytest.raises(PluginError, match="no plugin provides the backend 'b'"):
        host.convert(None, B, None, None)


def test_what_a_plugin_wraps_is_known():
    def around():
        return (yield)

    host = load(
        owner("a", wherry_convert=lambda: artifact("a")),
        plugin("w", wherry_convert=wrapper(around), wherry_profile=wrapper(around)),
    )
    a, w = host.plugins
    assert host.wrapped(a) == []
    assert host.wrapped(w) == ["wherry_convert", "wherry_profile"]
