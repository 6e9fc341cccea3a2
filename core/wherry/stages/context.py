"""What a stage works with: the services of a run, the store's protocol, a hook's context."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.engine.lending import Lending
from wherry.engine.worker import Limits, run_tool
from wherry.errors import (
    DeviceLostError,
    EnvironmentError_,
    Interrupted,
    PluginError,
    WherryError,
)
from wherry.requirements import Requirements
from wherry.stages.keys import NOTES, normalise_code, own_lock
from wherry.store import Key, explained, is_full

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.device import BoardInfo, Device, Session
    from wherry.engine.environments import Environments
    from wherry.host import Host
    from wherry.inventory import Inventory
    from wherry.manifest import Manifest
    from wherry.model import Model
    from wherry.normalise import Normalised
    from wherry.plan import Plan
    from wherry.store import Entry, Store

_log = logging.getLogger(__name__)

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
class Probed:
    """A board, and what the plan's targets would run on there.

    Attributes:
        info: what the probe found.
        runtimes: backend to the lock of its runtime, or to the reason why there is none.
    """

    info: BoardInfo
    runtimes: Mapping[str, str | EnvironmentError_]

    def runtime(self, backend: str) -> str:
        """The lock of a backend's runtime; raises `EnvironmentError_` where there is none."""
        found = self.runtimes[backend]
        if isinstance(found, EnvironmentError_):
            raise found
        return found


@dataclass
class Services(Lending):
    """What one run lends to its stages.

    Attributes:
        home: the folder of wherry's own files.
        run_directory: of this run; ``logs/`` below it.
        cancelled: set when the user stops the run.
        remeasure: measurements are not taken from the store.
        turns: what this run has in common with those whose rounds take turns with its own
            (`wherry.turns`); None: it is alone. What was measured otherwise is not taken for it.
        upto: no more than so many rounds are measured now, and nothing comes of them yet; None:
            all.
        fresh: digests of the keys of measurements of which a round was measured in this run: two
            rows with one artifact are measured once.
        notify: called with (step id, what it is doing now).
    """

    plan: Plan
    host: Host
    store: Store
    environments: Environments
    inventory: Inventory
    home: Path
    run_directory: Path
    limits: Limits
    cancelled: threading.Event = field(default_factory=threading.Event)
    remeasure: bool = False
    turns: str | None = None
    upto: int | None = None
    fresh: set[str] = field(default_factory=set)
    notify: Callable[[str, str], None] = lambda _step, _text: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: dict[str, Device] = {}
        self._probing: dict[str, threading.Lock] = {}
        self._probed: dict[str, Probed] = {}
        self._held: dict[str, tuple[ExitStack, Session]] = {}
        self._idle: list[tuple[ExitStack, Session]] = []  # with this host, without the lease
        self._reading: dict[tuple[str, str], threading.Lock] = {}
        self._datasets: dict[tuple[str, str], Dataset] = {}

    @property
    def manifest(self) -> Manifest:
        """The plan's manifest."""
        return self.plan.manifest

    def check(self) -> None:
        """Raise `Interrupted` where the user has stopped the run; for long work in this process."""
        if self.cancelled.is_set():
            raise Interrupted("the run was stopped")

    def tell(self, step: str, text: str) -> None:
        """Say why a step does not go on, also where no progress is shown: off the terminal."""
        self.notify(step, text)
        _log.warning(text)

    def device(self, name: str) -> Device:
        """The device of the inventory, connected on first use."""
        with self._lock:
            if name not in self._devices:
                spec = self.inventory.devices[name]
                transport = self.host.transports[spec.transport]
                self._devices[name] = transport.connect(spec, self)
            return self._devices[name]

    def hold(self, name: str) -> None:
        """Take the device's lease now, and keep it for `session` until it is released.

        Raises:
            DeviceTakenError: another has it; nobody is waited for.
            DeviceError: it cannot be reached, or refuses.
        """
        with ExitStack() as stack:
            session = stack.enter_context(self.device(name).session(wait=False))
            with self._lock:
                self._held[name] = stack.pop_all(), session

    def release(self, name: str | None = None) -> None:
        """Give a held device back; nothing where it is not held. None: all of them."""
        with self._lock:
            names = list(self._held) if name is None else [name]
            held = [self._held.pop(name) for name in names if name in self._held]
            if name in {None, self.host_device}:
                held += self._idle
                self._idle = []
        with ExitStack() as closing:  # whatever one of them raises, all are given back
            for stack, _ in held:
                closing.callback(_give_back, stack)

    @contextmanager
    def session(
        self, name: str, *, lease: bool = True, report: Callable[[str], None] | None = None
    ) -> Iterator[Session]:
        """A session with a device: the one in which it is held, or else one of this caller's own.

        A session with this host without the lease is kept for the next who asks for such: to
        start one takes as much as many a parity check. None is left idle beside one with the lease.

        Args:
            name: of the device.
            lease: see `wherry.device.Device.session`.
            report: likewise.
        """
        held = self._held.get(name)
        if held is None and name == self.host_device and not lease:
            with self._own_session(name) as session:
                yield session
            return
        if held is None:
            self.release(name)  # what is idle
            with self.device(name).session(lease=lease, report=report) as session:
                yield session
            return
        try:
            yield held[1]
        except DeviceLostError:
            self.release(name)
            raise

    @contextmanager
    def _own_session(self, name: str) -> Iterator[Session]:
        """One that is idle, or else a new one; nobody has it after an error."""
        kept = self._idle_session()
        if kept is None:
            with ExitStack() as stack:
                session = stack.enter_context(self.device(name).session(lease=False))
                kept = stack.pop_all(), session
        with ExitStack() as closing:
            closing.callback(_give_back, kept[0])
            yield kept[1]
            closing.pop_all()
        with self._lock:
            self._idle.append(kept)

    def _idle_session(self) -> tuple[ExitStack, Session] | None:
        """One that still lives: its process may have been ended meanwhile."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                kept = self._idle.pop()
            try:
                kept[1].sensors()
            except DeviceLostError:
                _give_back(kept[0])
            else:
                return kept

    def dataset(self, source: str, parameters: str, load: Callable[[], Dataset]) -> Dataset:
        """What a source gives for some parameters, JSON; read once for all who ask in a run.

        ``load`` is called for the first of them, and again where it failed.
        """
        name = (source, parameters)
        with self._lock:
            alone = self._reading.setdefault(name, threading.Lock())
        with alone:
            if name not in self._datasets:
                self._datasets[name] = load()
            return self._datasets[name]

    def probe(self, name: str) -> Probed:
        """What the device is; found out once a run, in one session."""
        with self._lock:
            alone = self._probing.setdefault(name, threading.Lock())
        with alone:
            if name not in self._probed:
                self._probed[name] = self._probe(name)
            return self._probed[name]

    def _probe(self, name: str) -> Probed:
        backends = {}
        for row in self.plan.rows:
            backend = self.host.backends[row.target.backend]
            checked = name == self.host_device and backend.runs_on_host
            if row.target.device == name or checked:
                backends[backend.name] = backend
        runtimes: dict[str, str | EnvironmentError_] = {}
        with self.session(name, lease=False) as session:
            for backend in backends.values():
                try:
                    runtimes[backend.name] = session.runtime_lock(backend)
                except EnvironmentError_ as error:
                    runtimes[backend.name] = error
            info = session.info
        if name in self._held:  # by this run: for the record it was free
            info = replace(info, facts={**info.facts, "in_use_by": None})
        return Probed(info, runtimes)

    @property
    def boards(self) -> Mapping[str, BoardInfo]:
        """The boards that were probed so far."""
        return {name: probed.info for name, probed in self._probed.copy().items()}

    @cached_property
    def host_device(self) -> str | None:
        """The device that is this host, where parity is checked; None: no plugin offers one."""
        for spec in self.inventory.devices.values():
            if self.host.transports[spec.transport].host:
                return spec.name
        return None


def _give_back(stack: ExitStack) -> None:
    with suppress(WherryError):  # one that was lost meanwhile has nothing to give back
        stack.close()


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
        with log.open("a", encoding="utf-8") as stream:
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
