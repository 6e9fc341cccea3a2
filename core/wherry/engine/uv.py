"""Calls uv, which resolves and installs: its settings, its log, its failures in our words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import EnvironmentError_, Interrupted, UnfitError
from wherry.requirements import Requirements

_TIME_S = 3600.0
_POLL_S = 0.2
_SHOWN_CHARS = 700
_NAMED = 3

# Of the user's settings of uv those are kept that say where packages come from and how they are
# fetched. What would change the choice, or the environment's form, is not: the lock decides.
_KEPT = re.compile(
    r"UV_(.*INDEX.*|FIND_LINKS|KEYRING_PROVIDER|CACHE_DIR|OFFLINE|HTTP_.*|.*_CERTS|NATIVE_TLS"
    r"|INSECURE_HOST|CONFIG_FILE|CONCURRENT_.*|EXCLUDE_NEWER)"
)
# uv does not read pip's settings. Where it has none of its own, pip's variable is handed on.
_FROM_PIP = (
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX", ("UV_INDEX", "UV_EXTRA_INDEX_URL"), " "),
    ("PIP_FIND_LINKS", "UV_FIND_LINKS", ("UV_FIND_LINKS",), ","),
)

_REMEDIES = (
    (
        r"network was disabled|network connectivity is disabled",
        "Unset UV_OFFLINE once, with a network, so that it can be fetched.",
    ),
    (
        r"error sending request|failed to fetch|dns error|tcp connect|timed out|certificate",
        "Check the network, and the package index if another one is to be used (UV_DEFAULT_INDEX).",
    ),
    (
        r"no space left|disk quota",
        "Make room on the disk; `wherry cache gc` removes what is no longer used.",
    ),
    (
        r"hash mismatch",
        "The index serves another file than was locked: find out why before you remove the lock.",
    ),
)

_ASK = """\
import json, platform, sysconfig
libc = " ".join(platform.libc_ver()) or "another libc"
print(json.dumps([platform.python_implementation(), platform.python_version(),
                  sysconfig.get_platform(), libc]))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What decides which wheels fit."""

    implementation: str
    version: str
    platform: str
    libc: str

    @classmethod
    def ask(cls, python: Path) -> Interpreter:
        """Start an interpreter and ask it; raises `EnvironmentError_` where it does not answer."""
        try:
            answer = subprocess.run(
                [python, "-I", "-c", _ASK],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
                check=True,
            )
            return cls(*map(str, json.loads(answer.stdout)))
        except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
            raise EnvironmentError_(
                f"the Python {python} does not run: {error}",
                remedy="Name a Python 3.8 or later that does.",
            ) from error

    @property
    def minor(self) -> int:
        """Of the version: 11 of 3.11.7."""
        return int(self.version.split(".")[1])

    def __str__(self) -> str:
        return f"{self.implementation} {self.version}, {self.platform}, {self.libc}"


class UvError(Exception):
    """uv's own words."""


@dataclass
class Uv:
    """uv at work on one environment.

    Attributes:
        requirements: for messages.
        interpreter: for messages.
        log: everything that uv prints, appended.
        held: descriptor of the environment's lock. uv inherits it: should we be killed, nobody
            else touches the environment before uv has ended as well.
        cwd: where uv looks for a project's settings; a folder of ours, so that it finds none.
        cancelled: when it is set, uv is ended.
        say: told each line.
    """

    requirements: Requirements
    interpreter: Interpreter
    log: Path
    held: int
    cwd: Path
    cancelled: threading.Event
    say: Callable[[str], None] = lambda _line: None

    def run(self, *arguments: str, failing: str = "made") -> None:
        """Run uv to its end.

        Args:
            arguments: of the command line.
            failing: what cannot be done with the environment when this fails.

        Raises:
            EnvironmentError_: caused by a `UvError`.
            Interrupted: ``cancelled`` was set.
        """
        lines: list[str] = []
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ uv {' '.join(arguments)}\n")
            log.flush()
            process = subprocess.Popen(
                [binary(), *arguments],
                cwd=self.cwd,
                env=variables(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                pass_fds=(self.held,),
            )
            ended = threading.Event()
            threading.Thread(target=self._watch, args=(process, ended), daemon=True).start()
            try:
                with process:
                    assert process.stdout is not None
                    for line in process.stdout:
                        log.write(line)
                        lines.append(line)
                        if line.strip():
                            self.say(line.strip())
            except BaseException:
                process.kill()
                raise
            finally:
                ended.set()
        if self.cancelled.is_set():
            raise Interrupted(f"the environment of {named(self.requirements)} was not finished")
        if process.returncode != 0:
            raise self._error(lines, process.returncode, failing)

    def _watch(self, process: subprocess.Popen[str], ended: threading.Event) -> None:
        """The thread that ends uv where nobody waits for it any longer."""
        deadline = time.monotonic() + _TIME_S
        while not ended.wait(_POLL_S):
            if self.cancelled.is_set() or time.monotonic() > deadline:
                process.kill()
                return

    def _error(self, lines: list[str], code: int, failing: str) -> EnvironmentError_:
        text = "".join(lines)
        words = re.sub(r"\s*(?:^|\n)\s*(?:error|cause|hint|×|├─▶|╰─▶|│):?\s*", " ", text)  # noqa: RUF001 -- uv's own signs
        words = " ".join(words.split())
        if len(words) > _SHOWN_CHARS:
            words = words[:_SHOWN_CHARS].rpartition(" ")[0] + " ..."
        found = [remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE)]
        unfit = not found and re.search(r"no solution found", text, re.IGNORECASE)
        error = (UnfitError if unfit else EnvironmentError_)(
            f"the environment of {named(self.requirements)} cannot be {failing} for "
            f"{self.interpreter}: {words or f'uv ended with exit code {code}'}",
            remedy=f"{next(iter(found), '')} The whole log: {self.log}".lstrip(),
        )
        error.__cause__ = UvError(text)
        return error


def binary() -> str:
    """The executable that uv's package brings."""
    import uv

    try:
        return uv.find_uv_bin()
    except FileNotFoundError as error:
        raise EnvironmentError_(
            "uv's executable is missing", remedy="Install the package `uv` beside wherry again."
        ) from error


def variables() -> dict[str, str]:
    """The variables that uv runs with."""
    given = {
        name: value
        for name, value in os.environ.items()
        if _KEPT.fullmatch(name)
        or not (name.startswith(("UV_", "PYTHON")) or name in {"VIRTUAL_ENV", "CONDA_PREFIX"})
    }
    for pip, uv, known, separator in _FROM_PIP:
        if os.environ.get(pip) and not any(given.get(name) for name in known):
            given[uv] = separator.join(os.environ[pip].split())
    plain = {"NO_COLOR": "1", "COLUMNS": "10000"}  # its words are looked through: no line breaks
    return given | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", **plain}


def named(requirements: Requirements) -> str:
    """A set of requirements in a few words."""
    packages = [*requirements.packages, *requirements.no_deps]
    if len(packages) <= _NAMED:
        return ", ".join(packages) or "no packages"
    return f"{', '.join(packages[:_NAMED])} and {len(packages) - _NAMED} more"
