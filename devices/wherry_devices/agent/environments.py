"""Runtimes' environments on the board: made of wheels that were shipped, without a network.

Each is a virtual environment below the root's ``environments/``, named by its lock, made under a
lock of the kernel's, and complete when its marker is there, which is written last. uv makes it;
where uv does not run, the board's own venv and pip's wheel do. Whatever makes it ends with this
process, however that ends. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import locks

MARKER = ".wherry-complete"
FILES = ".wherry-files"  # JSON: path to size
_SPARE_BYTES = 32 << 20  # left free on the board's disk
_SHOWN_CHARS = 700
_LIMIT_S = 1200.0
_WAIT_S = 2.0  # for another that makes the same one; the host asks again
_POLL_S = 0.1
# Becomes a program that the kernel kills when the thread that started it ends (prctl's
# PR_SET_PDEATHSIG, SIGKILL): ours waits for it. In a child of fork() no such code is safe, for
# other threads may hold locks.
_TETHER = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the agent is gone")
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit("it does not run: %s" % error)
"""
# Imports what was installed, so that it is compiled now and not in the first measurement. uv would
# compile all of it, which takes small boards minutes. What cannot be imported is told by the run.
_IMPORT = """\
import contextlib, importlib, pathlib, sysconfig
for path in sorted(pathlib.Path(sysconfig.get_path("purelib")).glob("*/__init__.py")):
    with contextlib.suppress(Exception):
        importlib.import_module(path.parent.name)
"""


class EnvironmentsError(Exception):
    """An environment cannot be made; the text says why."""


class Environments:
    """See the module.

    Args:
        root: the folder of ours on this board.
        start: starts a command, so that it ends with the service.
    """

    def __init__(self, root: Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
        self._root = root / "environments"
        self._start = start
        self._checked: set[Path] = set()

    def find(self, lock: str) -> tuple[str | None, str]:
        """The Python of a whole environment; else None, and what is wrong with a complete one.

        The files of each are looked at once in our time: a power cut, or a user, may have taken
        some.
        """
        directory = self._directory(lock)
        if not (directory / MARKER).is_file():
            return None, ""
        if directory not in self._checked:
            damage = _damage(directory)
            if damage:
                return None, damage
            self._checked.add(directory)
        with contextlib.suppress(OSError):  # a disk that is only read serves as well
            os.utime(directory / MARKER)  # when it was used last
        return str(directory / "bin" / "python"), ""

    def make(self, request: dict[str, Any]) -> str | None:
        """Make the environment if it is not there; its Python, or None: another is making it.

        Args:
            request: ``lock`` (its name, hexadecimal), ``python`` (the board's own), ``wheels``
                (the folder that they are in), ``pins`` (name==version each), ``system`` (the
                board's own packages are seen too), ``bytes`` (what it takes, about), ``uv`` (the
                executable) and ``pip`` (the wheel).

        Raises:
            EnvironmentsError: no way works; nothing is left of it.
            OSError: the disk refuses.
        """
        directory = self._directory(request["lock"])
        self._root.mkdir(parents=True, exist_ok=True)
        with directory.with_suffix(".lock").open("w") as file:
            if not _wait_for(file.fileno()):
                return None
            found, _ = self.find(request["lock"])
            if found is not None:
                return found
            _remove(directory)  # what was half made takes room
            free = shutil.disk_usage(self._root).free
            if free < request["bytes"] + _SPARE_BYTES:
                raise EnvironmentsError(
                    f"it takes {request['bytes'] >> 20} MiB, and {free >> 20} MiB are free at "
                    f"{self._root}"
                )
            try:
                return self._make(directory, request, file.fileno())
            except BaseException:
                _remove(directory)
                raise
            finally:
                shutil.rmtree(_scratch(directory), ignore_errors=True)

    def _make(self, directory: Path, request: dict[str, Any], held: int) -> str:
        reasons = []
        for way in (self._by_uv, self._by_pip):
            _remove(directory)
            _scratch(directory).mkdir()
            try:
                way(directory, request, held)
            except EnvironmentsError as error:
                reasons.append(str(error))
                continue
            python = directory / "bin" / "python"
            with contextlib.suppress(EnvironmentsError):  # a runtime that crashes does so again
                self._run("import", [python, "-I", "-c", _IMPORT], directory, held)
            if shutil.disk_usage(directory).free < _SPARE_BYTES // 2:
                _remove_bytecode(directory)  # some Pythons leave half of it on a full disk
            (directory / FILES).write_text(json.dumps(_sizes(directory)), "utf-8")
            os.sync()  # a power cut must not leave the marker alone
            part = directory / f"{MARKER}.part"
            part.write_text(request["lock"], "ascii")
            part.replace(directory / MARKER)  # an empty one would say that it is complete
            self._checked.add(directory)
            return str(python)
        raise EnvironmentsError("; ".join(reasons))

    def forget(self, unused_s: float) -> list[str]:
        """Remove what nobody used for so long, seconds, and what was half made; their names."""
        gone = []
        for directory in sorted(path for path in self._root.glob("[0-9a-f]*") if path.is_dir()):
            marker = directory / MARKER
            with directory.with_suffix(".lock").open("w") as file:
                if not locks.take(file.fileno()):  # it is being made
                    continue
                if marker.exists() and time.time() - marker.stat().st_mtime < unused_s:
                    continue
                marker.unlink(missing_ok=True)
                shutil.rmtree(directory)
                self._checked.discard(directory)
                if directory != _scratch(directory):
                    gone.append(directory.name)
        return gone

    def _by_uv(self, directory: Path, request: dict[str, Any], held: int) -> None:
        uv, system = request["uv"], ["--system-site-packages"] if request["system"] else []
        if not uv:
            raise EnvironmentsError("uv has no build for this board")
        with contextlib.suppress(OSError):  # then it does not run, and pip is tried
            os.chmod(uv, 0o550)  # noqa: S103, PTH101 -- the store's files are not for running
        venv = [uv, "venv", "-q", "--no-project", "--python", request["python"], *system, directory]
        self._run("uv", venv, directory, held)
        if request["pins"]:
            install = [uv, "pip", "install", "-q", "--no-cache", "--offline", "--no-index"]
            install += ["--no-deps", "--find-links", request["wheels"]]
            install += ["--python", directory / "bin" / "python"]
            self._run("uv", [*install, *request["pins"]], directory, held)

    def _by_pip(self, directory: Path, request: dict[str, Any], held: int) -> None:
        system = ["--system-site-packages"] if request["system"] else []
        venv = [request["python"], "-I", "-m", "venv", "--without-pip", *system, directory]
        self._run("venv", venv, directory, held)
        if request["pins"]:
            install = [directory / "bin" / "python", f"{request['pip']}/pip", "install", "-q"]
            install += ["--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
            install += ["--find-links", request["wheels"]]
            self._run("pip", [*install, *request["pins"]], directory, held)

    def _run(self, name: str, command: Sequence[Any], directory: Path, held: int) -> None:
        log = self._root / f"{name}.log"
        tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid())]
        variables = {"UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
        # What a maker that is killed leaves there is removed by the next; and from the same disk
        # uv makes hard links.
        variables["TMPDIR"] = str(_scratch(directory))
        with log.open("w+b") as output:
            try:
                process = self._start(
                    [*tether, *map(str, command)],
                    cwd=str(self._root),
                    env=dict(os.environ, **variables),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(held,),
                )
            except OSError as error:
                raise EnvironmentsError(f"{name} does not run: {error}") from error
            try:
                status = process.wait(_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise EnvironmentsError(f"{name} took over {_LIMIT_S:g} s") from None
            output.seek(0)
            words = " ".join(output.read().decode(errors="replace").split())[-_SHOWN_CHARS:]
        if status:
            raise EnvironmentsError(f"{name} ended with status {status}: {words}")

    def _directory(self, lock: str) -> Path:
        if not lock or not set(lock) <= set("0123456789abcdef"):
            raise EnvironmentsError(f"not a lock: {lock!r}")
        return self._root / lock[:32]


def _wait_for(descriptor: int) -> bool:
    """Take a lock within ``_WAIT_S``; the makers inherit it."""
    deadline = time.monotonic() + _WAIT_S
    while not locks.take(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _scratch(directory: Path) -> Path:
    """Temporary files of those that make an environment."""
    return directory.with_suffix(".tmp")


def _remove(directory: Path) -> None:
    """Remove an environment as far as it is there, its marker first, and temporary files."""
    with contextlib.suppress(OSError):  # then it cannot be made again either, and that is told
        (directory / MARKER).unlink()
    for folder in (directory, _scratch(directory)):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_bytecode(directory: Path) -> None:
    for folder in list(directory.rglob("__pycache__")):
        shutil.rmtree(folder, ignore_errors=True)


def _damage(directory: Path) -> str:
    """What of a complete environment is not as it was made; empty: nothing.

    Sizes are compared, for an environment has 100 MB. Bytecode is left out: Python writes it when
    it likes.
    """
    try:
        made = json.loads((directory / FILES).read_text("utf-8"))
    except (OSError, ValueError):
        return f"{FILES} is missing"
    try:
        found = _sizes(directory)
    except OSError as error:  # another session removes it
        return str(error)
    for path, size in made.items():
        if found.get(path) != size:
            return f"{path} {'was changed' if path in found else 'is missing'}"
    return "" if (directory / "bin" / "python").exists() else "its Python is missing"


def _sizes(directory: Path) -> dict[str, int]:
    """Relative path to bytes, of all files but bytecode and ours; links as such."""
    found = {}
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            path = os.path.join(folder, name)  # noqa: PTH118 -- thousands
            found[os.path.relpath(path, directory)] = os.lstat(path).st_size
    for name in (FILES, MARKER):
        found.pop(name, None)
    return found
