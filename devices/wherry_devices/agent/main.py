"""The agent's start: its name, its wires, and the role that it plays.

``wherry-agent ROOT service --silence S`` serves the board: lease, store, sensors, provisioning.
``wherry-agent ROOT run --service PID`` hosts one runner.
``wherry-agent ROOT guard TOKEN`` gives the board's clocks back when the service is gone.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import importlib
import sys
from pathlib import Path

from .frames import FrameError
from .wire import HostSilent, Wire

NAME = b"wherry-agent"
_PR_SET_NAME = 15


def main() -> None:
    """Run a role; the exit status is 0 where the host ended the conversation."""
    faulthandler.enable(all_threads=False)
    _name_process()
    parser = argparse.ArgumentParser(prog="wherry-agent")
    parser.add_argument("root", type=Path, help="the folder of ours on this board")
    roles = parser.add_subparsers(dest="role", required=True)
    service = roles.add_parser("service")
    service.add_argument("--lease", type=Path, required=True, help="the lease file")
    service.add_argument("--silence", type=float, required=True, help="seconds")
    run = roles.add_parser("run")
    guard = roles.add_parser("guard")
    guard.add_argument("token", help="of the record of what was changed")
    for role in (service, guard):
        role.add_argument(
            "--system", type=Path, default=Path("/"), help="where /sys, /proc and tools are"
        )
    run.add_argument("--service", type=int, required=True, help="process id of our service agent")
    arguments = parser.parse_args()
    try:
        if arguments.role == "service":
            from .service import Service

            Service(
                Wire(arguments.silence), arguments.root, arguments.lease, arguments.system
            ).serve()
        elif arguments.role == "guard":
            from .stabilise import guard as stand_guard

            stand_guard(arguments.root, arguments.token, arguments.system)
        else:
            _import_numpy()
            from .hosting import Hosting

            Hosting(Wire(), arguments.root, arguments.service).serve()
    except (HostSilent, FrameError, OSError) as error:  # of the link, or of a disk that refuses
        sys.stderr.write(f"wherry-agent: {error}\n")
        sys.exit(1)


def _import_numpy() -> None:
    """With its bytecode kept, unlike ours, which is there: without it numpy takes twice as long."""
    sys.dont_write_bytecode = False
    importlib.import_module("numpy")
    sys.dont_write_bytecode = True


def _name_process() -> None:
    """Be ``wherry-agent`` in the process list; the arguments say so anyway."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME, 0, 0, 0)
    except (OSError, AttributeError):  # a C library without prctl: the arguments have to do
        return
