"""Boards over SSH: in the test's process, real sshd on loopback, and the links to them."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(stem: str) -> ModuleType:
    """A file of this folder, by path: pytest's importlib mode puts no test folder on sys.path."""
    name = f"wherry_ssh_{stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{stem}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before execution: dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def workstation(tmp_path, monkeypatch):
    """The user's home folder: HOME of this process and its children."""
    made = _load("workstation").Workstation(tmp_path / "workstation")
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return made


@pytest.fixture
def stack():
    """What tests enter is left when they end, the last first."""
    with contextlib.ExitStack() as opened:
        yield opened


@pytest.fixture
def inprocess(tmp_path, stack):
    """Makes boards inside this process: ``inprocess(shell=..., password=...)``."""
    module = _load("inprocess")
    count = 0

    def make(**options):
        nonlocal count
        count += 1
        return stack.enter_context(module.InProcessBoard(tmp_path / f"board{count}", **options))

    return make


@pytest.fixture
def board(inprocess, workstation):
    """A board inside this process that our key enters and whose host key we know."""
    made = inprocess()
    workstation.enter(made)
    return made


@pytest.fixture
def proxy(stack):
    """Puts a link in front of a board: ``proxy(board, delay_s=..., rate=...)``."""
    module = _load("proxy")
    return lambda board, **options: stack.enter_context(
        module.Proxy((board.host, board.port), **options)
    )


@pytest.fixture
def noisy_shell(tmp_path):
    """A login shell that prints, and waits, first: ``noisy_shell(text, sleep_s)`` is its path."""
    return lambda text, sleep_s=0.0: _load("inprocess").noisy_shell(
        tmp_path / "noisy-shell", text, sleep_s
    )
