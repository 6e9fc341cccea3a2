"""Words that errors and verbs share: counts, and the first of many names."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 5


def counted(count: int, noun: str) -> str:
    """``1 target``, ``2 targets``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """The first of the names that there are: ``'a', 'b' and 7 more``, or ``none``."""
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more or "none"
