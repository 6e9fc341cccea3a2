"""Files for users of MACE's own tools."""

from __future__ import annotations


def write(*args: object) -> None:
    """To be written."""
