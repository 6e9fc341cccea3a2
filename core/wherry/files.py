"""Files that a user names: whole, or as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
