"""The agent's wires: frames over stdin and stdout, which nothing else in the process may touch."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from . import frames


class HostSilent(Exception):  # noqa: N818 -- an event
    """The host said nothing for longer than it promised to."""


class Wire:
    """The frames to and from the host.

    Takes stdin and stdout away from everything else in this process: what a runtime prints goes to
    stderr, what it reads is empty.

    Args:
        silence_s: the host speaks at least that often; None: it may be silent for ever.
    """

    def __init__(self, silence_s: float | None = None) -> None:
        self._silence_s = silence_s
        self._input, self._output = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self._reader = frames.Reader(self._readinto)
        self._writing = threading.Lock()

    def read(self) -> frames.Frame | None:
        """The host's next frame; None when it hung up.

        Raises:
            HostSilent: see there.
            frames.FrameError: what came is no frame.
        """
        return self._reader.read()

    def write(self, header: Mapping[str, Any], tensors: Sequence[frames.Tensor] = ()) -> None:
        """Send a frame; from any thread."""
        buffers = frames.encode(header, tensors)
        with self._writing:
            frames.write(self._output, buffers)

    def _readinto(self, view: memoryview) -> int:
        if self._silence_s is not None:
            ready, _, _ = select.select([self._input], [], [], self._silence_s)
            if not ready:
                raise HostSilent(f"the host was silent for {self._silence_s} s")
        return os.readv(self._input, [view])
