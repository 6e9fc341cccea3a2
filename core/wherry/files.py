"""Files that a user names: whole, or as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a file to write to, which takes the place of ``path`` at the end, or is gone.

    A link stays one, and what it leads to is replaced. What is no file (``/dev/stdout``, a pipe)
    is written to as it is: nothing can take its place.

    Raises:
        OSError: there can be no such file.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def check_place(path: Path, what: str) -> None:
    """Raise `UsageError` where no file can be at a path: before what it is for has taken hours.

    Args:
        path: the file.
        what: it is to be, for the error: ``the bundle``.
    """
    if path.is_dir() or not path.parent.is_dir():
        why = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise UsageError(
            f"{what} cannot be written: its file {why}",
            where=str(path),
            remedy="Name a file in a folder that is there.",
        )
