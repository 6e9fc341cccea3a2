"""Devices: what a transport offers, and what a leased board can do for the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import BaseModel

from wherry.artifact import Artifact
from wherry.measurement import MeasureSettings, Sensors
from wherry.requirements import Requirements

if TYPE_CHECKING:
    from wherry.target import Backend, Target


@dataclass(frozen=True)
class BoardInfo:
    """What a probe found; whatever the board does not tell is empty or None.

    Attributes:
        fingerprint: sha256 over what makes results comparable (model, SoC, cores and how many of
            them may be used, memory, OS, kernel, glibc, Python): part of the keys of measurements.
        machine: as ``uname -m`` says.
        python: version of the board's Python, e.g. ``3.8.10``.
        glibc: e.g. ``2.31``.
        emulated: the processor is emulated (qemu-user and the like).
        identity: sha256 over what tells this board from others of its type (serial number, the
            installation's machine-id); part of the keys of measurements. Boards that tell neither
            share one.
        facts: everything else, for reports; JSON values.
    """

    fingerprint: str
    hostname: str
    machine: str
    system: str
    kernel: str
    python: str
    python_executable: str
    glibc: str | None
    cpu: str
    cores: int
    memory_bytes: int
    model: str | None = None
    emulated: bool = False
    identity: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RawTiming:
    """What the agent timed in one process; see `wherry.measurement.Measurement` for the fields."""

    infer_ns: np.ndarray
    total_ns: np.ndarray
    warmup_runs: int
    steady: bool
    sensors: tuple[Sensors, ...]
    timed_by: str = "agent"
    record: Mapping[str, Any] = field(default_factory=dict)


class HostedRunner(Protocol):
    """An artifact loaded by an agent's process on the board.

    Attributes:
        load_ms: time to load the artifact.
        first_ms: the first inference on zeros, after loading.
        versions: of the runtime, as the runner tells them.
        record: what the runner says of how it was prepared on the board; JSON values.
    """

    @property
    def load_ms(self) -> float: ...

    @property
    def first_ms(self) -> float: ...

    @property
    def versions(self) -> Mapping[str, Any]: ...

    @property
    def record(self) -> Mapping[str, Any]: ...

    def infer(
        self, samples: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """Run samples, several in flight; outputs come in the samples' order.

        Args:
            samples: per sample, ONNX input name to array: raw where a preprocessing was declared
                for that input, else as the model takes it.

        Returns:
            Per sample, ONNX output name to array in the ONNX shape, batch axis kept.
        """
        ...

    def time(self, inputs: Mapping[str, np.ndarray], settings: MeasureSettings) -> RawTiming:
        """Warm up and time one sample, again and again."""
        ...

    def sustain(
        self, inputs: Mapping[str, np.ndarray], duration_s: float
    ) -> Sequence[Mapping[str, Any]]:
        """Run one sample without pause; the series, as the agent's ``sustain`` describes it."""
        ...

    def time_layers(
        self, inputs: Mapping[str, np.ndarray], duration_s: float
    ) -> Mapping[str, np.ndarray] | None:
        """Time the layers of one sample, again and again.

        Args:
            inputs: as in `time`.
            duration_s: about how long the inferences take.

        Returns:
            Layer, by the runtime's name, to nanoseconds, one per inference; None: the runner does
            not time layers.
        """
        ...

    def peak_memory_bytes(self) -> int | None:
        """See `wherry.measurement.Measurement.peak_memory_bytes`."""
        ...


@dataclass(frozen=True)
class Stabilised:
    """What became of a board's clocks.

    Attributes:
        done: what was fixed, in words.
        problems: what could not be, and, after the context has ended, what could not be given
            back; sentences.
    """

    done: tuple[str, ...]
    problems: list[str]


class Session(Protocol):
    """A device leased for our use."""

    @property
    def info(self) -> BoardInfo: ...

    def sensors(self) -> Sensors:
        """Read the board's sensors now."""
        ...

    def stabilise(self, power_mode: int | None) -> AbstractContextManager[Stabilised]:
        """Fix the board's clocks until the context ends; needs the lease.

        They are given back whatever happens, also where this host dies.

        Args:
            power_mode: of a Jetson, by ``nvpmodel``'s number; None: as it is.
        """
        ...

    def host(
        self,
        artifact: Artifact,
        target: Target,
        backend: Backend,
        preprocess: Mapping[str, Mapping[str, Any]],
    ) -> AbstractContextManager[HostedRunner]:
        """Ship what is missing, provision the runtime, start an agent's process and load.

        Raises:
            EnvironmentError_: the runtime cannot be provided on this board.
            UnsupportedError: the board does not have what the runner needs of it; what to do.
            DeviceError: the device was lost.
            ToolError: the runner failed or crashed; the text says how.
        """
        ...

    def runtime_lock(self, backend: Backend) -> str:
        """sha256 of what the runtime is on this board, for the keys.

        The locked requirements, and the state of the board's own tools that it uses.

        Makes nothing; raises `EnvironmentError_` where no alternative fits.
        """
        ...


class Device(Protocol):
    """A board that a transport reaches."""

    @property
    def name(self) -> str: ...

    def probe(self) -> BoardInfo:
        """Find out what the board is; raises `DeviceError`."""
        ...

    def session(
        self,
        *,
        lease: bool = True,
        wait: bool = True,
        report: Callable[[str], None] | None = None,
    ) -> AbstractContextManager[Session]:
        """Connect; with ``lease``, hold the board alone until the context ends.

        Without a lease nothing may be timed: parity checks run so.

        Args:
            lease: whether to take it.
            wait: for whoever holds it.
            report: told who holds it while we wait; None: the log is.

        Raises:
            DeviceTakenError: another holds it, and does not give it back in time.
        """
        ...

    def clean(self, unused_s: float) -> tuple[int, int]:
        """Remove what nobody asked for in so many seconds: environments, and bytes of files."""
        ...

    def unlock(self) -> str | None:
        """End whatever holds the board, and say who it was; None: it was free."""
        ...

    def provision(
        self, requirements: Iterable[Requirements], progress: Callable[[str], None] | None = None
    ) -> str:
        """Provide the first alternative that fits; returns the Python executable on the board."""
        ...


@dataclass(frozen=True, slots=True)
class Platform:
    """What decides which wheels fit on a board.

    Attributes:
        machine: of the board's Python, as a wheel's tag has it: ``x86_64``, ``aarch64``,
            ``armv7l`` (also of a 32-bit Python under a 64-bit kernel).
        python: version of CPython, e.g. ``3.8.10``.
        glibc: e.g. ``2.31``; None: another C library.
    """

    machine: str
    python: str
    glibc: str | None


@dataclass(frozen=True)
class DeviceSpec:
    """One entry of an inventory: ``NAME: {TRANSPORT: parameters, tags: [...], tools: {...}}``."""

    name: str
    transport: str
    parameters: BaseModel
    tags: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)


class DeviceServices(Protocol):
    """What the host lends to a transport.

    Attributes:
        home: the folder of wherry's own files on the host.
        cancelled: when it is set, sessions end: what waits for a board raises `Interrupted`.
    """

    @property
    def home(self) -> Path: ...

    @property
    def cancelled(self) -> threading.Event: ...

    def environment(
        self, requirements: Requirements, progress: Callable[[str], None] | None = None
    ) -> Path:
        """Make (or find) an environment on the host; returns its Python executable."""
        ...

    def environment_lock(self, requirements: Requirements) -> str:
        """sha256 of an environment's locked requirements, without making it."""
        ...

    def wheels(
        self,
        requirements: Requirements,
        platform: Platform,
        progress: Callable[[str], None] | None = None,
    ) -> tuple[Path, ...]:
        """The wheels that an environment on a board is made of, fetched and checked by hash.

        Raises:
            EnvironmentError_: see `wheels_lock`.
        """
        ...

    def wheels_lock(self, requirements: Requirements, platform: Platform) -> str:
        """sha256 of the locked wheels, without fetching them.

        Raises:
            EnvironmentError_: a package has no wheel that fits; the text names the package, the
                board's platform and the version that would fit.
        """
        ...


@dataclass(frozen=True)
class Transport:
    """Descriptor of a way to reach boards, yielded by ``wherry_transports``.

    Attributes:
        name: the word in an inventory.
        description: one line.
        parameters: what an inventory may say.
        connect: makes the device; cheap, nothing is reached yet.
        trust: accepts a device's host keys after asking ``confirm`` (with the server and the
            fingerprint), and says of each server what was done; None: there are none.
        shell: runs the user's login shell on the device, on this terminal, and returns its exit
            status; None: there is none.
        host: this transport reaches the host itself; parity checks run there, and timing there
            shares the processor with the host's own work, so that the engine keeps them apart.
    """

    name: str
    description: str
    parameters: type[BaseModel]
    connect: Callable[[DeviceSpec, DeviceServices], Device]
    trust: Callable[[DeviceSpec, Callable[[str, str], bool]], list[str]] | None = None
    shell: Callable[[DeviceSpec], int] | None = None
    host: bool = False
