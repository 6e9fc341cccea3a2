"""What one run lends to its stages: the manifest, the store, environments, devices and sessions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.engine.lending import Lending
from wherry.engine.worker import Limits
from wherry.errors import DeviceLostError, EnvironmentError_, Interrupted, WherryError

if TYPE_CHECKING:
    from wherry.dataset import Dataset
    from wherry.device import BoardInfo, Device, Session
    from wherry.engine.environments import Environments
    from wherry.host import Host
    from wherry.inventory import Inventory
    from wherry.manifest import Manifest
    from wherry.plan import Plan
    from wherry.store import Store

_log = logging.getLogger(__name__)


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
