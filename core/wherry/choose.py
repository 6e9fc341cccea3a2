"""Devices that targets ask for by tags: a run chooses one for each before it plans."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wherry.asking import at_once
from wherry.errors import DeviceError, DeviceTakenError, Interrupted, WherryError
from wherry.tags import is_tagged, tagged, tags_of

if TYPE_CHECKING:
    from wherry.manifest import Gate, Manifest
    from wherry.stages.services import Services
    from wherry.target import Target

WAIT_S = 600.0
"""How long a run waits where all devices with its tags are in use."""

_POLL_S = 5.0
_JITTER = 0.5  # share of it: two runs that stand in each other's way do not go on doing so


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
    nothing else in this manifest uses before one that something does. Its lease is taken at once
    and kept (`Services.hold`), so that no other run chooses it too. Where there is none for some
    of the tags, none is held for the others while we wait: runs would wait for each other.

    Args:
        manifest: names the tags.
        services: reach the devices, and hold them.
        earlier: what another run has chosen, and this one goes on with.
        tell: told what was chosen, and who has the devices while we wait.

    Raises:
        DeviceError: none can be reached, or none became free in time.
        Interrupted: the run was stopped.
    """
    devices = services.inventory.devices
    words = dict.fromkeys(t.device for t in manifest.targets if is_tagged(t.device))
    known = {word: earlier[word] for word in words if earlier.get(word) in tagged(word, devices)}
    wanted = {word: tagged(word, devices) for word in words if word not in known}
    used = {target.device for target in manifest.targets} | set(known.values())
    told: set[tuple[str, ...]] = set()
    lost: dict[str, str] = {}
    deadline = time.monotonic() + WAIT_S
    while wanted:
        states = _ask({name for names in wanted.values() for name in names}, services)
        chosen, missing = _hold(wanted, states, used, services)
        if missing is None:
            for word, name in chosen.items():
                tell(f"the device with the tags {_shown(word)} is {name}")
            return known | chosen
        lost |= {name: state.lost for name, state in states.items() if state.lost}
        wanted = {
            word: tuple(name for name in names if name not in lost)
            for word, names in wanted.items()
        }
        for word, names in wanted.items():
            if not names:
                raise DeviceError(
                    f"no device with the tags {_shown(word)} can be reached: "
                    + "; ".join(lost[name] for name in tagged(word, devices)),
                    remedy="Check that one of them is up.",
                )
        users = {name: states[name].used_by for name in wanted[missing]}
        holders = "; ".join(f"{name} by {holder}" for name, holder in users.items())
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"all devices with the tags {_shown(missing)} are in use: {holders}; "
                f"waited {WAIT_S:g} s",
                remedy="Try again when one is free.",
            )
        if (missing, *users) not in told:
            told.add((missing, *users))
            tell(f"all devices with the tags {_shown(missing)} are in use: {holders}; waiting")
        pause_s = _POLL_S * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 -- no secret
        if services.cancelled.wait(pause_s):
            raise Interrupted("stopped while waiting for a device")
    return known


def _hold(
    wanted: Mapping[str, tuple[str, ...]],
    states: dict[str, _State],
    used: set[str],
    services: Services,
) -> tuple[dict[str, str], str | None]:
    """Hold a free device for each of the words; the devices, and None.

    Where a word gets none, it is named instead, and nothing is held. What turns out to be taken,
    or lost, is written into ``states``.
    """
    chosen: dict[str, str] = {}
    for word, names in wanted.items():
        taken = used | set(chosen.values())
        for name in sorted(names, key=taken.__contains__):  # the inventory's order among equals
            if states[name] != _State():
                continue
            try:
                if name not in chosen.values():
                    services.hold(name)
            except DeviceTakenError:
                states[name] = _State(used_by="another, who was faster")
            except DeviceError as error:
                states[name] = _State(lost=_words(error, name))
            else:
                chosen[word] = name
                break
        if word not in chosen:
            for name in set(chosen.values()):
                services.release(name)
            return {}, word
    return chosen, None


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
    origins = {
        (variant, made.id): manifest.origins[variant, target.id]
        for (variant, target), (_, made) in zip(manifest.rows, rows, strict=True)
    }
    return replace(
        manifest,
        origins=origins,
        targets=tuple(targets.values()),
        rows=tuple({(variant, id(target)): (variant, target) for variant, target in rows}.values()),
        gates=tuple(map(gate, manifest.gates)),
    )


def _ask(names: Iterable[str], services: Services) -> dict[str, _State]:
    """The states of devices, asked at the same time."""
    answers = at_once(
        names,
        lambda name: services.device(name).probe().facts.get("in_use_by"),
        services.cancelled,
    )
    return {
        name: _State(lost=_words(answer, name))
        if isinstance(answer, WherryError)
        else _State(used_by=answer or "")
        for name, answer in answers.items()
    }


def _words(error: WherryError, name: str) -> str:
    text = str(error)
    return text if name in text else f"{name}: {text}"


def _shown(word: str) -> str:
    return ", ".join(tags_of(word))
