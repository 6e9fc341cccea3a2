"""The last lines of what a process writes to its stderr."""

from __future__ import annotations

import threading

_LINES = 20
_BYTES = 20_000


class Tail:
    """Keeps the end of a stream; fed by one thread, read by others."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        """What came next."""
        with self._lock:
            self._bytes += data
            del self._bytes[:-_BYTES]

    def text(self) -> str:
        """The last lines, for people."""
        with self._lock:
            text = self._bytes.decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-_LINES:])
