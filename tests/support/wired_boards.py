"""Whole runs on boards over SSH: boards in this process, the links to them, and what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

from loading import load

from wherry import api
from wherry.artifact import hash_file
from wherry_devices.agent.lease import Lease

_SSH = Path(__file__).parents[1] / "boards" / "ssh"
_inprocess, _proxy, _workstation = (
    load(_SSH / f"{name}.py") for name in ("inprocess", "proxy", "workstation")
)
_FREE_S = 20.0
_HELD_S = 60.0


class Wired:
    """A board and the link to it.

    Attributes:
        board: see ``boards/ssh/inprocess.py``.
        link: see ``boards/ssh/proxy.py``.
        store: the board's.
    """

    def __init__(self, board, link) -> None:
        self.board, self.link = board, link
        self.store = board.home / ".wherry/store"

    def agents(self, role: str) -> list[int]:
        """Process ids of its agents: of role ``service``, ``run``, or any that begins so."""
        root, found = str(self.board.home / ".wherry").encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if root in words and any(word.startswith(role.encode()) for word in words):
                    found.append(int(folder.name))
        return found

    def signal(self, role: str, number: int) -> None:
        """Send a signal to the agents of a role; nothing where there are none."""
        for pid in self.agents(role):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def check_free(self) -> None:
        """No process and no lease is left, and all that has a final name is whole."""
        deadline = time.monotonic() + _FREE_S
        while (left := self.agents("")) or not self._takes_lease():
            assert time.monotonic() < deadline, f"the board is not free: {left}"
            time.sleep(0.05)
        for path in self.store.glob("incoming/*"):  # what was broken off may wait for the rest
            assert re.fullmatch(r"([0-9a-f]{64}|folder)\.\w+", path.name)
        for blob in self.store.glob("blobs/*"):
            assert hash_file(blob) == blob.name
        for tree in self.store.glob("trees/*"):
            files = {
                str(path.relative_to(tree)): hash_file(path)
                for path in tree.rglob("*")
                if path.is_file()
            }
            text = json.dumps(files, sort_keys=True).encode()
            assert hashlib.sha256(text).hexdigest() == tree.name

    def _takes_lease(self) -> bool:
        lease = Lease(self.board.home / "lease")
        if lease.acquire({"owner": "test"}) is not None:
            return False
        lease.release()
        return True


class Lab:
    """A workstation with boards, in a folder with ``m.yaml``.

    Args:
        folder: of its own.
        stack: boards and links are stopped when it is left.
        parameters: of all boards.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack, **parameters) -> None:
        self.folder = folder
        self.workstation = _workstation.Workstation(folder / "workstation")
        self.told: list[str] = []
        self._stack = stack
        self._parameters = parameters
        self._boards: dict[str, Wired] = {}

    def add(self, name: str, **options) -> Wired:
        """A board that our key enters and whose host key we know; ``options`` are its own."""
        board = self._stack.enter_context(_inprocess.InProcessBoard(self.folder / name, **options))
        link = self._stack.enter_context(_proxy.Proxy((board.host, board.port)))
        self.workstation.enter(board, trust=False)
        self.workstation.trust(board, port=link.port)
        self._boards[name] = Wired(board, link)
        self.set()
        return self._boards[name]

    def set(self, **parameters) -> None:
        """Write the inventory; these parameters are the same for all boards."""
        self._parameters |= parameters
        _workstation.write_inventory(
            self.folder,
            {
                other: self.workstation.parameters(
                    wired.board,
                    port=wired.link.port,
                    lease=str(wired.board.home / "lease"),
                    python=sys.executable,
                    **self._parameters,
                )
                for other, wired in self._boards.items()
            },
        )

    def run(self, *triggers, **options) -> dict:
        """The record's values of a run of ``m.yaml``; what it told is in ``told``."""
        self.told.clear()

        def on_event(event) -> None:
            self.told.append(event.text)
            for trigger in triggers:
                trigger(event)

        if "continue_" not in options:
            options["manifest"] = self.folder / "m.yaml"
        return api.run(on_event=on_event, **options).values

    def goes_on(self, before: dict) -> dict:
        """`run` what an earlier run lacks: what it had is taken from the store as it was."""
        values = self.run(continue_=before["run_id"])
        assert values["continues"] == before["run_id"]
        for old, new in zip(before["results"], values["results"], strict=True):
            assert new["status"] == "ok", new["error"]
            if old["status"] == "ok":
                assert new["cached"], "it was measured again"
                assert new["latency"] == old["latency"]
                assert new["metrics"] == old["metrics"]
        return values


class When:
    """Does something once: when a board's step tells ``text``, for the nth time.

    Args:
        device: the board's name.
        text: how what it tells begins.
        action: is called ``after_s`` seconds later; at 0, before the step goes on.
        nth: from 1.
        hold: the board whose runner, of the mood ``late held``, is in an inference by then and
            stays there, however busy this machine is: that is waited for instead of ``after_s``.
    """

    def __init__(
        self,
        device: str,
        text: str,
        action,
        *,
        nth: int = 1,
        after_s: float = 0.0,
        hold: Wired | None = None,
    ):
        self._device, self._text, self._action = device, text, action
        self._left, self._after_s, self._hold = nth, after_s, hold
        self._thread: threading.Thread | None = None
        self._held = hold is None

    def __call__(self, event) -> None:
        """Take an event of a run."""
        if (event.step.kind, event.step.device) != ("profile", self._device):
            return
        if event.text.startswith(self._text):
            self._left -= 1
            if self._left == 0 and self._hold is not None:
                (self._hold.board.home / "hold").touch()
                self._thread = threading.Thread(target=self._once_held)
                self._thread.start()
            elif self._left == 0 and self._after_s:
                self._thread = threading.Timer(self._after_s, self._action)
                self._thread.start()
            elif self._left == 0:
                self._action()

    def _once_held(self) -> None:
        deadline = time.monotonic() + _HELD_S
        while (self._hold.board.home / "hold").exists():
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        self._held = True
        self._action()

    def join(self) -> bool:
        """Wait until it is done; whether it was."""
        if self._thread is not None:
            self._thread.join()
        return self._left <= 0 and self._held
