"""What the host lends to a transport: environments on the host, and wheels for boards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.engine.wheels import Wheels

if TYPE_CHECKING:
    import threading

    from wherry.device import Platform
    from wherry.engine.environments import Environments
    from wherry.requirements import Requirements


class Lending:
    """That part of `wherry.device.DeviceServices` that is the same for all who connect devices.

    Attributes:
        environments: of the home.
        home: the folder of wherry's own files.
        cancelled: see there.
    """

    environments: Environments
    home: Path
    cancelled: threading.Event

    def environment(
        self, requirements: Requirements, progress: Callable[[str], None] | None = None
    ) -> Path:
        """See `wherry.device.DeviceServices`."""
        return self.environments.ensure(requirements, progress=progress)

    def environment_lock(self, requirements: Requirements) -> str:
        """See `wherry.device.DeviceServices`."""
        return self.environments.lock(requirements).sha256

    def wheels(
        self,
        requirements: Requirements,
        platform: Platform,
        progress: Callable[[str], None] | None = None,
    ) -> tuple[Path, ...]:
        """See `wherry.device.DeviceServices`."""
        return self._wheels().fetch(requirements, platform, progress)

    def wheels_lock(self, requirements: Requirements, platform: Platform) -> str:
        """See `wherry.device.DeviceServices`."""
        return self._wheels().lock(requirements, platform).sha256

    def _wheels(self) -> Wheels:
        return Wheels(self.home, self.environments, self.cancelled)
