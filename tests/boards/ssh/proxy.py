"""A TCP proxy in front of a board: a link that is slow, far, cut, frozen or down.

One thread forwards for all connections. A direction is a queue of what came and when it is due, so
that delay and rate are told apart; what a link of that speed would not hold is left in the sender's
socket buffers, which then fill as they do on a real one.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable

_CHUNK = 1 << 16
_QUEUED = 4 << 20  # what a fast link holds
_QUEUED_S = 0.25  # what a slow one holds
_Job = tuple[Callable[[], None], threading.Event]


class Proxy:
    """See the module; a context manager.

    Args:
        target: host and port of the board.
        delay_s: each way.
        rate: bytes a second, each way; None: as fast as it goes.
        host: address to listen on.

    Attributes:
        host: where it listens.
        port: likewise; it stays the same over `down` and `up`.
        delay_s: may change at any time.
        rate: likewise.
        sent: bytes that reached the board.
        received: bytes that came back.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        delay_s: float = 0.0,
        rate: float | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.target = target
        self.delay_s, self.rate = delay_s, rate
        self.sent = self.received = 0
        self._cut_at: dict[bool, int] = {}  # upwards or not, to the count at which all is cut
        self._frozen = self._closing = False
        self._jobs: collections.deque[tuple[Callable[[], None], threading.Event]] = (
            collections.deque()
        )
        self._pairs: set[_Pair] = set()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self.host, self.port = host, 0
        self._up()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        self._down()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def cut(self) -> None:
        """Reset all connections, as a board that went down and came back does."""
        self._ask(self._cut)

    def cut_after(self, *, sent: int | None = None, received: int | None = None) -> None:
        """Reset all connections once so many more bytes went that way, exactly there."""

        def note() -> None:  # by the thread that counts
            if sent is not None:
                self._cut_at[True] = self.sent + sent
            if received is not None:
                self._cut_at[False] = self.received + received

        self._ask(note)

    def cut_no_more(self) -> None:
        """Take back a `cut_after` that has not come yet."""
        self._ask(self._cut_at.clear)

    def freeze(self) -> None:
        """Forward nothing, close nothing: a cable that was pulled."""
        self._ask(self._freeze)

    def thaw(self) -> None:
        """Forward again, also what came meanwhile."""
        self._ask(self._thaw)

    def down(self) -> None:
        """Reset all connections and refuse new ones."""
        self._ask(self._down)

    def up(self) -> None:
        """Accept connections again."""
        self._ask(self._up)

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._pairs)

    def _ask(self, job: Callable[[], None]) -> None:
        """Have the thread do it, and wait until it has."""
        done = threading.Event()
        self._jobs.append((job, done))
        self._wake.send(b"x")
        assert done.wait(10), "the proxy's thread is gone"

    def _serve(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._pause()):
                if key.fileobj is self._woken:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(_CHUNK)
                elif key.fileobj is self._listener:
                    self._accept()
            while self._jobs:
                job, done = self._jobs.popleft()
                job()
                done.set()
            if not self._frozen:
                for pair in tuple(self._pairs):
                    if pair in self._pairs:  # a cut of one drops all
                        self._forward(pair)

    def _pause(self) -> float | None:
        """How long nothing is due."""
        if self._frozen:
            return None
        dues = [due for pair in self._pairs for way in pair.ways if (due := way.next_due())]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _accept(self) -> None:
        assert self._listener is not None
        host, _ = self._listener.accept()
        try:
            board = socket.create_connection(self.target, timeout=5)
        except OSError:  # the board is down: so is the link to it
            _reset(host)
            return
        pair = _Pair(_Way(host, board, True), _Way(board, host, False))
        for end in (host, board):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.add(pair)
        self._watch(pair)

    def _forward(self, pair: _Pair) -> None:
        try:
            for way in pair.ways:
                self._take(way)
                self._give(way)
        except _CutHere:
            self._cut()
            return
        except OSError:  # one end is gone, so the other one is
            self._drop(pair)
            return
        if all(way.ended for way in pair.ways):
            self._drop(pair)
        else:
            self._watch(pair)

    def _has_room(self, way: _Way) -> bool:
        room = _QUEUED if self.rate is None else self.rate * (self.delay_s + _QUEUED_S)
        return not way.finished and way.queued < max(room, _CHUNK)

    def _take(self, way: _Way) -> None:
        while self._has_room(way):
            try:
                data = way.source.recv(_CHUNK if self.rate is None else _CHUNK // 16)
            except BlockingIOError:
                return
            way.finished = not data
            now = time.monotonic()
            way.free = max(now, way.free) + (len(data) / self.rate if self.rate else 0.0)
            way.queue.append((way.free + self.delay_s, memoryview(data)))
            way.queued += len(data)

    def _give(self, way: _Way) -> None:
        way.blocked = False
        while way.queue and way.queue[0][0] <= time.monotonic():
            due, data = way.queue[0]
            if not data:
                with contextlib.suppress(OSError):  # it is gone already
                    way.sink.shutdown(socket.SHUT_WR)
                way.queue.popleft()
                way.ended = True
                return
            count = self.sent if way.up else self.received
            limit = self._cut_at.get(way.up)
            if limit is not None:
                data = data[: max(0, limit - count)]
            try:
                given = way.sink.send(data) if data else 0
            except BlockingIOError:
                way.blocked = True
                return
            if way.up:
                self.sent += given
            else:
                self.received += given
            way.queued -= given
            rest = way.queue[0][1][given:]
            if rest:
                way.queue[0] = (due, rest)
            else:
                way.queue.popleft()
            if limit is not None and count + given >= limit:
                del self._cut_at[way.up]
                raise _CutHere

    def _watch(self, pair: _Pair) -> None:
        """Wait for what can go on: no more, or the thread would spin."""
        for end in (pair.ways[0].source, pair.ways[1].source):
            events = 0
            for way in pair.ways:
                if way.source is end and self._has_room(way):
                    events |= selectors.EVENT_READ
                if way.sink is end and way.blocked:
                    events |= selectors.EVENT_WRITE
            if self._frozen:
                events = 0
            known = self._selector.get_map().get(end.fileno())
            if known is None and events:
                self._selector.register(end, events)
            elif known is not None and not events:
                self._selector.unregister(end)
            elif known is not None and known.events != events:
                self._selector.modify(end, events)

    def _drop(self, pair: _Pair) -> None:
        self._pairs.discard(pair)
        for way in pair.ways:
            with contextlib.suppress(KeyError):
                self._selector.unregister(way.source)
        for way in pair.ways:
            if way.ended:
                way.source.close()
            else:
                _reset(way.source)

    def _cut(self) -> None:
        for pair in tuple(self._pairs):
            self._drop(pair)

    def _freeze(self) -> None:
        self._frozen = True
        if self._listener is not None:
            self._selector.unregister(self._listener)
        for pair in self._pairs:
            self._watch(pair)

    def _thaw(self) -> None:
        if self._frozen and self._listener is not None:
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._frozen = False

    def _down(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(KeyError):  # frozen
                self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self._frozen = False
        self._cut()

    def _up(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port), backlog=256)
            self.port = self._listener.getsockname()[1]
            self._selector.register(self._listener, selectors.EVENT_READ)


class _CutHere(Exception):  # noqa: N818 -- an event
    """The byte at which the connections are to be cut has passed."""


class _Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        self.source, self.sink, self.up = source, sink, up
        self.queue: collections.deque[tuple[float, memoryview]] = collections.deque()
        self.queued = 0
        self.free = 0.0  # when the link has carried what it was given
        self.finished = self.ended = self.blocked = False

    def next_due(self) -> float | None:
        return self.queue[0][0] if self.queue and not self.blocked else None


class _Pair:
    """Both directions."""

    def __init__(self, up: _Way, down: _Way) -> None:
        self.ways = (up, down)


def _reset(end: socket.socket) -> None:
    """Close at once, with a reset rather than an orderly end."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
