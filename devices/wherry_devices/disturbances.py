"""Whether something disturbed a measurement, as far as the board's sensors tell."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.measurement import Sensors

CLOCK_MOVED = 0.05  # of the fastest clock
TEMPERATURE_C = 10.0
BUSY_CORES = 0.2  # of other processes, on average
_TICKS_S = 0.05  # what the kernel's counters of busy time are off by, in a short measurement
_THROTTLE_BITS = {
    0: "under-voltage",
    1: "its clock capped",
    2: "throttled",
    3: "at its soft temperature limit",
}


def disturbances(readings: Sequence[Sensors], cores: int) -> tuple[str, ...]:
    """Sentences; none where nothing was seen.

    Args:
        readings: of one measurement: before the warm-up, then from its end to the last run.
        cores: of the board.
    """
    while_timing = readings[1:]
    found = [_clock(while_timing), _temperature(while_timing), _busy(while_timing, cores)]
    return tuple(sentence for sentence in [*found, *_throttling(readings)] if sentence)


def _numbers(reading: Sensors, prefix: str) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in reading.values.items()
        if name.startswith(prefix) and not isinstance(value, str)
    }


def _clock(readings: Sequence[Sensors]) -> str | None:
    """The fastest core's clock, which is that of the core at work."""
    clocks = [_numbers(reading, "frequency_khz.") for reading in readings]
    fastest = [max(values.values()) for values in clocks if values]
    if not fastest or max(fastest) - min(fastest) <= CLOCK_MOVED * max(fastest):
        return None
    return f"The clock moved between {min(fastest) / 1e3:.0f} and {max(fastest) / 1e3:.0f} MHz."


def _temperature(readings: Sequence[Sensors]) -> str | None:
    zones = [_numbers(reading, "temperature_c.") for reading in readings]
    for zone in zones[0] if zones else ():
        values = [reading[zone] for reading in zones if zone in reading]
        if max(values) - min(values) > TEMPERATURE_C:
            name = zone.partition(".")[2]
            return f"The temperature of {name} moved from {values[0]:.0f} to {values[-1]:.0f} °C."
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
    flags = 0
    for reading in readings:
        flags |= int(reading.values.get("throttled", 0))
    words = [word for bit, word in _THROTTLE_BITS.items() if flags >> bit & 1]
    found = [f"The board reported that it was {' and '.join(words)}."] if words else []
    counts = [int(r.values["throttle_count"]) for r in readings if "throttle_count" in r.values]
    if counts and counts[-1] > counts[0]:
        found.append(f"The processor was throttled {counts[-1] - counts[0]} times.")
    return found
