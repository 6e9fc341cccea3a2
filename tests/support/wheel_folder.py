"""Folders of tiny wheels, in place of a package index."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wherry.engine.environments import Environments
from wherry.engine.wheels import PIP, Wheels
from wherry.requirements import Requirements


def put_wheel(
    folder: Path, file: str, *, python: str = "", requires: Iterable[str] = (), extras: str = ""
) -> None:
    """Make a wheel of metadata alone.

    Args:
        folder: where.
        file: its name, which says what it fits.
        python: its Requires-Python.
        requires: what it depends on.
        extras: the names of its extras, with spaces between them.
    """
    name, version = file.split("-")[:2]
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Python: {python}"] * bool(python)
    lines += [f"Requires-Dist: {text}" for text in requires]
    lines += [f"Provides-Extra: {extra}" for extra in extras.split()]
    info = f"{name}-{version}.dist-info"
    tag = "-".join(file.removesuffix(".whl").split("-")[2:])
    with zipfile.ZipFile(folder / file, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


def wheels_of(home: Path, shared: Path) -> Wheels:
    """Wheels whose locks are their own; pip's environment is that of another home."""
    python = Environments(shared).ensure(Requirements(packages=(PIP,)))
    environments: Any = SimpleNamespace(root=home / "environments", ensure=lambda _asked: python)
    return Wheels(home, environments, threading.Event())


def use_only(folder: Path, monkeypatch: Any) -> None:
    """Have pip look into a folder, and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("UV_OFFLINE", raising=False)
    monkeypatch.delenv("UV_EXCLUDE_NEWER", raising=False)
