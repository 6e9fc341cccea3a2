"""Provides runtimes on a board that has nothing but Python: wheels are fetched here and shipped."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from wherry.artifact import hash_file
from wherry.device import DeviceServices, Platform
from wherry.errors import DeviceError, DeviceLostError, EnvironmentError_, UnfitError
from wherry.requirements import Requirements
from wherry_devices.board import Board

_PIP = Requirements(no_deps=("pip==25.0.1",))  # the last that runs on Python 3.8
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

Progress = Callable[[str], None]


class Provisioner:
    """Provides runtimes on one device, the same whenever it is asked.

    Args:
        services: fetch the wheels.
    """

    def __init__(self, services: DeviceServices) -> None:
        self._services = services
        self._chosen: dict[tuple[Platform, tuple[Requirements, ...]], tuple[Requirements, str]] = {}
        self._facts: weakref.WeakKeyDictionary[Board, Mapping[str, Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def lock(self, board: Board, alternatives: Sequence[Requirements]) -> str:
        """See `wherry_devices.connection.Connection.runtime_lock`."""
        facts = self._of(board)
        _, wheels = self._choose(facts, tuple(alternatives))
        return _name(wheels, facts)

    def provide(
        self,
        board: Board,
        alternatives: Sequence[Requirements],
        progress: Progress | None = None,
    ) -> str:
        """See `wherry_devices.connection.Connection.provide`."""
        facts = self._of(board)
        requirements, locked = self._choose(facts, tuple(alternatives))
        name = _name(locked, facts)
        found = board.call("environment", lock=name)["python"]
        if found is not None:
            return str(found)
        platform = platform_of(facts)
        say = progress or (lambda _text: None)
        wheels = self._services.wheels(requirements, platform, progress)
        request = {
            "lock": name,
            "python": facts["python_executable"],
            "pins": ["==".join(path.name.split("-")[:2]) for path in wheels],
            "system": not any(path.name.startswith("numpy-") for path in wheels),
            "bytes": sum(map(_unpacked_bytes, wheels)),
            **self._ship(board, wheels, platform, say),
        }
        say(f"making the environment of {', '.join(request['pins']) or 'numpy'} on {board.name}")
        try:
            answer = board.call("make_environment", answer_s=_MAKE_S, request=request)
        except DeviceLostError:
            raise
        except DeviceError as error:
            raise EnvironmentError_(
                f"the environment of {', '.join(request['pins'])} cannot be made: {error.message}",
                where=board.name,
                remedy="On Debian and Ubuntu the package python3-venv helps; see also the board's "
                "disk and permissions.",
            ) from error
        return str(answer["python"])

    def _of(self, board: Board) -> Mapping[str, Any]:
        with self._lock:
            if board not in self._facts:
                self._facts[board] = board.probe()
            return self._facts[board]

    def _choose(
        self, facts: Mapping[str, Any], alternatives: tuple[Requirements, ...]
    ) -> tuple[Requirements, str]:
        """The first set that fits, and the sha256 of its lock."""
        platform = platform_of(facts)
        with self._lock:
            known = self._chosen.get((platform, alternatives))
        if known is not None:
            return known
        refusals: list[UnfitError] = []
        candidates = alternatives or _NUMPY
        for requirements in candidates:
            try:
                found = requirements, self._services.wheels_lock(requirements, platform)
                self._check(facts, requirements, platform)
            except UnfitError as error:  # a network that fails makes no other choice
                refusals.append(error)
                continue
            with self._lock:
                return self._chosen.setdefault((platform, alternatives), found)
        if not alternatives and facts["facts"]["numpy"]:
            return _BOARDS_OWN, self._services.wheels_lock(_BOARDS_OWN, platform)
        raise _none_fits(refusals)

    def _check(
        self, facts: Mapping[str, Any], requirements: Requirements, platform: Platform
    ) -> None:
        """Refuse what the wheels alone do not tell."""
        if not facts["facts"]["libstdc++"]:
            raise UnfitError(
                "the runtimes need libstdc++.so.6, and the board does not have it",
                remedy="On Debian and Ubuntu: apt install libstdc++6.",
            )
        names = [*requirements.packages, *requirements.no_deps]
        brings_numpy = any(
            name.startswith("numpy") and not _excluded(name, platform) for name in names
        )
        if not brings_numpy and not facts["facts"]["numpy"]:
            raise UnfitError(
                f"there is no wheel of numpy for {platform.machine}, and the board's own Python "
                "has no numpy",
                remedy="On Debian and Ubuntu: apt install python3-numpy.",
            )

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


def _name(locked: str, facts: Mapping[str, Any]) -> str:
    """Of an environment: its wheels, the interpreter, and the board's numpy where it is used."""
    own = [facts["python_executable"], facts["python"], facts["facts"]["numpy"]]
    return hashlib.sha256(json.dumps([locked, *own]).encode()).hexdigest()


def _none_fits(refusals: Sequence[UnfitError]) -> EnvironmentError_:
    """The refusals of all alternatives as one; those that say what would fit come first."""
    told = list(dict.fromkeys(error.message for error in refusals))
    best = next((e for e in refusals if "needs Python" not in e.message), refusals[-1])
    if len(told) == 1:
        return best
    return EnvironmentError_(
        f"no alternative of the runtime can be provided: {'; '.join(told)}", remedy=best.remedy
    )


def _excluded(requirement: str, platform: Platform) -> bool:
    """Whether its marker leaves it out on the board's machine."""
    from packaging.requirements import Requirement

    marker = Requirement(requirement).marker
    return marker is not None and not marker.evaluate({"platform_machine": platform.machine})


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
        path.write_bytes(archive.read(name))
    return path
