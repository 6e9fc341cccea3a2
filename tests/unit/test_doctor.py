"""``wherry doctor``: what it finds, and its exit code. Nothing here asks a package index."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from wherry import cli
from wherry.cli.doctor import doctor
from wherry.engine import uv
from wherry.errors import EnvironmentError_, PluginError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.requirements import Requirements
from wherry.target import Backend

EMPTY = Requirements()
NEWER = Requirements(("wnew",), python=">=3.99")
load = Host.load  # which some tests replace
ABSENT = Requirements(("wabsent==1",))


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))


def host_with(*, converter=None, runtime=()):
    class Plugin:
        @hookimpl
        def wherry_backends(self):
            yield Backend(
                name="demo",
                description="a backend",
                precisions=("fp32",),
                runner=Path(__file__),
                artifact_format="demo",
                converter=converter,
                runtime=runtime,
            )

    return load(builtins=False, plugins=[], extra=[Plugin()])


def look(**options):
    found = doctor(**options)
    assert found["ok"] == all(check["status"] != "problem" for check in found["checks"])
    return {check["name"]: check for check in found["checks"]}


def test_a_sound_machine_has_no_problem(tmp_path):
    checks = look(host=host_with())
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert checks.keys() == {"python", "machine", "uv", "home", "disk", "records", "plugins"}
    assert str(tmp_path / "home") in checks["home"]["found"]
    assert checks["records"]["found"] == f"sqlite:///{tmp_path}/home/records.db: 0 runs"
    assert checks["uv"]["found"].startswith("uv ")


def test_an_environment_is_made_only_when_asked_for(tmp_path):
    host = host_with(converter=EMPTY, runtime=(EMPTY,))
    checks = look(host=host)
    assert checks["demo converter"]["status"] == checks["demo runtime"]["status"] == "not made"
    assert not list((tmp_path / "home" / "environments").glob("*/bin"))
    told = []
    checks = look(host=host, make=True, progress=told.append)
    assert checks["demo converter"]["status"] == checks["demo runtime"]["status"] == "ok"
    assert any("making" in line for line in told)
    assert look(host=host)["demo runtime"]["status"] == "ok"
    assert len(list((tmp_path / "home" / "environments").glob("*/bin"))) == 1


@pytest.mark.parametrize("make", [False, True])
def test_an_environment_that_cannot_be_is_a_problem_that_says_why(make):
    checks = look(host=host_with(converter=NEWER, runtime=(ABSENT, NEWER)), make=make)
    assert checks["demo converter"]["status"] == "problem"
    assert "needs Python >=3.99" in checks["demo converter"]["found"]
    assert "Python >=3.99" in checks["demo converter"]["remedy"]
    assert "wabsent" in checks["demo runtime"]["found"]
    assert "needs Python >=3.99" in checks["demo runtime"]["found"]


def test_the_first_alternative_that_fits_counts():
    checks = look(host=host_with(runtime=(NEWER, EMPTY)))
    assert checks["demo runtime"]["status"] == "not made"


def test_a_broken_plugin_is_a_problem():
    class Broken:
        @hookimpl
        def wherry_backends(self):
            raise RuntimeError("out of order")

    host = Host.load(builtins=False, plugins=[], extra=[Broken()])
    (broken,) = (check for name, check in look(host=host).items() if "Broken" in name)
    assert broken["status"] == "problem"
    assert "out of order" in broken["found"]


def test_plugins_that_contradict_one_another_are_a_problem(monkeypatch):
    def fail():
        raise PluginError("two of one name", remedy="Uninstall one.")

    monkeypatch.setattr(Host, "load", fail)
    checks = look()
    assert checks["plugins"]["found"] == "two of one name"
    assert checks["plugins"]["remedy"] == "Uninstall one."


def test_a_home_that_cannot_be_written_is_one_problem_not_many(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "file"))
    checks = look(host=host_with(converter=EMPTY))
    assert [name for name, check in checks.items() if check["status"] == "problem"] == ["home"]
    assert "WHERRY_HOME" in checks["home"]["remedy"]


def test_a_full_disk_is_a_problem(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(100, 99, 1))
    checks = look(host=host_with())
    assert checks["disk"]["status"] == "problem"
    assert "1 byte" in checks["disk"]["found"]
    assert "cache gc" in checks["disk"]["remedy"]


def test_a_uv_that_is_missing_or_broken_is_a_problem(monkeypatch):
    def fail():
        raise EnvironmentError_("uv's executable is missing", remedy="Install it.")

    monkeypatch.setattr(uv, "binary", fail)
    assert look(host=host_with(runtime=(EMPTY,)))["uv"]["found"] == "uv's executable is missing"
    monkeypatch.setattr(uv, "binary", lambda: "/bin/false")
    assert look(host=host_with())["uv"]["status"] == "problem"


@pytest.fixture
def install(monkeypatch):
    """Let the command line find a host."""
    return lambda host: monkeypatch.setattr(Host, "load", lambda: host)


def test_the_verb_prints_and_its_exit_code_tells(install, capsys):
    install(host_with(converter=EMPTY))
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "not made  demo converter: no packages" in out
    assert "Nothing is wrong." in out
    install(host_with(converter=NEWER))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem   demo converter: " in out
    assert "1 problem\n" in out


def test_the_verb_prints_json(install, capsys):
    install(host_with(converter=NEWER))
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["checks"][-1].keys() == {"name", "status", "found", "remedy"}
    install(host_with(converter=EMPTY))
    assert cli.main(["doctor", "--json", "--make"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"][-1]["status"] == "ok"
