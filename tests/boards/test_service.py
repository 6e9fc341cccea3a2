"""The service agent's end: what it started ends with it, also what is just being started."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest

from wherry_devices.agent.service import Service


def test_a_command_that_starts_while_the_agent_ends(tmp_path, monkeypatch):
    service = Service(None, tmp_path, tmp_path / "lease")
    forked, commands, popen = threading.Event(), [], subprocess.Popen

    def slow(*arguments, **options):
        commands.append(popen(*arguments, **options))
        forked.set()
        time.sleep(0.3)  # the command runs, and nobody knows of it yet
        return commands[0]

    monkeypatch.setattr(subprocess, "Popen", slow)
    starter = threading.Thread(
        target=service._start, args=(["sleep", "600"],), kwargs={"start_new_session": True}
    )
    starter.start()
    assert forked.wait(10)
    service._end()
    starter.join()
    assert commands[0].wait(10) == -9
    with pytest.raises(OSError, match="ending"):
        service._start(["sleep", "600"], start_new_session=True)
    assert len(commands) == 1
