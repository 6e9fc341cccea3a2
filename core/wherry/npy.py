"""Reading NumPy's files (.npy, .npz) in a process with several threads: one header at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


_HEADER = threading.Lock()
# NumPy reads a header by ast.literal_eval, and CPython (3.11 and 3.12 at least) has one counter for
# all threads that build syntax trees: where a finalizer lets another thread in between, both fail
# with "SystemError: AST constructor recursion depth mismatch" (CPython's issue 106905).


def load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or all arrays of a .npz file by name; nothing is unpickled.

    Raises:
        OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error: it is no such file.
    """
    import numpy as np

    with path.open("rb") as stream:  # np.load would leave it open where it is no archive
        with _HEADER:
            found: Any = np.load(stream, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        arrays = {}
        for name in found.files:
            with _HEADER:
                arrays[name] = np.asarray(found[name])
        return arrays


def load_array(path: Path) -> np.ndarray:
    """`load` of a file with one array; raises ValueError for one with named arrays, too."""
    found = load(path)
    if isinstance(found, dict):
        raise ValueError(  # noqa: TRY004 -- of a file
            "a file of arrays (.npz), not one array (.npy)"
        )
    return found


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """`load` of a file with named arrays; raises ValueError for one with a single one, too."""
    found = load(path)
    if not isinstance(found, dict):
        raise ValueError(  # noqa: TRY004 -- of a file
            "one array (.npy), not a file of arrays (.npz)"
        )
    return found


def map_array(path: Path) -> np.ndarray:
    """The array of a .npy file, which stays there and is read as it is used.

    Raises:
        OSError, ValueError, EOFError: it is no such file.
    """
    import numpy as np

    with _HEADER:
        found = np.lib.format.open_memmap(path, mode="r")
    return np.asarray(found)  # np.memmap takes ten times as long to give one sample
