"""What the backends' tests share: the generated networks, and the names to run over."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _networks() -> ModuleType:
    """`networks.py`, loaded by path: pytest's importlib mode puts no test folder on sys.path."""
    name = "wherry_conformance_networks"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("networks.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before execution: dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``network_name`` runs once for each network."""
    if "network_name" in metafunc.fixturenames:
        metafunc.parametrize("network_name", sorted(_networks().NETWORKS))


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """The module `networks`: ``networks.NETWORKS[name]()`` builds, ``networks.sample`` feeds."""
    return _networks()
