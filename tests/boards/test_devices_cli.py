"""``wherry devices``: the local device, one that cannot be reached, and words for what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from click.testing import CliRunner

from wherry.cli.devices import command, devices_list, devices_probe, devices_setup
from wherry.device import Transport
from wherry.errors import DeviceError, EnvironmentError_, UsageError
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.requirements import Requirements
from wherry_devices import plugin
from wherry_devices.session import BoardDevice
from wherry_devices.transport.local import LocalParameters


class Remote:
    """A transport whose boards are all down, and two backends of the fake runner."""

    def __init__(self, backend):
        self.backend = backend

    @hookimpl
    def wherry_transports(self):
        yield Transport("carrier", "pigeons", LocalParameters, self.connect)

    @hookimpl
    def wherry_backends(self):
        wanted = (Requirements(("nonsense==1",), python=">=99"),)
        yield self.backend
        yield dataclasses.replace(self.backend, name="unavailable", runtime=wanted)

    def connect(self, spec, services):
        def fail():
            raise DeviceError("no pigeon came back", where=spec.name)

        return BoardDevice(spec.name, fail)


@pytest.fixture
def host(bench, wherry_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices.yaml").write_text("devices: {far: {carrier: {}, tags: [slow, wet]}}")
    loaded = Host.load(plugins=(), builtins=False, extra=[plugin, Remote(bench.backend)])
    monkeypatch.setattr(Host, "load", lambda: loaded)
    return loaded


def run(*arguments):
    result = CliRunner().invoke(command, arguments)
    return result.exit_code, result.stdout, result.exception


def test_list_says_what_is_free_and_what_is_not(host):
    far, local = sorted(devices_list(host), key=lambda row: row["name"])
    assert (local["state"], local["location"], local["detail"]) == ("free", "built in", "")
    assert far["state"] == "unreachable" and far["detail"] == "far: no pigeon came back"
    assert far["tags"] == ["slow", "wet"] and "devices.yaml:1" in far["location"]
    code, text, _ = run("list")
    assert code == 0 and "slow, wet" in text and "unreachable" in text
    assert json.loads(run("list", "--json")[1]) == devices_list(host)


def test_list_says_who_uses_a_device(host, wherry_home, bench):
    bench.home = wherry_home
    with bench.device().session():
        (local,) = (row for row in devices_list(host) if row["name"] == "local")
    assert local["state"] == "in use" and f"(process {os.getpid()})" in local["detail"]


def test_probe_tells_what_a_device_is(host):
    code, text, _ = run("probe", "local")
    assert code == 0 and f"cores: {os.cpu_count()}" in text
    asked, found = json.loads(run("probe", "local", "--json")[1]), devices_probe(["local"], host)
    assert asked["local"]["fingerprint"] == found["local"]["fingerprint"]
    assert asked["local"].keys() == found["local"].keys()
    code, text, error = run("probe")
    assert "error: far: no pigeon came back" in text and "machine: " in text
    assert isinstance(error, DeviceError) and "could not probe far" in str(error)


def test_setup_provides_what_it_can(host):
    said = []
    rows = devices_setup(["local"], host=host, progress=said.append)
    assert [row["backend"] for row in rows] == ["fake", "unavailable"]
    assert os.access(rows[0]["python"], os.X_OK)
    assert "99" in rows[1]["error"]
    assert said == ["local: fake", "local: unavailable"]
    code, text, _ = run("setup", "local", "--backend", "fake")
    assert code == 0 and "fake" in text
    _, _, error = run("setup", "--json", "--backend", "fake")
    assert isinstance(error, EnvironmentError_) and "fake on far" in str(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("probe", "lcal"), "no device 'lcal'. Did you mean 'local'? There are: local, far"),
        (("setup", "--backend", "fke"), "no backend 'fke'. Did you mean 'fake'?"),
    ],
)
def test_unknown_names_are_told_with_the_nearest(host, arguments, words):
    _, _, error = run(*arguments)
    assert isinstance(error, UsageError) and words in str(error)
