"""What a bundle needs on a board, locked with hashes, and the licences of it."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wherry.device import Platform
from wherry.engine.wheels import Wheels
from wherry.errors import EnvironmentError_, UnfitError
from wherry.native import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from email.message import Message

    from wherry.bundle.gather import Material
    from wherry.requirements import Requirements
    from wherry.stages.services import Services

UNKNOWN = "unknown"
_LONGEST = 100  # of what a package says in its licence field: some paste the whole text


@dataclass(frozen=True)
class Package:
    """A package of the runtime, as its metadata has it."""

    name: str
    version: str
    licence: str


@dataclass(frozen=True)
class Runtime:
    """What the runner needs on a board.

    Attributes:
        requirements: for ``pip install --no-deps --require-hashes -r``; empty: numpy is enough.
        made_for: the machine, Python and glibc that it was resolved for.
        packages: with their licences; without any where they could not be had.
        native: file names to where they are: machine code for that machine.
        missing: why some of it is not here, in words.
    """

    requirements: str
    made_for: Mapping[str, Any]
    packages: tuple[Package, ...]
    native: Mapping[str, Path]
    missing: tuple[str, ...]


def runtime_of(material: Material, tell: Callable[[str], None]) -> Runtime:
    """The runtime for the board that was measured, as it was provided there."""
    services, backend, device = material.services, material.backend, material.target.device
    board = material.record.values["devices"].get(device) or {}
    spec = services.inventory.devices[device]
    here = services.host.transports[spec.transport].host
    wanted = _platform(board)
    missing: list[str] = []
    text = ""
    packages: tuple[Package, ...] = ()
    try:
        text, packages = _locked(backend.runtime, services, None if here else wanted)
    except EnvironmentError_ as error:
        missing.append(f"the runtime could not be resolved: {error.message}")
    native: dict[str, Path] = {}
    if backend.native is not None:
        options = material.target.options.model_dump(mode="json")
        try:
            asked = Wanted(wanted.machine, frozenset(spec.tools), options)
            files = backend.native.files(asked, services)
            native = {name: path for name, (_, path) in files.items()}
        except EnvironmentError_ as error:
            missing.append(f"its machine code could not be made: {error.message}")
    for reason in missing:
        tell(f"Left out: {reason}.")
    made_for = {"machine": wanted.machine, "python": wanted.python, "glibc": wanted.glibc}
    return Runtime(text, made_for, packages, native, tuple(missing))


def _platform(board: Mapping[str, Any]) -> Platform:
    """Of a board in a report; of this host where it does not tell."""
    facts = board.get("facts") or {}
    python = re.match(r"\d+\.\d+\.\d+", str(board.get("python", platform.python_version())))
    return Platform(
        facts.get("python_machine") or board.get("machine") or platform.machine(),
        python[0] if python else platform.python_version(),
        board.get("glibc"),
    )


def _locked(
    alternatives: Sequence[Requirements], services: Services, board: Platform | None
) -> tuple[str, tuple[Package, ...]]:
    """The lock of the first alternative that fits, and its packages.

    Args:
        alternatives: the backend's.
        services: of the run.
        board: whose wheels are meant; None: this host's environment.
    """
    wheels = Wheels(services.home, services.environments, services.cancelled)
    refused: UnfitError | None = None
    for requirements in alternatives:
        try:
            if board is None:
                text = services.environments.lock(requirements).text
                site = services.environments.site_packages(requirements)
                metadata = [path.read_text() for path in site.glob("*.dist-info/METADATA")]
            else:
                text = wheels.lock(requirements, board).text
                metadata = [*map(_metadata, wheels.fetch(requirements, board))]
        except UnfitError as error:
            refused = error
            continue
        packages = [_package(HeaderParser().parsestr(each)) for each in metadata]
        return text, tuple(sorted(packages, key=lambda each: each.name.lower()))
    if refused is not None:
        raise refused
    return "", ()


def _metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        return archive.read(name).decode(errors="replace")


def installed_package(name: str) -> Package:
    """A package that is installed here, as its metadata has it."""
    return _package(cast("Message", importlib.metadata.metadata(name)))


def _package(told: Message) -> Package:
    return Package(str(told["Name"]), str(told["Version"]), _licence(told))


def _licence(told: Message) -> str:
    """As the package says it: the expression, else its classifiers, else its short field."""
    # by get: where importlib_metadata answers for Python's, what is missing is a KeyError
    if expression := told.get("License-Expression"):
        return str(expression)
    classifiers: Iterable[str] = told.get_all("Classifier") or ()
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]
    named = [name for name in named if name != "OSI Approved"]
    if named:
        return ", ".join(named)
    field = " ".join(str(told.get("License") or "").split())
    return field if 0 < len(field) <= _LONGEST and field.upper() != "UNKNOWN" else UNKNOWN
