"""A runtime on boards that needs no index: the tests' own interpreter, on a board of this machine.

Run as a program, it is ``wherry`` with that.
"""

from __future__ import annotations

import sys

from wherry.cli import main
from wherry_devices import provision


class OwnRuntime:
    """Stands for `wherry_devices.provision.Provisioner`."""

    def __init__(self, services) -> None:
        pass

    def provide(self, board, alternatives, progress=None) -> str:
        return sys.executable

    def lock(self, board, alternatives) -> str:
        return "the tests' own interpreter"


if __name__ == "__main__":
    provision.Provisioner = OwnRuntime
    sys.exit(main())
