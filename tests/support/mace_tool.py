"""The ``mace_run`` of the tests: the real one where MACE_RUN names it, else the stand-in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

STAND_IN = Path(__file__).with_name("mace_run.py")


def real() -> str | None:
    """The real one's path; None where there is none."""
    return os.environ.get("MACE_RUN")


def stand_in(folder: Path) -> str:
    """A program in a folder that is the stand-in."""
    path = folder / "mace_run"
    path.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(STAND_IN)!r}, ")
    with path.open("a") as stream:
        stream.write("run_name='__main__')\n")
    path.chmod(0o755)
    return str(path)
