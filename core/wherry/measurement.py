"""Measurements: what came back from a board for one target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from wherry.errors import StoreError
from wherry.npy import load_arrays

CONVENTION = 1
"""Of measuring: raised when what is timed, or how a board is brought to it, changes so that the
same artifact would get another latency. Latencies of two conventions are not compared."""


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """How one target is measured (the manifest's ``measure:``).

    Attributes:
        rounds: processes per target, in shuffled order over all targets of a board.
        warmup_s: least time of warm-up in each round, seconds; it goes on until it is steady.
        warmup_runs: least runs of warm-up in each round.
        duration_s: time of measuring in each round, seconds.
        min_runs: least measured runs in each round, however long they take.
        max_runs: most measured runs in each round.
        seed: of the shuffled order.
        stabilise: the board's clocks are fixed while it is measured.
        power_mode: of a Jetson, by ``nvpmodel``'s number, while it is measured; None: as it is.
        sustained: seconds without pause after the rounds; 0: not at all.
        layers: the layers of each target are timed too, after the rounds.
    """

    rounds: int = 5
    warmup_s: float = 0.3
    warmup_runs: int = 5
    duration_s: float = 0.6
    min_runs: int = 10
    max_runs: int = 20_000
    seed: int = 0
    stabilise: bool = False
    power_mode: int | None = None
    sustained: float = 0.0
    layers: bool = False


@dataclass(frozen=True)
class Sensors:
    """A reading of a board; whatever the board does not tell is absent.

    Attributes:
        time_s: seconds on the board's monotonic clock.
        values: name to value: ``temperature_c.<zone>``, ``frequency_khz.<policy>``,
            ``governor.<policy>`` (text), ``throttled`` (flags), ``load_1m``,
            ``memory_available_bytes``, ``power_w.<rail>``, ``energy_j.<counter>``; further ones
            in ``docs/measuring.md``.
    """

    time_s: float
    values: Mapping[str, float | int | str]

    def numbers(self, prefix: str) -> dict[str, float]:
        """Those whose names begin so and that are no text, by the rest of their names."""
        return {
            name.removeprefix(prefix): float(value)
            for name, value in self.values.items()
            if name.startswith(prefix) and not isinstance(value, str)
        }


@dataclass(frozen=True)
class Measurement:
    """One target, one round as ``wherry_profile`` returns it, or all rounds merged by the host.

    Attributes:
        infer_ns: uint64 [samples]; each the inference alone, nanoseconds.
        total_ns: uint64 [samples]; the same runs with the copies of inputs and outputs.
        round_sizes: how many samples each round gave, in order.
        load_ms: time to load the artifact, per round.
        first_ms: the first inference, per round.
        warmup_runs: runs before the measured ones, per round.
        steady: whether the warm-up had become steady, per round.
        metrics: metric name to value; from round 0.
        peak_memory_bytes: the most resident memory of the runner's process, less what it held
            before the artifact was loaded; None where the board does not tell.
        sensors: readings before, during and after, in order.
        clean: nothing disturbed the measurement as far as the board tells.
        disturbances: why it is not clean, sentences.
        timed_by: what held the clock, e.g. ``agent``.
        emulated: the board is an emulator: the latency means nothing.
        evaluated: how many samples the metrics are over.
        extra: what a backend adds for the record; JSON values.
        energy_mj: of one inference, mean over the measured runs; None where the board does not
            tell. ``extra["energy"]`` says how it was found.
        sustained: the run without pause, as the report's JSON has it; None: there was none.
        layers: layer, by the runtime's name, to its median, milliseconds; in the runtime's order;
            empty where layers were not timed.
        layer_runs: how many inferences these medians are over.
    """

    infer_ns: np.ndarray
    total_ns: np.ndarray
    round_sizes: tuple[int, ...]
    load_ms: tuple[float, ...]
    first_ms: tuple[float, ...]
    warmup_runs: tuple[int, ...]
    steady: tuple[bool, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    sensors: tuple[Sensors, ...] = ()
    clean: bool = True
    disturbances: tuple[str, ...] = ()
    timed_by: str = "agent"
    emulated: bool = False
    evaluated: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    energy_mj: float | None = None
    sustained: Mapping[str, Any] | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    layer_runs: int = 0

    def save(self, directory: Path) -> None:
        """Write ``measurement.json`` and ``samples.npz`` into ``directory``."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ARRAYS}
        values["sensors"] = [asdict(reading) for reading in self.sensors]
        (directory / "measurement.json").write_text(json.dumps(values, indent=1))
        np.savez_compressed(
            directory / "samples.npz", infer_ns=self.infer_ns, total_ns=self.total_ns
        )

    @classmethod
    def load(cls, directory: Path) -> Measurement:
        """The inverse of `save`; raises `StoreError`."""
        try:
            values = json.loads((directory / "measurement.json").read_text())
            sensors = tuple(Sensors(**reading) for reading in values.pop("sensors"))
            arrays = load_arrays(directory / "samples.npz")
            samples: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
            others: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
            return cls(**samples, **others, sensors=sensors)
        except _UNREADABLE as error:
            raise StoreError(
                f"not a measurement: {error!r}",
                where=str(directory),
                remedy="Run again with --remeasure.",
            ) from error


_ARRAYS = ("infer_ns", "total_ns")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


def merge(rounds: Sequence[Measurement]) -> Measurement:
    """All rounds of one target, in order, as one measurement.

    Samples are concatenated; metrics and memory come from the first round; it is clean if every
    round was.
    """
    first = rounds[0]
    return replace(
        first,
        infer_ns=np.concatenate([r.infer_ns for r in rounds]),
        total_ns=np.concatenate([r.total_ns for r in rounds]),
        round_sizes=tuple(size for r in rounds for size in r.round_sizes),
        load_ms=tuple(value for r in rounds for value in r.load_ms),
        first_ms=tuple(value for r in rounds for value in r.first_ms),
        warmup_runs=tuple(value for r in rounds for value in r.warmup_runs),
        steady=tuple(value for r in rounds for value in r.steady),
        sensors=tuple(reading for r in rounds for reading in r.sensors),
        clean=all(r.clean for r in rounds),
        disturbances=tuple(dict.fromkeys(text for r in rounds for text in r.disturbances)),
        emulated=any(r.emulated for r in rounds),
        energy_mj=_mean_energy(rounds),
    )


def _mean_energy(rounds: Sequence[Measurement]) -> float | None:
    """Over all runs of the rounds; None where one of them does not know."""
    known = [r.energy_mj for r in rounds if r.energy_mj is not None]
    if len(known) < len(rounds):
        return None
    return float(np.average(known, weights=[len(r.infer_ns) for r in rounds]))
