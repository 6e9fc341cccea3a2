"""What a sustained run shows: the series for reports, and when the board slowed down."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from wherry_devices.disturbances import CLOCK_MOVED, THROTTLE_BITS
from wherry_devices.energy import main_power

MINUTE_S = 60.0
_KEPT = ("time_s", "runs", "median_ms", "p90_ms", "temperature_c", "frequency_khz")


def summarise(points: Sequence[Mapping[str, Any]], duration_s: float) -> dict[str, Any]:
    """The report's ``sustained``, JSON values.

    Args:
        points: of the agent, ``wherry_devices.agent.sustained``.
        duration_s: that was asked for.
    """
    share = min(MINUTE_S, duration_s / 2)
    end = float(points[-1]["time_s"])
    first = [p["median_ms"] for p in points if p["time_s"] <= share] or [points[0]["median_ms"]]
    last = [p["median_ms"] for p in points if p["time_s"] > end - share]
    throttled = _throttled(points)
    return {
        "duration_s": end,
        "ratio": statistics.median(last) / statistics.median(first) if min(first) > 0 else None,
        "throttled_s": None if throttled is None else throttled[0],
        "throttled_by": None if throttled is None else throttled[1],
        "points": [
            {**{name: point.get(name) for name in _KEPT}, "power_w": _power(point)}
            for point in points
        ],
    }


def _power(point: Mapping[str, Any]) -> float | None:
    found = main_power(point.get("power_w", {}))
    return None if found is None else found[1]


def _throttled(points: Sequence[Mapping[str, Any]]) -> tuple[float, str] | None:
    """When the board first said that it slowed down, or its clock fell, and what said so."""
    fastest = 0.0
    counted = points[0].get("throttle_count", 0)
    for point in points:
        when = float(point["time_s"])
        flags = int(point.get("throttled", 0))
        words = [word for bit, word in THROTTLE_BITS.items() if flags >> bit & 1]
        if words:
            return when, f"the board was {' and '.join(words)}"
        if point.get("throttle_count", 0) > counted:
            return when, "its throttle counters rose"
        if point.get("cooling", 0) > 0:
            return when, "its cooling slowed it down"
        clock = float(point.get("frequency_khz", 0))
        fastest = max(fastest, clock)
        if 0 < clock < (1 - CLOCK_MOVED) * fastest:
            return when, f"its clock fell from {fastest / 1e3:.0f} to {clock / 1e3:.0f} MHz"
    return None
