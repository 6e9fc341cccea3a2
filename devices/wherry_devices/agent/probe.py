"""Find out what the board is; standard library only, as JSON values.

The host makes a ``BoardInfo`` of it. Whatever the board does not tell is None, empty or absent.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# What emulators of whole machines call a processor that is not the real one.
_EMULATED_CPUS = ("QEMU Virtual CPU", "QEMU TCG", "TCG CPU")
_X86_MACHINES = ("x86_64", "i386", "i486", "i586", "i686")
_X86_VENDORS = ("GenuineIntel", "AuthenticAMD")


def board_facts(home: Path, root: Path = Path("/")) -> dict[str, Any]:
    """The facts, named as the fields of ``BoardInfo``.

    Args:
        home: the folder of ours on the board, whose disk is asked for space.
        root: where /proc, /sys and /etc are looked for.
    """
    cpuinfo = _text(root / "proc/cpuinfo")
    system = _os_release(root)
    return {
        "hostname": platform.node(),
        "machine": platform.machine(),
        "system": system.get("PRETTY_NAME") or platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "python_executable": sys.executable,
        "glibc": _glibc(),
        "cpu": _cpu(cpuinfo),
        "cores": os.cpu_count() or 1,
        "memory_bytes": _memory(root),
        "model": _model(root),
        "emulated": _emulated(cpuinfo),
        "facts": {
            "cpu_parts": _parts(cpuinfo),
            "cores_usable": len(os.sched_getaffinity(0)),
            "disk_free_bytes": shutil.disk_usage(home).free,
            "hypervisor": "hypervisor" in _field(cpuinfo, "flags").split(),
            "libstdc++": _has_library("libstdc++.so.6"),
            "os_id": system.get("ID"),
            "os_version": system.get("VERSION_ID"),
            "implementation": platform.python_implementation(),
            "python_machine": _python_machine(),
            "numpy": _version("numpy"),
            "serial": _text(root / "proc/device-tree/serial-number").strip("\0\n ") or None,
            "machine_id": _text(root / "etc/machine-id").strip() or None,
        },
    }


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:  # a board without this file does not tell
        return ""


def _os_release(root: Path) -> dict[str, str]:
    lines = (_text(root / "etc/os-release") or _text(root / "usr/lib/os-release")).splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def _glibc() -> str | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):  # another C library does not know the name
        return None
    return version if name == "glibc" and version else None


def _field(cpuinfo: str, name: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _cpu(cpuinfo: str) -> str:
    """A name for the processor: its own where the kernel tells it, else implementer and part."""
    for name in ("model name", "Hardware", "cpu model", "uarch"):
        value = _field(cpuinfo, name)
        if value and not value.startswith("ARM"):  # 32-bit ARM kernels say the architecture here
            return value
    parts = (f"{count}x {part}" for part, count in _parts(cpuinfo).items())
    return ", ".join(parts) or platform.machine()


def _parts(cpuinfo: str) -> dict[str, int]:
    """How many cores of each kind an ARM board has, by implementer and part number."""
    parts: dict[str, int] = {}
    implementer = ""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "CPU implementer":
            implementer = value.strip()
        elif key.strip() == "CPU part":
            name = f"{implementer}/{value.strip()}"
            parts[name] = parts.get(name, 0) + 1
    return parts


def _memory(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _model(root: Path) -> str | None:
    """What the maker calls the board."""
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        text = _text(root / path).strip("\0\n ")
        if text:
            return text
    return None


def _emulated(cpuinfo: str) -> bool:
    """Whether the processor is emulated, by qemu-user or by an emulator of whole machines."""
    if any(name in cpuinfo for name in _EMULATED_CPUS):
        return True
    if platform.machine() not in _X86_MACHINES and _field(cpuinfo, "vendor_id") in _X86_VENDORS:
        return True
    return "qemu-" in _executable_of_a_child()


def _executable_of_a_child() -> str:
    """What the kernel says that a process of this board runs: under qemu-user, qemu itself.

    qemu-user shows a process its own /proc/self/exe as if it ran natively, but not a child's.
    """
    try:
        with subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE) as child:
            return os.readlink(f"/proc/{child.pid}/exe")  # noqa: PTH115 -- Path has it from 3.9 on
    except OSError:  # no shell, no /proc, or not allowed: then nothing says that it is emulated
        return ""


def _python_machine() -> str:
    """The machine that this Python was built for: a 64-bit kernel may run a 32-bit system."""
    machine = platform.machine()
    if struct.calcsize("P") == 8:
        return machine
    return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
