"""Devices that targets ask for by tags: a run chooses one for each before it plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wherry.errors import DeviceError, Interrupted, WherryError
from wherry.tags import is_tagged, tagged, tags_of

if TYPE_CHECKING:
    from wherry.manifest import Gate, Manifest
    from wherry.stages.context import Services
    from wherry.target import Target

WAIT_S = 600.0
"""How long a run waits where all devices with its tags are in use."""

_POLL_S = 5.0
_AT_ONCE = 32  # devices that are asked at the same time


@dataclass(frozen=True)
class _State:
    """What a device said: neither of these means that it is free."""

    used_by: str = ""
    lost: str = ""


def choose(
    manifest: Manifest,
    services: Services,
    *,
    earlier: Mapping[str, str],
    tell: Callable[[str], None],
) -> dict[str, str]:
    """A device for each of the manifest's tags, as `wherry.tags` has them.

    Of the devices with the tags the first in the inventory that is free is taken, one that
    nothing else in this manifest uses before one that something does. No lease is taken yet.

    Args:
        manifest: names the tags.
        services: reach the devices.
        earlier: what another run has chosen, and this one goes on with.
        tell: told what was chosen, and who has the devices while we wait.

    Raises:
        DeviceError: none can be reached, or none became free in time.
        Interrupted: the run was stopped.
    """
    devices = services.inventory.devices
    words = dict.fromkeys(t.device for t in manifest.targets if is_tagged(t.device))
    chosen = {word: earlier[word] for word in words if earlier.get(word) in tagged(word, devices)}
    taken = {target.device for target in manifest.targets} | set(chosen.values())
    waiting = {word: tagged(word, devices) for word in words if word not in chosen}
    told: set[tuple[str, ...]] = set()
    lost: dict[str, str] = {}
    deadline = time.monotonic() + WAIT_S
    while waiting:
        states = _ask({name for names in waiting.values() for name in names}, services)
        lost |= {name: state.lost for name, state in states.items() if state.lost}
        for word, names in list(waiting.items()):
            free = [name for name in names if states[name] == _State()]
            used = {name: states[name].used_by for name in names if states[name].used_by}
            if free:
                chosen[word] = next((name for name in free if name not in taken), free[0])
                taken.add(chosen[word])
                del waiting[word]
                tell(f"the device with the tags {_shown(word)} is {chosen[word]}")
                continue
            holders = "; ".join(f"{name} by {holder}" for name, holder in used.items())
            if not used:
                raise DeviceError(
                    f"no device with the tags {_shown(word)} can be reached: "
                    + "; ".join(lost[name] for name in tagged(word, devices) if name in lost),
                    remedy="Check that one of them is up.",
                )
            if time.monotonic() >= deadline:
                raise DeviceError(
                    f"all devices with the tags {_shown(word)} are in use: {holders}; "
                    f"waited {WAIT_S:g} s",
                    remedy="Try again when one is free.",
                )
            if (word, *used) not in told:
                told.add((word, *used))
                tell(f"all devices with the tags {_shown(word)} are in use: {holders}; waiting")
            waiting[word] = tuple(used)
        if waiting and services.cancelled.wait(_POLL_S):
            raise Interrupted("stopped while waiting for a device")
    return chosen


def with_devices(manifest: Manifest, chosen: Mapping[str, str]) -> Manifest:
    """The same manifest, where chosen devices stand for their tags; equal rows become one."""
    targets: dict[tuple[str, ...], Target] = {}

    def device(word: str) -> str:
        return chosen.get(word, word)

    def concrete(target: Target) -> Target:
        made = replace(target, device=device(target.device))
        options = made.options.model_dump_json()
        return targets.setdefault((made.backend, made.precision, made.device, options), made)

    def gate(asked: Gate) -> Gate:
        where = asked.where
        if where.device is None:
            return asked
        return replace(asked, where=replace(where, device=frozenset(map(device, where.device))))

    rows = [(variant, concrete(target)) for variant, target in manifest.rows]
    return replace(
        manifest,
        targets=tuple(targets.values()),
        rows=tuple({(variant, id(target)): (variant, target) for variant, target in rows}.values()),
        gates=tuple(map(gate, manifest.gates)),
    )


def _ask(names: Iterable[str], services: Services) -> Mapping[str, _State]:
    """The states of devices, asked at the same time."""

    def state(name: str) -> _State:
        try:
            user = services.device(name).probe().facts.get("in_use_by")
        except Interrupted:
            raise
        except WherryError as error:
            text = str(error)
            return _State(lost=text if name in text else f"{name}: {text}")
        return _State(used_by=user or "")

    listed = list(names)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="wherry-ask") as pool:
        try:
            return dict(zip(listed, pool.map(state, listed), strict=True))
        except KeyboardInterrupt:
            services.cancelled.set()  # ends the sessions, so that the pool's threads can be joined
            raise Interrupted("stopped while asking for a free device") from None


def _shown(word: str) -> str:
    return ", ".join(tags_of(word))
