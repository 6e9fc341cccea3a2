"""Runs pip as if on a board: markers of dependencies are decided for the board, not for us.

pip takes a platform's tags and its Python by options, but decides markers (``numpy;
python_version < "3.9"``) for the interpreter that runs it. This gives it the board's values. They
go into pip's own copy of ``packaging``: so it runs with the one version of pip that it was tried
with, `wherry.engine.wheels.PIP`.

Arguments: the markers' variables as a JSON object, then pip's own. It is run by the interpreter
that has that pip, and imports nothing of ours.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def main() -> None:
    """Run pip; the exit status is its own."""
    board = json.loads(sys.argv[1])
    markers: Any = importlib.import_module("pip._vendor.packaging.markers")
    assert callable(markers.default_environment)  # another pip may call it otherwise
    markers.default_environment = lambda: dict(board)
    sys.exit(importlib.import_module("pip._internal.cli.main").main(sys.argv[2:]))


if __name__ == "__main__":
    main()
