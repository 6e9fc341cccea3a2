"""Fixed clocks for the time of a lease, and their return, whatever happens.

What is changed is written down first, in a record in the agent's folder. It is restored by whoever
comes first: the service, when the host asks or hangs up; the guardian, a small process that waits
for the service's end, however it ends (its stdin is a pipe whose other end only the service has);
or the next service that takes the lease, which also finds what a reboot left. A lock keeps them
apart, and a token keeps a late guardian away from a record that is not its own.

Changed are, on any Linux, each cpufreq policy's governor (``performance``) and its least clock (its
greatest); on a Jetson the clocks that ``jetson_clocks`` sets, after its own ``--store`` and undone
by its own ``--restore``; the power mode (``nvpmodel -m``) only where it was asked for. What is not
ours to write is tried once more through ``sudo -n``. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .commands import power_mode, run, tool
from .sysfs import folders, text

_LIMIT_S = 20.0  # for jetson_clocks or nvpmodel
_CPUFREQ = "sys/devices/system/cpu/cpufreq"
_BOOT = "proc/sys/kernel/random/boot_id"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
_WAIT_S = 5.0  # for the guardian to see that nothing is left to do


class Stabiliser:
    """See the module.

    Args:
        home: the folder of ours on this board.
        root: where /sys, /proc and the tools are looked for.
    """

    def __init__(self, home: Path, root: Path = Path("/")) -> None:
        self._home = home
        self._root = root
        self._record = home / "stabilised.json"
        self._guardian: subprocess.Popen[bytes] | None = None
        self._busy = threading.RLock()  # the service asks from several threads
        self._closed = False

    def set(self, mode: int | None) -> dict[str, list[str]]:
        """Fix the clocks: ``done`` and ``problems``, sentences.

        Args:
            mode: the power mode to set, by nvpmodel's number; None: as it is.
        """
        with self._busy:
            left = ["The service ends."] if self._closed else self.restore()
            return {"done": [], "problems": left} if left else self._set(mode)

    def _set(self, mode: int | None) -> dict[str, list[str]]:
        with self._alone():
            done: list[str] = []
            problems: list[str] = []
            token = secrets.token_hex(8)
            record = self._snapshot(token, mode)
            try:
                self._guard(token)
                self._write_record(record)
            except OSError as error:
                problems.append(f"The clocks are as they were: no way to give them back: {error}.")
                return {"done": done, "problems": problems}
            if mode is not None:
                self._set_mode(mode, record, done, problems)
            self._lock_jetson(record, done, problems)
            self._set_governors(record["files"], done, problems)
            if not (record["files"] or record["clocks"]):
                problems.append("The board offers no clocks to fix.")
            return {"done": done, "problems": problems}

    def restore(self, token: str | None = None) -> list[str]:
        """Undo what the record says; what could not be undone, in sentences, stays in the record.

        Args:
            token: of the record; None: any.
        """
        problems: list[str] = []
        with self._busy:
            try:
                if self._record.exists():
                    with self._alone():
                        problems = self._restore(token)
            except _UNREADABLE as error:  # a lease must be had all the same
                problems = [f"{self._record} says nothing of use of the board's clocks: {error!r}."]
            self._dismiss()
        return problems

    def close(self) -> None:
        """Restore, and set nothing any more: what was asked just before comes too late."""
        with self._busy:
            self._closed = True
            self.restore()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = os.open(self._home / "stabilised.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _snapshot(self, token: str, mode: int | None) -> dict[str, Any]:
        files: dict[str, str] = {}
        for folder in folders(self._root / _CPUFREQ, "policy"):
            # the least clock first: with the old governor it is free to fall again
            for name in ("scaling_min_freq", "scaling_governor"):
                value = text(folder / name)
                if value:
                    files[str(folder / name)] = value
        jetson = tool(self._root, "jetson_clocks") is not None
        found = self._mode() if mode is not None else None
        return {
            "token": token,
            "boot": text(self._root / _BOOT),
            "files": files,
            "clocks": str(self._home / f"jetson_clocks.{token}") if jetson else None,
            "mode": None if found is None or found == mode else found,
        }

    def _write_record(self, record: dict[str, Any]) -> None:
        writing = self._record.with_suffix(".new")
        with writing.open("w", encoding="utf-8") as stream:
            json.dump(record, stream)
            stream.flush()
            os.fsync(stream.fileno())
        writing.replace(self._record)
        folder = os.open(self._home, os.O_RDONLY)
        try:
            os.fsync(folder)  # the record has to survive a reboot: the power mode does
        finally:
            os.close(folder)

    def _set_mode(
        self, mode: int, record: dict[str, Any], done: list[str], problems: list[str]
    ) -> None:
        if record["mode"] is not None:
            _, said = self._tool("nvpmodel", "-m", str(mode))
            if self._mode() != mode:
                problems.append(f"The power mode could not be set to {mode}: {_tail(said)}.")
                return
        elif self._mode() is None:
            problems.append(
                f"The power mode could not be set to {mode}: nvpmodel does not tell it."
            )
            return
        done.append(f"power mode {mode}")

    def _lock_jetson(self, record: dict[str, Any], done: list[str], problems: list[str]) -> None:
        if record["clocks"] is None:
            return
        status, said = self._tool("jetson_clocks", "--store", record["clocks"])
        if status == 0:
            status, said = self._tool("jetson_clocks")
        if status:
            problems.append(f"jetson_clocks could not fix the clocks: {_tail(said)}.")
        else:
            done.append("jetson_clocks")

    def _set_governors(self, files: dict[str, str], done: list[str], problems: list[str]) -> None:
        for path in files:
            folder, name = Path(path).parent, Path(path).name
            governor = name == "scaling_governor"
            value = "performance" if governor else text(folder / "scaling_max_freq")
            word = "governor" if governor else "least clock"
            refusal = self._write(path, value) if value else "the greatest is not told"
            if not refusal and governor and text(Path(path)) != value:
                refusal = f"it stays {text(Path(path))}"
            if refusal:
                problems.append(f"The {word} of {folder.name} could not be set: {refusal}.")
            else:
                done.append(f"{word} of {folder.name}: {value}")

    def _restore(self, token: str | None) -> list[str]:
        """`restore`, for who holds the lock."""
        try:
            record = json.loads(self._record.read_text("utf-8"))
        except FileNotFoundError:
            return []
        if token is not None and record["token"] != token:
            return []
        problems = []
        if record["mode"] is not None and self._mode() != record["mode"]:
            _, said = self._tool("nvpmodel", "-m", str(record["mode"]))
            if self._mode() != record["mode"]:
                problems.append(
                    f"The power mode could not be set back to {record['mode']}: {_tail(said)}."
                )
        if record["boot"] == text(self._root / _BOOT):  # else the reboot has undone the rest
            clocks = record["clocks"]
            if clocks is not None and Path(clocks).exists():
                status, said = self._tool("jetson_clocks", "--restore", clocks)
                if status:
                    problems.append(f"jetson_clocks could not restore: {_tail(said)}.")
            for path, value in record["files"].items():
                refusal = "" if text(Path(path)) == value else self._write(path, value)
                if refusal and Path(path).exists():  # a core that was switched off needs nothing
                    problems.append(f"{path} could not be set back to {value}: {refusal}.")
        if not problems:
            if record["clocks"] is not None:
                Path(record["clocks"]).unlink(missing_ok=True)
            self._record.unlink()
        return problems

    def _mode(self) -> int | None:
        nvpmodel = tool(self._root, "nvpmodel")
        found = power_mode(run([nvpmodel, "-q"], limit_s=_LIMIT_S)[1]) if nvpmodel else None
        return None if found is None else found[1]

    def _tool(self, name: str, *arguments: str) -> tuple[int, str]:
        """Run a board's tool as root."""
        path = tool(self._root, name)
        if path is None:
            return -1, f"there is no {name}"
        return run([*self._as_root(), path, *arguments], limit_s=_LIMIT_S)

    def _write(self, path: str, value: str) -> str:
        """Write a file of /sys; why it could not be, or nothing."""
        try:
            with open(path, "w", encoding="ascii") as stream:  # noqa: PTH123 -- as in sysfs.py
                stream.write(value)
        except OSError as error:
            sudo, tee = self._as_root(), tool(self._root, "tee")
            if not (isinstance(error, PermissionError) and sudo and tee):
                return error.strerror or str(error)
            status, said = run([*sudo, tee, path], stdin=value.encode())
            return f"{error.strerror}, and sudo says: {_tail(said)}" if status else ""
        return ""

    def _as_root(self) -> list[str]:
        """What goes before a command that needs root; nothing where we are root, or cannot be."""
        sudo = tool(self._root, "sudo")
        return [sudo, "-n"] if sudo and os.geteuid() else []

    def _dismiss(self) -> None:
        """End the guardian, which sees that nothing is left to do, or tries what we could not."""
        if self._guardian is not None:
            guardian, self._guardian = self._guardian, None
            assert guardian.stdin is not None
            guardian.stdin.close()
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # it ends by itself, a little later
                guardian.wait(_WAIT_S)

    def _guard(self, token: str) -> None:
        """Start the guardian, which outlives us, and whoever ends our session or our group.

        Raises:
            OSError: it did not start.
        """
        command = [sys.executable, "-I", "-B", "-X", "utf8", sys.argv[0], str(self._home)]
        command += ["guard", token, "--system", str(self._root)]
        self._guardian = subprocess.Popen(
            command,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._guardian.stdout is not None
        with self._guardian.stdout as stdout:  # a byte where it is ready, else its end
            ready, _, _ = select.select([stdout], [], [], _LIMIT_S)
            if not ready or not stdout.read(1):
                raise OSError("the process that would do it did not start")


def guard(home: Path, token: str, root: Path) -> None:
    """The guardian: wait until the service is gone, then restore what it left."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"\n")
    while os.read(0, 1):  # the service writes nothing; its end is the end of the pipe
        pass
    Stabiliser(home, root).restore(token)


def _tail(said: str) -> str:
    """The last line that a tool wrote."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it says nothing"
