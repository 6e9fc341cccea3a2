"""Runs a tool in a process of its own: a request in JSON, a response in JSON, limits, a log.

A tool may crash, hang, eat memory, print without end, write half a response or leave children
behind; each of these ends in a `ToolError` that says so, of the step alone. Nothing of a tool
outlives its call, and nothing outlives the host (see ``supervise.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from wherry.errors import Interrupted, PluginError, ToolError, UnsupportedError, WherryError

_SUPERVISOR = Path(__file__).with_name("supervise.py")
_POLL_S = 0.1
_END_S = 10.0  # a killed process ends at once, unless a driver holds it in the kernel
_RESPONSE_BYTES = 64 << 20
_TAIL_BYTES = 8 << 10
_SHOWN_LINES = 12
_SHOWN_CHARS = 1500
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tool may use.

    Attributes:
        time_s: seconds on the wall clock.
        memory_bytes: resident memory of the tool and all its descendants, looked at every 0.1 s;
            shared pages count once.
        cores: threads for OpenMP and BLAS; None: for OpenMP as many as the host's process may use,
            for OpenBLAS one, or what the host's environment says.
        log_bytes: output kept in the log; of what comes later its last lines are kept.
        output_bytes: a tool that prints more than this is stopped.
    """

    time_s: float = 1800.0
    memory_bytes: int = 8 << 30
    cores: int | None = None
    log_bytes: int = 16 << 20
    output_bytes: int = 1 << 30


_DEFAULTS = Limits()

PROGRESS = b"wherry-progress: "
"""A line that a tool prints after this says what it is doing, for the progress display."""


def _tell_nobody(_text: str) -> None:
    """What becomes of progress that nobody asked for."""


def run_tool(
    python: Path,
    script: Path,
    request: Mapping[str, Any],
    *,
    scratch: Path,
    log: Path,
    limits: Limits = _DEFAULTS,
    cancelled: threading.Event | None = None,
    progress: Callable[[str], None] = _tell_nobody,
) -> dict[str, Any]:
    """Run ``python script request.json response.json`` and return the response.

    Args:
        python: the interpreter of the tool's environment.
        script: the file to run.
        request: JSON values.
        scratch: the working folder, also for temporary files; one tool at a time in it.
        log: where the output goes, appended.
        limits: time, memory, threads, output.
        cancelled: when it is set, the tool is stopped.
        progress: called with what the tool prints after `PROGRESS`.

    Raises:
        ToolError: the tool failed, crashed, went over a limit, or gave no proper response.
        UnsupportedError: the tool refused what it was asked.
        Interrupted: ``cancelled`` was set.
        PluginError: the request is not JSON, or there is no such script.
    """
    where = f"{script.parent.name}/{script.name}"
    if not script.is_file():
        raise PluginError(f"there is no tool {script}", remedy="Install its plugin again.")
    asked, answered = scratch / "request.json", scratch / "response.json"
    try:
        text = json.dumps(request, allow_nan=False, indent=1)
        asked.write_text(text, encoding="ascii")
    except (TypeError, ValueError) as error:
        raise PluginError(f"the request is not JSON: {error}", where=where) from error
    answered.unlink(missing_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        tool = _Tool(where, log, limits, _Output(stream, limits.log_bytes, progress))
        code = tool.run([python, script, asked, answered], scratch, cancelled)
    # A refusal is an answer, whatever the exit code; what else a failed tool wrote is not.
    response = None
    if answered.exists() and code >= 0:
        try:
            response = _read(answered)
        except ValueError as error:
            if code == 0:
                raise tool.error(f"the tool's response {error}") from error
    if response is not None and "error" in response:
        raise tool.refusal(response["error"])
    if code != 0:
        raise tool.error(f"the tool {_how_it_ended(code)} after {tool.seconds:.1f} s")
    if response is None:
        raise tool.error("the tool ended without an error and wrote no response")
    return response


@dataclass
class _Tool:
    """One tool on its way."""

    where: str
    log: Path
    limits: Limits
    output: _Output
    seconds: float = 0.0
    peak_bytes: int = 0

    def run(self, command: list[Path], scratch: Path, cancelled: threading.Event | None) -> int:
        """Start the tool, watch it, return its exit code; raises at a limit."""
        self.output.note(f"$ {' '.join(map(str, command))}")
        started = checked = time.monotonic()
        process = subprocess.Popen(
            # The supervisor runs on the host's own Python: the tool's may be old or broken.
            [sys.executable, "-I", "-S", _SUPERVISOR, str(os.getpid()), *command],
            cwd=scratch,
            env=_environment(command[0], scratch, self.limits.cores),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is the host's to handle
        )
        assert process.stdout is not None
        assert process.stderr is not None
        printed = process.stderr.fileno()
        os.set_blocking(printed, False)
        with process:
            try:
                while process.poll() is None:
                    ended = self._copy(printed, _POLL_S)
                    now = time.monotonic()
                    self.seconds = now - started
                    if now - checked >= _POLL_S:
                        checked = now
                        self._check(process.pid, cancelled)
                    if ended:  # usually as the process ends, and a tool may close it early
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.wait(_POLL_S)
            finally:
                _stop(process)
                self._copy(printed, 0)
                self.output.note(
                    f"[{self.seconds:.1f} s, at most {self.peak_bytes / 2**20:.0f} MiB]"
                )
            said = process.stdout.read().strip()
        if not said.lstrip(b"-").isdigit():
            raise self.error(f"the tool's supervisor was killed ({process.returncode})")
        return int(said)

    def _copy(self, pipe: int, timeout_s: float) -> bool:
        """Copy what was printed to the log; returns whether the pipe has ended."""
        select.select([pipe], [], [], timeout_s)
        for _ in range(64):  # at most 4 MiB, then the limits are looked at again
            try:
                data = os.read(pipe, 1 << 16)
            except BlockingIOError:
                return False
            if not data:
                return True
            self.output.add(data)
        return False

    def _check(self, supervisor: int, cancelled: threading.Event | None) -> None:
        """Raise where the tool has to be stopped."""
        if cancelled is not None and cancelled.is_set():
            raise Interrupted("the tool was stopped", where=self.where)
        if self.seconds > self.limits.time_s:
            raise self.error(f"the tool was stopped at its time limit of {self.limits.time_s:g} s")
        if self.output.total > self.limits.output_bytes:
            raise self.error(
                f"the tool was stopped: it printed more than {_mib(self.limits.output_bytes)}"
            )
        used = _memory(supervisor, self.limits.memory_bytes)
        self.peak_bytes = max(self.peak_bytes, used)
        if used > self.limits.memory_bytes:
            raise self.error(
                f"the tool was stopped at its memory limit: it held {_mib(used)} "
                f"of {_mib(self.limits.memory_bytes)}"
            )

    def error(self, message: str) -> ToolError:
        """An error with the last lines of the log."""
        lines = self.output.last_lines()
        shown = f"It ended with:\n{lines}\n" if lines else "It printed nothing. "
        return ToolError(message, where=self.where, remedy=f"{shown}The whole log: {self.log}")

    def refusal(self, error: Any) -> WherryError:
        """The error that a tool wrote into its response."""
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return self.error(f"the tool's response holds an error without a message: {error!r}")
        kind = UnsupportedError if error.get("unsupported") is True else ToolError
        where, remedy = error.get("where"), error.get("remedy")
        return kind(
            error["message"],
            where=where if isinstance(where, str) else self.where,
            remedy=remedy if isinstance(remedy, str) else f"The whole log: {self.log}",
        )


class _Output:
    """What a tool prints: the log keeps its beginning and its last lines."""

    def __init__(
        self, stream: IO[bytes], keep_bytes: int, progress: Callable[[str], None] = _tell_nobody
    ) -> None:
        self._progress = progress
        self._line = b""
        self._stream = stream
        self._keep_bytes = keep_bytes
        self.total = 0
        self._tail = b""

    def add(self, data: bytes) -> None:
        kept = data[: max(0, self._keep_bytes - self.total)]
        self.total += len(data)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if kept:
            self._stream.write(kept)
            self._stream.flush()
        self._tell(data)

    def _tell(self, data: bytes) -> None:
        """Pass on the last whole line of progress in what was printed."""
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[:_SHOWN_CHARS]  # a line without an end is none of ours
        for line in reversed(lines):
            if line.startswith(PROGRESS):
                text = line.removeprefix(PROGRESS)[:_SHOWN_CHARS].decode("utf-8", "replace")
                self._progress("".join(filter(str.isprintable, text)))
                return

    def note(self, text: str) -> None:
        """Write a line of our own."""
        left_out = self.total - self._keep_bytes
        if left_out > 0:
            tail = self._tail[-left_out:]
            if left_out > len(tail):
                self._stream.write(b"\n[%d bytes left out]\n" % (left_out - len(tail)))
            self._stream.write(tail)
        begin = "" if self._tail[-1:] in {b"", b"\n"} else "\n"
        self._stream.write(f"{begin}{text}\n".encode())
        self._stream.flush()

    def last_lines(self) -> str:
        """The end as text, indented: what a progress bar overwrote and control codes are gone."""
        text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", self._tail.decode("utf-8", "replace"))
        lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
        lines = ["".join(filter(str.isprintable, line.expandtabs())) for line in lines]
        shown = "\n".join(f"    {line}" for line in lines if line.strip())
        return "\n".join(shown[-_SHOWN_CHARS:].splitlines()[-_SHOWN_LINES:])


def _environment(python: Path, scratch: Path, cores: int | None) -> dict[str, str]:
    """The host's variables, less what would leak the host's Python into the tool's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") and name not in {"VIRTUAL_ENV", "CONDA_PREFIX"}
    }
    threads = str(cores or len(os.sched_getaffinity(0)))
    return kept | {
        "PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONFAULTHANDLER": "1",  # a segfault leaves the Python line in the log
        "PYTHONHASHSEED": "0",  # the same request gives the same artifact
        "TMPDIR": str(scratch),  # what a killed tool leaves goes with the step
        **dict.fromkeys(_THREADS, threads),
        # As many steps run at once as there are cores, and OpenBLAS's threads spin for each other:
        # two tools with two threads each on two cores took 2 to 6 times as long as with one.
        "OPENBLAS_NUM_THREADS": str(cores or kept.get("OPENBLAS_NUM_THREADS", 1)),
        # Threads that wait sleep: other steps run beside this one, and threads that spin instead
        # made a training of two threads nine times slower on two busy cores.
        "OMP_WAIT_POLICY": kept.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def _memory(supervisor: int, limit: int) -> int:
    """Resident bytes of the supervisor's descendants."""
    try:
        tree = psutil.Process(supervisor).children(recursive=True)
    except psutil.Error:
        return 0
    resident = _sum(tree, "memory_info", "rss")
    if resident <= limit:
        return resident
    # Forked processes share pages, which the sum counts many times. The exact figure is slow.
    return _sum(tree, "memory_full_info", "pss")


def _sum(tree: list[psutil.Process], method: str, figure: str) -> int:
    total = 0
    for process in tree:
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += int(getattr(getattr(process, method)(), figure))
    return total


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the supervisor, and with it everything of the tool."""
    for end in (process.terminate, process.kill):
        if process.poll() is None:
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"failed with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL:
        return f"was killed ({name}; the kernel does so where memory runs out)"
    return f"crashed ({name})"


def _read(path: Path) -> dict[str, Any]:
    """Read a response; raises ValueError that says what it is instead of a JSON object."""
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is not a plain file")
    if about.st_size > _RESPONSE_BYTES:
        raise ValueError(f"is larger than {_mib(_RESPONSE_BYTES)}")
    try:
        response = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(response, dict):
        raise ValueError(f"is {_KINDS[type(response)]}, no JSON object")  # noqa: TRY004 -- of a file
    return response


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value"}
_KINDS[type(None)] = "null"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
