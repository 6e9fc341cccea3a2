"""The host: who is loaded, who is skipped, who is refused, and which switches there are."""

import logging
import re
import textwrap
import types
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from wherry.errors import PluginError, UsageError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.installed import PluginInfo, installed_plugins
from wherry.passes import Pass
from wherry.target import Backend


def backend(name: str) -> Backend:
    return Backend(name, "for tests", ("fp32",), Path("runner.py"), "format")


BACKEND = """
    from pathlib import Path
    from wherry.hookspecs import hookimpl
    from wherry.target import Backend

    @hookimpl
    def wherry_backends():
        yield Backend("{name}", "for tests", ("fp32",), Path("runner.py"), "format")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path: ``install("name", "1.0", code)`` with one plugin."""
    monkeypatch.delenv("WHERRY_PLUGINS", raising=False)

    def put(distribution: str, version: str, code: str, *, name: str | None = None) -> PluginInfo:
        folder = tmp_path / distribution
        module = f"{distribution.replace('-', '_')}_of_{tmp_path.name}"
        info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        name = name or distribution.removeprefix("wherry-")
        (info / "entry_points.txt").write_text(f"[wherry]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(folder)
        return PluginInfo(name, distribution, version, module)

    return put


def load(**arguments) -> Host:
    return Host.load(builtins=False, **arguments)


def plugin(name: str = "given", **functions: object) -> types.ModuleType:
    """A plugin's module; functions are marked unless they are already."""
    module = types.ModuleType(name)
    for hook, function in functions.items():
        marked = function if hasattr(function, "wherry_impl") else hookimpl(function)
        setattr(module, hook, marked)
    return module


# Loading


def test_an_installed_plugin_is_found_with_its_version(install):
    info = install("wherry-mine", "1.2", BACKEND.format(name="mine"))
    host = load()
    assert host.plugins == [info]
    assert list(host.backends) == ["mine"]
    assert host.owner("backends", "mine") == info
    assert host.provided(info) == {"backends": ["mine"]}
    assert str(info) == "'mine' (wherry-mine 1.2)"
    assert not host.skipped


def test_an_object_is_a_plugin_too():
    class Mine:
        @hookimpl
        def wherry_backends(self):
            return [backend("mine")]

    host = load(plugins=(), extra=[Mine()])
    assert host.owner("backends", "mine") == PluginInfo("Mine", None, None, __name__)
    assert str(host.plugins[0]) == "'Mine' (given in process)"


def test_two_plugins_of_one_entry_point_name_are_both_loaded(install):
    install("one", "1", BACKEND.format(name="a"), name="same")
    install("two", "1", BACKEND.format(name="b"), name="same")
    assert sorted(load().backends) == ["a", "b"]


def test_listing_imports_nothing(install):
    info = install("wherry-mine", "1.2", "raise SystemExit('imported')")
    assert info in [found for found, _ in installed_plugins()]


def test_a_distribution_without_metadata_is_listed(install, tmp_path):
    install("wherry-mine", "1.2", BACKEND.format(name="mine"))
    (tmp_path / "wherry-mine" / "wherry_mine-1.2.dist-info" / "METADATA").unlink()
    host = load()
    assert list(host.backends) == ["mine"]
    assert str(host.plugins[0]) == "'mine' (? ?)"


# What is broken is skipped, named, and remembered

BROKEN = {
    "missing import": ("import no_such_module_anywhere", r"No module named 'no_such.*\.py:1\)"),
    "syntax": ("def f(:\n", r"SyntaxError: invalid syntax .*line 1\)"),
    "exit": ("raise SystemExit(3)", r"SystemExit: 3 \(.*py:1\)"),
    "no hook": ("def wherry_backends(): ...", "it implements no hook. Mark its functions"),
    "unmarked": (
        BACKEND.format(name="mine") + "    def wherry_convert(model): ...\n",
        "wherry_convert is not marked with @hookimpl",
    ),
    "unknown hook": (
        BACKEND.format(name="mine").replace("wherry_backends", "wherry_bakcends"),
        "there is no hook wherry_bakcends. Did you mean wherry_backends?",
    ),
    "signature": (
        BACKEND.format(name="mine").replace("wherry_backends()", "wherry_backends(device)"),
        r"PluginValidationError: .*'device'.* declared in the hookimpl but can not be found",
    ),
    "raises": (
        BACKEND.format(name="mine") + "        raise RuntimeError('no licence\\nfound')\n",
        r"RuntimeError: no licence found \(.*\.py:9\)",
    ),
    "wrong type": (
        BACKEND.format(name="mine") + "        yield 3\n",
        "wherry_backends yielded an int, not a Backend",
    ),
    "not iterable": (
        BACKEND.format(name="mine").replace("yield", "return"),
        "wherry_backends returned a Backend; it has to yield descriptors",
    ),
    "nothing": (
        BACKEND.format(name="mine").replace("yield", "_ ="),
        "wherry_backends returned nothing; it has to yield descriptors",
    ),
    "bad name": (BACKEND.format(name="../mine"), r"yielded the name '../mine'. Names are"),
    "twice": (
        BACKEND.format(name="mine") + '        yield Backend("mine", "", (), Path(), "")\n',
        "yielded the name 'mine' twice",
    ),
    "wrapped registration": (
        BACKEND.format(name="mine").replace("@hookimpl", "@hookimpl(wrapper=True)"),
        "wherry_backends cannot be wrapped; only the stages' hooks can",
    ),
    "wrapper that is no generator": (
        "from wherry.hookspecs import hookimpl as h\n@h(wrapper=True)\ndef wherry_convert(): ...",
        "but function is not a generator",
    ),
    "both": (
        BACKEND.format(name="mine")
        + "    @hookimpl\n    def wherry_convert(): ...\n"
        + '    @hookimpl(wrapper=True, specname="wherry_convert")\n    def around(): yield\n',
        "wherry_convert is both implemented and wrapped. Give the wrapper an entry point",
    ),
}


@pytest.mark.parametrize(("code", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_skipped(code, cause, install, caplog):
    broken = install("wherry-broken", "0.3", code)
    good = install("wherry-good", "1.0", BACKEND.format(name="good"))
    host = load()
    assert host.plugins == [good]
    assert list(host.backends) == ["good"]
    (skipped,) = host.skipped
    assert skipped.plugin == broken
    assert "\n" not in skipped.cause
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    text = warning.getMessage()
    assert text.startswith("the plugin 'broken' (wherry-broken 0.3) is broken, it is skipped: ")
    assert text.endswith(skipped.cause)
    assert re.search(cause, skipped.cause), skipped.cause


def test_nothing_of_a_broken_plugin_stays(install):
    install(
        "wherry-broken",
        "1",
        BACKEND.format(name="mine")
        + """
    @hookimpl(wrapper=True)
    def wherry_convert():
        raise AssertionError("called")
        yield

    @hookimpl
    def wherry_passes():
        yield None
""",
    )
    worker = plugin(wherry_backends=lambda: [backend("other")], wherry_convert=lambda target: None)
    host = load(extra=[worker])
    assert list(host.backends) == ["other"]
    with pytest.raises(PluginError, match="returned nothing"):
        host.convert(None, types.SimpleNamespace(backend="other"), None, None)


def test_an_unhashable_object_is_skipped():
    class Mine(list):
        @hookimpl
        def wherry_backends(self):
            return [backend("mine")]

    host = load(plugins=(), extra=[Mine()])
    assert "unhashable" in host.skipped[0].cause


def test_the_same_object_twice_is_skipped_once():
    given = plugin(wherry_backends=lambda: [backend("mine")])
    host = load(plugins=(), extra=[given, given])
    assert [skipped.cause for skipped in host.skipped] == [
        "a plugin of this name is loaded already"
    ]
    assert list(host.backends) == ["mine"]


# Two of one name


def test_two_backends_of_one_name_are_refused_with_both_providers(install):
    install("wherry-one", "1.0", BACKEND.format(name="mine"))
    install("wherry-two", "2.0", BACKEND.format(name="mine"))
    with pytest.raises(PluginError) as caught:
        load()
    assert str(caught.value).startswith(
        "two plugins provide the backend 'mine': "
        "'one' (wherry-one 1.0) and 'two' (wherry-two 2.0). Uninstall one"
    )
    assert list(load(plugins=["two"]).backends) == ["mine"]


def test_one_name_for_two_kinds_is_fine():
    class Parameters(BaseModel):
        pass

    given = plugin(
        wherry_backends=lambda: [backend("mine")],
        wherry_passes=lambda: [Pass("mine", "for tests", Parameters)],
    )
    host = load(plugins=(), extra=[given])
    assert host.provided(host.plugins[0]) == {"backends": ["mine"], "passes": ["mine"]}


def test_two_defaults_of_one_stage_are_refused():
    def default():
        return hookimpl(trylast=True)(lambda: None)

    extra = [plugin(name, wherry_profile=default()) for name in ("one", "two")]
    with pytest.raises(PluginError, match=r"wherry_profile has more than one default.*one.*two"):
        load(plugins=(), extra=extra)


def test_an_unknown_name_gets_the_nearest():
    host = load(
        plugins=(), extra=[plugin(wherry_backends=lambda: [backend("tflite"), backend("ncnn")])]
    )
    with pytest.raises(PluginError, match=r"the backend 'tflit'. Did you mean 'tflite'\?"):
        host.owner("backends", "tflit")
    with pytest.raises(PluginError, match=r"the backend 'tensorrt'. There are: ncnn, tflite."):
        host.owner("backends", "tensorrt")
    with pytest.raises(PluginError, match=r"no plugin provides the pass 'tflite'"):
        host.owner("passes", "tflite")


# The switches


@pytest.fixture
def three(install):
    for name in ("one", "two", "three"):
        install(f"wherry-{name}", "1", BACKEND.format(name=name))


@pytest.mark.parametrize(
    ("switch", "backends"),
    [
        (None, ["one", "three", "two"]),
        ("", []),
        ("two", ["two"]),
        ("two, wherry_Three", ["three", "two"]),
    ],
)
def test_switch(switch, backends, three, monkeypatch):
    if switch is not None:
        monkeypatch.setenv("WHERRY_PLUGINS", switch)
    assert sorted(load().backends) == backends


def test_an_argument_goes_before_the_environment(three, monkeypatch):
    monkeypatch.setenv("WHERRY_PLUGINS", "one")
    assert sorted(load(plugins=["two"]).backends) == ["two"]
    assert sorted(load(plugins=()).backends) == []


def test_a_switch_that_names_no_plugin_is_refused(three, monkeypatch):
    monkeypatch.setenv("WHERRY_PLUGINS", "one,tow")
    with pytest.raises(UsageError) as caught:
        load()
    assert str(caught.value) == (
        "WHERRY_PLUGINS names 'tow', which is no installed plugin. "
        "Installed besides wherry's own: one, three, two."
    )


def test_wherrys_own_are_loaded_whatever_the_switch_says(monkeypatch):
    monkeypatch.setenv("WHERRY_PLUGINS", "")
    host = Host.load()
    own = [info for info, _ in installed_plugins() if info.own]
    assert own
    assert {*host.plugins, *(skipped.plugin for skipped in host.skipped)} == set(own)


def test_trace(capsys, monkeypatch):
    given = plugin(
        wherry_backends=lambda: [backend("mine")],
        wherry_convert=lambda target: 1 / 0,
    )
    monkeypatch.setenv("WHERRY_TRACE_HOOKS", "1")
    host = load(plugins=(), extra=[given])
    model = types.SimpleNamespace(weights="x" * 10_000)
    with pytest.raises(PluginError):
        host.convert(model, types.SimpleNamespace(backend="mine"), None, None)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out
    assert lines[0] == "hook wherry_backends() calls given (extra 0)"
    assert lines[1].startswith("hook wherry_backends returned [[Backend(")
    assert lines[2].startswith("hook wherry_convert(model=namespace(weights='xxx")
    assert "raised PluginError(" in lines[3]
    assert lines[3].endswith(" ms")
    assert max(map(len, lines)) < 500


@pytest.mark.parametrize("value", ["", "0"])
def test_no_trace(value, capsys, monkeypatch):
    monkeypatch.setenv("WHERRY_TRACE_HOOKS", value)
    load(plugins=(), extra=[plugin(wherry_backends=lambda: [backend("mine")])])
    assert capsys.readouterr() == ("", "")


# Verbs


def test_verbs_are_asked_for_late():
    asked = []

    def wherry_commands():
        asked.append(1)
        yield click.Command("publish")

    host = load(plugins=(), extra=[plugin(wherry_commands=wherry_commands)])
    assert not asked
    assert list(host.commands()) == ["publish"]
    assert list(host.commands()) == ["publish"]  # asking again is no duplicate
    assert host.provided(host.plugins[0]) == {"commands": ["publish"]}


def test_broken_verbs_are_skipped_and_the_rest_of_the_plugin_is_kept(caplog):
    def wherry_commands():
        raise RuntimeError("no")

    given = plugin(wherry_commands=wherry_commands, wherry_backends=lambda: [backend("mine")])
    host = load(plugins=(), extra=[given])
    assert host.commands() == {}
    assert list(host.backends) == ["mine"]
    assert "RuntimeError: no" in host.skipped[0].cause
    assert "its verbs are skipped" in caplog.text


def test_a_verb_of_our_own_cannot_be_taken():
    given = plugin(wherry_commands=lambda: [click.Command("run")])
    host = load(plugins=(), extra=[given])
    assert host.commands(reserved=["run"]) == {}
    assert host.skipped[0].cause == "wherry_commands yielded 'run', a verb of wherry's own"


def test_two_verbs_of_one_name_are_refused():
    extra = [plugin(n, wherry_commands=lambda: [click.Command("go")]) for n in ("one", "two")]
    host = load(plugins=(), extra=extra)
    with pytest.raises(PluginError, match=r"two plugins provide the verb 'go': 'one'.*and 'two'"):
        host.commands()


def test_entry_points_of_another_class_than_the_standard_librarys_are_loaded(monkeypatch):
    """The package importlib_metadata, which MLflow imports, puts its own into their place."""

    class EntryPoint:
        def load(self):
            return plugin(wherry_backends=lambda: [backend("mine")])

    info = PluginInfo("mine", "mine", "1.0", "mine")
    monkeypatch.setattr("wherry.host.selected_plugins", lambda plugins: [(info, EntryPoint())])
    assert load().backends.keys() == {"mine"}
