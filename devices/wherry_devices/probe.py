"""What the probe on the board found, as the host's words for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from wherry.device import BoardInfo

_FINGERPRINT = (
    "model",
    "cpu",
    "cores",
    "machine",
    "system",
    "kernel",
    "glibc",
    "python",
    "emulated",
)
_IDENTITY = ("serial", "machine_id")
_MEMORY_STEP = 1 << 28  # the kernel keeps a little more or less of it at every start


def board_info(facts: Mapping[str, Any]) -> BoardInfo:
    """Of ``wherry_devices.agent.probe.board_facts``."""
    marks = {name: facts[name] for name in _FINGERPRINT}
    marks["memory"] = round(facts["memory_bytes"] / _MEMORY_STEP)
    marks["cores_usable"] = facts["facts"]["cores_usable"]  # taskset, or a container's share
    identity = {name: facts["facts"][name] for name in _IDENTITY}
    return BoardInfo(fingerprint=_sha256(marks), identity=_sha256(identity), **facts)


def _sha256(marks: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()
