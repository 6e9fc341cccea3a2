"""A run's progress in its folder: what a reader sees while it lives, when it ends, when it dies."""

import json
import os
import threading
from types import SimpleNamespace

import pytest

from wherry.engine.local import Event
from wherry.errors import StoreError
from wherry.filelock import hold
from wherry.plan import Step
from wherry.records import progress as module
from wherry.records.progress import (
    EVENTS_FILE,
    KEPT,
    ProgressFile,
    ProgressReader,
    live_runs,
)
from wherry.records.requests import RUNNING

STEPS = [
    Step("model", "model", "read the model"),
    Step("profile:pi4", "profile", "measure on pi4", needs=("model",), device="pi4"),
]
PLAN = SimpleNamespace(steps={step.id: step for step in STEPS})


def read_progress(home, run_id):
    return ProgressReader(home, run_id).read()


@pytest.fixture
def directory(tmp_path):
    found = tmp_path / "runs" / "20261124-040500-3f9a"
    found.mkdir(parents=True)
    return found


def begun(directory):
    writer = ProgressFile(directory)
    writer.begin(PLAN, directory.name, tag="nightly", manifest="/nets/net.yaml")
    return writer


def test_a_living_run_is_seen_step_by_step(tmp_path, directory):
    reader = ProgressReader(tmp_path, directory.name)
    assert reader.read() is None
    with hold(directory / RUNNING, remove=True), begun(directory) as writer:
        found = reader.read()
        assert (found.state, found.tag, found.manifest) == ("running", "nightly", "/nets/net.yaml")
        assert [step.state for step in found.steps] == ["waiting", "waiting"]
        writer.step(Event(STEPS[0], "started"))
        writer.step(Event(STEPS[0], "cached"))
        writer.step(Event(STEPS[1], "started"))
        assert found.done == 0, "what was read once does not change"
        found = reader.read()
        assert (found.done, found.devices) == (1, ["pi4"])
        assert found.steps[0].ended is not None and found.steps[1].ended is None
        assert live_runs(tmp_path) == [directory.name]
        writer.step(Event(STEPS[1], "failed", "lost"))
        writer.end(KEPT)
    found = reader.read()
    assert (found.state, found.end, found.steps[1].text) == ("ended", KEPT, "lost")
    assert live_runs(tmp_path) == []


def test_a_run_that_was_stopped_says_why(tmp_path, directory):
    with pytest.raises(StoreError), begun(directory):
        raise StoreError("the disk is full")
    found = read_progress(tmp_path, directory.name)
    assert (found.state, found.end) == ("ended", "the disk is full")


def test_a_killed_run_is_called_so_and_its_cut_line_is_left_out(tmp_path, directory):
    writer = begun(directory)
    writer.step(Event(STEPS[0], "started"))
    with (directory / EVENTS_FILE).open("a") as stream:
        stream.write('{"at": "2026')
    (directory / RUNNING).touch()
    found = read_progress(tmp_path, directory.name)
    assert (found.state, found.steps[0].state) == ("killed", "started")
    assert live_runs(tmp_path) == []
    assert (directory / RUNNING).exists(), "looking on changes nothing"


def test_a_line_is_read_when_it_is_whole(tmp_path, directory):
    begun(directory)
    reader = ProgressReader(tmp_path, directory.name)
    line = json.dumps({"at": "x", "step": "model", "state": "done", "text": ""}) + "\n"
    for place, sign in enumerate(line):
        with (directory / EVENTS_FILE).open("a") as stream:
            stream.write(sign)
        done = reader.read().done
        assert done == (place == len(line) - 1)


def test_progress_is_told_twice_a_second_and_states_always(tmp_path, directory):
    writer = begun(directory)
    writer.step(Event(STEPS[0], "started"))
    for count in range(100):
        writer.step(Event(STEPS[0], "progress", f"{count}"))
    writer.step(Event(STEPS[0], "done"))
    lines = (directory / EVENTS_FILE).read_text().splitlines()
    assert len(lines) == 4
    assert read_progress(tmp_path, directory.name).done == 1


def test_many_threads_write_whole_lines(tmp_path, directory):
    writer = begun(directory)
    threads = [
        threading.Thread(
            target=lambda: [writer.step(Event(STEPS[0], "started", "x" * 400)) for _ in range(50)]
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (directory / EVENTS_FILE).read_text().splitlines()
    assert len(lines) == 401 and all(json.loads(line) for line in lines)


def test_a_disk_that_is_full_ends_the_progress_and_not_the_run(directory, monkeypatch, caplog):
    writer = begun(directory)

    def full(_file, _data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module.os, "write", full)
    writer.step(Event(STEPS[0], "started"))
    writer.step(Event(STEPS[0], "done"))
    assert caplog.text.count("no longer written") == 1


@pytest.mark.parametrize("name", ["..", "../x", "", "a/b", "x" * 200, "\0", ".hidden"])
def test_a_name_from_outside_leads_nowhere_else(tmp_path, name):
    (tmp_path / EVENTS_FILE).write_text("{}\n")
    assert read_progress(tmp_path, name) is None


@pytest.mark.parametrize("text", ["nonsense\n", "[]\n", "{}\n", '{"at": 1}\n'])
def test_a_file_that_no_run_wrote_is_told(tmp_path, directory, text):
    (directory / EVENTS_FILE).write_text(text)
    with pytest.raises(StoreError, match="cannot be read"):
        read_progress(tmp_path, directory.name)
