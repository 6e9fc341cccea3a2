"""The terminal, which a display of progress and a question to the user cannot have at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Screen:
    """Lends the terminal to who asks the user something, one thread at a time."""

    _hide: Callable[[], None] = lambda: None
    _show: Callable[[], None] = lambda: None
    _lent: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def display(self, *, hide: Callable[[], None], show: Callable[[], None]) -> Iterator[None]:
        """While something is displayed that can be hidden and shown again."""
        with self._lent:
            before = self._hide, self._show
            self._hide, self._show = hide, show
        try:
            yield
        finally:
            with self._lent:
                self._hide, self._show = before

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """While the user is asked."""
        with self._lent:
            self._hide()
            try:
                yield
            finally:
                self._show()


SCREEN = Screen()
