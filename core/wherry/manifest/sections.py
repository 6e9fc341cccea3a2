"""A manifest as the rest of wherry sees it: checked, resolved, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from wherry.calibration import CalibrationSettings
from wherry.manifest.source import Node
from wherry.measurement import MeasureSettings
from wherry.passes import PassStep
from wherry.target import ParityThreshold, Target

if TYPE_CHECKING:
    from wherry.inventory import Inventory


@dataclass(frozen=True)
class ModelSection:
    """The model: either a file or a design.

    Attributes:
        path: the ONNX file, absolute; it exists.
        zoo: the design's name.
        zoo_parameters: what was said beside the name.
        shapes: input to its static shape, for inputs whose shape was given.
        preprocess: input to its preprocessing (see ``wherry.preprocess``), JSON values.
    """

    path: Path | None = None
    zoo: str | None = None
    zoo_parameters: BaseModel | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    preprocess: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSection:
    """A dataset.

    Attributes:
        name: its role: ``calibration``, ``evaluation``, ``training``.
        source: the source's name.
        parameters: of the source, relative paths as written: they start at the manifest's folder.
        slice: the samples [first, beyond the last); None: from the first, to the last.
        location: ``file:line:column`` of the section.
    """

    name: str
    source: str
    parameters: BaseModel
    slice: tuple[int | None, int | None]
    location: str


@dataclass(frozen=True)
class MetricSection:
    """A metric, over all outputs or one.

    Attributes:
        name: the kind's name.
        output: the ONNX output to look at.
    """

    name: str
    output: str | None = None

    @property
    def key(self) -> str:
        """The word in gates and reports: ``sqnr``, ``sqnr.boxes``."""
        return self.name if self.output is None else f"{self.name}.{self.output}"


@dataclass(frozen=True)
class Selector:
    """Which rows an entry of ``exclude:`` or a gate's ``where:`` speaks of; None: any."""

    variant: frozenset[str] | None = None
    backend: frozenset[str] | None = None
    precision: frozenset[str] | None = None
    device: frozenset[str] | None = None
    threads: frozenset[int] | None = None

    def matches(self, variant: str, target: Target) -> bool:
        """Whether the row is meant."""
        return (
            (self.variant is None or variant in self.variant)
            and (self.backend is None or target.backend in self.backend)
            and (self.precision is None or target.precision in self.precision)
            and (self.device is None or target.device in self.device)
            and (self.threads is None or target.options.threads in self.threads)
        )


@dataclass(frozen=True)
class Drop:
    """How much worse than another a value may be.

    Attributes:
        amount: in the metric's unit; a fraction of the other value where ``relative``.
        relative: written in percent.
    """

    amount: float
    relative: bool = False


ORIGINAL = "original"
"""The variant that is the model as it is, and what a gate says that compares with it."""


@dataclass(frozen=True)
class Gate:
    """A threshold that fails the run; at least one of the bounds is given.

    Attributes:
        metric: key of a metric of the manifest, or one of ``MEASURED``.
        where: the rows that it speaks of.
        max_drop: against the original in fp32; for metrics where lower is better, a rise.
        min: the least value.
        max: the greatest value.
        text: for people.
        location: ``file:line:column``.
        max_increase: how much more than ``against`` a value may be, of those where less is better.
        min_speedup: how many times as fast as ``against`` it has to be at least.
        against: ``fp32`` (the same target in fp32), ``original`` (the variant of that name on the
            same target), ``last``, ``best``, ``tag:NAME``, or a baseline file, absolute; None: the
            original in fp32 on the host, for ``max_drop``.
        allow: reasons for which unlike measurements are compared all the same.
    """

    metric: str
    where: Selector
    max_drop: Drop | None
    min: float | None
    max: float | None
    text: str
    location: str
    max_increase: Drop | None = None
    min_speedup: float | None = None
    against: str | None = None
    allow: frozenset[str] = frozenset()

    def speaks_of(self, variant: str) -> bool:
        """Whether rows of a variant can be judged: the original is not compared with itself."""
        return self.against != ORIGINAL or variant != ORIGINAL


MEASURED = (
    "latency.median_ms",
    "latency.p90_ms",
    "latency.mean_ms",
    "load_ms",
    "peak_memory_bytes",
    "size_bytes",
    "packed_bytes",
    "energy_mj",
    "parity.sqnr_db",
)
"""What gates can look at besides the manifest's metrics."""

COMPARED = ("latency.median_ms", "size_bytes", "peak_memory_bytes", "energy_mj")
"""Those of them that can be compared with another run's; of all, less is better."""


@dataclass(frozen=True)
class ParitySection:
    """The check of each artifact against the model.

    Attributes:
        samples: how many are compared; with 0 nothing is checked, and the report says so.
        thresholds: per precision; the backend's own hold for others.
    """

    samples: int = 8
    thresholds: Mapping[str, ParityThreshold] = field(default_factory=dict)


@dataclass(frozen=True)
class LimitsSection:
    """Limits of each tool's process.

    Attributes:
        time_s: seconds of wall time.
        memory_mb: address space, MiB.
    """

    time_s: float = 1800.0
    memory_mb: int = 8192

    @property
    def memory_bytes(self) -> int:
        """``memory_mb`` in bytes."""
        return self.memory_mb << 20


@dataclass(frozen=True)
class Manifest:
    """What one run does.

    Attributes:
        path: the file, absolute.
        base: its folder, where relative paths start.
        text: the file as it is written.
        files: all files read, ``path`` first, then what it includes.
        merged: the values after includes, the environment and overrides, JSON values.
        targets: all targets, in the order written.
        rows: (variant, target) for each line of the report, variants outermost.
        origins: variant and `Target.id` to the path of the entry of ``targets:`` they stand in.
        track: trackers to be told of the run, with their parameters.
        inventory: the devices that the targets name, and others.
    """

    path: Path
    base: Path
    text: str
    files: tuple[Path, ...]
    merged: Mapping[str, Any]
    model: ModelSection
    data: Mapping[str, DataSection]
    metrics: tuple[MetricSection, ...]
    variants: Mapping[str, tuple[PassStep, ...]]
    targets: tuple[Target, ...]
    rows: tuple[tuple[str, Target], ...]
    origins: Mapping[tuple[str, str], tuple[str | int, ...]]
    gates: tuple[Gate, ...]
    calibrate: CalibrationSettings
    measure: MeasureSettings
    parity: ParitySection
    limits: LimitsSection
    track: Mapping[str, BaseModel]
    seed: int
    inventory: Inventory
    root: Node = field(repr=False, compare=False)

    def location(self, *path: str | int) -> str:
        """``file:line:column`` of a key, or of the deepest part of ``path`` that is written.

        For example ``location("data", "evaluation", "source")``, ``location("targets", 0)``.
        """
        return str(self.root.at(path))
