"""The boards' own tools, for what no file of /sys tells. Slow: never used while something is timed.

Formats, each with its source:

- ``vcgencmd get_throttled`` says ``throttled=0x50005`` and ``measure_temp`` ``temp=48.3'C``
  (Raspberry Pi documentation, "vcgencmd"); ``pmic_read_adc``, on a Raspberry Pi 5, has a line for
  each channel: ``VDD_CORE_A current(7)=0.53580000A``, ``VDD_CORE_V volt(15)=0.75106150V``.
- ``nvpmodel -q`` says ``NV Power Mode: MAXN`` and, on the last line, the mode's number;
  ``jetson_clocks --show`` ``GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000`` and the
  like; ``tegrastats`` a line an interval, with ``VDD_IN 4983mW/4983mW`` (now/average; without units
  before JetPack 5), ``CPU@45.5C``, ``GR3D_FREQ 12%`` (Jetson Linux Developer Guide, "tegrastats
  Utility", "NVPModel", "Maximizing Performance").
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sysfs import Value

LIMIT_S = 2.0  # for one tool
_FOLDERS = ("usr/bin", "usr/sbin", "usr/local/bin", "bin", "sbin", "opt/vc/bin")
_ADC = re.compile(r"(\S+)_([AV])\s+(?:current|volt)\(\d+\)=(\d+(?:\.\d+)?)([AV])\b", re.ASCII)
_MODE = re.compile(r"NV Power Mode\s*:\s*(.+)")
_CLOCK = re.compile(r"^(GPU|EMC)\s+MinFreq=(\d+)\s+MaxFreq=(\d+)\s+CurrentFreq=(\d+)", re.M | re.A)
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*)\s+(\d+)(mW)?/(\d+)(mW)?(?!\S)", re.ASCII)
_ZONE = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?!\S)", re.ASCII)
_OFF_C = -200.0  # a zone of a part that is switched off has -256
_GPU = re.compile(r"(?<!\S)GR3D_FREQ\s+(\d+)%", re.ASCII)


def ask(root: Path, known: dict[str, Value]) -> dict[str, Value]:
    """What the tools that the board has tell beyond what is known.

    ``throttled`` and ``temperature_c.soc`` where no file tells them; ``power_w.pmic.<rail>`` (of a
    Raspberry Pi 5); of a Jetson ``power_mode``, ``clock_range_khz.gpu`` and ``.emc`` (text),
    ``frequency_khz_of.emc``, and of `tegrastats` what its files do not have.

    Args:
        root: where the tools are looked for.
        known: a reading.
    """
    found: dict[str, Value] = {}
    vcgencmd = tool(root, "vcgencmd")
    if vcgencmd:
        if "throttled" not in known:
            found.update(throttled(run([vcgencmd, "get_throttled"])[1]))
        if not any(name.startswith("temperature_c.") for name in known):
            found.update(temperature(run([vcgencmd, "measure_temp"])[1]))
        found.update(pmic(run([vcgencmd, "pmic_read_adc"])[1]))
    nvpmodel = tool(root, "nvpmodel")
    if nvpmodel:
        mode = power_mode(run([nvpmodel, "-q"])[1])
        if mode:
            found["power_mode"] = f"{mode[0]} ({mode[1]})"
    jetson_clocks = tool(root, "jetson_clocks")
    if jetson_clocks:
        found.update(clocks(run([jetson_clocks, "--show"])[1]))
    tegrastats = tool(root, "tegrastats")
    if tegrastats and not any(name.startswith("power_w.") for name in known):
        parsed = stats(_first_line([tegrastats, "--interval", "100"]))
        found.update((name, value) for name, value in parsed.items() if name not in known)
    return found


def tool(root: Path, name: str) -> str | None:
    """Where a tool is; the PATH of a session over SSH often lacks sbin."""
    for folder in _FOLDERS:
        path = root / folder / name
        if path.is_file():
            return str(path)
    return None


def run(argv: Sequence[str], stdin: bytes = b"", limit_s: float = LIMIT_S) -> tuple[int, str]:
    """Run a tool: its exit status and what it wrote; status -1 where it did not run to its end."""
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def throttled(text: str) -> dict[str, Value]:
    """Of ``vcgencmd get_throttled``: the flags."""
    match = re.search(r"throttled=0x([0-9a-fA-F]{1,8})\b", text)
    return {"throttled": int(match.group(1), 16)} if match else {}


def temperature(text: str) -> dict[str, Value]:
    """Of ``vcgencmd measure_temp``: °C."""
    match = re.search(r"temp=(-?\d+(?:\.\d+)?)'C", text, re.ASCII)
    return {"temperature_c.soc": float(match.group(1))} if match else {}


def pmic(text: str) -> dict[str, Value]:
    """Of ``vcgencmd pmic_read_adc``: watts of the rails with both a current and a voltage."""
    rails: dict[str, dict[str, float]] = {}
    for rail, kind, value, unit in _ADC.findall(text):
        if kind == unit:
            rails.setdefault(rail, {})[unit] = float(value)
    return {
        f"power_w.pmic.{rail}": round(pair["A"] * pair["V"], 6)
        for rail, pair in rails.items()
        if len(pair) == 2
    }


def power_mode(text: str) -> tuple[str, int] | None:
    """Of ``nvpmodel -q``: the mode's name and number."""
    name = _MODE.search(text)
    numbers = re.findall(r"^\s*(\d{1,3})\s*$", text, re.M | re.A)
    return (name.group(1).strip(), int(numbers[-1])) if name and numbers else None


def clocks(text: str) -> dict[str, Value]:
    """Of ``jetson_clocks --show``: what files do not tell, kHz."""
    found: dict[str, Value] = {}
    for name, low, high, now in _CLOCK.findall(text):
        found[f"clock_range_khz.{name.lower()}"] = f"{int(low) // 1000}-{int(high) // 1000}"
        if name == "EMC":  # not the processor's: the clean mark does not look at it
            found["frequency_khz_of.emc"] = int(now) // 1000
    return found


def stats(text: str) -> dict[str, Value]:
    """Of a line of ``tegrastats``: watts now, °C, load of the GPU."""
    found: dict[str, Value] = {}
    for rail, now, unit, _, average_unit in _RAIL.findall(text):
        if unit == average_unit:  # RAM and SWAP have MB there, and do not match
            found[f"power_w.{rail}"] = int(now) / 1000
    for zone, degrees in _ZONE.findall(text):
        if float(degrees) > _OFF_C:
            found[f"temperature_c.{zone}"] = float(degrees)
    load = _GPU.search(text)
    if load:
        found["gpu_load_percent"] = int(load.group(1))
    return found


def _first_line(argv: Sequence[str]) -> str:
    """The first line of a tool that goes on until it is ended."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:  # it is there and cannot be started: it does not tell
        return ""
    with process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            # It writes a line and goes on: the pipe is read after it is ended.
            process.wait(LIMIT_S / 4)
        process.kill()
        assert process.stdout is not None
        return process.stdout.readline().decode("utf-8", "replace")
