"""Environments of tools and runtimes: locked once, made on first use, shared by all runs.

A set of requirements is resolved once per interpreter and kept as a *lock*: every package,
dependencies too, with its version and the hashes of its files. The lock's own hash is part of the
store's keys and the environment's name, so that the resolver never changes what a run uses behind
its back, and a machine without a network goes on with what it has. uv resolves and installs; its
files are hard links into uv's cache where the file system allows it.

Below the home's ``environments/``: ``locks/KEY.txt``, and a virtual environment for each lock,
complete when its marker file is there, which is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from wherry.engine.uv import Interpreter, Uv, binary, named, variables
from wherry.errors import EnvironmentError_, PluginError, UnfitError
from wherry.filelock import TakenError, hold
from wherry.requirements import Requirements

_FORM = 1  # of the lock's text: raise it when the same requirements are locked in another way
_MARKER = ".wherry-complete"
_NEWEST_MINOR = 20  # how far to look for the Python that a package claims to need
_ALONE = "# without their dependencies, for Python 3."

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Lock:
    """What an environment holds, to the byte.

    Attributes:
        text: requirements as pip and uv read them; comments name the interpreter, which packages
            come without their dependencies, and for which Python these were resolved.
        sha256: of the text, hex.
    """

    text: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment on the disk.

    Attributes:
        directory: the virtual environment.
        lock: sha256 of its lock; None: it was never completed.
        packages: its pins, ``name==version``.
        last_used: when a run last asked for it.
        size_bytes: see `disk_usage`.
    """

    directory: Path
    lock: str | None
    packages: tuple[str, ...]
    last_used: datetime
    size_bytes: int


class Environments:
    """The environments below a home; safe among threads and processes.

    Args:
        home: the folder of wherry's own files.
        cancelled: when it is set, what makes an environment or waits for one raises `Interrupted`.
    """

    def __init__(self, home: Path, cancelled: threading.Event | None = None) -> None:
        # Resolved: a virtual environment's scripts name its folder, by whatever path it is reached.
        self.root = (home / "environments").resolve()
        self.logs = home / "logs"
        self._cancelled = cancelled or threading.Event()
        self._interpreters: dict[Path, Interpreter] = {}
        self._mutex = threading.Lock()

    def lock(self, requirements: Requirements, python: Path | None = None) -> Lock:
        """Resolve the requirements, or take the lock that an earlier call left; makes nothing.

        Args:
            requirements: what the environment has to hold.
            python: the interpreter that it is for; None: the host's own.

        Raises:
            EnvironmentError_: the interpreter does not fit, a package is not to be had, or there
                is no network.
        """
        python = python or Path(sys.executable)
        interpreter = self.interpreter(python)
        _check_python(requirements, python, interpreter)
        asked = json.dumps([_FORM, asdict(requirements), asdict(interpreter)], sort_keys=True)
        name = hashlib.sha256(asked.encode()).hexdigest()[:32]
        path = self.root / "locks" / f"{name}.txt"
        with self._files():
            text = _read(path)
            if text is None:
                self._make_folders()
                lock = path.with_suffix(".lock")
                with hold(lock, remove=True, cancelled=self._cancelled) as held:
                    text = _read(path)
                    if text is None:
                        log = self._log(name)
                        uv = Uv(requirements, interpreter, log, held, self.root, self._cancelled)
                        text = _resolve(uv, requirements, python, interpreter)
                        part = path.with_suffix(".part")
                        part.write_text(text, encoding="utf-8")
                        part.replace(path)
        return Lock(text, hashlib.sha256(text.encode()).hexdigest())

    def ensure(
        self,
        requirements: Requirements,
        python: Path | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """The Python executable of an environment, which is made if it is not there.

        Args:
            requirements: what the environment has to hold.
            python: the interpreter that it is made with; None: the host's own.
            progress: told what is being done, a line at a time.

        Raises:
            EnvironmentError_: it cannot be made; nothing of it is left.
        """
        python = python or Path(sys.executable)
        say = _teller(progress, requirements)
        lock = self.lock(requirements, python)
        directory = self._directory(lock)
        with self._files():
            if not _is_complete(directory, lock):
                self._make_folders()
                waiting = partial(say, "waiting for another run that makes it")
                with hold(
                    directory.with_suffix(".lock"),
                    remove=True,
                    on_wait=waiting,
                    cancelled=self._cancelled,
                ) as held:
                    if not _is_complete(directory, lock):
                        uv = Uv(
                            requirements,
                            self.interpreter(python),
                            self._log(directory.name),
                            held,
                            self.root,
                            self._cancelled,
                            say,
                        )
                        _make(uv, directory, lock, python)
        with contextlib.suppress(OSError):  # a home that is only read serves as well
            os.utime(directory / _MARKER)
        return _python_of(directory)

    def find(self, requirements: Requirements, python: Path | None = None) -> Path | None:
        """The directory of an environment that was made; None where none was.

        Raises:
            EnvironmentError_: see `lock`.
        """
        lock = self.lock(requirements, python)
        directory = self._directory(lock)
        return directory if _is_complete(directory, lock) else None

    def site_packages(self, requirements: Requirements, python: Path | None = None) -> Path:
        """Where the environment's packages are; it is made if it is not there."""
        return _site_packages(self.ensure(requirements, python).parent.parent)

    def interpreter(self, python: Path) -> Interpreter:
        """What an interpreter is; raises `EnvironmentError_` where it does not run."""
        with self._mutex:
            known = self._interpreters.get(python)
        if known is None:
            known = Interpreter.ask(python)
            with self._mutex:
                self._interpreters[python] = known
        return known

    def __iter__(self) -> Iterator[Environment]:
        """All environments on the disk, half-made ones too."""
        return map(_describe, self._directories())

    def remove(
        self, *, unused_for: timedelta | None = None, dry_run: bool = False
    ) -> list[Environment]:
        """Remove half-made environments, and those that no run has asked for lately.

        Args:
            unused_for: how long not; None: only the half-made ones go.
            dry_run: only say which would go.

        Returns:
            Those that were removed, or would be.
        """
        now = datetime.now(UTC)
        gone = []
        for directory in self._directories():
            try:
                with self._files(), hold(directory.with_suffix(".lock"), wait=False, remove=True):
                    found = _describe(directory)  # as it is now that nobody changes it
                    if found.lock is not None and (
                        unused_for is None or now - found.last_used < unused_for
                    ):
                        continue
                    gone.append(found)
                    if not dry_run:
                        _remove(directory)
            except TakenError:  # it is being made
                continue
        return gone

    def _directories(self) -> list[Path]:
        return sorted(path for path in self.root.glob("[0-9a-f]" * 16) if path.is_dir())

    def _directory(self, lock: Lock) -> Path:
        return self.root / lock.sha256[:16]

    def _make_folders(self) -> None:
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _files(self) -> Iterator[None]:
        """Errors of the file system are the user's to mend."""
        try:
            yield
        except OSError as error:
            raise EnvironmentError_(
                f"environments cannot be made: {error.strerror or error}",
                where=str(error.filename or self.root),
                remedy="Make room there, or set WHERRY_HOME to a folder that you may write.",
            ) from error

    def _log(self, name: str) -> Path:
        return self.logs / f"environment-{name[:16]}.log"


def _teller(progress: Progress | None, requirements: Requirements) -> Progress:
    """Tells the progress display which environment it is about."""

    def say(text: str) -> None:
        if progress is not None:
            progress(f"environment of {named(requirements)}: {text}")

    return say


def disk_usage(directories: Iterable[Path]) -> int:
    """Bytes on the disk; a file with many hard links among them counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for directory in directories:
        for parent, folders, files in os.walk(directory):
            for name in (*folders, *files):
                try:
                    about = os.lstat(os.path.join(parent, name))  # noqa: PTH118 -- thousands
                except FileNotFoundError:  # it has just gone
                    continue
                if (about.st_dev, about.st_ino) not in seen:
                    seen.add((about.st_dev, about.st_ino))
                    total += about.st_blocks * 512
    return total


# Locking


def _resolve(uv: Uv, requirements: Requirements, python: Path, interpreter: Interpreter) -> str:
    """The lock's text."""
    text = f"# wherry's lock of an environment, form {_FORM}\n# {interpreter}\n"
    with tempfile.TemporaryDirectory(prefix="wherry-lock-") as folder:
        asked, found = Path(folder, "requirements.in"), Path(folder, "requirements.txt")

        def resolve(packages: tuple[str, ...], *options: str) -> str:
            asked.write_text("\n".join(packages) + "\n", encoding="utf-8")
            found.unlink(missing_ok=True)
            uv.run(
                *("pip", "compile", "--quiet", "--generate-hashes", "--no-header"),
                *("--no-annotate", "--python", str(python), *options),
                *("--output-file", str(found), str(asked)),
                failing="resolved",
            )
            return found.read_text(encoding="utf-8")

        if requirements.packages:
            text += resolve(requirements.packages)
        alone: dict[int, str] = {}
        for package in requirements.no_deps:
            minor, pins = _resolve_alone(package, resolve, requirements, interpreter)
            alone[minor] = alone.get(minor, "") + pins
    for minor in sorted(alone):
        text += f"{_ALONE}{minor}\n{alone[minor]}"
    return text


def _resolve_alone(
    package: str,
    resolve: Callable[..., str],
    requirements: Requirements,
    interpreter: Interpreter,
) -> tuple[int, str]:
    """A ``no_deps`` package's pin, and the Python 3 that it was resolved for.

    pip has ``--ignore-requires-python`` and uv has no such flag. But uv resolves and installs
    ``--no-deps`` for any Python that it is told: the nearest one that the package says it needs.
    """
    own = interpreter.minor
    last = _NEWEST_MINOR if requirements.ignore_requires_python else own
    for minor in range(own, last + 1):
        as_if = () if minor == own else (f"--python-version=3.{minor}",)
        try:
            pins = resolve((package,), "--no-deps", *as_if)
            return minor, _allowed(pins, requirements.hashes, package)
        except EnvironmentError_ as error:
            if minor == last or "does not satisfy Python" not in str(error.__cause__):
                raise
    raise AssertionError("the loop ends in a return or a raise")


def _allowed(pins: str, hashes: tuple[str, ...], package: str) -> str:
    """A package's pin with those of its files that its author names; all where he names none."""
    if not hashes:
        return pins
    pin, *files = re.findall(r"^\S+==\S+|--hash=sha256:\w+", pins, re.MULTILINE)
    # A folder of wheels says nothing of theirs; whoever installs them checks.
    files = files or [f"--hash=sha256:{each}" for each in hashes]
    kept = [each for each in files if each.rpartition(":")[2] in hashes]
    if not kept:
        raise EnvironmentError_(
            f"the index has {package}, and none of its files is the one that was tried",
            remedy="Use an index that has it, such as PyPI, or another backend.",
        )
    return " \\\n    ".join([pin, *kept]) + "\n"


def python_fits(requirements: Requirements, version: str) -> bool:
    """Whether a set was tried on a version of Python; `PluginError` where it says nonsense."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        return SpecifierSet(requirements.python).contains(version, prereleases=True)
    except InvalidSpecifier as error:
        raise PluginError(f"requirements.python {requirements.python!r}: {error}") from error


def _check_python(requirements: Requirements, python: Path, interpreter: Interpreter) -> None:
    if python_fits(requirements, interpreter.version):
        return
    raise UnfitError(
        f"{named(requirements)} needs Python {requirements.python}, and {python} is "
        f"{interpreter.version}",
        remedy=_fitting_python(requirements.python),
    )


def _fitting_python(specifier: str) -> str:
    found = subprocess.run(
        [binary(), "python", "find", "--no-project", "--no-python-downloads", specifier],
        env=variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    use = f"Install wherry into a Python {specifier}"
    return f"{use}, such as {found.stdout.strip()}." if found.returncode == 0 else f"{use}."


# Making


def _make(uv: Uv, directory: Path, lock: Lock, python: Path) -> None:
    """Make an environment in its place: moved afterwards, its scripts would name the old one."""
    uv.say("making it")
    if directory.exists():
        uv.say("removing a half-made one")
        _remove(directory)
    packages, *alone = re.split(rf"^{re.escape(_ALONE)}(\d+)$", lock.text, flags=re.MULTILINE)
    try:
        uv.run("venv", "--quiet", "--no-project", "--python", str(python), str(directory))
        install = ("pip", "install", "--python", str(_python_of(directory)), "--no-deps")
        with tempfile.TemporaryDirectory(prefix="wherry-lock-") as folder:
            file = Path(folder, "lock.txt")
            if any(line and not line.startswith("#") for line in packages.splitlines()):
                file.write_text(packages, encoding="utf-8")
                uv.run(*install, "-r", str(file))
            for minor, pins in zip(alone[::2], alone[1::2], strict=True):
                # Nothing is built as if for another Python, and no binary made for one is taken
                as_if = (f"--python-version=3.{minor}", "--only-binary=:all:")
                own = int(minor) == uv.interpreter.minor
                file.write_text(pins, encoding="utf-8")
                uv.run(*install, *(() if own else as_if), "-r", str(file))
                if not own:
                    _check_wheels(directory, uv)
        (directory / _MARKER).write_text(lock.sha256, encoding="ascii")
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _check_wheels(directory: Path, uv: Uv) -> None:
    """Refuse binaries of another Python than the environment's."""
    for file in _site_packages(directory).glob("*.dist-info/WHEEL"):
        tags = re.findall(r"^Tag: (\S+)-(\S+)-\S+$", file.read_text(encoding="utf-8"), re.MULTILINE)
        if not any(_fits(python, abi, uv.interpreter.minor) for python, abi in tags):
            raise EnvironmentError_(
                f"{file.parent.name.removesuffix('.dist-info')} is compiled for another Python "
                f"than {uv.interpreter}",
                remedy="It cannot be used with ignore_requires_python.",
            )


def _fits(python: str, abi: str, minor: int) -> bool:
    if python.startswith("py"):
        return True
    number = re.fullmatch(r"cp3(\d+)", python)
    return number is not None and (
        int(number[1]) == minor or (abi == "abi3" and int(number[1]) < minor)
    )


def _remove(directory: Path) -> None:
    """Remove an environment, its marker first: a half-removed one is not complete."""
    (directory / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(directory)


def _is_complete(directory: Path, lock: Lock) -> bool:
    # The executable is a link: without its Python installation it leads nowhere.
    return _read(directory / _MARKER) == lock.sha256 and _python_of(directory).exists()


def _describe(directory: Path) -> Environment:
    marker = directory / _MARKER
    lock = _read(marker)
    about = (marker if lock is not None else directory).stat()
    return Environment(
        directory,
        lock,
        tuple(_installed(directory)),
        datetime.fromtimestamp(about.st_mtime, UTC),
        disk_usage([directory]),
    )


def _installed(directory: Path) -> list[str]:
    folders = sorted(directory.glob("lib/python*/site-packages/*.dist-info"))
    names = [folder.name.removesuffix(".dist-info").partition("-") for folder in folders]
    return [f"{name.replace('_', '-')}=={version}" for name, _, version in names]


def _python_of(directory: Path) -> Path:
    return directory / "bin" / "python"


def _site_packages(directory: Path) -> Path:
    return next(directory.glob("lib/python*/site-packages"))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
