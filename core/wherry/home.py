"""The folder of wherry's own files: the store, the environments, the runs, the logs."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``$WHERRY_HOME``, else the user's cache folder; absolute, not yet made."""
    named = os.environ.get("WHERRY_HOME")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("wherry")
