"""What the host lends to a transport of its environments, for whoever connects devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wherry.engine.environments import Environments
    from wherry.requirements import Requirements


class Lending:
    """That part of `wherry.device.DeviceServices` that environments answer.

    Attributes:
        environments: of the home.
    """

    environments: Environments

    def environment(
        self, requirements: Requirements, progress: Callable[[str], None] | None = None
    ) -> Path:
        """See `wherry.device.DeviceServices`."""
        return self.environments.ensure(requirements, progress=progress)

    def environment_lock(self, requirements: Requirements) -> str:
        """See `wherry.device.DeviceServices`."""
        return self.environments.lock(requirements).sha256
