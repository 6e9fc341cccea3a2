"""Sensors of any Linux board: what /sys and /proc tell, by the names that reports use.

Whatever a board does not have, or does not let us read, is absent from a reading.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Value = float | int | str  # never evaluated on a board

# Of a kernel that tells a Raspberry Pi's under-voltage and throttle bits, hexadecimal.
_PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
_FREQUENCIES = {"frequency_khz": "scaling_cur_freq", "frequency_max_khz": "scaling_max_freq"}
_BUSY = (0, 1, 2, 5, 6, 7)  # columns of /proc/stat: user, nice, system, irq, softirq, steal


def read(root: Path = Path("/")) -> dict[str, Any]:
    """A reading as JSON values: ``time_s`` and ``values``; see ``wherry.measurement.Sensors``.

    Besides the names given there: ``frequency_max_khz.<policy>``, ``throttle_count`` (events since
    the board started, all cores), ``cpu_busy_s`` (all processes, all cores, since the board
    started) and ``cpu_own_s`` (this process), seconds.

    Args:
        root: where /sys and /proc are looked for.
    """
    values: dict[str, Value] = {}
    for source in (_temperatures, _frequencies, _throttling, _load):
        values.update(source(root))
    values["cpu_own_s"] = round(time.process_time(), 4)
    return {"time_s": time.monotonic(), "values": values}


def _temperatures(root: Path) -> Iterator[tuple[str, Value]]:
    seen: dict[str, int] = {}
    for folder in _folders(root / "sys/class/thermal", "thermal_zone"):
        degrees = _number(folder / "temp")
        if degrees is None:
            continue
        zone = _text(folder / "type") or folder.name
        seen[zone] = seen.get(zone, 0) + 1
        suffix = "" if seen[zone] == 1 else f"-{seen[zone]}"
        yield f"temperature_c.{zone}{suffix}", degrees / 1000


def _frequencies(root: Path) -> Iterator[tuple[str, Value]]:
    found = False
    for folder in _folders(root / "sys/devices/system/cpu/cpufreq", "policy"):
        for name, file in _FREQUENCIES.items():
            number = _number(folder / file)
            if number is not None:
                found = True
                yield f"{name}.{folder.name}", int(number)
        governor = _text(folder / "scaling_governor")
        if governor:
            yield f"governor.{folder.name}", governor
    if found:
        return
    # x86 without cpufreq, virtual machines: the fastest core, which is the one at work.
    clocks = [
        float(line.partition(":")[2])
        for line in _text(root / "proc/cpuinfo").splitlines()
        if line.startswith("cpu MHz")
    ]
    if clocks:
        yield "frequency_khz.cpu", int(max(clocks) * 1000)


def _throttling(root: Path) -> Iterator[tuple[str, Value]]:
    flags = _number(root / _PI_THROTTLED, lambda text: int(text, 16))
    if flags is not None:
        yield "throttled", int(flags)
    counts = [
        _number(folder / "thermal_throttle/core_throttle_count")
        for folder in _folders(root / "sys/devices/system/cpu", "cpu")
    ]
    known = [count for count in counts if count is not None]
    if known:
        yield "throttle_count", int(sum(known))


def _load(root: Path) -> Iterator[tuple[str, Value]]:
    load = _text(root / "proc/loadavg")
    if load:
        yield "load_1m", float(load.split()[0])
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield "memory_available_bytes", int(line.split()[1]) * 1024
    columns = _text(root / "proc/stat").partition("\n")[0].split()[1:]
    ticks = [int(columns[index]) for index in _BUSY if index < len(columns)]
    if ticks:
        yield "cpu_busy_s", sum(ticks) / os.sysconf("SC_CLK_TCK")


def _folders(base: Path, prefix: str) -> list[Path]:
    """Folders named prefix and a number, in the numbers' order."""
    try:
        names = [path.name[len(prefix) :] for path in base.glob(f"{prefix}*")]
    except OSError:  # not ours to read
        return []
    return [base / f"{prefix}{name}" for name in sorted(filter(str.isdigit, names), key=int)]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:  # a sensor that does not answer is absent from the reading
        return ""


def _number(path: Path, parse: Callable[[str], float] = float) -> float | None:
    try:
        return parse(_text(path))
    except ValueError:  # absent, empty, "<unknown>"
        return None
