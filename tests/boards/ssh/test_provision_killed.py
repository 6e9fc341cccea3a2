"""A host that is killed while it makes a runtime's environment on a board over SSH."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

from loading import load

from wherry.device import DeviceSpec
from wherry.engine import uv
from wherry_devices.agent.environments import MARKER
from wherry_devices.provision import Provisioner
from wherry_devices.session import BoardDevice
from wherry_devices.ssh.parameters import SshParameters
from wherry_devices.transport.ssh import SshConnection, reach

HOST = """
    import sys
    sys.path.insert(0, {support!r})
    from pathlib import Path
    from loading import load
    here = load(Path({here!r}))
    here.provide({values!r}, Path({home!r}), {uv!r}, lambda text: print(text, flush=True))
"""


def provide(values, home, script, say):
    """Provide numpy of wheels made here, by a uv that is a script; its Python on the board."""
    shelves = load(Path(__file__).parents[1] / "test_provision.py")
    shelf = shelves.Shelf(home, home / "shelf")
    shelf.uv(script)
    parameters = SshParameters.model_validate(values)
    spec = DeviceSpec("bench", "ssh", parameters)

    def connect():
        link = reach(spec, threading.Event())
        return SshConnection(link, parameters, shelf, Provisioner(shelf))

    return BoardDevice("bench", connect).provision([shelves.NUMPY], say)


def test_a_host_that_is_killed_while_it_makes_an_environment(
    board, workstation, tmp_path, free, eventually
):
    root = board.home / ".wherry"
    lease = str(board.home / "lease")
    values = workstation.parameters(board, lease=lease, root=str(root), python=sys.executable)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    told = tmp_path / "maker"
    slow = f'#!/bin/sh\necho $$ > "{told}.new"; mv "{told}.new" "{told}"; exec sleep 600\n'
    code = HOST.format(
        support=str(Path(load.__code__.co_filename).parent),
        here=__file__,
        values=values,
        home=str(tmp_path / "one"),
        uv=slow,
    )
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.DEVNULL,
        env=workstation.environment(),
    ) as host:
        assert eventually(told.exists, 60)
        host.kill()
    maker = Path("/proc", told.read_text().strip())
    assert eventually(lambda: not maker.exists())
    assert free(board)

    said = []
    quick = f'#!/bin/sh\nexec "{uv.binary()}" "$@"\n'
    python = provide(values, tmp_path / "two", quick, said.append)
    code = "import numpy; print(numpy.NAME)"
    assert subprocess.check_output([python, "-c", code]) == b"numpy\n"
    (directory,) = (path for path in (root / "environments").iterdir() if path.is_dir())
    assert (directory / MARKER).is_file()
    assert said[0] == "fetching wheels" and not [text for text in said if "waiting" in text]
    assert free(board)
