"""The boards of the inventory for verbs that run no manifest: one by one, or all at once."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wherry.asking import AT_ONCE, at_once
from wherry.engine.lending import Lending
from wherry.errors import UsageError, WherryError

if TYPE_CHECKING:
    from wherry.device import Device, DeviceSpec
    from wherry.engine.environments import Environments
    from wherry.host import Host
    from wherry.inventory import Inventory

T = TypeVar("T")


@dataclass(frozen=True)
class Bench(Lending):
    """The inventory, and what a transport is lent to reach it (`wherry.device.DeviceServices`)."""

    host: Host
    inventory: Inventory
    environments: Environments
    home: Path
    cancelled: threading.Event

    @classmethod
    def open(cls, host: Host | None) -> Bench:
        """With the inventories of this folder and of the user."""
        from wherry.engine.environments import Environments
        from wherry.home import home
        from wherry.host import Host
        from wherry.inventory import load_inventory

        host = host or Host.load()
        cancelled = threading.Event()
        inventory = load_inventory(Path.cwd(), host)
        return cls(host, inventory, Environments(home(), cancelled), home(), cancelled)

    def device(self, spec: DeviceSpec) -> Device:
        """The device, connected; nothing is reached yet."""
        return self.host.transports[spec.transport].connect(spec, self)

    def specs(self, names: Iterable[str]) -> list[DeviceSpec]:
        """The inventory's entries; raises `UsageError` for a name that it does not have."""
        devices = self.inventory.devices
        return [devices[known_name(name, devices, "device")] for name in names]

    def each(
        self, names: Iterable[str], ask: Callable[[Device], T], bound: int = AT_ONCE
    ) -> dict[str, T | WherryError]:
        """What ``ask`` returns for each device, or why it cannot; many at the same time."""
        specs = {spec.name: spec for spec in self.specs(names)}
        return at_once(specs, lambda name: ask(self.device(specs[name])), self.cancelled, bound)


def known_name(name: str, among: Collection[str], kind: str) -> str:
    """The name, if it is there; raises `UsageError` with the nearest one."""
    if name not in among:
        near = difflib.get_close_matches(name, among, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"there is no {kind} {name!r}",
            remedy=f"{hint}There are: {', '.join(among) or 'none'}.",
        )
    return name
