"""Devices that a manifest asks for by tags: ``device: {tags: [jetson, fast]}``.

Until a run has chosen one, such a device stands in targets as a word, ``tags:fast+jetson``, which
is no name that a device can have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wherry.device import DeviceSpec

_BEFORE, _BETWEEN = "tags:", "+"


def word_of(tags: Iterable[str]) -> str:
    """``tags:fast+jetson``: their order says nothing."""
    return _BEFORE + _BETWEEN.join(sorted(set(tags)))


def is_tagged(device: str) -> bool:
    """Whether a target's device is asked for by tags."""
    return device.startswith(_BEFORE)


def tags_of(word: str) -> tuple[str, ...]:
    """What `word_of` was made of."""
    return tuple(word.removeprefix(_BEFORE).split(_BETWEEN))


def tagged(word: str, devices: Mapping[str, DeviceSpec]) -> tuple[str, ...]:
    """The devices that have all of a word's tags, in the inventory's order."""
    wanted = set(tags_of(word))
    return tuple(name for name, spec in devices.items() if wanted <= set(spec.tags))
