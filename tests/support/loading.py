"""Modules that lie beside tests: pytest's importlib mode puts no test folder on sys.path.

This folder is on it (``pythonpath`` in pyproject.toml).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load(path: Path) -> ModuleType:
    """The module in a file of the tests, the same each time."""
    name = f"wherry_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before execution: dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]
