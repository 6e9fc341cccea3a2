"""What a stage works with: the store's protocol, a hook's context, a step's result or failure."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.engine.worker import run_tool
from wherry.errors import PluginError, WherryError
from wherry.npy import SYNTAX_TREES
from wherry.requirements import Requirements
from wherry.stages.keys import NOTES, normalise_code, own_lock
from wherry.store import Key, explained, is_full

if TYPE_CHECKING:
    from wherry.model import Model
    from wherry.normalise import Normalised
    from wherry.stages.services import Services
    from wherry.store import Entry

FILES = "files"
"""In an entry: what a hook or `wherry.normalise` wrote, apart from what a stage says of it."""

SCRATCH = "scratch"
"""In a run's folder: what its steps need only while they run."""


@dataclass(frozen=True)
class StageResult:
    """What a step gave.

    Attributes:
        value: for the steps that need this one.
        cached: the store had it.
        warnings: for the report.
        record: what a pass says of what it did; JSON values.
    """

    value: Any
    cached: bool = False
    warnings: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HostContext:
    """`wherry.context.StepContext` on the host."""

    services: Services
    step: str
    output: Path
    scratch: Path
    log: Path
    warnings: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    unfinished: Path | None = None

    def run_tool(
        self,
        script: Path,
        request: Mapping[str, Any],
        *,
        requirements: Requirements | None,
    ) -> dict[str, Any]:
        """See `wherry.context.StepContext.run_tool`."""
        python = Path(sys.executable)
        if requirements is not None:
            python = self.services.environments.ensure(requirements, progress=self.progress)
        self.progress(f"running {script.parent.name}/{script.name}")
        return run_tool(
            python,
            script,
            request,
            scratch=Path(tempfile.mkdtemp(dir=self.scratch)),
            log=self.log,
            limits=self.services.limits,
            cancelled=self.services.cancelled,
            progress=self.progress,
        )

    def normalised(self, model: Model, also: Collection[str] = ()) -> Normalised:
        """See `wherry.context.StepContext.normalised`."""
        from wherry.normalise import Normalised, normalise

        self.progress("normalising")
        key = normalised_key(model, also)

        def build(context: HostContext) -> None:
            (context.output / FILES).mkdir()
            normalise(model, context.output / FILES, also)

        entry, _, _ = take_or_build(self.services, f"{self.step}:normalise", key, build)
        found = Normalised.load(entry.directory / FILES)
        for text in found.warnings:
            self.warn(text)
        return found

    def progress(self, text: str) -> None:
        """Show what is being done."""
        self.services.notify(self.step, text)

    def warn(self, text: str) -> None:
        """Keep a sentence for the report."""
        self.warnings.append(text)

    def record(self, values: Mapping[str, Any]) -> None:
        """Keep figures for the report."""
        self.figures.update(values)


def normalised_key(model: Model, also: Collection[str]) -> Key:
    """All that decides a normal form."""
    parts = {"model": model.digest, "also": sorted(also)}
    code = {"code": normalise_code(), "host": own_lock()}
    return Key("normalise", {**parts, **code})


def take_or_build(
    services: Services, step: str, key: Key, build: Callable[[HostContext], None]
) -> tuple[Entry, bool, tuple[str, ...]]:
    """The store's entry for ``key``, built if it is not there: (entry, was there, warnings).

    Only one run builds a key at a time; whatever ``build`` raises leaves nothing behind.
    """
    with locked(services, step, key):
        return take_or_build_locked(services, step, key, build)


def locked(services: Services, step: str, key: Key) -> AbstractContextManager[None]:
    """Work on a key alone; says so where another run has it, and ends with the run."""
    return services.store.lock(
        key,
        on_wait=lambda: services.notify(step, "waiting for another run that does the same"),
        cancelled=services.cancelled,
    )


def take_or_build_locked(
    services: Services, step: str, key: Key, build: Callable[[HostContext], None]
) -> tuple[Entry, bool, tuple[str, ...]]:
    """`take_or_build` for a caller that holds the key's lock, and goes on holding it."""
    entry = services.store.get(key)
    if entry is not None:
        return entry, True, notes(entry).warnings
    services.check()
    with services.store.build(key) as output, scratch_folder(services) as scratch:
        unfinished = services.store.unfinished(key)
        log = log_path(services, step)
        context = HostContext(services, step, output, scratch, log, unfinished=unfinished)
        build(context)
        told = {
            "run": services.run_directory.name,
            "warnings": context.warnings,
            "record": context.figures,
        }
        (output / NOTES).write_text(json.dumps(told, indent=1))
    shutil.rmtree(unfinished, ignore_errors=True)  # or the next housekeeping finds it
    entry = services.store.get(key)
    assert entry is not None, "an entry that was just committed under its lock is there"
    return entry, False, tuple(context.warnings)


@contextmanager
def scratch_folder(services: Services) -> Iterator[Path]:
    """A folder of this run that is deleted at the end."""
    root = services.run_directory / SCRATCH
    root.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def log_path(services: Services, step: str) -> Path:
    """The log file of a step."""
    folder = services.run_directory / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", step)[:80].strip("-")
    return folder / f"{readable}-{hashlib.sha256(step.encode()).hexdigest()[:6]}.log"


def failure(error: BaseException, services: Services, step: str) -> WherryError:
    """What a step's exception is told as; the traceback of a bug goes to the step's log."""
    if isinstance(error, WherryError) and not (isinstance(error, PluginError) and error.__cause__):
        return error
    if isinstance(error, OSError) and is_full(error):
        return explained(error, services.home)
    try:
        log = log_path(services, step)
        with SYNTAX_TREES, log.open("a", encoding="utf-8") as stream:
            traceback.print_exception(error, file=stream)
        kept = f"The traceback is in {log}"
    except OSError as problem:
        kept = f"The traceback could not be kept: {problem}"
    if isinstance(error, PluginError):
        remedy = f"{error.remedy or ''} {kept}".lstrip()
        return PluginError(error.message, where=error.where, remedy=remedy)
    return PluginError(
        f"a bug of wherry or of a plugin: {type(error).__name__}: {error}",
        remedy=f"Report it to its authors. {kept}",
    )


@dataclass(frozen=True)
class Notes:
    """What an entry says of its making.

    Attributes:
        run: the id of the run that made it.
        warnings: of its step.
        record: see `StageResult`.
    """

    run: str
    warnings: tuple[str, ...]
    record: Mapping[str, Any]


def notes(entry: Entry) -> Notes:
    """The notes in an entry that a stage made."""
    values = json.loads((entry.directory / NOTES).read_text())
    return Notes(values["run"], tuple(values["warnings"]), values.get("record", {}))
