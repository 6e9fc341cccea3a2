"""Whether something disturbed a measurement, as far as the board's sensors tell."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.measurement import Sensors

CLOCK_MOVED = 0.05  # of the fastest clock
TEMPERATURE_C = 10.0
BUSY_CORES = 0.2  # of other processes, on average
_TICKS_S = 0.05  # what the kernel's counters of busy time are off by, in a short measurement
THROTTLE_BITS = {
    0: "under-voltage",
    1: "its clock capped",
    2: "throttled",
    3: "at its soft temperature limit",
}
_STICKY = 16  # the same bits so much higher: since the board started
GPU_AT_WORK = 10.0  # percent; an idle GPU's clock does as it likes
_GPU_CLOCK = "frequency_khz.gpu"
_ALARMS = {  # of the Jetson Orins' over-current counters
    "cpu": "The processor was throttled {} times.",
    "oc1": "The board was throttled {} times for under-voltage (oc1).",
    "oc2": "The board was throttled {} times for its average current (oc2).",
    "oc3": "The board was throttled {} times for its peak current (oc3).",
}


def disturbances(readings: Sequence[Sensors], cores: int) -> tuple[str, ...]:
    """Sentences; none where nothing was seen.

    Args:
        readings: of one measurement: before the warm-up, then from its end to the last run.
        cores: of the board.
    """
    while_timing = readings[1:]
    found = [
        _clock(while_timing),
        _gpu_clock(while_timing),
        _temperature(while_timing),
        _busy(while_timing, cores),
    ]
    return tuple(sentence for sentence in [*found, *_throttling(readings)] if sentence)


def _clock(readings: Sequence[Sensors]) -> str | None:
    """The fastest core's clock, which is that of the core at work."""
    clocks = [reading.numbers("frequency_khz.") for reading in readings]
    cores = [
        [clock for name, clock in values.items() if not name.startswith("gpu")] for values in clocks
    ]
    moved = _moved([max(values) for values in cores if values])
    return moved and f"The clock moved between {moved} MHz."


def _gpu_clock(readings: Sequence[Sensors]) -> str | None:
    """A GPU's clock, where the GPU was at work at every reading."""
    values = [reading.values for reading in readings]
    if not all(float(v.get("gpu_load_percent", 0)) >= GPU_AT_WORK for v in values):
        return None
    moved = _moved([float(v[_GPU_CLOCK]) for v in values if _GPU_CLOCK in v])
    return moved and f"The GPU's clock moved between {moved} MHz."


def _moved(clocks: Sequence[float]) -> str | None:
    """The ends of what kHz moved between, in MHz; None: they stayed."""
    if not clocks or max(clocks) - min(clocks) <= CLOCK_MOVED * max(clocks):
        return None
    return f"{min(clocks) / 1e3:.0f} and {max(clocks) / 1e3:.0f}"


def _temperature(readings: Sequence[Sensors]) -> str | None:
    zones = [reading.numbers("temperature_c.") for reading in readings]
    for zone in zones[0] if zones else ():
        values = [reading[zone] for reading in zones if zone in reading]
        if max(values) - min(values) > TEMPERATURE_C:
            return f"The temperature of {zone} moved from {values[0]:.0f} to {values[-1]:.0f} °C."
    return None


def _busy(readings: Sequence[Sensors], cores: int) -> str | None:
    names = ("cpu_busy_s", "cpu_own_s")
    if len(readings) < 2 or not all(name in readings[i].values for name in names for i in (0, -1)):
        return None
    first, last = readings[0], readings[-1]
    seconds = last.time_s - first.time_s
    busy, own = (float(last.values[name]) - float(first.values[name]) for name in names)
    others = busy - own
    if others <= BUSY_CORES * seconds + _TICKS_S:
        return None
    return f"Other processes kept {others / seconds:.1f} of {cores} cores busy."


def _throttling(readings: Sequence[Sensors]) -> list[str]:
    flags, sticky = 0, [int(r.values["throttled"]) for r in readings if "throttled" in r.values]
    for reading in readings:
        flags |= int(reading.values.get("throttled", 0)) | int(
            reading.values.get("under_voltage", 0)
        )
    if sticky:  # what came and went between two readings has left its mark
        flags |= (sticky[-1] & ~sticky[0]) >> _STICKY
    words = [word for bit, word in THROTTLE_BITS.items() if flags >> bit & 1]
    found = [f"The board reported that it was {' and '.join(words)}."] if words else []
    counters = [reading.numbers("throttle_count.") for reading in readings]
    for what in dict.fromkeys(name for values in counters for name in values):
        counts = [int(values[what]) for values in counters if what in values]
        if counts[-1] > counts[0]:
            sentence = _ALARMS.get(what, f"The board was throttled {{}} times ({what}).")
            found.append(sentence.format(counts[-1] - counts[0]))
    cooling = dict.fromkeys(
        name
        for reading in readings
        for name, value in reading.numbers("cooling.").items()
        if value > 0
    )
    if cooling:
        found.append(f"The board's cooling slowed it down ({', '.join(cooling)}).")
    return found
