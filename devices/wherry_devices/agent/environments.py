"""Runtimes' environments on the board: made of wheels that were shipped, without a network.

Each is a virtual environment below the root's ``environments/``, named by its lock, made under a
lock of the kernel's, and complete when its marker is there, which is written last. uv makes it;
where uv does not run, the board's own venv and pip's wheel do. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MARKER = ".wherry-complete"
_SPARE_BYTES = 32 << 20  # left free on the board's disk
_SHOWN_CHARS = 700
_LIMIT_S = 1200.0


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

    def find(self, lock: str) -> str | None:
        """The Python of a complete environment."""
        directory = self._directory(lock)
        if not (directory / MARKER).is_file():
            return None
        with contextlib.suppress(OSError):  # a disk that is only read serves as well
            (directory / MARKER).touch()  # when it was used last
        return str(directory / "bin" / "python")

    def make(self, request: dict[str, Any]) -> str:
        """Make the environment if it is not there; its Python.

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
            fcntl.flock(file, fcntl.LOCK_EX)  # the makers' children inherit it
            found = self.find(request["lock"])
            if found is not None:
                return found
            free = shutil.disk_usage(self._root).free
            if free < request["bytes"] + _SPARE_BYTES:
                raise EnvironmentsError(
                    f"it takes {request['bytes'] >> 20} MiB, and {free >> 20} MiB are free at "
                    f"{self._root}"
                )
            reasons = []
            for way in (self._by_uv, self._by_pip):
                shutil.rmtree(directory, ignore_errors=True)
                try:
                    way(directory, request, file.fileno())
                    os.sync()  # a power cut must not leave the marker alone
                    part = directory / f"{MARKER}.part"
                    part.write_text(request["lock"], "ascii")
                    part.replace(directory / MARKER)  # an empty one would say that it is complete
                except EnvironmentsError as error:
                    reasons.append(str(error))
                    continue
                except BaseException:
                    shutil.rmtree(directory, ignore_errors=True)
                    raise
                return str(directory / "bin" / "python")
            shutil.rmtree(directory, ignore_errors=True)
            raise EnvironmentsError("; ".join(reasons))

    def forget(self, unused_s: float) -> list[str]:
        """Remove what nobody used for so long, seconds, and half-made ones; their names."""
        gone = []
        for directory in sorted(path for path in self._root.glob("*") if path.is_dir()):
            marker = directory / MARKER
            with directory.with_suffix(".lock").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # it is being made
                    continue
                if marker.exists() and time.time() - marker.stat().st_mtime < unused_s:
                    continue
                marker.unlink(missing_ok=True)
                shutil.rmtree(directory)
                gone.append(directory.name)
        return gone

    def _by_uv(self, directory: Path, request: dict[str, Any], held: int) -> None:
        uv, system = request["uv"], ["--system-site-packages"] if request["system"] else []
        if not uv:
            raise EnvironmentsError("uv has no build for this board")
        with contextlib.suppress(OSError):  # then it does not run, and pip is tried
            os.chmod(uv, 0o550)  # noqa: S103, PTH101 -- the store's files are not for running
        self._run(
            "uv",
            [uv, "venv", "-q", "--no-project", "--python", request["python"], *system, directory],
            held,
        )
        if request["pins"]:
            install = [uv, "pip", "install", "-q", "--no-cache", "--offline", "--no-index"]
            install += ["--no-deps", "--find-links", request["wheels"]]
            install += ["--python", directory / "bin" / "python"]
            self._run("uv", [*install, *request["pins"]], held)

    def _by_pip(self, directory: Path, request: dict[str, Any], held: int) -> None:
        system = ["--system-site-packages"] if request["system"] else []
        venv = [request["python"], "-I", "-m", "venv", "--without-pip", *system, directory]
        self._run("venv", venv, held)
        if request["pins"]:
            install = [directory / "bin" / "python", f"{request['pip']}/pip", "install", "-q"]
            install += ["--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
            install += ["--find-links", request["wheels"]]
            self._run("pip", [*install, *request["pins"]], held)

    def _run(self, name: str, command: Sequence[Any], held: int) -> None:
        log = self._root / f"{name}.log"
        with log.open("w+b") as output:
            try:
                process = self._start(
                    [str(word) for word in command],
                    cwd=str(self._root),
                    env=dict(os.environ, UV_NO_CONFIG="1", UV_PYTHON_DOWNLOADS="never"),
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
                process.kill()
                raise EnvironmentsError(f"{name} took over {_LIMIT_S:g} s") from None
            output.seek(0)
            words = " ".join(output.read().decode(errors="replace").split())[-_SHOWN_CHARS:]
        if status:
            raise EnvironmentsError(f"{name} ended with status {status}: {words}")

    def _directory(self, lock: str) -> Path:
        if not lock or not set(lock) <= set("0123456789abcdef"):
            raise EnvironmentsError(f"not a lock: {lock!r}")
        return self._root / lock[:32]
