"""Wheels for a board: resolved for its Python, glibc and machine, and fetched on the host.

A set of requirements is resolved once per platform and kept as a lock, as `environments` does for
the host: each package with its version and the sha256 of the wheel that fits. pip resolves and
fetches, for uv fetches no wheels; it runs in an environment of its own, with the user's settings of
the package index, whether they were made for pip or for uv.

Below the home: ``environments/locks/KEY.txt``, ``wheels/LOCK/*.whl``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.artifact import hash_file
from wherry.engine.environments import Lock, python_fits
from wherry.engine.uv import named
from wherry.errors import EnvironmentError_, Interrupted, UnfitError
from wherry.filelock import hold
from wherry.requirements import Requirements

if TYPE_CHECKING:
    import threading

    from wherry.device import Platform
    from wherry.engine.environments import Environments

PIP = "pip==25.0.1"
"""The last that also runs on Python 3.8: boards where uv does not run get it too."""

_FORM = 1  # of the lock's text
_OLDEST_GLIBC = 17  # of manylinux: 2.17, and its older name manylinux2014
_POLL_S = 0.2
_SHOWN_CHARS = 500
# Pip then goes on, and says that there is no version at all.
_NO_ANSWER = "connection broken by|Could not fetch URL"
_FROM_UV = (
    ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"),
    ("UV_INDEX_URL", "PIP_INDEX_URL"),
    ("UV_INDEX", "PIP_EXTRA_INDEX_URL"),
    ("UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
    ("UV_FIND_LINKS", "PIP_FIND_LINKS"),
)


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
        return tuple(sorted(folder.glob("*.whl")))

    def _download(self, lock: Lock, platform: Platform, folder: Path) -> None:
        building = Path(tempfile.mkdtemp(dir=self._root, prefix="part-"))
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
        pins: dict[str, str] = {}
        for packages, options in (
            (requirements.packages, []),
            (requirements.no_deps, ["--no-deps"]),
        ):
            wanted = for_platform(packages, platform)
            if not wanted:
                continue
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
        command = [str(python), "-I", "-m", "pip", arguments[0], "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--no-input", "--quiet", *arguments[1:]]
        with (
            tempfile.TemporaryFile() as output,
            subprocess.Popen(
                command,
                env=_variables(),
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
    return folder.is_dir() and found == set(re.findall(r"--hash=sha256:(\w+)", lock.text))


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

    environment = {
        "implementation_name": "cpython",
        "implementation_version": platform.python,
        "os_name": "posix",
        "platform_machine": platform.machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": platform.python,
        "python_version": _short(platform.python),
        "sys_platform": "linux",
    }
    found = []
    for text in packages:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            found.append(str(requirement))
    return found


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
    missing = re.search(r"satisfies the requirement (\S+) \(from versions: ([^)]*)\)", text)
    versions = (
        [version for version in missing[2].split(", ") if version != "none"] if missing else []
    )
    if missing and (versions or not silent):
        fit = f"{versions[-1]} is the newest that fits" if versions else "no version of it fits"
        return UnfitError(
            f"{missing[1]} has no wheel for {board}; {fit}",
            remedy="Update the board's system or Python, or use another backend there.",
        )
    words = " ".join(silent or lines[-3:])[-_SHOWN_CHARS:] or "pip said nothing"
    return EnvironmentError_(
        f"the wheels of {what.splitlines()[0]} for {board} cannot be had: {words}",
        remedy="Check the network, and the package index if another one is to be used "
        "(PIP_INDEX_URL).",
    )


def _variables() -> dict[str, str]:
    """The variables that pip runs with: the user's, and those of uv where pip's own are missing."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for uv, pip in _FROM_UV:
        if given.get(uv) and not given.get(pip):
            given[pip] = given[uv]
    return given
