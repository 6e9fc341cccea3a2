"""Many boards over SSH at the same time: runs, probes, and two runs that ask for the same tags."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from own_runtime import OwnRuntime
from ruamel.yaml import YAML
from wired_boards import Lab

from wherry import api

MANIFEST = """
wherry: 1
model: {path: net.onnx}
targets: [{backend: moody, device: DEVICES, moody: {run: [well, slow]}}]
measure: {rounds: 1, duration_s: 0.01, warmup_s: 0.01}
"""
PROGRAM = Path(__file__).parents[1] / "support" / "own_runtime.py"


@pytest.fixture
def lab(moody, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "workstation"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("wherry_devices.provision.Provisioner", OwnRuntime)
    with contextlib.ExitStack() as stack:
        yield Lab(tmp_path, stack, wait_s=60)


def devices_of(values) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for result in values["results"]:
        found.setdefault(result["target"]["device"], []).append(result["status"])
    return found


def test_eight_boards_are_probed_measured_and_given_back(lab):
    names = [f"b{number}" for number in range(8)]
    wired = [lab.add(name) for name in names]
    found = api.devices_probe(names)
    assert list(found) == names
    assert not any("error" in board for board in found.values())
    (lab.folder / "m.yaml").write_text(MANIFEST.replace("DEVICES", json.dumps(names)))
    assert devices_of(lab.run()) == {name: ["ok", "ok"] for name in names}
    for board in wired:
        board.check_free()
    cleaned = api.devices_clean(names, unused_days=0)
    assert [row["device"] for row in cleaned] == names
    assert all(row["bytes"] > 0 for row in cleaned), cleaned


def test_two_runs_that_ask_for_the_same_tags_measure_on_two_boards(lab):
    wired = {name: lab.add(name) for name in ("one", "two")}
    inventory = lab.folder / "devices.yaml"
    entries = YAML(typ="safe").load(inventory)
    for entry in entries["devices"].values():
        entry["tags"] = ["spare"]
    YAML(typ="safe").dump(entries, inventory)
    (lab.folder / "m.yaml").write_text(MANIFEST.replace("DEVICES", "{tags: [spare]}"))
    runs = [
        subprocess.Popen(
            [sys.executable, PROGRAM, "run", "m.yaml", "--quiet", "--json", f"{number}.json"],
            cwd=lab.folder,
        )
        for number in range(2)
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    values = [json.loads((lab.folder / f"{number}.json").read_text()) for number in range(2)]
    assert sorted(one["tagged"]["tags:spare"] for one in values) == ["one", "two"]
    for one in values:
        assert devices_of(one) == {one["tagged"]["tags:spare"]: ["ok", "ok"]}
    for board in wired.values():
        board.check_free()
