"""Provides runtimes on a board that has nothing but Python: wheels are fetched here and shipped."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from wherry.artifact import hash_file
from wherry.device import DeviceServices, Platform
from wherry.engine.wheels import PIP, for_platform
from wherry.errors import DeviceError, DeviceLostError, EnvironmentError_, UnfitError
from wherry.requirements import Requirements
from wherry_devices.alternatives import Alternatives
from wherry_devices.board import Board

_PIP = Requirements(no_deps=(PIP,))
# For runners that need nothing but numpy.
_NUMPY = tuple(
    Requirements(packages=(numpy,), python=python)
    for numpy, python in (
        ("numpy==2.4.6", ">=3.11"),
        ("numpy==2.2.6", ">=3.10"),
        ("numpy==2.0.2", ">=3.9"),
        ("numpy==1.24.4", ">=3.8"),
    )
)
_BOARDS_OWN = Requirements()  # numpy of the board itself
_MAKE_S = 1800.0
_OTHER_S = 1800.0  # for another host that makes the same
_log = logging.getLogger(__name__)

Progress = Callable[[str], None]


class Provisioner:
    """Provides runtimes on one device, the same whenever it is asked.

    Args:
        services: fetch the wheels.
    """

    def __init__(self, services: DeviceServices) -> None:
        self._services = services
        self._chosen = Alternatives()

    def lock(self, board: Board, alternatives: Sequence[Requirements]) -> str:
        """See `wherry_devices.connection.Connection.runtime_lock`."""
        facts = board.probe()
        return _name(facts, *self._choose(facts, tuple(alternatives)))

    def provide(
        self,
        board: Board,
        alternatives: Sequence[Requirements],
        progress: Progress | None = None,
    ) -> str:
        """See `wherry_devices.connection.Connection.provide`."""
        facts = board.probe()
        requirements, locked = self._choose(facts, tuple(alternatives))
        name = _name(facts, requirements, locked)
        found = board.call("environment", lock=name)
        if found["python"] is not None:
            return str(found["python"])
        if found["damage"]:
            _log.warning(
                "%s: a runtime's environment is damaged (%s) and is made again",
                board.name,
                found["damage"],
            )
        platform = platform_of(facts)
        say = progress or (lambda _text: None)
        wheels = self._services.wheels(requirements, platform, progress)
        request = {
            "lock": name,
            "python": facts["python_executable"],
            "pins": ["==".join(path.name.split("-")[:2]) for path in wheels],
            "system": not _brings_numpy(requirements, platform),
            "bytes": sum(map(_unpacked_bytes, wheels)),
            **self._ship(board, wheels, platform, say),
        }
        say(f"making the environment of {', '.join(request['pins']) or 'numpy'} on {board.name}")
        return _make(board, request, progress or _log.warning)

    def _choose(
        self, facts: Mapping[str, Any], alternatives: tuple[Requirements, ...]
    ) -> tuple[Requirements, str]:
        """The first set that fits, and the sha256 of its lock."""
        platform = platform_of(facts)

        def lock(requirements: Requirements) -> str:
            locked = self._services.wheels_lock(requirements, platform)
            _check(facts, requirements, platform)
            return locked

        own = (_BOARDS_OWN,) if facts["facts"]["numpy"] else ()
        candidates = alternatives or (*_NUMPY, *own)
        return self._chosen.choose((platform, alternatives), candidates, lock)

    def _ship(
        self, board: Board, wheels: Sequence[Path], platform: Platform, say: Progress
    ) -> dict[str, str]:
        """Send the wheels and the tools that install them; where they are on the board."""
        say(f"sending {len(wheels)} wheels to {board.name}")
        (pip,) = self._services.wheels(_PIP, platform)
        files = {path.name: (hash_file(path), path) for path in (*wheels, pip)}
        folder = board.ship(files)
        uv = ""
        try:
            (wheel,) = self._services.wheels(_uv(), platform)
        except UnfitError:
            pass  # uv has no build for this board: pip does it
        else:
            with tempfile.TemporaryDirectory(prefix="wherry-uv-") as scratch:
                binary = _take_uv(wheel, Path(scratch))
                uv = f"{board.ship({'uv': (hash_file(binary), binary)})}/uv"
        return {"wheels": folder, "pip": f"{folder}/{pip.name}", "uv": uv}


def _make(board: Board, request: Mapping[str, Any], tell: Progress) -> str:
    """Have the board make an environment, or wait for another host that has."""
    pins = ", ".join(request["pins"]) or "numpy"
    deadline = time.monotonic() + _OTHER_S
    told = False
    while True:
        try:
            answer = board.call("make_environment", answer_s=_MAKE_S, request=request)
        except DeviceLostError:
            raise
        except DeviceError as error:
            raise EnvironmentError_(
                f"the environment of {pins} cannot be made: {error.message}",
                where=board.name,
                remedy="On Debian and Ubuntu the package python3-venv helps; see also the board's "
                "disk and permissions.",
            ) from error
        if answer["python"] is not None:
            return str(answer["python"])
        if time.monotonic() > deadline:
            raise EnvironmentError_(
                f"another host has been making the environment of {pins} for {_OTHER_S:g} s",
                where=board.name,
                remedy="Look what that host does, or restart the board.",
            )
        if not told:
            tell(f"waiting for another host that makes the environment of {pins} on {board.name}")
            told = True


def platform_of(facts: Mapping[str, Any]) -> Platform:
    """Of what the board's probe found.

    Raises:
        UnfitError: its Python is not CPython.
    """
    implementation = facts["facts"]["implementation"]
    if implementation != "CPython":
        raise UnfitError(
            f"the board's Python is {implementation}, and wheels are for CPython",
            remedy="Name a CPython 3.8 or later with `python:` in devices.yaml.",
        )
    version = re.match(r"\d+\.\d+\.\d+", facts["python"])  # without the suffix of a candidate
    python = version[0] if version else facts["python"]
    return Platform(facts["facts"]["python_machine"], python, facts["glibc"])


def _check(facts: Mapping[str, Any], requirements: Requirements, platform: Platform) -> None:
    """Refuse what the wheels alone do not tell."""
    if not facts["facts"]["libstdc++"] and requirements != _BOARDS_OWN:
        raise UnfitError(
            "the runtimes need libstdc++.so.6, and the board does not have it",
            remedy="On Debian and Ubuntu: apt install libstdc++6.",
        )
    if not _brings_numpy(requirements, platform) and not facts["facts"]["numpy"]:
        raise UnfitError(
            f"there is no wheel of numpy for {platform.machine}, and the board's own Python has "
            "no numpy",
            remedy="On Debian and Ubuntu: apt install python3-numpy.",
        )


def _brings_numpy(requirements: Requirements, platform: Platform) -> bool:
    names = for_platform((*requirements.packages, *requirements.no_deps), platform)
    return any(re.match(r"numpy\b", name) for name in names)


def _name(facts: Mapping[str, Any], requirements: Requirements, locked: str) -> str:
    """Of an environment: its wheels, the interpreter, and the board's numpy where it is used."""
    own = [facts["python_executable"], facts["python"]]
    if not _brings_numpy(requirements, platform_of(facts)):
        own.append(facts["facts"]["numpy"])
    return hashlib.sha256(json.dumps([locked, *own]).encode()).hexdigest()


def _unpacked_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


@functools.cache
def _uv() -> Requirements:
    """The same uv as on the host."""
    return Requirements(no_deps=(f"uv=={metadata.version('uv')}",))


def _take_uv(wheel: Path, folder: Path) -> Path:
    """Uv's executable out of its wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".data/scripts/uv"))
        path = folder / "uv"
        with archive.open(name) as source, path.open("wb") as target:  # some 60 MB
            shutil.copyfileobj(source, target)
    return path
