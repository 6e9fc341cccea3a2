"""Power rails and energy counters of a board, as far as its kernel shows them in files.

- RAPL, ``/sys/class/powercap/*/energy_uj``: counters of x86 processors, which begin anew at
  ``max_energy_range_uj`` (Linux, Documentation/power/powercap/powercap.rst). Most kernels let only
  root read them.
- hwmon (Documentation/hwmon/sysfs-interface.rst): ``power*_input`` in microwatts; and voltage in
  millivolts times current in milliamperes, for the INA3221 (Documentation/hwmon/ina3221.rst: three
  channels with labels; what follows them are shunt voltages and sums) and for any chip whose
  voltage and current have one label.
- Jetsons on the 4.9 kernel show their INA3221 as iio devices, with the power in milliwatts.

Jetsons name their rails by ``in*_label``: ``VDD_IN`` is the whole module on Orin NX and Nano; AGX
Orin has ``VDD_GPU_SOC``, ``VDD_CPU_CV`` and ``VIN_SYS_5V0`` (Jetson Linux Developer Guide,
"Platform Power and Performance").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .sysfs import Sensor, folders, names, number, product, scaled, sensor, text

_INA3221_CHANNELS = 3
_CHANNELS = 32  # more than any chip has
_POWERCAP = "sys/class/powercap"
_INA3221X = "sys/bus/i2c/drivers/ina3221x"  # the driver of the 4.9 kernel


def find(root: Path) -> list[Sensor]:
    """All counters and rails: ``energy_j.<counter>``, ``power_w.<rail>``; names are unique."""
    found: dict[str, Sensor] = {}
    for source in (_counters, _hwmon, _iio):
        for one in source(root):
            name = one.name
            copies = 1
            while name in found:
                copies += 1
                name = f"{one.name}-{copies}"
            found[name] = one._replace(name=name)
    return list(found.values())


class Counter:
    """A parser of a counter that begins anew after ``most``: what it returns only grows.

    Args:
        factor: to the unit of what it returns.
        most: the greatest value, in the counter's own unit; 0: not known.
    """

    def __init__(self, factor: float, most: float) -> None:
        self._factor = factor
        self._most = most
        self._last = 0.0
        self._before = 0.0  # what it counted before it last began anew

    def __call__(self, text: str) -> float:
        """The count so far; raises ValueError."""
        value = float(text)
        if value < self._last:
            self._before += self._most
        self._last = value
        return (self._before + value) * self._factor


def _counters(root: Path) -> Iterator[Sensor]:
    for zone in names(root / _POWERCAP):
        folder = root / _POWERCAP / zone
        # The same counters may be there twice: through the processor's own registers, and through
        # memory (intel-rapl-mmio). A part's number follows that of its zone: intel-rapl:0:1.
        if number(folder / "energy_uj") is None or zone.startswith("intel-rapl-mmio"):
            continue
        parents = zone.split(":")[:-1]
        parent = text(root / _POWERCAP / ":".join(parents) / "name") if len(parents) > 1 else ""
        own = text(folder / "name") or zone
        name = f"{parent}.{own}" if parent else own
        most = number(folder / "max_energy_range_uj") or 0.0
        yield sensor(f"energy_j.{name}", folder / "energy_uj", Counter(1e-6, most))


def _hwmon(root: Path) -> Iterator[Sensor]:
    for folder in folders(root / "sys/class/hwmon", "hwmon"):
        chip = text(folder / "name") or folder.name
        files = set(names(folder))
        for index in range(1, _CHANNELS):
            if f"power{index}_input" in files:
                label = text(folder / f"power{index}_label") or f"{chip}.{index}"
                path = folder / f"power{index}_input"
                yield sensor(f"power_w.{label}", path, scaled(1e-6))
            voltage, current = folder / f"in{index}_input", folder / f"curr{index}_input"
            if not {voltage.name, current.name} <= files:
                continue
            label = text(folder / f"in{index}_label")
            same = label and label == text(folder / f"curr{index}_label")
            if label != "NC" and ((chip == "ina3221" and index <= _INA3221_CHANNELS) or same):
                name = f"power_w.{label or f'{chip}.{index}'}"
                yield Sensor(name, (str(voltage), str(current)), scaled(1e-3), product)


def _iio(root: Path) -> Iterator[Sensor]:
    for chip in names(root / _INA3221X):
        for device in names(root / _INA3221X / chip):
            folder = root / _INA3221X / chip / device
            for index in range(_INA3221_CHANNELS) if device.startswith("iio") else ():
                label = text(folder / f"rail_name_{index}")
                if label and label != "NC":
                    path = folder / f"in_power{index}_input"
                    yield sensor(f"power_w.{label}", path, scaled(1e-3))
