"""What goes to a board is Python 3.8 and imports nothing of ours."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import wherry
import wherry_devices.agent
from wherry.measurement import MeasureSettings
from wherry_devices.board import Board
from wherry_devices.session import BoardDevice
from wherry_devices.transport.local import LocalConnection

AGENT = Path(wherry_devices.agent.__file__).parent
CORE = Path(wherry.__file__).parent
SHIPPED = [CORE / "preprocess.py", CORE / "binding.py", CORE / "bundle" / "example.py"]
STANDARD = {
    *("__future__", "argparse", "array", "collections", "contextlib", "ctypes", "faulthandler"),
    *("fcntl", "gc", "hashlib", "importlib", "itertools", "json", "marshal", "numpy", "os"),
    *(
        "pathlib",
        "platform",
        "queue",
        "re",
        "secrets",
        "select",
        "shutil",
        "signal",
        "statistics",
        "struct",
    ),
    *("subprocess", "sys", "tempfile", "threading", "time", "traceback", "types", "typing", "zlib"),
}


@pytest.mark.parametrize(
    "path", [*sorted(AGENT.glob("*.py")), *SHIPPED], ids=lambda path: path.name
)
def test_what_goes_to_a_board_is_python_3_8(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= STANDARD
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.partition(".")[0] in STANDARD


def interpreters(imports):
    """The interpreter that runs the tests, and a Python 3.8 where this machine has one."""
    found = [os.environ.get("WHERRY_TEST_PYTHON38"), shutil.which("python3.8")]
    found += map(str, Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8"))
    code = f"import sys, {imports}; assert sys.version_info[:2] == (3, 8)"

    def fits(python):
        command = [python, "-c", code]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    return [sys.executable, *[python for python in found if python and fits(python)][:1]]


@pytest.mark.parametrize("python", interpreters("os"))
def test_the_service_runs_on(python, bench, tmp_path):
    connection = LocalConnection(bench.services())
    connection._python = python
    (tmp_path / "file").write_bytes(b"data")
    board = Board(connection, "bench")
    try:
        assert board.call("probe")["board"]["python_executable"] == python
        assert board.sensors().values["memory_available_bytes"] > 0
        board.lease(0, lambda _: None)
        folder = board.ship({"a/b": (hashlib.sha256(b"data").hexdigest(), tmp_path / "file")})
        assert (Path(folder) / "a" / "b").read_bytes() == b"data"
        assert board.execute(["/bin/echo", "x"], limit_s=10)["output"] == "x\n"
    finally:
        board.close()


@pytest.mark.parametrize("python", interpreters("numpy"))
def test_the_runner_is_hosted_on(python, bench):
    class Connection(LocalConnection):
        def provide(self, board, alternatives, progress=None):
            return python

    device = BoardDevice("bench", lambda: Connection(bench.services()))
    sample = {"x": np.ones((1, 3, 4), np.float32)}
    settings = MeasureSettings(warmup_s=0.02, duration_s=0.05)
    with (
        device.session() as session,
        session.host(bench.artifact(), bench.target(), bench.backend, {}) as runner,
    ):
        assert all((out["y"] == 2).all() for out in runner.infer([sample] * 100))
        assert len(runner.time(sample, settings).infer_ns) >= 10
        assert runner.sustain(sample, 0.1)[0]["runs"] > 0
        assert runner.peak_memory_bytes() >= 0
