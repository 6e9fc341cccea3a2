"""Runs one tool and outlives it: ``python -I -S supervise.py HOST_PID PROGRAM [ARGUMENT ...]``.

A process between the host and a tool, standard library alone. It is a *child subreaper*: whatever
the tool forks and abandons, sessions of its own included, becomes a child of this process when its
parent ends. So "no children left" means that nothing of the tool is left, which no process group
and no list of descendants can promise. It ends everything when the tool ends, when the host asks
for it (SIGTERM), and when the host is gone, killed or not.

The tool's output goes to this process's stderr; stdout takes one line at the end: the tool's exit
code, negative for a signal, or ``stopped``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36  # both: linux/prctl.h
_CANNOT_RUN = 127  # what a shell says


class _StopError(BaseException):
    """The host asked for the end, or has ended itself."""


def main(arguments: list[str]) -> None:
    """Supervise one tool from its start to the end of the last process that it left."""
    host = int(arguments[0])

    def stop(_number: int, _frame: object) -> NoReturn:
        raise _StopError

    signal.signal(signal.SIGTERM, stop)
    outcome = "stopped"
    try:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == host:  # else it ended before the line above
            outcome = str(_wait(_start(arguments[1:])))
    except _StopError:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_all()
    # The host may be gone, and its end of the pipe with it.
    with contextlib.suppress(OSError):
        os.write(1, f"{outcome}\n".encode())


def _start(command: list[str]) -> int:
    """Fork the tool; returns its pid, which is also its process group."""
    supervisor = os.getpid()
    tool = os.fork()
    if tool:
        return tool
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # if somebody kills the supervisor itself
        if os.getppid() != supervisor:
            os._exit(_CANNOT_RUN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves a log, not gigabytes
        # Under memory pressure the kernel takes the tool before the host. Raising is always
        # allowed; the file is absent in some containers.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
        os.dup2(2, 1)
        os.execv(command[0], command)  # noqa: S606 -- the tool, an argv list
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    os._exit(_CANNOT_RUN)


def _wait(tool: int) -> int:
    """Wait for the tool, collecting what it abandons meanwhile; returns its exit code."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == tool:
            return os.waitstatus_to_exitcode(status)


def _end_all() -> None:
    """Kill children until there are none: grandchildren become children when theirs end."""
    while True:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)  # the killed ones are on their way


def _children() -> list[int]:
    """The direct children of this process."""
    own = os.getpid()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 -- plain names, thousands of them
        if not name.isdigit():
            continue
        try:
            status = Path("/proc", name, "stat").read_text(encoding="ascii", errors="replace")
        except OSError:  # it has ended
            continue
        # "pid (command) state ppid ...": the command may hold blanks and parentheses
        if int(status.rpartition(")")[2].split()[1]) == own:
            found.append(int(name))
    return found


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main(sys.argv[1:])
