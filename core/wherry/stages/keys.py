"""What stands for code, tools and contents in the store's keys.

A result that is taken from the store although something that decides it has changed is the worst
that can happen. So every key holds the bytes that go into its step, the code that makes them
(a plugin's, its tools', wherry's own) and the packages that this code works with. A hook's
wrappers are in no key: they return what they were given.
"""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import wherry
from wherry.artifact import hash_file
from wherry.entry import canonical

if TYPE_CHECKING:
    from wherry.stages.services import Services
    from wherry.store import Entry

OWN = Path(wherry.__file__).parent
NOTES = "wherry-notes.json"
"""In every entry made by a stage: the run that made it, and the warnings of its step, which are
shown again when it is taken."""


@cache
def own_lock() -> str:
    """sha256 over the host's interpreter and the packages that hooks and their tools use there."""
    from importlib.metadata import PackageNotFoundError, version

    parts = [platform.python_version(), platform.machine()]
    for package in ("numpy", "onnx", "onnxruntime", "onnxslim"):
        try:
            parts.append(f"{package}=={version(package)}")
        except PackageNotFoundError:  # a vendored or development copy without metadata
            parts.append(f"{package} of unknown version")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def own_code(*modules: str) -> str:
    """sha256 over files of wherry's own that decide an entry, e.g. ``data/views``."""
    return files_digest(tuple(OWN / f"{module}.py" for module in modules))


@cache
def normalise_code() -> str:
    """sha256 over what makes a model's normal form."""
    return files_digest((OWN / "reference.py", *(OWN / "normalise").glob("*.py")))


@cache
def packing_code() -> str:
    """sha256 over what makes containers."""
    return files_digest(tuple((OWN / "packing").glob("*.py")))


def plugin_code(services: Services, kind: str, name: str, files: tuple[Path, ...]) -> str:
    """sha256 over the files that a descriptor names, or else over all of its plugin's.

    Args:
        services: of this run.
        kind: of the descriptor, a key of `wherry.host.KINDS`.
        name: of the descriptor.
        files: that it names.
    """
    return files_digest(files) if files else services.host.code(services.host.owner(kind, name))


def agent_code(services: Services, device: str) -> str:
    """sha256 over what works for us on a device: all files of its transport's plugin, and ours."""
    transport = services.inventory.devices[device].transport
    code = services.host.code(services.host.owner("transports", transport))
    return hashlib.sha256(f"{code} {own_code('binding')}".encode()).hexdigest()


def files_digest(paths: tuple[Path, ...]) -> str:
    """sha256 over the names and contents of files."""
    lines = [f"{path.name} {hash_file(path)}" for path in sorted(paths)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_digest(entry: Entry) -> str:
    """sha256 over what an entry holds, whatever it was made from."""
    files = {name: digest for name, digest in entry.files.items() if name != NOTES}
    return hashlib.sha256(canonical(files)).hexdigest()
