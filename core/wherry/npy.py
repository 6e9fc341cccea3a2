"""Reading NumPy's files (.npy, .npz) in a process with several threads: one at a time."""

from __future__ import annotations

import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SYNTAX_TREES = threading.Lock()
"""To be held by what makes syntax trees of Python in a thread: reading a header of NumPy's files
(`ast.literal_eval`), writing a traceback. CPython (seen with 3.11.7) counts their depth for all
threads at once: where a finalizer lets another thread in between, both fail with "SystemError: AST
constructor recursion depth mismatch" (its issue 106905)."""


_BEGINNINGS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
"""Of an array, of an archive, and of an archive with nothing in it."""


def load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or all arrays of a .npz file by name; nothing is unpickled.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or a damaged one.
    """
    with _opened(path) as found:
        return found if _is_array(found) else _members(found)


def load_array(path: Path) -> np.ndarray:
    """`load` of a file with one array; raises ValueError for one with named arrays, too."""
    with _opened(path) as found:
        if not _is_array(found):
            raise ValueError("a file of arrays (.npz), not one array (.npy)")
        array: np.ndarray = found
        return array


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """`load` of a file with named arrays; raises ValueError for one with a single one, too."""
    with _opened(path) as found:
        if _is_array(found):
            raise ValueError("one array (.npy), not a file of arrays (.npz)")
        return _members(found)


def map_array(path: Path) -> np.ndarray:
    """The array of a .npy file, which stays there and is read as it is used.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or a damaged one.
    """
    import numpy as np

    with SYNTAX_TREES, _damage():
        found = np.lib.format.open_memmap(path, mode="r")
    return np.asarray(found)  # np.memmap takes ten times as long to give one sample


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An array, or NumPy's view of an archive: its members are read inside."""
    import numpy as np

    # opened here: np.load would leave it open where it is no archive
    with SYNTAX_TREES, _damage(), path.open("rb") as stream:
        if not stream.peek(8).startswith(_BEGINNINGS):  # NumPy would speak of pickled objects
            raise ValueError("it is no file of NumPy's")
        yield np.load(stream, allow_pickle=False)


@contextmanager
def _damage() -> Iterator[None]:
    """What is wrong with a file is a ValueError, in whichever of its layers."""
    try:
        yield
    except (EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _members(found: Any) -> dict[str, np.ndarray]:
    """All; one that is no .npy file is an array of bytes."""
    import numpy as np

    return {name: np.asarray(found[name]) for name in found.files}


def _is_array(found: Any) -> bool:
    import numpy as np

    return isinstance(found, np.ndarray)
