"""Wheels for a board: resolved for its Python, glibc and machine, and fetched on the host.

A set of requirements is resolved once per platform and kept as a lock, as `environments` does for
the host: each package with its version and the sha256 of the wheel that fits. pip resolves and
fetches, for uv fetches no wheels; it runs in an environment of its own (see `board_pip`), with the
user's settings of the package index (see `pip_settings`).

Below the home: ``environments/locks/board-KEY.txt``, ``wheels/LOCK/*.whl``; the time of change of
such a folder is when it was used last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.artifact import hash_file
from wherry.engine import board_pip, pip_settings
from wherry.engine.environments import Lock, disk_usage, python_fits
from wherry.engine.uv import named
from wherry.errors import EnvironmentError_, Interrupted, UnfitError
from wherry.filelock import TakenError, hold
from wherry.requirements import Requirements

if TYPE_CHECKING:
    import threading

    from wherry.device import Platform
    from wherry.engine.environments import Environments

PIP = "pip==25.0.1"
"""The last that also runs on Python 3.8: boards where uv does not run get it too."""

_FORM = 2  # of the lock's text, and of how it is found
_OLDEST_GLIBC = 17  # of manylinux: 2.17, and its older name manylinux2014
_POLL_S = 0.2
_SHOWN_CHARS = 500
_UNFIT = "Update the board's system or Python, or use another backend there."
# What pip says: of a package, and which versions there are, each with a wheel that fits; of one
# that says itself which Python it needs.
_MISSING = r"satisfies the requirement (.+?(?: \(from [^():]+\))?) \(from versions: ([^)]*)\)"
_OTHER_PYTHON = r"Package '(.+?)' requires a different Python: \S+ not in '(.+?)'"
# Pip then goes on, and says that there is no version at all.
_NO_ANSWER = "connection broken by|Could not fetch URL"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The wheels of one lock, on the disk.

    Attributes:
        directory: where; without wheels where fetching them was broken off.
        packages: ``name==version`` each.
        last_used: when a board's environment last asked for them.
        size_bytes: on the disk.
    """

    directory: Path
    packages: tuple[str, ...]
    last_used: datetime
    size_bytes: int


class Wheels:
    """See the module; safe among threads and processes.

    Args:
        home: the folder of wherry's own files.
        environments: makes the one that pip runs in.
        cancelled: when it is set, pip is ended and `Interrupted` raised.
    """

    def __init__(self, home: Path, environments: Environments, cancelled: threading.Event) -> None:
        self._root = home / "wheels"
        self._locks = environments.root / "locks"
        self._environments = environments
        self._cancelled = cancelled

    def lock(self, requirements: Requirements, platform: Platform) -> Lock:
        """Resolve, or take what an earlier call left.

        Raises:
            EnvironmentError_: a package has no wheel that fits, or the index cannot be reached.
        """
        _check_python(requirements, platform)
        asked = json.dumps([_FORM, asdict(requirements), asdict(platform)], sort_keys=True)
        path = self._locks / f"board-{hashlib.sha256(asked.encode()).hexdigest()[:32]}.txt"
        if not path.exists():
            self._locks.mkdir(parents=True, exist_ok=True)
            with hold(path.with_suffix(".lock"), remove=True, cancelled=self._cancelled):
                if not path.exists():
                    part = path.with_suffix(".part")
                    part.write_text(self._resolve(requirements, platform), encoding="utf-8")
                    part.replace(path)
        text = path.read_text(encoding="utf-8")
        return Lock(text, hashlib.sha256(text.encode()).hexdigest())

    def fetch(
        self,
        requirements: Requirements,
        platform: Platform,
        progress: Callable[[str], None] | None = None,
    ) -> tuple[Path, ...]:
        """The wheels of the lock, checked by their hashes.

        Raises:
            EnvironmentError_: see `lock`.
        """
        lock = self.lock(requirements, platform)
        folder = self._root / lock.sha256
        if not _is_whole(folder, lock):
            self._root.mkdir(parents=True, exist_ok=True)
            with hold(folder.with_suffix(".lock"), remove=True, cancelled=self._cancelled):
                if not _is_whole(folder, lock):
                    shutil.rmtree(folder, ignore_errors=True)
                    if progress is not None:
                        progress(f"fetching wheels for {describe(platform)}")
                    self._download(lock, platform, folder)
        with contextlib.suppress(OSError):  # a home that is only read serves as well
            os.utime(folder)
        wheels = tuple(sorted(folder.glob("*.whl")))
        if len(wheels) != len(_digests(lock)):
            raise EnvironmentError_(
                f"wheels were removed while they were asked for, below {folder}",
                remedy="Run again when `wherry cache gc` has ended.",
            )
        return wheels

    def __iter__(self) -> Iterator[Shelf]:
        """All that was fetched."""
        return map(_describe, self._directories(""))

    def remove(self, unused_for: timedelta | None = None, *, dry_run: bool = False) -> list[Shelf]:
        """Remove what was fetched by half, and what no board's environment asked for lately.

        Args:
            unused_for: how long not; None: only the half-fetched go.
            dry_run: only say which would go.

        Raises:
            EnvironmentError_: one cannot be removed.
        """
        now = datetime.now(UTC)
        gone = []
        for directory in self._directories(".part") + self._directories(""):
            half = directory.suffix == ".part"
            try:
                with hold(directory.with_suffix(".lock"), wait=False, remove=True):
                    found = _describe(directory)  # as it is now that nobody fetches it
                    if not half and (unused_for is None or now - found.last_used < unused_for):
                        continue
                    gone.append(found)
                    if not dry_run:
                        shutil.rmtree(directory)
            except TakenError:  # it is being fetched
                continue
            except FileNotFoundError:  # it has just gone
                continue
            except OSError as error:
                raise EnvironmentError_(
                    f"wheels cannot be removed: {error.strerror or error}",
                    where=str(directory),
                    remedy="Check who owns that folder.",
                ) from error
        return gone

    def _directories(self, suffix: str) -> list[Path]:
        return sorted(self._root.glob(f"{'[0-9a-f]' * 64}{suffix}/"))

    def _download(self, lock: Lock, platform: Platform, folder: Path) -> None:
        building = folder.with_suffix(".part")
        shutil.rmtree(building, ignore_errors=True)  # of one that was killed
        building.mkdir()
        try:
            pins = building / "lock.txt"
            pins.write_text(lock.text, encoding="utf-8")
            arguments = ["download", "--no-deps", "--require-hashes", "--dest", str(building)]
            if lock.text:
                self._pip([*arguments, *_tags(platform), "-r", str(pins)], lock.text, platform)
            pins.unlink()
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)  # it is there only where this failed

    def _resolve(self, requirements: Requirements, platform: Platform) -> str:
        """The lock's text."""
        pip_settings.refuse_limit()
        pins: dict[str, str] = {}
        for packages, options in (
            (requirements.packages, []),
            (requirements.no_deps, ["--no-deps"]),
        ):
            wanted = for_platform(packages, platform)
            if not wanted:
                continue
            if options:
                hashes = "".join(f" --hash=sha256:{each}" for each in requirements.hashes)
                wanted = [f"{each}{hashes}" for each in wanted]
            with tempfile.TemporaryDirectory(prefix="wherry-wheels-") as scratch:
                asked, report = Path(scratch, "asked.txt"), Path(scratch, "report.json")
                asked.write_text("\n".join(wanted), encoding="utf-8")
                arguments = ["install", "--dry-run", "--ignore-installed", *options]
                arguments += ["--target", scratch, "--report", str(report), *_tags(platform)]
                self._pip([*arguments, "-r", str(asked)], ", ".join(wanted), platform)
                for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
                    name, pin = _pin(item)
                    pins[name] = pin  # one without dependencies comes over one with
        return "".join(f"{pins[name]}\n" for name in sorted(pins))

    def _pip(self, arguments: Sequence[str], what: str, platform: Platform) -> None:
        python = self._environments.ensure(Requirements(packages=(PIP,)))
        board = json.dumps(_markers(platform))
        command = [str(python), "-I", board_pip.__file__, board, arguments[0]]
        command += ["--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--no-input", "--quiet", *arguments[1:]]
        with (
            tempfile.TemporaryFile() as output,
            subprocess.Popen(
                command,
                env=pip_settings.variables(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            while True:
                try:
                    status = process.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if self._cancelled.is_set():
                        process.kill()
                        raise Interrupted("the wheels were not fetched") from None
            output.seek(0)
            text = output.read().decode(errors="replace")
        if status:
            raise _error(text, what, platform)


def describe(platform: Platform) -> str:
    """A platform for people."""
    libc = f"glibc {platform.glibc}" if platform.glibc else "another libc than glibc"
    return f"Python {platform.python}, {libc}, {platform.machine}"


def _is_whole(folder: Path, lock: Lock) -> bool:
    """Whether a folder holds the wheels of a lock, and none was damaged since."""
    found = {hash_file(path) for path in folder.glob("*.whl")}
    return folder.is_dir() and found == _digests(lock)


def _digests(lock: Lock) -> set[str]:
    """Of the wheels of a lock."""
    return set(re.findall(r"--hash=sha256:(\w+)", lock.text))


def _check_python(requirements: Requirements, platform: Platform) -> None:
    names = named(requirements)
    if not python_fits(requirements, platform.python):
        raise UnfitError(
            f"{names} needs Python {requirements.python}, and the board has {platform.python}",
            remedy="Install such a Python there, and name it with `python:` in devices.yaml.",
        )
    if platform.glibc is None:
        raise UnfitError(
            f"{names} has no wheels for a board without glibc",
            remedy="Use a system with glibc, such as Debian or Ubuntu, on the board.",
        )


def for_platform(packages: Sequence[str], platform: Platform) -> list[str]:
    """Those whose markers hold on the board, without the markers."""
    from packaging.requirements import Requirement

    environment = _markers(platform)
    found = []
    for text in packages:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            found.append(str(requirement))
    return found


def _markers(platform: Platform) -> dict[str, str]:
    """The values of the markers' variables on a board."""
    return {
        "implementation_name": "cpython",
        "implementation_version": platform.python,
        "os_name": "posix",
        "platform_machine": platform.machine,
        "platform_python_implementation": "CPython",
        "platform_release": "0",  # the kernel's version: no wheel depends on it
        "platform_system": "Linux",
        "platform_version": "0",
        "python_full_version": platform.python,
        "python_version": _short(platform.python),
        "sys_platform": "linux",
    }


def _tags(platform: Platform) -> list[str]:
    """Pip's options for the board: what `packaging.tags` would list there."""
    short = _short(platform.python)
    machine, minor = platform.machine, int((platform.glibc or "2.0").split(".")[1])
    platforms = [f"manylinux_2_{n}_{machine}" for n in range(minor, _OLDEST_GLIBC - 1, -1)]
    if minor >= _OLDEST_GLIBC:
        platforms.append(f"manylinux2014_{machine}")
    if machine == "x86_64":
        platforms += [f"manylinux2010_{machine}", f"manylinux1_{machine}"]
    options = ["--implementation", "cp", "--python-version", platform.python]
    for abi in (f"cp{short.replace('.', '')}", "abi3", "none"):
        options += ["--abi", abi]
    for name in (*platforms, f"linux_{machine}"):
        options += ["--platform", name]
    return options


def _short(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _pin(item: Mapping[str, Any]) -> tuple[str, str]:
    """Of an entry of pip's report (the installation report's format, version 1)."""
    metadata = item["metadata"]
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return metadata["name"], f"{metadata['name']}=={metadata['version']} --hash=sha256:{digest}"


def _error(text: str, what: str, platform: Platform) -> EnvironmentError_:
    """Pip's words in ours."""
    board = describe(platform)
    lines = [line for line in text.splitlines() if line.strip()]
    silent = [line for line in lines if re.search(_NO_ANSWER, line)][-1:]
    if pip_settings.is_offline():
        return EnvironmentError_(
            f"the wheels of {what.splitlines()[0]} for {board} are not here, and UV_OFFLINE is set",
            remedy="Unset UV_OFFLINE once, with a network, so that they can be fetched.",
        )
    missing = re.search(_MISSING, text)
    versions = (
        [version for version in missing[2].split(", ") if version != "none"] if missing else []
    )
    if missing and (versions or not silent):
        fit = f"{versions[-1]} is the newest that fits" if versions else "no version of it fits"
        return UnfitError(f"{missing[1]} has no wheel for {board}; {fit}", remedy=_UNFIT)
    python = re.search(_OTHER_PYTHON, text)
    if python and not silent:
        return UnfitError(
            f"{python[1]} needs Python {python[2]}, and the board has {platform.python}",
            remedy=_UNFIT,
        )
    words = " ".join(silent or lines[-3:])[-_SHOWN_CHARS:] or "pip said nothing"
    if "ResolutionImpossible" in text and not silent:
        return UnfitError(
            f"{what.splitlines()[0]} have no set of wheels for {board}: {words}", remedy=_UNFIT
        )
    return EnvironmentError_(
        f"the wheels of {what.splitlines()[0]} for {board} cannot be had: {words}",
        remedy="Check the network, and the package index if another one is to be used "
        "(PIP_INDEX_URL).",
    )


def _describe(directory: Path) -> Shelf:
    names = sorted(path.name.split("-")[:2] for path in directory.glob("*.whl"))
    return Shelf(
        directory,
        tuple(f"{name.replace('_', '-')}=={version}" for name, version in names),
        datetime.fromtimestamp(directory.stat().st_mtime, UTC),
        disk_usage([directory]),
    )
