"""Tools of the board that wherry does not bring: where they are, and whether they changed.

A tool is a program, a library or a folder that the board's owner has installed, and that a backend
asks for by a name: ``mace_run``, ``trtexec``. The inventory says where it is; else an environment
variable of the agent (the name in capitals), else the places where it usually is, else PATH.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from os import environ
from pathlib import Path


def find(wanted: Mapping[str, Sequence[str]], named: Mapping[str, str]) -> dict[str, str]:
    """Tool to its path; what is nowhere is absent, and what the owner named is taken as it is.

    Args:
        wanted: tool to the places where it usually is, absolute, the best first.
        named: what the inventory says; ``~`` is the account's home.
    """
    found = {}
    for name, usual in wanted.items():
        said = named.get(name) or environ.get(name.upper())
        if said:
            found[name] = str(Path(said).expanduser())
            continue
        path = next((each for each in usual if Path(each).exists()), None) or shutil.which(name)
        if path:
            found[name] = path
    return found


def state(found: Mapping[str, str]) -> dict[str, list[object]]:
    """Tool to its path, its size and when it changed (nanoseconds): another state, another tool.

    Of a path that does not exist, the path alone.
    """
    told: dict[str, list[object]] = {}
    for name, path in found.items():
        told[name] = [path]
        try:
            status = Path(path).stat()
        except OSError:  # whoever runs it says what is wrong
            continue
        told[name] += [status.st_size, status.st_mtime_ns]
    return told
