"""Sensors of any Linux board: what /sys and /proc tell, by the names that reports use.

Whatever a board does not have, or does not let us read, is absent from a reading. Which files there
are is found out once; a reading then opens those and no others. Sources: Linux, Documentation/ABI
(thermal, cpufreq, devfreq, hwmon); for ``soctherm_oc``, the over-current counters of the Jetson
Orins, NVIDIA's Jetson Linux Developer Guide; for ``get_throttled`` Raspberry Pi's documentation of
``vcgencmd`` (the file has the same bits).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import commands, power
from .sysfs import Sensor, folders, names, number, scaled, sensor, text, total

if TYPE_CHECKING:
    from .sysfs import Value

# Of a kernel that tells a Raspberry Pi's under-voltage and throttle bits, hexadecimal.
_PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
_FREQUENCIES = {"frequency_khz": "scaling_cur_freq", "frequency_max_khz": "scaling_max_freq"}
_BUSY = (0, 1, 2, 5, 6, 7)  # columns of /proc/stat: user, nice, system, irq, softirq, steal
# What cools by slowing down, by the words in its type; fans cool without.
_SLOWING = ("cpufreq", "devfreq", "processor", "balanced", "throttle", "heavy", "hot-surface")
# Of the names of GPUs' devfreq devices: Jetsons' by generation, others by design.
_GPUS = ("gpu", "gp10b", "gv11b", "ga10b", "gb10b", "mali", "v3d")


class Reader:
    """Reads one board's sensors.

    Besides the names given in ``wherry.measurement.Sensors``: ``frequency_max_khz.<policy>``,
    ``frequency_khz.gpu``, ``gpu_load_percent``, ``throttle_count.<what>`` (events since the board
    started), ``cooling.<type>`` (above 0 while it slows the board down), ``under_voltage``,
    ``energy_j.<counter>``, ``cpu_busy_s`` (all processes, all cores, since the board started) and
    ``cpu_own_s`` (this process), seconds. ``commands.ask`` gives more.

    Args:
        root: where /sys, /proc and the boards' own tools are looked for.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        # Power comes first: it is then that of the run which has just ended.
        self._sensors = [*power.find(root)]
        for source in (_temperatures, _frequencies, _gpus, _throttling):
            self._sensors.extend(source(root))
        self._has_cpufreq = any(s.name.startswith("frequency_khz.policy") for s in self._sensors)

    def read(self, *, ask: bool = False) -> dict[str, Any]:
        """A reading as JSON values: ``time_s`` and ``values``.

        Args:
            ask: start the board's own tools too, which takes up to seconds.
        """
        now = time.monotonic()
        values: dict[str, Value] = {}
        for one in self._sensors:
            value = one.read()
            if value is not None:
                values[one.name] = value
        if not self._has_cpufreq:
            values.update(_clock(self._root))
        values.update(_load(self._root))
        values["cpu_own_s"] = round(time.process_time(), 4)
        if ask:
            values.update(commands.ask(self._root, values))
        return {"time_s": now, "values": values}


def read(root: Path = Path("/")) -> dict[str, Any]:
    """One reading of everything; see `Reader`."""
    return Reader(root).read(ask=True)


def _temperatures(root: Path) -> Iterator[Sensor]:
    seen: dict[str, int] = {}
    for folder in folders(root / "sys/class/thermal", "thermal_zone"):
        if number(folder / "temp") is None:  # a Jetson's zone of a part that is switched off
            continue
        zone = text(folder / "type") or folder.name
        yield sensor(f"temperature_c.{_numbered(zone, seen)}", folder / "temp", scaled(1e-3))


def _numbered(name: str, seen: dict[str, int]) -> str:
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def _frequencies(root: Path) -> Iterator[Sensor]:
    for folder in folders(root / "sys/devices/system/cpu/cpufreq", "policy"):
        for name, file in _FREQUENCIES.items():
            if number(folder / file) is not None:
                yield sensor(f"{name}.{folder.name}", folder / file, int)
        if text(folder / "scaling_governor"):
            yield sensor(f"governor.{folder.name}", folder / "scaling_governor", str)


def _clock(root: Path) -> Iterator[tuple[str, Value]]:
    """x86 without cpufreq, virtual machines: the fastest core, which is the one at work."""
    clocks = [
        float(line.partition(":")[2])
        for line in _whole(root / "proc/cpuinfo").splitlines()
        if line.startswith("cpu MHz")
    ]
    if clocks:
        yield "frequency_khz.cpu", int(max(clocks) * 1000)


def _gpus(root: Path) -> Iterator[Sensor]:
    base = root / "sys/class/devfreq"
    seen: dict[str, int] = {}
    for name in names(base):
        if not any(word in name for word in _GPUS) or number(base / name / "cur_freq") is None:
            continue
        gpu = _numbered("gpu", seen)
        yield sensor(f"frequency_khz.{gpu}", base / name / "cur_freq", lambda t: int(t) // 1000)
        load = base / name / "device/load"  # of a Jetson: a thousandth is its unit
        if seen["gpu"] == 1 and number(load) is not None:
            yield sensor("gpu_load_percent", load, scaled(0.1))


def _throttling(root: Path) -> Iterator[Sensor]:
    if text(root / _PI_THROTTLED):
        yield sensor("throttled", root / _PI_THROTTLED, lambda t: int(t, 16))
    counters = [
        folder / "thermal_throttle/core_throttle_count"
        for folder in folders(root / "sys/devices/system/cpu", "cpu")
    ]
    known = tuple(str(path) for path in counters if number(path) is not None)
    if known:
        yield Sensor("throttle_count.cpu", known, int, total)
    for folder in folders(root / "sys/class/hwmon", "hwmon"):
        chip = text(folder / "name")
        if chip == "rpi_volt":
            yield sensor("under_voltage", folder / "in0_lcrit_alarm", int)
        for file in names(folder) if chip == "soctherm_oc" else ():
            alarm = file.partition("_event_cnt")[0]
            # an event of an alarm that is off throttles nothing
            if file.endswith("_event_cnt") and number(folder / f"{alarm}_throt_en") != 0:
                yield sensor(f"throttle_count.{alarm}", folder / file, int)
    cooling: dict[str, list[str]] = {}
    for folder in folders(root / "sys/class/thermal", "cooling_device"):
        kind = text(folder / "type")
        if any(word in kind.lower() for word in _SLOWING) and "fan" not in kind.lower():
            cooling.setdefault(kind, []).append(str(folder / "cur_state"))
    for kind, paths in cooling.items():
        yield Sensor(f"cooling.{kind}", tuple(paths), int, total)


def _load(root: Path) -> Iterator[tuple[str, Value]]:
    load = text(root / "proc/loadavg")
    if load:
        yield "load_1m", float(load.split()[0])
    for line in text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield "memory_available_bytes", int(line.split()[1]) * 1024
    columns = text(root / "proc/stat").partition("\n")[0].split()[1:]
    ticks = [int(columns[index]) for index in _BUSY if index < len(columns)]
    if ticks:
        yield "cpu_busy_s", sum(ticks) / os.sysconf("SC_CLK_TCK")


def _whole(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:  # no /proc: the board does not tell
        return ""
