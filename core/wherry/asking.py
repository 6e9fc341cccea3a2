"""Many devices at the same time: each is asked by a thread, and Ctrl-C ends all of them at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from wherry.errors import Interrupted, WherryError

AT_ONCE = 32
"""Devices that are asked at the same time, where the work on each is short."""

_POLL_S = 0.2  # how soon it is noticed that the asking was cancelled
_END_S = 2.0  # for sessions to hang up; what is only about to connect is left to itself
T = TypeVar("T")


def at_once(
    names: Iterable[str],
    ask: Callable[[str], T],
    cancelled: threading.Event,
    bound: int = AT_ONCE,
) -> dict[str, T | WherryError]:
    """What ``ask`` returns for each device, or the error that it raises, in the order of the names.

    Args:
        names: of the devices; a name that comes twice is asked once.
        ask: called from several threads.
        cancelled: ends the asking; it is set on Ctrl-C, so that the sessions end.
        bound: how many are asked at the same time.

    Raises:
        Interrupted: on Ctrl-C, or where ``cancelled`` was set.
    """
    listed = list(dict.fromkeys(names))
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[str, T | BaseException]] = queue.SimpleQueue()
    for name in listed:
        waiting.put(name)

    def work() -> None:
        while not cancelled.is_set():
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answers.put((name, ask(name)))
            except BaseException as error:  # noqa: BLE001 -- raised again by the thread that asks
                answers.put((name, error))

    # No pool: the threads of one are waited for, also those that wait for an address without an
    # answer, which nothing can end.
    threads = [
        threading.Thread(target=work, name=f"wherry-ask-{number}", daemon=True)
        for number in range(min(bound, len(listed)))
    ]
    found: dict[str, T | WherryError] = {}
    try:
        for thread in threads:
            thread.start()
        while len(found) < len(listed):
            try:
                name, answer = answers.get(timeout=_POLL_S)
            except queue.Empty:
                if cancelled.is_set():
                    raise Interrupted("stopped while devices were asked") from None
                continue
            if isinstance(answer, BaseException) and (
                isinstance(answer, Interrupted) or not isinstance(answer, WherryError)
            ):
                raise answer
            found[name] = answer
    except BaseException as error:
        cancelled.set()
        deadline = time.monotonic() + _END_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("stopped while devices were asked") from None
        raise
    return {name: found[name] for name in listed}
