"""A channel: starts an agent on the board, and carries frames to and from it."""

from __future__ import annotations

import functools
import hashlib
import json
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wherry.errors import Interrupted
from wherry_devices.agent import frames
from wherry_devices.connection import Connection, Process

_PACKAGE = "wherry-agent/wherry_agent"
_MAIN = "from wherry_agent.main import main\n\nmain()\n"
_NOISE_BYTES = 1 << 16  # what a login shell may print before the agent's bootstrap speaks
_POLL_S = 0.2  # how soon a stopped run is noticed
_END_S = 5.0  # a process that closed its stdout has ended soon after


class AgentEnded(Exception):  # noqa: N818 -- an event; sessions turn it into an error of wherry's
    """The agent's process is gone.

    Attributes:
        reason: what was wrong with its stream; empty where it just ended.
        status: exit status, minus the signal's number; None where nobody knows.
        stderr: its last lines.
    """

    def __init__(self, reason: str, status: int | None, stderr: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.stderr = stderr


class AgentSilent(Exception):  # noqa: N818 -- an event, as above
    """The agent did not answer in time."""


@functools.cache
def bundle() -> tuple[str, bytes]:
    """The agent's files as they are sent: (sha256, JSON object of path to text)."""
    folder = Path(frames.__file__).parent
    files = {
        f"{_PACKAGE}/{path.name}": path.read_text("utf-8")
        for path in sorted(folder.glob("*.py"))
        if path.name != "bootstrap.py"
    }
    files["wherry-agent/__main__.py"] = _MAIN
    text = json.dumps(files, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest(), text


class Channel:
    """See the module. The agent's files are sent where the board does not have them.

    Args:
        connection: to the board.
        python: the interpreter on the board that runs the agent; empty: the board's own.
        arguments: the agent's role and its options.
        patience_s: an agent that takes nothing for so long while we write is ended.
    """

    def __init__(
        self, connection: Connection, python: str, arguments: Sequence[str], patience_s: float
    ) -> None:
        bootstrap = (Path(frames.__file__).parent / "bootstrap.py").read_text("utf-8")
        digest, _ = bundle()
        self._patience_s = patience_s
        self._cancelled = connection.cancelled
        self._heard = time.monotonic()
        self._process: Process = connection.start(
            bootstrap, [connection.root, digest, python, *arguments]
        )
        self._frames: queue.SimpleQueue[frames.Frame | None] = queue.SimpleQueue()
        self._reason = ""
        self._writing = threading.Lock()
        self._taker = threading.Thread(target=self._take, name="wherry-frames", daemon=True)
        self._taker.start()

    @property
    def silent_s(self) -> float:
        """How long the agent has given no sign of life; that it takes what we write is one."""
        return 0.0 if self._writing.locked() else time.monotonic() - self._heard

    def send(self, header: Mapping[str, Any], tensors: Sequence[frames.Tensor] = ()) -> None:
        """Send a frame, from any thread; raises `FrameError` where it is too large.

        Where the agent is gone, `receive` says how it went.
        """
        buffers = frames.encode(header, tensors)
        with self._writing:
            self._write(buffers)
            self._heard = time.monotonic()  # not for pings, which a dead link's buffers take too

    def ping(self, header: Mapping[str, Any]) -> None:
        """Send a frame unless another is being sent, which does as well; no sign of life."""
        if self._writing.acquire(blocking=False):
            try:
                self._write(frames.encode(header))
            finally:
                self._writing.release()

    def receive(self, limit_s: float) -> frames.Frame:
        """The next frame.

        Raises:
            AgentEnded: there is none.
            AgentSilent: none came within ``limit_s`` seconds.
            Interrupted: the run was stopped.
        """
        deadline = time.monotonic() + limit_s
        while True:
            if self._cancelled.is_set():
                raise Interrupted("the session was stopped")
            try:
                left = deadline - time.monotonic()
                frame = self._frames.get(timeout=max(0.0, min(left, _POLL_S)))
                break
            except queue.Empty:
                if left <= _POLL_S:
                    raise AgentSilent(f"no answer within {limit_s:g} s") from None
        if frame is None:
            self._frames.put(None)  # for whoever asks again
            raise self._ended()
        return frame

    def kill(self, reason: str) -> None:
        """End the agent now; ``reason`` is what `AgentEnded` will say."""
        self._reason = self._reason or reason
        self._process.kill()

    def close(self, limit_s: float) -> None:
        """Hang up; the agent has ``limit_s`` seconds to end by itself."""
        with self._writing:
            self._process.close_input()
        try:
            if self._process.wait(limit_s) is None:
                self._process.kill()
        except OSError as error:  # the link was lost: nothing is left to end from here
            self._reason = self._reason or str(error)
        self._taker.join(_END_S)
        self._process.close()

    def _write(self, buffers: Sequence[memoryview]) -> None:
        try:
            self._process.write(buffers, self._patience_s)
        except TimeoutError as error:
            self.kill(str(error))
        except OSError:
            return  # `receive` says how the agent ended

    def _ended(self) -> AgentEnded:
        try:
            status = self._process.wait(_END_S)
            if status is None:  # it closed its stdout and lives on: useless to us
                self._process.kill()
        except OSError as error:
            return AgentEnded(self._reason or str(error), None, self._process.stderr_tail())
        return AgentEnded(self._reason, status, self._process.stderr_tail())

    def _take(self) -> None:
        """The thread that reads."""
        try:
            if self._bootstrap():
                reader = frames.Reader(self._readinto)
                while (frame := reader.read()) is not None:
                    self._frames.put(frame)
        except frames.TruncatedError:
            pass  # it died while it wrote: its status says more
        except (frames.FrameError, OSError) as error:
            self.kill(str(error))
        finally:  # whatever ends this thread, nobody waits for a frame that cannot come
            self._frames.put(None)

    def _bootstrap(self) -> bool:
        """Skip what a login shell says, and send the agent's files if they are missed."""
        line, last, seen = bytearray(), b"", 0
        byte = bytearray(1)
        while seen < _NOISE_BYTES and self._readinto(memoryview(byte)):
            seen += 1
            line += byte
            if byte != b"\n":
                continue
            if line == b"wherry-bootstrap have\n":
                return True
            if line == b"wherry-bootstrap need\n":
                _, text = bundle()
                size = b"%d\n" % len(text)
                with self._writing:
                    self._write([memoryview(size), memoryview(text)])
                return True
            last = bytes(line) if line.strip() else last
            line.clear()
        said = (bytes(line) or last)[-200:].decode(errors="replace").strip()
        reason = f"the agent did not start; the board said {said!r}"
        if seen >= _NOISE_BYTES:
            raise frames.FrameError(reason)
        self._reason = self._reason or reason  # it has ended: its status says more
        return False

    def _readinto(self, view: memoryview) -> int:
        count = self._process.readinto(view)
        self._heard = time.monotonic()
        return count
