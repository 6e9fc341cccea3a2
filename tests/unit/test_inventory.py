"""The inventory: two files, one set of devices, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, model_validator

from wherry.device import Transport
from wherry.errors import ManifestError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.inventory import config_directory, load_inventory


class LocalParameters(BaseModel):
    niceness: int = 0


class RadioParameters(BaseModel):
    """Takes a bare word, as ``radio: pi4``."""

    address: str
    key: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value):
        return {"address": value} if isinstance(value, str) else value


def unused(*_):
    raise AssertionError("reading an inventory connects to nothing")


class Plugin:
    @hookimpl
    def wherry_transports(self):
        yield Transport("local", "", LocalParameters, unused, host=True)
        yield Transport("radio", "", RadioParameters, unused)


@pytest.fixture(scope="module")
def host():
    return Host.load(builtins=False, plugins=(), extra=[Plugin()])


@pytest.fixture
def load(tmp_path, monkeypatch, host):
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def write_and_load(project=None, user=None, env=None):
        for folder, text in (("project", project), ("config", user)):
            Path(folder).mkdir(exist_ok=True)
            if text is not None:
                (Path(folder) / "devices.yaml").write_text(text)
        return load_inventory(Path("project"), host, env=env or {})

    return write_and_load


def refusal(load, project):
    with pytest.raises(ManifestError) as caught:
        load(project)
    return str(caught.value)


def test_local_is_always_there(load):
    inventory = load()
    assert list(inventory.devices) == ["local"]
    local = inventory.devices["local"]
    assert (local.transport, local.parameters, local.tags) == ("local", LocalParameters(), ())
    assert inventory.location("local") == "built in"
    assert inventory.files == ()


def test_no_plugin_reaches_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path))
    empty = Host.load(builtins=False, plugins=())
    assert load_inventory(None, empty, env={}).devices == {}


def test_the_projects_devices_win_over_the_users(load, tmp_path):
    inventory = load(
        project="devices:\n  pi4: {radio: {address: a, key: ~/k}, tags: [arm, raspberry-pi], "
        "tools: {mace_run: ~/bin/mace_run}}\n",
        user="devices:\n  pi4: {radio: z}\n  orin: {radio: '${ADDRESS}'}\n",
        env={"ADDRESS": "b"},
    )
    assert list(inventory.devices) == ["local", "pi4", "orin"]
    pi4, orin = inventory.devices["pi4"], inventory.devices["orin"]
    assert pi4.parameters == RadioParameters(address="a", key=Path("~/k"))
    assert pi4.tags == ("arm", "raspberry-pi")
    assert pi4.tools == {"mace_run": "~/bin/mace_run"}
    assert orin.parameters == RadioParameters(address="b")
    assert inventory.location("pi4") == "project/devices.yaml:2:3"
    assert inventory.location("orin") == f"{tmp_path}/config/devices.yaml:3:3"
    assert inventory.files == (tmp_path / "config/devices.yaml", Path("project/devices.yaml"))


def test_one_file_in_both_roles_is_read_once(tmp_path, monkeypatch, host):
    (tmp_path / "devices.yaml").write_text("devices: {pi4: {radio: a}}")
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path))
    assert load_inventory(tmp_path, host, env={}).files == (tmp_path / "devices.yaml",)


def test_local_can_be_told_more_of_itself(load):
    inventory = load("devices: {local: {local: {niceness: 3}}, bench: {local: }}")
    assert inventory.devices["local"].parameters == LocalParameters(niceness=3)
    assert inventory.devices["bench"].parameters == LocalParameters()


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("boards: {}", "1:1", "unknown key 'boards'"),
        ("devices: [pi4]", "1:1", "devices must be a mapping"),
        ("devices: {pi4: radio}", "1:11", "device pi4 must be a mapping of a transport"),
        ("devices: {pi4: {}}", "1:11", "must name one transport; found none"),
        ("devices: {pi4: {tags: [a]}}", "1:11", "must name one transport; found none"),
        ("devices: {pi4: {local: , radio: a}}", "1:11", "found local, radio"),
        ("devices: {pi4: {ssh: pi4}}", "1:17", "The transports are: local, radio."),
        ("devices: {pi4: {raido: a}}", "1:17", "Did you mean 'radio'?"),
        ("devices: {pi4: {radio: {}}}", "1:17", "'address' is missing"),
        ("devices: {pi4: {radio: {adress: a}}}", "1:25", "unknown key 'adress'. Did you mean"),
        ("devices: {pi4: {radio: 3}}", "1:17", "devices.pi4.radio must be a mapping"),
        ("devices: {pi4: {radio: a, tags: arm}}", "1:27", "must be a list"),
        ("devices: {pi4: {radio: a, tags: ['a b']}}", "1:34", "tags[0]"),
        ("devices: {pi4: {radio: a, tools: {trtexec: bin/trtexec}}}", "1:35", "tools.trtexec"),
        ("devices: {local: {radio: a}}", "1:11", "'local' is this machine itself"),
        ("devices: {'a/b': {radio: a}}", "1:11", "'a/b' is no name for a device"),
        ("devices: {a: {radio: a}, a: {radio: b}}", "1:26", "the key 'a' is given twice"),
    ],
)
def test_what_is_wrong_has_a_place(load, text, place, says):
    found = refusal(load, text)
    assert f"project/devices.yaml:{place}: " in found
    assert says in found


def test_all_problems_are_told(load):
    text = refusal(load, "devices:\n  a: {ssh: x}\n  b: {radio: 3}\n")
    assert len(text.splitlines()) == 2


def test_where_the_users_file_is(monkeypatch, tmp_path):
    monkeypatch.setenv("WHERRY_CONFIG", str(tmp_path))
    assert config_directory() == tmp_path
    monkeypatch.delenv("WHERRY_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config_directory() == tmp_path / "xdg" / "wherry"
