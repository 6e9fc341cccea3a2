"""The plugins that are installed: the entry points of the group ``wherry``, none imported."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from wherry.errors import UsageError

GROUP = "wherry"
OWN_DISTRIBUTION = "wherry"


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """Where a plugin comes from.

    Attributes:
        name: of its entry point.
        distribution: what was installed; None: the object was given to `wherry.host.Host.load`.
        version: of the distribution.
        module: what the entry point names.
    """

    name: str
    distribution: str | None
    version: str | None
    module: str

    @property
    def own(self) -> bool:
        """Whether the plugin came with wherry itself."""
        return self.distribution == OWN_DISTRIBUTION

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}" if self.distribution else "given in process"
        return f"{self.name!r} ({origin})"


Installed = tuple[PluginInfo, importlib.metadata.EntryPoint]


def installed_plugins() -> list[Installed]:
    """Every installed plugin: wherry's own first, then by name."""
    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        assert entry.dist is not None  # entry points that were found have one
        # A distribution whose removal was interrupted may have entry points and no metadata.
        metadata = _metadata(entry.dist)
        name, version = metadata.get("Name", "?"), metadata.get("Version", "?")
        found.append((PluginInfo(entry.name, name, version, entry.value), entry))
    return sorted(found, key=lambda pair: (not pair[0].own, str(pair[0])))


def _metadata(distribution: importlib.metadata.Distribution) -> Mapping[str, str]:
    try:
        return cast("Mapping[str, str]", distribution.metadata or {})
    except FileNotFoundError:  # `importlib_metadata`, once imported, answers in Python's place
        return {}


def selected_plugins(names: Iterable[str] | None) -> list[Installed]:
    """The installed plugins that shall be loaded.

    Args:
        names: entry points or distributions to take besides wherry's own plugins, which are
            always taken; None: as ``WHERRY_PLUGINS`` says (unset: all; else names with commas).

    Raises:
        UsageError: a name is not installed.
    """
    installed = installed_plugins()
    asked = "plugins" if names is not None else "WHERRY_PLUGINS"
    if names is None:
        switch = os.environ.get("WHERRY_PLUGINS")
        if switch is None:
            return installed
        names = switch.split(",")
    wanted = {_normal(name) for name in names} - {""}
    unknown = wanted - {name for info, _ in installed for name in _names(info)}
    if unknown:
        strangers = ", ".join(sorted(info.name for info, _ in installed if not info.own))
        raise UsageError(
            f"{asked} names {min(unknown)!r}, which is no installed plugin",
            remedy=f"Installed besides wherry's own: {strangers or 'none'}.",
        )
    return [(info, entry) for info, entry in installed if info.own or wanted & _names(info)]


def _names(info: PluginInfo) -> set[str]:
    return {_normal(info.name), _normal(info.distribution or "")}


def _normal(name: str) -> str:
    """Names of distributions are compared in this form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
