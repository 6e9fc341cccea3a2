"""Sends files to a board's store: one stream at the pace of the link, packed where that pays."""

from __future__ import annotations

import collections
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.errors import StoreError
from wherry_devices.agent import frames

_CHUNK_S, _CHUNK_BYTES = 0.03, (1 << 16, 1 << 22)  # what is sent at once: least and most
_FLIGHT_S, _FLIGHT_BYTES = 1.0, (1 << 18, 1 << 26)  # sent, and not yet confirmed
_REMEMBERED = 16  # confirmations, of which the pace is made
_SAMPLE_BYTES = 1 << 15
_PACKABLE_BYTES = 1 << 12  # less is not worth a look
_UNPACK_RATE = 5e7  # bytes/s that a small board unpacks, about
_WORTH = 1.5  # what packing saves, over what it costs: more than that


class Pace:
    """How fast a link takes bytes, from what has been confirmed.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=_REMEMBERED)
        self._total = 0

    def begin(self) -> None:
        """Something is sent after a pause that says nothing of the link."""
        self._marks.clear()
        self._marks.append((self._clock(), self._total))

    def confirm(self, size: int) -> None:
        """So many bytes more have crossed the link."""
        self._total += size
        self._marks.append((self._clock(), self._total))

    @property
    def rate(self) -> float | None:
        """Bytes/s; None: nobody knows yet."""
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        return (after - before) / (last - first) if last > first and after > before else None

    @property
    def chunk_bytes(self) -> int:
        """How much to send at once: little where it takes long, so that it is heard of soon."""
        return _between(_CHUNK_BYTES, (self.rate or 0.0) * _CHUNK_S)

    @property
    def flight_bytes(self) -> int:
        """How much may be under way: enough that a far board never waits."""
        return _between(_FLIGHT_BYTES, (self.rate or 0.0) * _FLIGHT_S)

    def packed(self, chunk: bytes) -> bytes | None:
        """The chunk in zlib's form, where that is sooner there; else None."""
        rate = self.rate
        if rate is None or len(chunk) < _PACKABLE_BYTES:
            return None
        sample = chunk[:_SAMPLE_BYTES]
        begun = self._clock()
        saved = 1 - len(zlib.compress(sample, 1)) / len(sample)  # of each byte
        cost_s = (self._clock() - begun) / len(sample) + 1 / _UNPACK_RATE
        if saved / rate <= _WORTH * cost_s:
            return None
        return zlib.compress(chunk, 1)


@dataclass(frozen=True)
class _Sent:
    """A chunk under way: the number of its question, and its bytes on the link."""

    number: int
    size: int


class Shipment:
    """Sends files; every chunk is confirmed by the board.

    Args:
        ask: sends a question with a chunk, and gives its number; the first argument is the number
            of the question that it goes on with, or None.
        answer: waits for the next answer to the question of that number.
        pace: of the link.
    """

    def __init__(
        self,
        ask: Callable[[int | None, Mapping[str, Any], frames.Tensor], int],
        answer: Callable[[int], Mapping[str, Any]],
        pace: Pace,
    ) -> None:
        self._ask = ask
        self._answer = answer
        self._pace = pace
        self._flight: collections.deque[_Sent] = collections.deque()
        self._under_way = 0
        self._damaged: list[str] = []

    def send(self, missing: Mapping[str, int], sources: Mapping[str, Path]) -> list[str]:
        """Send files.

        Args:
            missing: sha256 to the byte from which on the board wants the file.
            sources: sha256 to the file on the host.

        Returns:
            Those of which the board's part was damaged: send them again, from the start.

        Raises:
            DeviceLostError: the board was lost; what has arrived is kept there.
            DeviceError: it refused.
            StoreError: a file has changed meanwhile.
        """
        self._pace.begin()
        for digest, start in missing.items():
            self._send(digest, sources[digest], start)
        while self._flight:
            self._confirm()
        return self._damaged

    def _send(self, digest: str, path: Path, start: int) -> None:
        with path.open("rb") as stream:
            size, done, number = path.stat().st_size, start, None
            stream.seek(start)
            while True:
                chunk = stream.read(self._pace.chunk_bytes)
                if not chunk and done < size:
                    raise StoreError(
                        "the file became shorter while it was sent",
                        where=str(path),
                        remedy="Leave wherry's files alone and run again.",
                    )
                header: dict[str, Any] = {"sha256": digest, "size": size}
                packed = self._pace.packed(chunk)
                if packed is not None:
                    header["encoding"] = "zlib"
                data = memoryview(chunk if packed is None else packed)
                tensor = frames.Tensor("data", "uint8", (len(data),), data)
                number = self._ask(number, header, tensor)
                self._flight.append(_Sent(number, len(data)))
                self._under_way += len(data)
                while self._under_way > self._pace.flight_bytes:
                    self._confirm()
                done += len(chunk)
                if done >= size:
                    return

    def _confirm(self) -> None:
        """Wait for the oldest chunk's answer."""
        sent = self._flight.popleft()
        answer = self._answer(sent.number)
        self._under_way -= sent.size
        self._pace.confirm(sent.size)
        self._damaged += answer.get("damaged", [])


def _between(limits: tuple[int, int], value: float) -> int:
    least, most = limits
    return int(min(max(value, least), most))
