"""The machine code of the runtime: Caffe2's library for a board's machine, and our program.

PyTorch held Caffe2 until 1.10; since 1.11 its packages are without. Two wheels of the package index
serve here, and only their shared objects: no Python of the board imports them, and the board's own
Python may be any. Both are pinned by sha256, the more so as ``libtorch`` is a third party's upload
of a build of PyTorch 1.2.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.artifact import hash_file
from wherry.device import Platform
from wherry.native import Files, Native, Wanted, build, take
from wherry.requirements import Requirements
from wherry_caffe2.runner import FLAGS, VERSION

if TYPE_CHECKING:
    from wherry.device import DeviceServices

SOURCE = Path(__file__).with_name("engine.cc")


@dataclass(frozen=True)
class Library:
    """A wheel that holds Caffe2.

    Attributes:
        requirements: the package, pinned.
        python: version of CPython that the wheel is for.
        folder: in the wheel.
        names: of the shared objects; Caffe2 is in the first.
    """

    requirements: Requirements
    python: str
    folder: str
    names: tuple[str, ...]


LIBRARIES: Mapping[str, Library] = {
    "x86_64": Library(
        Requirements(
            no_deps=("libtorch==1.2.0.1",),
            hashes=("39a83935a25e2326ba51df389f92b18533c6edc07d7662afc29d9ea5b4add28d",),
        ),
        "3.10.0",
        "libtorch/lib",
        ("libtorch.so", "libc10.so", "libgomp-8bba0e50.so.1"),
    ),
    "aarch64": Library(
        Requirements(
            no_deps=("torch==1.10.2",),
            hashes=("8f3fd2e3ffc3bb867133fdf7fbcc8a0bb2e62a5c0696396f51856f5abf9045a8",),
        ),
        "3.10.0",
        "torch/lib",
        ("libtorch_cpu.so", "libc10.so", "libgomp-d22c30c5.so.1"),
    ),
}
"""Machine to the library that wherry brings there; others have to name their own."""

GLIBC = "2.17"  # of both wheels, and the oldest that the program runs with


def _identity(machine: str) -> str:
    library = LIBRARIES.get(machine)
    parts = [hash_file(SOURCE), *FLAGS, *(library.requirements.hashes if library else ())]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _files(wanted: Wanted, services: DeviceServices) -> Files:
    """The library, unless the board's owner or the target names another; source and program."""
    files = {SOURCE.name: (hash_file(SOURCE), SOURCE)}
    program = build(SOURCE, wanted.machine, FLAGS, services.home)
    if program is not None:
        files["engine"] = (hash_file(program), program)
    library = LIBRARIES.get(wanted.machine)
    named = "libtorch" in wanted.tools or wanted.options.get("library")
    if library is not None and not named:
        (wheel,) = services.wheels(
            library.requirements, Platform(wanted.machine, library.python, GLIBC)
        )
        version = _version(library, services.home)
        files[version.name] = (hash_file(version), version)
        members = {name: f"{library.folder}/{name}" for name in library.names}
        files.update(take(wheel, members))
    return files


def _version(library: Library, home: Path) -> Path:
    """A file that says which library it is, for the record."""
    (package,) = library.requirements.no_deps
    path = home / "native" / package / VERSION
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(f"{package}\n", encoding="utf-8")
        part.replace(path)
    return path


LICENCES = {
    **dict.fromkeys((SOURCE.name, SOURCE.stem, VERSION), "Apache-2.0 (wherry's own)"),
    **{
        name: "GPL-3.0-or-later WITH GCC-exception-3.1 (GCC's)"
        if name.startswith("libgomp")
        else "BSD-3-Clause (PyTorch's own; what it links has others)"
        for library in LIBRARIES.values()
        for name in library.names
    },
}

NATIVE = Native(_identity, _files, LICENCES)
