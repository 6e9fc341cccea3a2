"""A folder on a disk of its own that is soon full; needs root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of that size (``40m``) there; skips where this machine lets nobody."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    done = subprocess.run(mount, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:  # root of a container often may not
        pytest.skip(f"no tmpfs can be mounted here, a full disk not tried: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
