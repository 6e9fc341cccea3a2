"""The plugin: the transports, and the default way to profile a target."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from wherry.device import Transport
from wherry.hookspecs import hookimpl
from wherry_devices.transport.local import local_transport
from wherry_devices.transport.ssh import ssh_transport

if TYPE_CHECKING:
    from wherry.artifact import Artifact
    from wherry.context import ProfileContext
    from wherry.dataset import Dataset
    from wherry.device import Session
    from wherry.measurement import Measurement
    from wherry.target import Target


@hookimpl
def wherry_transports() -> Iterable[Transport]:
    """The local device, which is a board like any other, and boards behind SSH servers."""
    yield local_transport()
    yield ssh_transport()


@hookimpl(trylast=True)
def wherry_profile(
    artifact: Artifact,
    target: Target,
    dataset: Dataset | None,
    session: Session,
    context: ProfileContext,
) -> Measurement:
    """For every backend whose plugin does not profile by itself."""
    from wherry_devices.profile import profile

    return profile(artifact, target, dataset, session, context)
