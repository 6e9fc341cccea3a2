"""The inventory: which devices there are, from the user's ``devices.yaml`` and the project's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from wherry.device import DeviceSpec
from wherry.manifest.problems import Problems, nearest, show, unknown_key, validate
from wherry.manifest.schema import NAME
from wherry.manifest.source import Node, Place, read_file

if TYPE_CHECKING:
    from wherry.host import Host

FILE = "devices.yaml"
LOCAL = "local"


@dataclass(frozen=True)
class Inventory:
    """The devices by name, and where each is written.

    Attributes:
        devices: ``local`` is always among them where a plugin reaches the host itself.
        files: those that were read; the later ones win.
    """

    devices: Mapping[str, DeviceSpec]
    files: tuple[Path, ...]
    places: Mapping[str, Place]

    def location(self, name: str) -> str:
        """``file:line:column`` of a device; for ``local`` that no file names, a word for that."""
        place = self.places.get(name)
        return "built in" if place is None else str(place)


def config_directory() -> Path:
    """``$WHERRY_CONFIG``, else the user's config folder."""
    named = os.environ.get("WHERRY_CONFIG")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_config_path

    return user_config_path("wherry")


class _Beside(BaseModel):
    """What may stand beside the transport."""

    model_config = ConfigDict(extra="forbid")

    tags: list[Annotated[str, Field(pattern=NAME)]] = Field(
        default=[], description="words that group devices"
    )
    tools: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(pattern=r"^~?/.")]] = (
        Field(
            default={},
            description="where tools are on the board that wherry does not bring: absolute paths",
        )
    )


_BESIDE = tuple(_Beside.model_fields)


def load_inventory(
    manifest_dir: Path | None, host: Host, *, env: Mapping[str, str] | None = None
) -> Inventory:
    """Read the user's ``devices.yaml`` and the one in ``manifest_dir``, which wins by name.

    Args:
        manifest_dir: the manifest's folder; None: the user's own devices alone.
        host: knows the transports.
        env: for ``${NAME}``; None: the process's own.

    Raises:
        ManifestError: something is wrong; all problems of the files are listed.
    """
    env = os.environ if env is None else env
    problems = Problems()
    devices: dict[str, DeviceSpec] = {}
    places: dict[str, Place] = {}
    for transport in host.transports.values():
        if transport.host and LOCAL not in devices:
            devices[LOCAL] = DeviceSpec(LOCAL, transport.name, transport.parameters())
    folders = [config_directory(), *([manifest_dir] if manifest_dir is not None else [])]
    found = (folder / FILE for folder in folders)
    files = tuple({path.resolve(): path for path in found if path.exists()}.values())
    for file in files:
        root = read_file(file, env)
        for name, node in _entries(root, problems).items():
            spec = _device(name, node, root, host, problems)
            if spec is not None:
                devices[name] = spec
                places[name] = node.place
    problems.check()
    return Inventory(devices, files, places)


def _entries(root: Node, problems: Problems) -> Mapping[str, Node]:
    assert isinstance(root.value, dict)
    for key, node in root.value.items():
        if key != "devices":
            problems.add(node.place, *unknown_key(key, ["devices"]))
    node = root.value.get("devices", Node({}, root.place))
    if not isinstance(node.value, dict):
        problems.add(
            node.place,
            f"devices must be a mapping of names to devices; found {show(node.plain())}",
            "For example `devices: {bench: {local: {}}}`.",
        )
        return {}
    return node.value


def _device(name: str, node: Node, root: Node, host: Host, problems: Problems) -> DeviceSpec | None:
    """One entry: a transport with its parameters, tags, and tools."""
    if not re.fullmatch(NAME, name):
        problems.add(
            node.place,
            f"{show(name)} is no name for a device",
            "Take letters, digits, dots, dashes and underscores.",
        )
    transports = ", ".join(host.transports)
    if not isinstance(node.value, dict):
        problems.add(
            node.place,
            f"device {name} must be a mapping of a transport to its parameters; "
            f"found {show(node.plain())}",
            f"The transports are: {transports}.",
        )
        return None
    named = [key for key in node.value if key in host.transports]
    for key in node.value:
        if key not in {*named, *_BESIDE}:
            near = nearest(key, [*host.transports, *_BESIDE])
            problems.add(
                root.at(("devices", name, key)),
                f"device {name} has no transport {key!r} to use: no plugin in use brings it",
                (f"Did you mean {near!r}? " if near else "") + f"The transports are: {transports}.",
            )
    if len(named) != 1:
        if named or not set(node.value).difference(_BESIDE):
            problems.add(
                node.place,
                f"device {name} must name one transport; found {', '.join(named) or 'none'}",
                f"The transports are: {transports}.",
            )
        return None
    transport = host.transports[named[0]]
    if name == LOCAL and not transport.host:
        problems.add(
            node.place,
            f"{LOCAL!r} is this machine itself, and {transport.name} reaches others",
            "Give the device another name.",
        )
    where = ("devices", name)
    said = {key: node.value[key] for key in _BESIDE if key in node.value}
    beside: _Beside | None = _Beside()
    if said:
        beside = validate(_Beside, Node(said, node.place), root, where, problems)
    parameters = validate(
        transport.parameters,
        node.value[transport.name],
        root,
        (*where, transport.name),
        problems,
        empty=True,
    )
    if beside is None or parameters is None:
        return None
    return DeviceSpec(name, transport.name, parameters, tuple(beside.tags), beside.tools)
