"""A run's progress in its folder: who looks on sees each step begin, go on and end.

One JSON object a line, each appended by one write and never changed. Of a run that was killed the
last line may be cut off; it is left out. Whether a run still lives is told by the lock that it
holds (`wherry.records.requests.RUNNING`), never by what the file says.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from wherry.errors import StoreError
from wherry.filelock import is_held
from wherry.records.naming import RUN_ID
from wherry.records.requests import RUNNING

if TYPE_CHECKING:
    from types import TracebackType

    from wherry.engine.local import Event
    from wherry.plan import Plan

_log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
KEPT = "kept"
"""How a run ended whose record is in the database."""

_EVERY_S = 0.5  # between two tellings of one step's progress
_TEXT = 500  # characters of one telling
_MOST_BYTES = 64 << 20  # what is read at once
State = Literal["running", "ended", "killed"]
ENDED = frozenset({"done", "cached", "failed", "skipped"})
"""States of a step that will not change any more."""


class ProgressFile:
    """Writes a run's progress; threads may share it. A disk that is full ends it, not the run."""

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file: int | None = os.open(directory / EVENTS_FILE, flags, 0o666)

    def begin(self, plan: Plan, run_id: str, *, tag: str | None, manifest: str) -> None:
        """The first line: what there is to do."""
        steps = [
            {"id": step.id, "kind": step.kind, "title": step.title, "device": step.device}
            for step in plan.steps.values()
        ]
        self._write({"run_id": run_id, "tag": tag, "manifest": manifest, "steps": steps})

    def step(self, event: Event) -> None:
        """A step's event; of its progress not more than two a second."""
        if event.state == "progress":
            now = time.monotonic()
            with self._lock:
                if now - self._told.get(event.step.id, float("-inf")) < _EVERY_S:
                    return
                self._told[event.step.id] = now
        self._write({"step": event.step.id, "state": event.state, "text": event.text[:_TEXT]})

    def end(self, how: str) -> None:
        """The last line: `KEPT`, or why not."""
        self._write({"end": how[:_TEXT]})

    def _write(self, values: Mapping[str, Any]) -> None:
        line = json.dumps({"at": datetime.now(UTC).isoformat(), **values}) + "\n"
        with self._lock:
            if self._file is None:
                return
            try:
                os.write(self._file, line.encode("ascii"))
            except OSError as error:
                _log.warning("the run's progress is no longer written: %s", error)
                self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.end(f"{error}" or type(error).__name__)
        with self._lock:
            self._close()


@dataclass
class StepProgress:
    """A step as far as it is.

    Attributes:
        state: of its last event; ``waiting`` before the first.
        text: of its last event.
        started: ISO 8601, UTC; None: it has not.
        ended: likewise.
    """

    id: str
    kind: str
    title: str
    device: str
    state: str = "waiting"
    text: str = ""
    started: str | None = None
    ended: str | None = None


@dataclass
class Progress:
    """A run as far as it is.

    Attributes:
        state: ``running``; ``ended``: it is over; ``killed``: it is, and could not say so.
        started: ISO 8601, UTC.
        updated: when the last line was written.
        end: `KEPT`, or why not; None: it has not ended.
    """

    run_id: str
    tag: str | None
    manifest: str
    started: str
    updated: str
    state: State = "running"
    end: str | None = None
    steps: list[StepProgress] = field(default_factory=list)

    @property
    def done(self) -> int:
        """How many steps have ended."""
        return sum(step.state in ENDED for step in self.steps)

    @property
    def devices(self) -> list[str]:
        """The devices that a step which runs now measures on."""
        at_work = [s.device for s in self.steps if s.device and s.state in {"started", "progress"}]
        return list(dict.fromkeys(at_work))


class ProgressReader:
    """Follows one run's progress: what was read once is not read again. Threads may share it.

    Args:
        home: the folder of wherry's own files.
        run_id: of the run, from whomever: what cannot be one names no run.
    """

    def __init__(self, home: Path, run_id: str) -> None:
        self._directory = home / "runs" / run_id if RUN_ID.fullmatch(run_id) else None
        self._lock = threading.Lock()
        self._offset = 0
        self._steps: dict[str, StepProgress] = {}
        self._progress: Progress | None = None

    def read(self) -> Progress | None:
        """How far the run is now; None: it left no progress here.

        Raises:
            StoreError: its file is not as a run writes it.
        """
        if self._directory is None:
            return None
        # the lock before the file: a run that ends in between has said so there
        alive = is_held(self._directory / RUNNING)
        path = self._directory / EVENTS_FILE
        with self._lock:
            try:
                with path.open("rb") as stream:
                    stream.seek(self._offset)
                    *lines, rest = stream.read(_MOST_BYTES).split(b"\n")
                    self._offset = stream.tell() - len(rest)
                for line in lines:
                    self._take(json.loads(line))
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (OSError, ValueError, TypeError, LookupError) as error:
                self._offset, self._progress = 0, None  # so that whoever asks next is told, too
                raise StoreError(
                    f"the run's progress cannot be read: {error}", where=str(path)
                ) from error
            if self._progress is None:
                return None
            over: State = "killed" if self._progress.end is None else "ended"
            steps = [replace(step) for step in self._steps.values()]
            return replace(self._progress, state="running" if alive else over, steps=steps)

    def _take(self, values: dict[str, Any]) -> None:
        if self._progress is None:
            at, tag = values["at"], values["tag"]
            self._progress = Progress(values["run_id"], tag, values["manifest"], at, at)
            self._steps = {each["id"]: StepProgress(**each) for each in values["steps"]}
            return
        self._progress.updated = values["at"]
        if "end" in values:
            self._progress.end = values["end"]
            return
        step = self._steps[values["step"]]
        step.state, step.text = values["state"], values["text"]
        if step.state == "started":
            step.started = values["at"]
        elif step.state in ENDED:
            step.ended = values["at"]


def live_runs(home: Path) -> list[str]:
    """The ids of the runs of this machine's home that live, the newest first."""
    marks = [mark for mark in (home / "runs").glob(f"*/{RUNNING}") if is_held(mark)]
    return sorted((mark.parent.name for mark in marks), reverse=True)
