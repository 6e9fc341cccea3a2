"""What an inference costs in energy, where the board has a counter or a rail.

Mean power over the measured runs times the mean time of a run with its copies. What the board draws
when it does nothing is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wherry.measurement import Sensors

COUNTER, RAIL = "counter", "rail"
_PACKAGE = re.compile(r"package-\d+")
_WHOLE = ("VDD_IN", "POM_5V_IN")  # of Jetsons with one rail for the whole module
_PARTS = (  # of Jetsons without, what the whole module consists of
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
_NO_BOARD = ("pmic.", "amdgpu", "i915", "xe.", "nouveau")  # read too rarely; a graphics card's own


@dataclass(frozen=True)
class Energy:
    """Of one inference.

    Attributes:
        mj: millijoules.
        method: ``counter`` (its difference over the time that it took) or ``rail`` (mean of the
            readings).
        source: the counters or rails, e.g. ``VDD_IN``.
        power_w: mean power of the source while it was measured.
    """

    mj: float
    method: str
    source: str
    power_w: float


def energy(readings: Sequence[Sensors], total_ns: np.ndarray) -> Energy | None:
    """Of a measurement; None where the board does not tell.

    Args:
        readings: before the warm-up, then from its end to the last run.
        total_ns: [runs], the measured runs with their copies.
    """
    while_timing = readings[1:]
    found = _of_counters(while_timing) or _of_rails(while_timing)
    if found is None:
        return None
    method, source, power_w = found
    return Energy(power_w * float(np.mean(total_ns)) / 1e6, method, source, power_w)


def main_power(rails: Mapping[str, float]) -> tuple[str, float] | None:
    """The rails that stand for the board, in words, and their watts; None where none does.

    Args:
        rails: name to watts.
    """
    for name in _WHOLE:
        if name in rails:
            return name, rails[name]
    for parts in _PARTS:
        if all(part in rails for part in parts):
            return " + ".join(parts), sum(rails[part] for part in parts)
    others = [name for name in rails if not name.startswith(_NO_BOARD)]
    return (others[0], rails[others[0]]) if len(others) == 1 else None


def _of_counters(readings: Sequence[Sensors]) -> tuple[str, str, float] | None:
    """The processor's packages: their parts are in them."""
    if len(readings) < 2 or readings[-1].time_s <= readings[0].time_s:
        return None
    ends = [readings[index].numbers("energy_j.") for index in (0, -1)]
    names = [name for name in ends[0] if _PACKAGE.fullmatch(name) and name in ends[1]]
    used = sum(ends[1][name] - ends[0][name] for name in names)
    if used <= 0:  # a virtual machine's counter stands still
        return None
    return COUNTER, " + ".join(names), used / (readings[-1].time_s - readings[0].time_s)


def _of_rails(readings: Sequence[Sensors]) -> tuple[str, str, float] | None:
    found = [power for r in readings if (power := main_power(r.numbers("power_w.")))]
    if not found or len(found) < len(readings):
        return None
    watts = float(np.mean([power for _, power in found]))
    return (RAIL, found[0][0], watts) if watts > 0 else None
